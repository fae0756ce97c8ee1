//! What is to be told of a backup that ended.

use chrono::{DateTime, Utc};
use dr_model::{Lsn, PostgresPosition, WalFileName};
use sqlx::PgConnection;

use super::session;
use crate::SourceError;
use crate::postgres::connection::ClusterIdentity;

/// The server's time, when it is certain that the backup stayed on the timeline on which it began.
pub(super) async fn moment(
    session: &mut PgConnection,
    identity: &ClusterIdentity,
    label: &str,
) -> Result<DateTime<Utc>, SourceError> {
    if identity.in_recovery {
        let consistent = session::consistent_timeline(session).await?;
        if consistent != identity.timeline.0 {
            return Err(SourceError::Refused(format!(
                "the standby followed its primary from timeline {} to {consistent} while it was backed \
                 up: run the backup again after the next checkpoint",
                identity.timeline
            )));
        }
    }
    let moment = session::server_time(session).await?;
    let timeline = session::label_timeline(label).ok_or_else(|| {
        SourceError::Refused("the server's backup label has no timeline".to_owned())
    })?;
    if timeline != identity.timeline {
        return Err(SourceError::Refused(format!(
            "the backup began on timeline {} and its label says {timeline}: run it again",
            identity.timeline
        )));
    }
    Ok(moment)
}

/// From where to where it goes, on the timeline of `identity`.
pub(super) fn position(
    identity: &ClusterIdentity,
    start_lsn: Lsn,
    stop_lsn: Lsn,
) -> PostgresPosition {
    let (timeline, segment_bytes) = (identity.timeline, identity.wal_segment_bytes);
    // A stop exactly at a boundary needs nothing of the segment that begins there.
    let last_byte = Lsn(stop_lsn.0.saturating_sub(1));
    PostgresPosition {
        system_id: identity.system_id,
        timeline,
        start_lsn,
        stop_lsn,
        start_segment: WalFileName::containing(start_lsn, timeline, segment_bytes),
        stop_segment: WalFileName::containing(last_byte, timeline, segment_bytes),
        wal_segment_bytes: segment_bytes,
        server_version_num: identity.server_version_num,
        page_checksums: identity.page_checksums,
    }
}
