//! The growing end of a workload's WAL: what was streamed of a segment that is not complete yet.
//!
//! A tail is a record, `records/wal-tail/<workload>/<segment>.<from>-<to>`: write-once like everything
//! else, a few of them in a second. From time to time one is stored that holds what the last few hold
//! together; these say nothing new then and are removed, and so are all when the segment is stored whole.
//! They overlap: read together they are one stretch of bytes from the segment's beginning. Copies of the
//! repository do not get them: they get the whole segment.

use chrono::{DateTime, Utc};
use dr_model::{Lsn, Timeline, WalFileName, WorkloadName};

use super::{Repository, fetch};
use crate::StoreError;
use crate::format::FormatError;
use crate::format::header::Kind;

/// Where tails are.
pub(crate) const TAILS: &str = "records/wal-tail/";
/// Before the bytes: the version of this body, whether it was the server's end, the server's clock.
const HEAD_BYTES: usize = 10;
const BODY_VERSION: u8 = 1;
/// Reading begins anew when a tail went away meanwhile, so often at most: each time something longer took
/// its place.
const READS_MAX: u32 = 8;

/// A stretch of WAL within one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalTail {
    /// The timeline in the name of the segment it lies in.
    pub timeline: Timeline,
    /// The position of its first byte.
    pub from: Lsn,
    /// What the server's clock said when the last of it was sent.
    pub sent_at: DateTime<Utc>,
    /// Whether it reaches to where the server's WAL ended at that time: everything that was committed
    /// before `sent_at` is in it or before it.
    pub is_servers_end: bool,
    /// The bytes.
    pub data: Vec<u8>,
}

/// Where one stored tail lies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TailPlace {
    /// The segment.
    pub segment: WalFileName,
    /// The position of its first byte.
    pub from: Lsn,
    /// The position after its last byte.
    pub to: Lsn,
}

/// What is known of a segment's beginning from its tails, without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailEnd {
    /// The position after the last byte.
    pub to: Lsn,
    /// See [`WalTail::sent_at`].
    pub sent_at: DateTime<Utc>,
    /// See [`WalTail::is_servers_end`].
    pub is_servers_end: bool,
}

fn prefix_of(workload: &WorkloadName) -> String {
    format!("{TAILS}{workload}/")
}

fn object_name(workload: &WorkloadName, place: &TailPlace) -> String {
    format!(
        "{}{}.{:016x}-{:016x}",
        prefix_of(workload),
        place.segment,
        place.from.0,
        place.to.0
    )
}

fn place_of(workload: &WorkloadName, object: &str) -> Option<TailPlace> {
    let (segment, range) = object.strip_prefix(&prefix_of(workload))?.split_once('.')?;
    let (from, to) = range.split_once('-')?;
    let lsn = |text: &str| u64::from_str_radix(text, 16).ok().map(Lsn);
    let place = TailPlace {
        segment: segment.parse().ok()?,
        from: lsn(from)?,
        to: lsn(to)?,
    };
    (place.from < place.to && object_name(workload, &place) == object).then_some(place)
}

/// The tails that together hold a segment from `start` on without a gap, in order. Pure.
#[must_use]
pub fn tail_chain(places: &[TailPlace], segment: &WalFileName, start: Lsn) -> Vec<TailPlace> {
    let mut of_it: Vec<&TailPlace> = places
        .iter()
        .filter(|place| place.segment == *segment)
        .collect();
    of_it.sort_by_key(|place| place.from);
    let mut left = of_it.into_iter().peekable();
    let mut chain: Vec<TailPlace> = Vec::new();
    let mut at = start;
    loop {
        // Of those that begin before the end so far, the one that reaches furthest.
        let mut best: Option<&TailPlace> = None;
        while let Some(next) = left.next_if(|next| next.from <= at) {
            if best.is_none_or(|best| best.to < next.to) {
                best = Some(next);
            }
        }
        match best {
            Some(best) if best.to > at => {
                at = best.to;
                chain.push(best.clone());
            }
            _ => return chain,
        }
    }
}

fn encode(tail: &WalTail) -> Vec<u8> {
    let mut body = Vec::with_capacity(HEAD_BYTES + tail.data.len());
    body.push(BODY_VERSION);
    body.push(u8::from(tail.is_servers_end));
    body.extend_from_slice(&tail.sent_at.timestamp_micros().to_le_bytes());
    body.extend_from_slice(&tail.data);
    body
}

