//! What became of an interrupted restore's transaction: asked of the server that knows, and of no other.
//!
//! The number of a transaction means something in one history only. A cluster of another system identifier has
//! numbers of its own; one that was restored, or promoted, gives those numbers anew that its history did not
//! reach. So a record says where the WAL stood when the rows were written: a server is asked if it still writes
//! that timeline, or left it behind that place. (Then it knows the number as used, and as rolled back if it did
//! not see the commit.) Else nobody is asked, and the outcome is not known.

use std::fmt;

use dr_backup::parse_history;
use dr_model::{Lsn, SystemId, Timeline};
use dr_sources::postgres::ConnectOptions;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnection;

use crate::record::Record;
use crate::{TenantError, rows, sql};

/// A line is some 50 bytes, and there is one for each timeline that was left.
const HISTORY_BYTES_MAX: u32 = 1 << 20;

/// A place in the WAL of one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WalPlace {
    pub(crate) timeline: Timeline,
    pub(crate) lsn: Lsn,
}

/// Where the server's WAL stands. The timeline is the one that it writes: what `pg_control` says lags behind a
/// promotion.
pub(crate) async fn wal_place(live: &mut PgConnection) -> Result<WalPlace, TenantError> {
    let query =
        "select pg_walfile_name(lsn) || ' ' || lsn::text from pg_current_wal_insert_lsn() lsn";
    let text: String = sql::value(live, query, "asking for the WAL position").await?;
    let unclear = || TenantError::format("a WAL position", &text);
    let (file, lsn) = text.split_once(' ').ok_or_else(unclear)?;
    let timeline = file
        .get(..8)
        .and_then(|hex| u32::from_str_radix(hex, 16).ok());
    Ok(WalPlace {
        timeline: Timeline(timeline.ok_or_else(unclear)?),
        lsn: lsn.parse().map_err(|_| unclear())?,
    })
}

/// Why a server cannot say what became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unasked {
    /// It has no transaction.
    NoTransaction,
    /// Its record is older than this question.
    NoPlace,
    /// Another cluster is in its place.
    OtherCluster { then: SystemId, now: SystemId },
    /// The server's history does not contain the place.
    OtherHistory { then: WalPlace, now: Timeline },
    /// What timeline came out of which, the server does not tell.
    HistoryNotRead { then: Timeline, now: Timeline },
    /// The server does not answer.
    NoAnswer(String),
}

impl fmt::Display for Unasked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTransaction => write!(f, "it has no transaction that the server could know"),
            Self::NoPlace => write!(
                f,
                "its record does not say in which history of the cluster its transaction was"
            ),
            Self::OtherCluster { then, now } => write!(
                f,
                "it ran on the cluster with system identifier {then}, and this one has {now}"
            ),
            Self::OtherHistory { then, now } => write!(
                f,
                "the cluster was restored or promoted since: timeline {now} does not contain {} of timeline {}, \
                 where it wrote",
                then.lsn, then.timeline
            ),
            Self::HistoryNotRead { then, now } => write!(
                f,
                "it ran on timeline {then}, the cluster is on timeline {now}, and its history file cannot be read"
            ),
            Self::NoAnswer(why) => write!(f, "the server was not asked: {why}"),
        }
    }
}

/// The number of a restore's transaction, if this server is the one that knows it.
pub(crate) async fn known_here(live: &ConnectOptions, record: &Record) -> Result<u64, Unasked> {
    let transaction = record.transaction.as_deref();
    let xid = transaction.and_then(|text| text.parse().ok());
    let xid = xid.ok_or(Unasked::NoTransaction)?;
    let then = record.wal.ok_or(Unasked::NoPlace)?;
    let asked = async {
        let mut session = rows::session(live, "the live database").await?;
        let query = "select system_identifier::text from pg_control_system()";
        let system: String = sql::value(&mut session, query, "asking for the cluster").await?;
        let signed: i64 = system
            .parse()
            .map_err(|error| TenantError::format("a system identifier", error))?;
        let place = wal_place(&mut session).await?;
        let text = history(&mut session, place.timeline).await;
        rows::close(session).await;
        Ok::<_, TenantError>((SystemId(signed.cast_unsigned()), place.timeline, text))
    };
    let (system, now, text) = asked
        .await
        .map_err(|error| Unasked::NoAnswer(error.to_string()))?;
    if system != record.system_id {
        let (then, now) = (record.system_id, system);
        return Err(Unasked::OtherCluster { then, now });
    }
    contains(now, text.as_deref(), then).map(|()| xid)
}

/// The server's own file of which timeline came out of which; the first has none.
async fn history(session: &mut PgConnection, timeline: Timeline) -> Option<String> {
    let query = format!(
        "select pg_read_file('pg_wal/{:08X}.history', 0, {HISTORY_BYTES_MAX}, true)",
        timeline.0
    );
    let text = sql::value::<Option<String>>(session, &query, "reading the timeline's history");
    text.await.ok().flatten()
}

/// Whether the history of timeline `now` contains a place. Pure.
fn contains(now: Timeline, history: Option<&str>, then: WalPlace) -> Result<(), Unasked> {
    if now == then.timeline {
        return Ok(());
    }
    let switches = history
        .and_then(parse_history)
        .ok_or(Unasked::HistoryNotRead {
            then: then.timeline,
            now,
        })?;
    let left = switches
        .iter()
        .find(|switch| switch.parent == then.timeline);
    match left {
        Some(switch) if then.lsn <= switch.at => Ok(()),
        _ => Err(Unasked::OtherHistory { then, now }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_in_a_history_up_to_where_its_timeline_was_left() {
        let history = "1\t0/3000000\tno recovery target specified\n2\t0/5000000\tpromoted\n";
        let place = |timeline, lsn: &str| WalPlace {
            timeline: Timeline(timeline),
            lsn: lsn.parse().unwrap(),
        };
        for (timeline, lsn, is_in) in [
            (3, "0/9000000", true),
            (2, "0/5000000", true),
            (2, "0/5000001", false),
            (1, "0/3000000", true),
            (1, "0/4000000", false),
            (4, "0/1000000", false),
        ] {
            let found = contains(Timeline(3), Some(history), place(timeline, lsn));
            assert_eq!(found.is_ok(), is_in, "{timeline} {lsn}: {found:?}");
        }
        let unread = contains(Timeline(3), None, place(2, "0/1000000"));
        assert!(matches!(unread, Err(Unasked::HistoryNotRead { .. })));
    }
}
