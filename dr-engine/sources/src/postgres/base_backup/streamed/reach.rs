//! The sessions beside the one that sends, and what is asked in them.

use std::collections::BTreeSet;
use std::time::Duration;

use dr_replication::{Address, Connection};
use sqlx::PgConnection;

use super::super::facts::{self, Facts};
use super::{ConnectOptions, SourceError, WalHold, config, session};
use crate::postgres::connection::{ClusterIdentity, connect, identify, stream_limits};
use crate::postgres::control;

/// How long the server may take to let us in.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// A control file that was read while it was written is read again so often.
const CONTROL_ATTEMPTS: u32 = 10;

/// What was asked of the server before it begins, and the sessions that stay.
pub(super) struct Reached {
    pub(super) session: PgConnection,
    pub(super) identity: ClusterIdentity,
    pub(super) facts: Facts,
    pub(super) page_bytes: usize,
    pub(super) segment_pages: u32,
    /// Databases that lie below `base`, by their oids.
    pub(super) databases: BTreeSet<u32>,
    pub(super) wal_hold: WalHold,
}

impl Reached {
    pub(super) async fn prepare(server: &ConnectOptions) -> Result<Self, SourceError> {
        let mut session = connect(server).await?;
        let identity = identify(&mut session).await?;
        if !stream_limits(&mut session).await?.may_replicate {
            let role: String = sqlx::query_scalar("select current_user::text")
                .fetch_one(&mut session)
                .await
                .map_err(session::failed("tell the role"))?;
            return Err(SourceError::MissingRight {
                grant: format!("ALTER ROLE \"{role}\" REPLICATION"),
                role,
                action: "receive base backups",
            });
        }
        session::lift_limits(&mut session).await?;
        let (page_bytes, segment_pages): (i32, i32) =
            sqlx::query_as("select database_block_size, blocks_per_segment from pg_control_init()")
                .fetch_one(&mut session)
                .await
                .map_err(session::failed("tell the size of its pages"))?;
        let unknown =
            |_| SourceError::Refused("the server's page size is not understood".to_owned());
        let mut facts = facts::gather(&mut session, identity.major_version()).await?;
        let databases = databases(&mut session).await?;
        // The slot keeps what the last checkpoint needs; the backup begins with a later one.
        let wal_hold = WalHold::take(connect(server).await?, &mut facts.notes).await;
        Ok(Self {
            session,
            identity,
            facts,
            page_bytes: usize::try_from(page_bytes).map_err(unknown)?,
            segment_pages: u32::try_from(segment_pages).map_err(unknown)?,
            databases,
            wal_hold,
        })
    }

    /// Uses the sessions, which have nothing to do while the cluster is sent: whatever lies between forgets
    /// connections on which nothing is said for long.
    pub(super) async fn stay(&mut self) -> Result<(), SourceError> {
        sqlx::query("select 1")
            .execute(&mut self.session)
            .await
            .map_err(session::failed("answer while it sends a base backup"))?;
        self.wal_hold.stay(&mut self.facts.notes).await;
        Ok(())
    }
}

/// A connection for `BASE_BACKUP`, to the very cluster that was asked.
pub(super) async fn walsender(
    server: &ConnectOptions,
    identity: &ClusterIdentity,
) -> Result<Connection, SourceError> {
    let mut address = Address::from_url(&server.url, server.password.clone())?;
    "dr_base_backup".clone_into(&mut address.application_name);
    let mut connection = Connection::connect(&address, CONNECT_TIME).await?;
    let found = connection.identify_system().await?;
    if found.system_id != identity.system_id {
        return Err(SourceError::Refused(format!(
            "{} is cluster {} for one connection and {} for the next: name one server",
            connection.place(),
            identity.system_id,
            found.system_id
        )));
    }
    Ok(connection)
}

/// The databases whose files lie below `base`: those in the default tablespace.
pub(super) async fn databases(session: &mut PgConnection) -> Result<BTreeSet<u32>, SourceError> {
    let oids: Vec<i64> = sqlx::query_scalar(
        "select d.oid::int8 from pg_database d join pg_tablespace t on t.oid = d.dattablespace
         where t.spcname = 'pg_default'",
    )
    .fetch_all(session)
    .await
    .map_err(session::failed("list its databases"))?;
    Ok(oids
        .into_iter()
        .filter_map(|oid| u32::try_from(oid).ok())
        .collect())
}

/// The control file, whole, of a server that sent it while it wrote it. It is newer than the data, which
/// replay repairs.
pub(super) async fn control_file(session: &mut PgConnection) -> Result<Vec<u8>, SourceError> {
    for _ in 0..CONTROL_ATTEMPTS {
        let bytes: Vec<u8> = sqlx::query_scalar("select pg_read_binary_file('global/pg_control')")
            .fetch_one(&mut *session)
            .await
            .map_err(|source| SourceError::Sql {
                action: "give out its control file once more: it had sent it while it wrote it, and the \
                         backup has to be run again",
                source,
            })?;
        if control::parse(&bytes).is_some() {
            return Ok(bytes);
        }
    }
    Err(SourceError::Refused(
        "the server's control file is torn whenever it is read".to_owned(),
    ))
}

/// What of the server's configuration a received base backup will lack, because it lies outside the data
/// directory and the role may not read it.
///
/// # Errors
/// When a statement fails.
pub async fn unreadable_configuration(
    connection: &mut PgConnection,
) -> Result<Option<String>, SourceError> {
    let identity = identify(connection).await?;
    let mut facts = facts::gather(connection, identity.major_version()).await?;
    facts.notes.clear();
    // Of the files inside, all come.
    let inside = |path: &str| !path.is_empty();
    config::read_all(connection, &identity, &mut facts, &inside).await?;
    Ok(facts.notes.pop())
}