fn decode(place: &TailPlace, timeline: Timeline, body: &[u8]) -> Result<WalTail, FormatError> {
    let damaged = || FormatError::damaged("it is no stretch of WAL");
    let (head, data) = body.split_at_checked(HEAD_BYTES).ok_or_else(damaged)?;
    let [version, is_servers_end, micros @ ..] = head else {
        return Err(damaged());
    };
    if *version != BODY_VERSION {
        return Err(FormatError::Version(u32::from(*version)));
    }
    let micros: [u8; 8] = micros.try_into().map_err(|_| damaged())?;
    let sent_at =
        DateTime::from_timestamp_micros(i64::from_le_bytes(micros)).ok_or_else(damaged)?;
    if data.len() as u64 != place.to.0 - place.from.0 {
        return Err(damaged());
    }
    Ok(WalTail {
        timeline,
        from: place.from,
        sent_at,
        is_servers_end: *is_servers_end == 1,
        data: data.to_vec(),
    })
}

impl Repository {
    /// Stores a stretch of WAL, durable on return. It lies within one segment and is not empty.
    ///
    /// # Errors
    /// When the place fails, or holds another content for the same stretch.
    pub fn put_tail(
        &self,
        workload: &WorkloadName,
        segment_bytes: u64,
        tail: &WalTail,
    ) -> Result<TailPlace, StoreError> {
        let repo = self.inner();
        repo.is_first()?;
        let place = TailPlace {
            segment: WalFileName::containing(tail.from, tail.timeline, segment_bytes),
            from: tail.from,
            to: Lsn(tail.from.0.saturating_add(tail.data.len() as u64)),
        };
        let object = object_name(workload, &place);
        if place_of(workload, &object).is_none()
            || (place.to.0 - 1) / segment_bytes != place.from.0 / segment_bytes
        {
            return Err(StoreError::InvalidName {
                name: object,
                rule: "a tail lies within one segment and is not empty",
            });
        }
        let body = encode(tail);
        let outcome = repo.put_sealed(&repo.master, Kind::Record, &object, &body)?;
        if outcome == crate::PutOutcome::Exists {
            // Another answer to the same question: the clock differs, the bytes do not.
            let stored = self.tail(workload, &place)?;
            if stored.is_none_or(|stored| stored.data != tail.data) {
                return Err(StoreError::WalConflict {
                    workload: workload.clone(),
                    name: place.segment,
                });
            }
        }
        Ok(place)
    }

    /// Where the tails of a workload lie, sorted by segment and position.
    ///
    /// # Errors
    /// When the place fails.
    pub fn tails(&self, workload: &WorkloadName) -> Result<Vec<TailPlace>, StoreError> {
        let found = self.inner().list(&prefix_of(workload))?;
        let mut places: Vec<TailPlace> = found
            .iter()
            .filter_map(|entry| place_of(workload, &entry.name))
            .collect();
        places.sort();
        Ok(places)
    }

    /// One tail, verified; `None` if it is not there (any more).
    ///
    /// # Errors
    /// When it is damaged or the place fails.
    pub fn tail(
        &self,
        workload: &WorkloadName,
        place: &TailPlace,
    ) -> Result<Option<WalTail>, StoreError> {
        let repo = self.inner();
        let object = object_name(workload, place);
        let timeline = place.segment.timeline().unwrap_or(Timeline(0));
        repo.get_sealed(&repo.master, Kind::Record, &object)?
            .map(|body| {
                decode(place, timeline, &body).map_err(|error| repo.unreadable(&object, error))
            })
            .transpose()
    }

    /// Where a segment's tails end; `None` if nothing of it is there from its beginning on. One that is
    /// damaged ends them: its bytes are not to be had.
    ///
    /// # Errors
    /// When the place fails.
    pub fn tail_end(
        &self,
        workload: &WorkloadName,
        places: &[TailPlace],
        segment: &WalFileName,
        start: Lsn,
    ) -> Result<Option<TailEnd>, StoreError> {
        self.tail_end_of(workload, places, segment, start, READS_MAX)
    }

