//! What a place was seen to do. Stores fail open: some accept a header and ignore it. So each of these
//! is tried (`trial`, `s3/trial`), never read from a manual or an answer's header.

use serde::{Deserialize, Serialize};

/// More than this and signatures are refused by some stores at the next small jump (SigV4 allows 15
/// minutes), and times in listings and in our own records cannot be compared by eye.
const SKEW_WORTH_SAYING_SECONDS: u64 = 60;

/// What a place was seen to do when it was last tried. Each is a plain fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Writing an object that exists is refused by the place itself.
    pub put_if_absent: bool,
    /// Of writers of one name at the same moment exactly one wins.
    pub put_if_absent_raced: bool,
    /// The same refusal holds for an object written in parts.
    pub put_if_absent_multipart: bool,
    /// A body that changed on the way is refused by its MD5 sum.
    pub checksum_md5: bool,
    /// A body that changed on the way is refused by its SHA-256 sum.
    pub checksum_sha256: bool,
    /// The answer to a write names the MD5 sum of what was stored.
    pub etag_is_md5: bool,
    /// A deleted object's content stays and can be brought back.
    pub versions: bool,
    /// A locked object cannot be deleted.
    pub object_lock: bool,
    /// How far the place's clock was ahead of this machine's; negative: behind. Differences within the
    /// exactness of the trial (about two seconds on S3) count as none.
    pub clock_skew_seconds: i64,
}

impl Capabilities {
    /// Why no repository can be kept here; `None` if one can. The chain of restore points relies on
    /// compare-and-swap: two writers of one name must not both believe that they won.
    #[must_use]
    pub fn unfit(&self) -> Option<&'static str> {
        if !self.put_if_absent {
            Some("it ignores If-None-Match: two writers of one name could overwrite each other")
        } else if !self.put_if_absent_raced {
            Some(
                "it checks If-None-Match before it writes, not while: of two writers of one name at \
                 the same moment both could be told that they won",
            )
        } else {
            None
        }
    }

    /// What it did at an earlier trial and does no more, in words that follow "it no longer"; empty when
    /// all is as it was. A store's upgrade, a proxy put before it or another bucket policy does this.
    #[must_use]
    pub fn lost_since(&self, earlier: &Self) -> Vec<&'static str> {
        [
            (
                earlier.put_if_absent && !self.put_if_absent,
                "refuses to overwrite an object: two writers of one name could overwrite each other",
            ),
            (
                earlier.put_if_absent_raced && self.put_if_absent && !self.put_if_absent_raced,
                "lets exactly one of racing writers win",
            ),
            (
                earlier.put_if_absent_multipart && !self.put_if_absent_multipart,
                "refuses to overwrite with an object written in parts",
            ),
            (
                earlier.checksum_md5 && !self.checksum_md5,
                "refuses a body whose MD5 sum is wrong",
            ),
            (
                earlier.checksum_sha256 && !self.checksum_sha256,
                "refuses a body whose SHA-256 sum is wrong",
            ),
            (
                earlier.versions && !self.versions,
                "keeps versions: what is deleted from now on is gone",
            ),
            (
                earlier.object_lock && !self.object_lock,
                "honours Object Lock: what is stored from now on can be deleted by whoever holds the \
                 credentials",
            ),
        ]
        .into_iter()
        .filter_map(|(is_lost, what)| is_lost.then_some(what))
        .collect()
    }

    /// What it does, for people: one sentence for each fact, good or bad.
    #[must_use]
    pub fn sentences(&self) -> Vec<String> {
        let said = |good: bool, yes: &str, no: &str| (if good { yes } else { no }).to_owned();
        let mut out = vec![
            self.unfit().map_or_else(
                || {
                    "refuses to overwrite: of racing writers of one name exactly one wins"
                        .to_owned()
                },
                |reason| reason.trim_start_matches("it ").to_owned(),
            ),
            said(
                self.put_if_absent_multipart,
                "refuses to overwrite with objects written in parts, too",
                "ignores If-None-Match for objects written in parts: dr asks before and compares after",
            ),
            said(
                self.checksum_md5 || self.checksum_sha256,
                "refuses a body that changed on the way",
                "checks no checksum of what it is sent: only reading back shows a change on the way",
            ),
            said(
                self.versions,
                "keeps versions: a deleted object can be brought back",
                "keeps no versions: a deleted object is gone",
            ),
            said(
                self.object_lock,
                "honours Object Lock: a locked object cannot be deleted",
                "has no Object Lock, or ignores its headers: nothing protects an object from whoever \
                 holds the credentials",
            ),
        ];
        if self.clock_skew_seconds.unsigned_abs() > SKEW_WORTH_SAYING_SECONDS {
            let seconds = self.clock_skew_seconds.unsigned_abs();
            let side = if self.clock_skew_seconds > 0 {
                "ahead of"
            } else {
                "behind"
            };
            out.push(format!(
                "its clock is {seconds} s {side} this machine's: set both right (S3 refuses requests \
                 from 15 minutes on)"
            ));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_overwrites_is_unfit_and_says_why() {
        let good = Capabilities {
            put_if_absent: true,
            put_if_absent_raced: true,
            ..Capabilities::default()
        };
        assert_eq!(good.unfit(), None);
        let ignores = Capabilities {
            put_if_absent: false,
            ..good
        };
        assert!(ignores.unfit().unwrap().contains("ignores If-None-Match"));
        assert!(
            ignores
                .sentences()
                .first()
                .unwrap()
                .starts_with("ignores If-None-Match: two writers of one")
        );
        let races = Capabilities {
            put_if_absent_raced: false,
            ..good
        };
        assert!(races.unfit().unwrap().contains("at the same moment"));
    }

    #[test]
    fn only_what_was_there_before_is_lost() {
        let all = Capabilities {
            put_if_absent: true,
            put_if_absent_raced: true,
            put_if_absent_multipart: true,
            checksum_md5: true,
            checksum_sha256: true,
            etag_is_md5: true,
            versions: true,
            object_lock: true,
            clock_skew_seconds: 0,
        };
        assert!(all.lost_since(&all).is_empty());
        assert!(all.lost_since(&Capabilities::default()).is_empty());
        // Racing writers are not told of apart where nothing is refused at all.
        assert_eq!(Capabilities::default().lost_since(&all).len(), 6);
        let unlocked = Capabilities {
            object_lock: false,
            ..all
        };
        let lost = unlocked.lost_since(&all);
        assert!(matches!(lost.as_slice(), [one] if one.starts_with("honours Object Lock")));
    }

    #[test]
    fn a_clock_that_is_off_is_named_with_its_side() {
        let sentences = |skew| {
            Capabilities {
                clock_skew_seconds: skew,
                ..Capabilities::default()
            }
            .sentences()
        };
        assert!(!sentences(30).iter().any(|line| line.contains("clock")));
        assert!(
            sentences(3600)
                .iter()
                .any(|line| line.contains("3600 s ahead of"))
        );
        assert!(
            sentences(-3600)
                .iter()
                .any(|line| line.contains("3600 s behind"))
        );
    }
}
