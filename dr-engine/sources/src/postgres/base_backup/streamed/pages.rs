//! Which of the pages that looked wrong on their way are damaged.
//!
//! A page that the server read while it was written looks wrong too, and nobody here can read it again. So
//! the server's word counts, which can; and our own for what it does not look at.

use dr_model::Lsn;
use dr_replication::BackupEnd;

use crate::postgres::base_backup::CorruptPage;

/// A page whose checksum was wrong when it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suspicious {
    pub(super) path: String,
    pub(super) page: u64,
    pub(super) lsn: Lsn,
    pub(super) stored: u16,
    pub(super) expected: u16,
}

/// Of what looked wrong, what is.
///
/// A page that was changed since the backup began is excused: the WAL has all of it. One that says it was
/// changed later than the backup ended was never written by the server, which itself does not look at
/// either. An older one is damaged if the server says so of its file.
pub(super) fn corrupt(suspicious: &[Suspicious], start: Lsn, end: &BackupEnd) -> Vec<CorruptPage> {
    let is_damaged = |page: &&Suspicious| {
        page.lsn > end.lsn
            || (page.lsn <= start
                && end.damaged.is_some()
                && (end.warnings.iter()).any(|warning| names(&warning.message, &page.path)))
    };
    let mut found: Vec<CorruptPage> = suspicious
        .iter()
        .filter(is_damaged)
        .map(|page| CorruptPage {
            path: page.path.clone(),
            page: page.page,
            what: format!(
                "checksum {:04X} instead of {:04X}, page LSN {}",
                page.stored, page.expected, page.lsn
            ),
        })
        .collect();
    found.sort_by(|a, b| (&a.path, a.page).cmp(&(&b.path, b.page)));
    if found.is_empty()
        && let Some(damaged) = &end.damaged
    {
        let warned = end.warnings.iter().map(|warning| warning.message.as_str());
        let said: Vec<&str> = warned
            .chain([damaged.message.as_str()])
            .take(MESSAGES_TOLD)
            .collect();
        found.push(CorruptPage {
            path: "…".to_owned(),
            page: 0,
            what: format!("the server says: {}", said.join("; ")),
        });
    }
    found
}

/// So much of what the server said is told where its files cannot be found in it.
const MESSAGES_TOLD: usize = 5;

/// Whether a message, in whatever language and with whatever quotes, names the file of a point's path.
fn names(message: &str, path: &str) -> bool {
    // The server names what is in a tablespace by where that lies.
    let Some((_, file)) = path.split_once('/').map(|(top, rest)| match top {
        "tablespaces" => rest.split_once('/').unwrap_or((top, rest)),
        _ => (top, rest),
    }) else {
        return false;
    };
    message.match_indices(file).any(|(at, _)| {
        let before = message.get(..at).and_then(|text| text.chars().next_back());
        let behind = message
            .get(at + file.len()..)
            .and_then(|text| text.chars().next());
        before.is_none_or(|c| !c.is_alphanumeric())
            && behind.is_none_or(|c| !c.is_alphanumeric() && c != '.' && c != '_')
    })
}

#[cfg(test)]
mod tests {
    use dr_model::Timeline;
    use dr_replication::ServerMessage;

    use super::*;

    fn page(path: &str, lsn: u64) -> Suspicious {
        Suspicious {
            path: path.to_owned(),
            page: 3,
            lsn: Lsn(lsn),
            stored: 1,
            expected: 2,
        }
    }

    fn end(warnings: &[&str], damaged: bool) -> BackupEnd {
        let message = |text: &str| ServerMessage {
            message: text.to_owned(),
            ..ServerMessage::default()
        };
        BackupEnd {
            lsn: Lsn(200),
            timeline: Timeline(1),
            damaged: damaged.then(|| message("checksum verification failure")),
            warnings: warnings.iter().map(|text| message(text)).collect(),
        }
    }

    fn found(suspicious: &[Suspicious], end: &BackupEnd) -> Vec<String> {
        let found = corrupt(suspicious, Lsn(100), end);
        found.into_iter().map(|page| page.path).collect()
    }

    #[test]
    fn a_page_is_damaged_if_the_server_says_so() {
        let pages = [
            page("data/base/5/16384", 50),
            page("data/base/5/16385.1", 50),
            page("tablespaces/77/PG_15_1/5/9", 50),
        ];
        // Read while it was written: the server read it again, and it was whole.
        assert!(found(&pages, &end(&[], false)).is_empty());
        let said = end(
            &["Prüfsumme falsch in Datei »./base/5/16384«, Block 3"],
            true,
        );
        assert_eq!(found(&pages, &said), ["data/base/5/16384"]);
        let said = end(
            &[
                "failed in file \"./base/5/16385.1\", block 3",
                "failed in file \"/srv/fast/PG_15_1/5/9\", block 3",
            ],
            true,
        );
        assert_eq!(
            found(&pages, &said),
            ["data/base/5/16385.1", "tablespaces/77/PG_15_1/5/9"]
        );
    }

    #[test]
    fn a_page_changed_meanwhile_is_excused_unless_it_comes_from_the_future() {
        let said = end(&["failed in file \"./base/5/1\", block 9"], true);
        assert_eq!(found(&[page("data/base/5/1", 150)], &said), ["…"]);
        assert!(found(&[page("data/base/5/1", 150)], &end(&[], false)).is_empty());
        assert_eq!(
            found(&[page("data/base/5/1", 201)], &end(&[], false)),
            ["data/base/5/1"]
        );
    }

    #[test]
    fn damage_that_cannot_be_placed_is_still_damage() {
        let said = end(&["something"], true);
        assert_eq!(found(&[], &said), ["…"]);
        let told = corrupt(&[], Lsn(100), &said);
        assert_eq!(
            told[0].what,
            "the server says: something; checksum verification failure"
        );
    }
}