    fn tail_end_of(
        &self,
        workload: &WorkloadName,
        places: &[TailPlace],
        segment: &WalFileName,
        start: Lsn,
        depth: u32,
    ) -> Result<Option<TailEnd>, StoreError> {
        for last in tail_chain(places, segment, start).into_iter().rev() {
            match self.tail(workload, &last) {
                Ok(Some(tail)) => {
                    return Ok(Some(TailEnd {
                        to: last.to,
                        sent_at: tail.sent_at,
                        is_servers_end: tail.is_servers_end,
                    }));
                }
                Ok(None) => {
                    // Something longer took its place, or the whole segment did.
                    let now = self.tails(workload)?;
                    let is_news = now.as_slice() != places;
                    return match is_news && depth > 0 {
                        true => self.tail_end_of(workload, &now, segment, start, depth - 1),
                        false => Ok(None),
                    };
                }
                Err(StoreError::Damaged { object, .. }) => {
                    tracing::warn!(object, "a damaged tail is passed over");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// What the tails hold of a segment, from its beginning at `start` on; empty if nothing. A damaged
    /// one ends the stretch, and is told: whoever must not stop before the true end has to fail then. When one was
    /// removed meanwhile it is begun anew: something longer took its place, or the whole segment did.
    ///
    /// # Errors
    /// When the place fails.
    pub fn read_tails(
        &self,
        workload: &WorkloadName,
        segment: &WalFileName,
        start: Lsn,
    ) -> Result<(Vec<u8>, Option<StoreError>), StoreError> {
        let mut reads = 0;
        loop {
            reads += 1;
            let places = self.tails(workload)?;
            let chain = tail_chain(&places, segment, start);
            let tails = fetch::each(&chain, |place| self.tail(workload, place));
            let mut bytes = Vec::new();
            let mut went = None;
            for (place, tail) in chain.iter().zip(tails) {
                match tail {
                    Ok(Some(tail)) => {
                        let known = (start.0 + bytes.len() as u64).saturating_sub(place.from.0);
                        let known = usize::try_from(known).unwrap_or(usize::MAX);
                        bytes.extend_from_slice(tail.data.get(known..).unwrap_or_default());
                    }
                    Ok(None) => {
                        went = Some(place);
                        break;
                    }
                    Err(error @ StoreError::Damaged { .. }) => return Ok((bytes, Some(error))),
                    Err(error) => return Err(error),
                }
            }
            match went {
                // A listing is no picture of one moment: it may lack what was stored while it was made,
                // and show what that took in as gone.
                None if reads < READS_MAX
                    && tail_chain(&self.tails(workload)?, segment, start) != chain => {}
                None => return Ok((bytes, None)),
                Some(_) if reads < READS_MAX => {}
                Some(place) => return Err(self.inner().missing(&object_name(workload, place))),
            }
        }
    }

    /// Removes tails that say nothing new any more.
    ///
    /// # Errors
    /// When the place fails; what was not removed does no harm.
    pub fn remove_tails(
        &self,
        workload: &WorkloadName,
        places: &[TailPlace],
    ) -> Result<(), StoreError> {
        for place in places {
            self.inner().delete(&object_name(workload, place))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 1 << 20;

    fn place(number: u64, from: u64, to: u64) -> TailPlace {
        TailPlace {
            segment: WalFileName::of_number(number, Timeline(1), SEGMENT),
            from: Lsn(from),
            to: Lsn(to),
        }
    }

    #[test]
    fn a_name_is_read_as_it_was_written_and_nothing_else_is() {
        let workload: WorkloadName = "erp".parse().unwrap();
        let place = place(3, 3 * SEGMENT + 5, 3 * SEGMENT + 900);
        let name = object_name(&workload, &place);
        assert_eq!(place_of(&workload, &name), Some(place));
        for wrong in [
            "records/wal-tail/erp/000000010000000000000003.0000000000300384-0000000000300005",
            "records/wal-tail/erp/000000010000000000000003.300005-300384",
            "records/wal-tail/erp/000000010000000000000003.0000000000300005",
            "records/wal-tail/erp/3.0000000000300005-0000000000300384",
            "records/wal-tail/erp2/000000010000000000000003.0000000000300005-0000000000300384",
        ] {
            assert_eq!(place_of(&workload, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn overlapping_tails_are_one_stretch_and_a_gap_ends_it() {
        let start = 2 * SEGMENT;
        let places = [
            place(2, start, start + 10),
            place(2, start, start + 100),
            place(2, start + 50, start + 150),
            place(2, start + 100, start + 120),
            place(2, start + 151, start + 300),
            place(3, start + 150, start + 151),
        ];
        let name = places[0].segment.clone();
        let chain = tail_chain(&places, &name, Lsn(start));
        let ends: Vec<u64> = chain.iter().map(|place| place.to.0 - start).collect();
        assert_eq!(ends, [100, 150]);
        // Without the beginning the rest says nothing.
        assert!(tail_chain(&places[2..], &name, Lsn(start)).is_empty());
    }

    #[test]
    fn a_body_that_is_not_what_its_name_says_is_refused() {
        let tail = WalTail {
            timeline: Timeline(1),
            from: Lsn(7),
            sent_at: DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap(),
            is_servers_end: true,
            data: vec![1, 2, 3],
        };
        let body = encode(&tail);
        let place = place(0, 7, 10);
        assert_eq!(decode(&place, Timeline(1), &body).unwrap(), tail);
        for cut in 0..body.len() {
            assert!(decode(&place, Timeline(1), &body[..cut]).is_err(), "{cut}");
        }
        let mut newer = body.clone();
        newer[0] = 2;
        assert!(decode(&place, Timeline(1), &newer).is_err());
        let mut longer = body;
        longer.push(0);
        assert!(decode(&place, Timeline(1), &longer).is_err());
    }
}
