//! Applying the ledger to a copy.
//!
//! A restored cluster is closed before its control file is in place ([`put_back::close_to_clients`]): no server
//! opens it but one that is told on its command line where to listen, and this is the only one that is. It recovers
//! to the target, by a socket that nobody else can reach; the entries are applied, in one transaction for each
//! database; it is shut down; and only then the cluster is opened. Whatever ends this in between leaves a folder
//! that does not start.
//!
//! Ordinary triggers do not fire (`session_replication_role = replica`), and those that fire always are switched off
//! within the transaction: what is erased is not to be written down again by an audit table.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use dr_config::WorkloadSource;
use dr_installation::Installation;
use dr_model::Progress;
use dr_sources::instance::{StartOptions, StopMode, free_port};
use dr_sources::postgres::{ConnectOptions, PgConnection, SESSION, connect, put_back, tools};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::doomed::{self, Found, Part};
use super::hazards;
use super::places;
use super::remade::{self, Stale};
use super::tables::{Tables, json, run};
use super::{AppliedErasure, AppliedErasures, ErasedCount, Erasure};
use crate::error::{blocking, file_error, source_error};
use crate::execute::server_user;
use crate::recovery::{self, url_parts};
use crate::scratch::{
    Folder, clear_left_behind, private_server, socket_directory, socket_url, superuser,
};
use crate::start::{Launch, recover};
use crate::{Reached, RestoreError, RestorePlan};

/// How far an application goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Rows: for a copy from which only tables are read.
    Rows,
    /// Also what was made from them: materialized views and the planner's samples.
    Everything,
}

