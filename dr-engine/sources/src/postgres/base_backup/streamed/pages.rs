//! Which of the pages that looked wrong on their way are damaged.
//!
//! A page that the server read while it was written looks wrong too, and is right when it is read again. The
//! server does that with what it judges: of files where it found damage, its word counts. It does not judge
//! pages whose header is empty, nor some files; and of what it does not name we read again ourselves.

use dr_model::Lsn;
use dr_replication::BackupEnd;
use sqlx::PgConnection;

use crate::postgres::base_backup::CorruptPage;
use crate::postgres::base_backup::page::{PageState, judge};

/// A page whose checksum was wrong when it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suspicious {
    pub(super) path: String,
    /// Its number in the file.
    pub(super) page: u64,
    /// Its number in the relation.
    pub(super) block: u32,
    pub(super) lsn: Lsn,
    pub(super) stored: u16,
    pub(super) expected: u16,
    /// Its header is empty: the server takes it for one that was never used.
    pub(super) is_new: bool,
}

/// Pages that looked wrong.
#[derive(Debug, Default)]
pub(super) struct AllSuspicious {
    pub(super) listed: Vec<Suspicious>,
    /// How many more there were.
    pub(super) more: u64,
}

/// What is to be made of a page that looked wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The WAL has all of it.
    Excused,
    Damaged,
    /// To be read again.
    Open,
}

/// A page that was changed since the backup began is excused: the WAL has all of it. One that says it was
/// changed later than the backup ended was never written by the server, which itself does not look at
/// either. An older one is damaged if the server says so of its file.
fn verdict(page: &Suspicious, start: Lsn, end: &BackupEnd) -> Verdict {
    if page.lsn > end.lsn {
        return Verdict::Damaged;
    }
    if page.lsn > start {
        return Verdict::Excused;
    }
    let named = (end.warnings.iter()).any(|warning| names(&warning.message, &page.path));
    match end.damaged.is_some() && named && !page.is_new {
        true => Verdict::Damaged,
        false => Verdict::Open,
    }
}

/// Of what looked wrong, what is.
pub(super) async fn corrupt(
    session: &mut PgConnection,
    page_bytes: usize,
    suspicious: &AllSuspicious,
    start: Lsn,
    end: &BackupEnd,
) -> Vec<CorruptPage> {
    let mut found: Vec<CorruptPage> = Vec::new();
    for page in &suspicious.listed {
        let is_damaged = match verdict(page, start, end) {
            Verdict::Damaged => true,
            Verdict::Excused => false,
            Verdict::Open => match again(session, page_bytes, page).await {
                Some(bytes) => matches!(judge(&bytes, page.block), PageState::Bad { .. }),
                // The server had read it again, if it looks at such pages at all.
                None => page.is_new,
            },
        };
        if is_damaged {
            found.push(CorruptPage {
                path: page.path.clone(),
                page: page.page,
                what: format!(
                    "checksum {:04X} instead of {:04X}, page LSN {}",
                    page.stored, page.expected, page.lsn
                ),
            });
        }
    }
    found.sort_by(|a, b| (&a.path, a.page).cmp(&(&b.path, b.page)));
    let mut untold = Vec::new();
    if suspicious.more > 0 {
        untold.push(format!(
            "{} more pages had wrong checksums and were not looked at",
            suspicious.more
        ));
    }
    untold.extend(said_without_a_place(end, found.is_empty()));
    found.extend(untold.into_iter().map(|what| CorruptPage {
        path: "…".to_owned(),
        page: 0,
        what,
    }));
    found
}

/// What the server says of damage where nothing damaged was found in what it sent.
fn said_without_a_place(end: &BackupEnd, nothing_found: bool) -> Option<String> {
    let damaged = end.damaged.as_ref().filter(|_| nothing_found)?;
    let warned = end.warnings.iter().map(|warning| warning.message.as_str());
    let said: Vec<&str> = warned
        .chain([damaged.message.as_str()])
        .take(MESSAGES_TOLD)
        .collect();
    Some(format!("the server says: {}", said.join("; ")))
}

/// Reads a page once more, where the role may.
async fn again(
    session: &mut PgConnection,
    page_bytes: usize,
    page: &Suspicious,
) -> Option<Vec<u8>> {
    let bytes = i64::try_from(page_bytes).ok()?;
    let file = match page.path.split_once('/')? {
        ("tablespaces", rest) => format!("pg_tblspc/{rest}"),
        (_, rest) => rest.to_owned(),
    };
    let read =
        sqlx::query_scalar::<_, Option<Vec<u8>>>("select pg_read_binary_file($1, $2, $3, true)")
            .bind(file)
            .bind(i64::try_from(page.page).ok()?.checked_mul(bytes)?)
            .bind(bytes)
            .fetch_one(session)
            .await;
    // A shorter or absent file: what is not there cannot be damaged, the WAL knows why.
    read.ok().map(|read| match read {
        Some(page) if page.len() == page_bytes => page,
        _ => vec![0; page_bytes],
    })
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
            block: 3,
            lsn: Lsn(lsn),
            stored: 1,
            expected: 2,
            is_new: false,
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

    fn of(page: &Suspicious, end: &BackupEnd) -> Verdict {
        verdict(page, Lsn(100), end)
    }

    #[test]
    fn a_page_is_damaged_if_the_server_says_so_and_else_read_again() {
        let [plain, second, aside] = [
            page("data/base/5/16384", 50),
            page("data/base/5/16385.1", 50),
            page("tablespaces/77/PG_15_1/5/9", 50),
        ];
        assert_eq!(of(&plain, &end(&[], false)), Verdict::Open);
        let said = end(
            &["Prüfsumme falsch in Datei »./base/5/16384«, Block 3"],
            true,
        );
        assert_eq!(of(&plain, &said), Verdict::Damaged);
        assert_eq!(of(&second, &said), Verdict::Open);
        let said = end(
            &[
                "failed in file \"./base/5/16385.1\", block 3",
                "failed in file \"/srv/fast/PG_15_1/5/9\", block 3",
            ],
            true,
        );
        assert_eq!(of(&second, &said), Verdict::Damaged);
        assert_eq!(of(&aside, &said), Verdict::Damaged);
        assert_eq!(of(&plain, &said), Verdict::Open);
        // It does not look at a page with an empty header, whatever it says of its file.
        let new = Suspicious {
            is_new: true,
            ..second
        };
        assert_eq!(of(&new, &said), Verdict::Open);
    }

    #[test]
    fn a_page_changed_meanwhile_is_excused_unless_it_comes_from_the_future() {
        let said = end(&["failed in file \"./base/5/1\", block 9"], true);
        assert_eq!(of(&page("data/base/5/1", 150), &said), Verdict::Excused);
        assert_eq!(
            of(&page("data/base/5/1", 201), &end(&[], false)),
            Verdict::Damaged
        );
    }

    #[test]
    fn damage_that_cannot_be_placed_is_still_damage() {
        let said = end(&["something"], true);
        assert_eq!(
            said_without_a_place(&said, true).unwrap(),
            "the server says: something; checksum verification failure"
        );
        assert_eq!(said_without_a_place(&said, false), None);
    }
}