/// Applies entries to a server that nobody else can reach; `server` tells how its databases are.
pub(crate) async fn apply(
    server: &(dyn Fn(&str) -> ConnectOptions + Sync),
    entries: &[Erasure],
    depth: Depth,
) -> Result<AppliedErasures, RestoreError> {
    let mut applied = AppliedErasures {
        entries: entries.iter().map(nothing_yet).collect(),
        ..AppliedErasures::default()
    };
    let mut first = session(&server("postgres")).await?;
    let there = places::databases(&mut first).await?;
    drop(first);
    let (meant, lacking) = places::meant(&there, entries);
    applied.not_found.extend(lacking);
    for database in meant {
        let places: Vec<(usize, Part<'_>)> = entries
            .iter()
            .enumerate()
            .flat_map(|(place, entry)| {
                let parts = entry.databases.iter();
                let parts = parts.filter(|part| part.database == database);
                parts.map(move |part| (place, (entry, part)))
            })
            .collect();
        let parts: Vec<Part<'_>> = places.iter().map(|(_, part)| *part).collect();
        let mut session = session(&server(database)).await?;
        if depth == Depth::Rows {
            hazards::take_back_prepared(&mut session).await?;
        }
        let (found, stale, lacking) = one_database(&mut session, (database, &parts), depth).await?;
        drop(session);
        applied.not_found.extend(lacking);
        for rows in &found.rows {
            let place = places.get(rows.entry).map(|(place, _)| *place);
            if let Some(entry) = place.and_then(|place| applied.entries.get_mut(place)) {
                entry.tables.push(ErasedCount {
                    table: rows.table.to_string(),
                    erased: rows.erased,
                    cleared: rows.cleared,
                });
            }
        }
        if let Some(stale) = stale {
            let told = remade::make_anew(&server(database), database, &stale).await?;
            applied.notes.extend(told);
        }
    }
    if depth == Depth::Everything {
        let told = places::alike(&there, server, entries).await?;
        applied.notes.extend(told);
    }
    Ok(applied)
}

fn nothing_yet(entry: &Erasure) -> AppliedErasure {
    AppliedErasure {
        id: entry.id.clone(),
        at: entry.at,
        tenant: entry.tenant.clone(),
        tables: Vec::new(),
        files: 0,
    }
}

pub(super) async fn session(options: &ConnectOptions) -> Result<PgConnection, RestoreError> {
    let mut session = connect(options)
        .await
        .map_err(source_error("reach the copy that erasures are applied to"))?;
    run(&mut session, SESSION, "prepare a session").await?;
    Ok(session)
}

async fn one_database(
    session: &mut PgConnection,
    (database, parts): (&str, &[Part<'_>]),
    depth: Depth,
) -> Result<(Found, Option<Stale>, BTreeSet<String>), RestoreError> {
    let begin = "begin; set local session_replication_role = replica";
    run(session, begin, "begin to erase").await?;
    run(session, hazards::LOCK_WAIT, "begin to erase").await?;
    hazards::beware_of_indexes(session).await?;
    let tables = Tables::read(session).await?;
    hazards::nothing_prepared(session, &tables, parts).await?;
    let found = doomed::gather(session, &tables, parts).await?;
    if let Some((first, _)) = found.refused.first() {
        let id = parts.get(*first).map(|(entry, _)| entry.id.clone());
        let why = found.refused.iter().filter(|(entry, _)| entry == first);
        let why = why.map(|(_, line)| line.clone()).collect();
        return Err(match id {
            Some(id) => RestoreError::ErasureNotHeld { id, why },
            None => RestoreError::Worker("apply the ledger of erasures"),
        });
    }
    if !found.rows.is_empty() {
        let firing = firing(session).await?;
        for one in &firing {
            run(session, &one.off, "switch a trigger off").await?;
        }
        doomed::erase(session, &tables, &found).await?;
        for one in &firing {
            run(session, &one.on, "switch a trigger on again").await?;
        }
    }
    let stale = match depth == Depth::Everything && !found.rows.is_empty() {
        true => Some(remade::forget(session, &found).await?),
        false => None,
    };
    run(session, "commit", "commit what was erased").await?;
    let lacking = places::lacking(&tables, parts, database);
    Ok((found, stale, lacking))
}

/// What fires with `session_replication_role = replica` all the same.
#[derive(Deserialize)]
struct Firing {
    off: String,
    on: String,
}

async fn firing(session: &mut PgConnection) -> Result<Vec<Firing>, RestoreError> {
    let query = "with firing as ( \
          select t.tgrelid::regclass as relation, 'trigger ' || quote_ident(t.tgname) as name, t.tgenabled as enabled \
            from pg_trigger t where not t.tgisinternal and t.tgparentid = 0 and t.tgenabled in ('A', 'R') \
          union all select r.ev_class::regclass, 'rule ' || quote_ident(r.rulename), r.ev_enabled \
            from pg_rewrite r where r.ev_enabled in ('A', 'R') and r.rulename <> '_RETURN') \
        select format('alter table %s disable %s', relation, name) as off, \
          format('alter table %s enable %s %s', relation, \
            case enabled when 'A' then 'always' else 'replica' end, name) as on from firing";
    json(session, query, "list what fires always").await
}

/// Recovers a closed cluster privately, takes out what was erased, shuts it down and opens it.
pub(crate) async fn settle(
    installation: &Installation,
    plan: &RestorePlan,
    data_directory: &Path,
    progress: Arc<dyn Progress>,
    cancel: &CancellationToken,
) -> Result<(AppliedErasures, Reached), RestoreError> {
    let workload = installation.config.workload(plan.workload.as_str())?;
    let WorkloadSource::Postgres(source) = workload.source else {
        return Err(RestoreError::WrongKind {
            workload: plan.workload.clone(),
            needed: "postgres",
        });
    };
    progress.phase("recovering privately, to take out what was erased", None);
    let user = server_user(data_directory)?;
    let parent = base();
    let (data, owner) = (data_directory.to_owned(), user.clone());
    let side = blocking("prepare a private server", move || {
        clear_left_behind(&parent);
        let side = Folder::create(&parent, owner.as_ref())?;
        // Should this process be killed, whoever clears the folder away stops the server by this.
        let link = side.path().join("data");
        symlink(&data, &link).map_err(file_error("create", &link))?;
        Ok(side)
    })
    .await?;
    let sockets = socket_directory(&side, user.as_ref())?;
    let major = recovery::major_version(data_directory)?;
    let bin = tools::bin_directory(source.bin_directory.as_deref(), major)
        .map_err(source_error("start the restored server"))?;
    let options = StartOptions::new(&bin, data_directory, user, free_port());
    let (role, _) = url_parts(&source.url);
    let mut options = private_server(&side, &sockets, options, &role)?;
    options.settings = kept(options.settings, plan.as_primary);
    let port = options.port;
    let began = SystemTime::now();
    let (instance, note) = blocking("start the restored server", move || {
        recover(Launch::Private(options), began)
    })
    .await?;
    let at = |role: &str, database: &str| ConnectOptions {
        url: socket_url(role, database, port, &sockets),
        password: None,
    };
    let first = at(&role, "postgres");
    let reached = recovery::reached(&first, data_directory, note).await?;
    let superuser = superuser(&first).await?;
    // Read now, and not when the restore began: what was recorded meanwhile counts too.
    let entries = super::ledger_of(installation, &plan.workload).await?;
    let server = |database: &str| at(&superuser, database);
    // Cancelled, the server is stopped with what it was doing, and the cluster stays closed.
    let applied = tokio::select! {
        applied = apply(&server, &entries, Depth::Everything) => applied?,
        () = cancel.cancelled() => return Err(RestoreError::Cancelled(plan.workload.clone())),
    };
    let folder = data_directory.to_owned();
    blocking("shut the restored server down", move || {
        instance
            .stop(StopMode::Fast)
            .map_err(source_error("shut the restored server down"))?;
        drop(side);
        put_back::open_to_clients(&folder).map_err(source_error("open the restored cluster"))
    })
    .await?;
    Ok((applied, reached))
}

/// The cluster is kept, so what it writes is durable. One that takes its source's place archives what it writes now,
/// but not before it is open: until then no segment leaves it.
fn kept(settings: Vec<(String, String)>, as_primary: bool) -> Vec<(String, String)> {
    let mut kept: Vec<(String, String)> = settings
        .into_iter()
        .filter(|(name, _)| name != "fsync" && name != "full_page_writes")
        .filter(|(name, _)| !(as_primary && name == "archive_mode"))
        .collect();
    // A server that ends its recovery without it removes all commit timestamps that there are. Where the source had
    // none, the next start without it removes what this one adds.
    kept.push(("track_commit_timestamp".to_owned(), "on".to_owned()));
    if as_primary {
        kept.push(("archive_command".to_owned(), "/bin/false".to_owned()));
    }
    kept
}

/// Where private servers keep their sockets: `TMPDIR`, else `/var/tmp`.
fn base() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}
