//! Breaking things, inside a sandbox only, and looking from outside whether they are broken.
//!
//! Every process and every path is checked against the sandbox right before it is harmed. The moment of
//! the fault is taken from CLOCK_MONOTONIC just before the first harm.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use dr_config::{Config, FaultConfig, WorkloadSource};
use dr_model::{Clock, SystemClock, WorkloadName};
use dr_report::Check;
use dr_sources::instance::descendants;
use rustix::process::{Pid, Signal, kill_process};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::DrillError;
use crate::probe::fill_in;
use crate::sandbox::Sandbox;
use crate::witness::{Process, path_is_gone, port_is_closed, postmaster, process_is_gone};

/// A killed process is gone within this.
const DEATH_TIME_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

/// What was broken.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Injected {
    pub(crate) action: String,
    pub(crate) target: String,
    pub(crate) at_ns: u64,
    pub(crate) at: DateTime<Utc>,
    pub(crate) proof: Vec<Check>,
}

struct Begun {
    at_ns: u64,
    at: DateTime<Utc>,
}

fn begin() -> Begun {
    Begun {
        at_ns: SystemClock.monotonic_ns(),
        at: SystemClock.now(),
    }
}

/// Breaks what the drill says, in the sandbox's workload.
pub(crate) async fn inject(
    sandbox: &Sandbox,
    workload: &WorkloadName,
    fault: &FaultConfig,
    probed: &[String],
) -> Result<Injected, DrillError> {
    let config = sandbox.load()?;
    match fault {
        FaultConfig::KillPrimary {
            signal,
            remove_data_directory,
        } => kill_primary(sandbox, &config, workload, signal, *remove_data_directory),
        FaultConfig::TenantMistake {
            tenant,
            statements,
            files,
        } => {
            let wanted = tenant.as_deref();
            tenant_mistake(
                sandbox, &config, workload, wanted, probed, statements, files,
            )
            .await
        }
        FaultConfig::DeleteStream { stream } => delete_stream(&config, workload, stream).await,
    }
}

fn kill(process: Process, signal: Signal) {
    if let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) {
        // Gone by itself is as good.
        let _ = kill_process(pid, signal);
    }
}

fn kill_primary(
    sandbox: &Sandbox,
    config: &Config,
    workload: &WorkloadName,
    signal: &str,
    remove: bool,
) -> Result<Injected, DrillError> {
    let WorkloadSource::Postgres(source) = config.workload(workload.as_str())?.source else {
        return Err(DrillError::Unsuitable(format!(
            "kill_primary: `{workload}` is no database"
        )));
    };
    let data = &source.data_directory;
    sandbox.must_contain(data)?;
    let server = postmaster(data)
        .ok_or_else(|| DrillError::Unsuitable(format!("no server runs on {}", data.display())))?;
    sandbox.must_own(server)?;
    let port = PgConnectOptions::from_str(&source.url).map_or(0, |options| options.get_port());
    let signal_sent = match signal {
        "QUIT" => Signal::QUIT,
        "KILL" => Signal::KILL,
        other => {
            return Err(DrillError::Unsuitable(format!(
                "signal `{other}`: use KILL or QUIT"
            )));
        }
    };
    let mut processes = vec![server];
    if signal_sent == Signal::KILL {
        processes.extend(descendants(server.pid).into_iter().filter_map(Process::of));
    }
    let begun = begin();
    // The parent first, so that it starts no new children.
    for process in &processes {
        kill(*process, signal_sent);
    }
    let deadline = Instant::now() + DEATH_TIME_MAX;
    while processes.iter().any(Process::runs) && Instant::now() < deadline {
        std::thread::sleep(POLL);
    }
    let mut proof = vec![process_is_gone(
        "fault",
        "the primary's first process",
        server,
    )];
    let left = processes.iter().filter(|process| process.runs()).count();
    proof.push(Check::seen(
        "fault",
        "all processes of the primary are gone",
        left == 0,
        format!("{} were killed, {left} are left in /proc", processes.len()),
    ));
    proof.push(port_is_closed("fault", port));
    let mut action = format!(
        "signal {signal} to {} processes of the primary",
        processes.len()
    );
    if remove {
        remove_tree(data)?;
        proof.push(path_is_gone("fault", data));
        action.push_str("; its data directory removed, pg_wal included");
    }
    let target = format!("{workload}: pid {}, {}", server.pid, data.display());
    Ok(Injected {
        action,
        target,
        at_ns: begun.at_ns,
        at: begun.at,
        proof,
    })
}

fn remove_tree(path: &Path) -> Result<(), DrillError> {
    std::fs::remove_dir_all(path).map_err(DrillError::file("remove", path))
}

async fn tenant_mistake(
    sandbox: &Sandbox,
    config: &Config,
    workload: &WorkloadName,
    wanted: Option<&str>,
    probed: &[String],
    statements: &[String],
    files: &[WorkloadName],
) -> Result<Injected, DrillError> {
    let failed = |source| DrillError::Sql {
        what: "making the mistake",
        source,
    };
    let found = config.workload(workload.as_str())?;
    let WorkloadSource::Postgres(source) = found.source else {
        return Err(DrillError::Unsuitable(format!(
            "tenant_mistake: `{workload}` is no database"
        )));
    };
    let mut connection = PgConnection::connect(&source.url).await.map_err(failed)?;
    let query = found
        .config
        .tenancy
        .as_ref()
        .and_then(|tenancy| tenancy.tenants.clone());
    let query = query.ok_or_else(|| {
        DrillError::Unsuitable(format!("workload `{workload}` has no `tenants` query"))
    })?;
    let rows = sqlx::query(AssertSqlSafe(query))
        .fetch_all(&mut connection)
        .await
        .map_err(failed)?;
    let (id, name) = rows
        .iter()
        .filter_map(|row| Some((row.try_get("id").ok()?, row.try_get("name").ok()?)))
        .find(|(id, name): &(String, String)| match wanted {
            Some(wanted) => name == wanted,
            None => probed.contains(id),
        })
        .ok_or_else(|| DrillError::Unsuitable("tenant_mistake: no such tenant".to_owned()))?;
    let folders = tenant_folders(sandbox, config, files, &id, &name)?;
    let begun = begin();
    let mut transaction = connection.begin().await.map_err(failed)?;
    let mut affected = Vec::new();
    for statement in statements {
        let text = fill_in(statement, &id, "");
        let done = sqlx::raw_sql(AssertSqlSafe(text))
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        affected.push(done.rows_affected());
    }
    transaction.commit().await.map_err(failed)?;
    for folder in &folders {
        empty(folder)?;
    }
    connection.close().await.map_err(failed)?;
    let mut proof = mistake_is_visible(&source.url, statements, &id).await?;
    proof.extend(folders.iter().map(|folder| {
        let left = std::fs::read_dir(folder).map_or(0, Iterator::count);
        let what = format!("{} is empty", folder.display());
        Check::seen("fault", what, left == 0, format!("{left} entries"))
    }));
    Ok(Injected {
        action: format!(
            "{} statements, {affected:?} rows affected; {} folders emptied",
            statements.len(),
            folders.len()
        ),
        target: format!("tenant {name} (id {id}) of {workload}"),
        at_ns: begun.at_ns,
        at: begun.at,
        proof,
    })
}

/// Runs the statements again in a transaction that is rolled back: a mistake that took effect has
/// nothing left to delete. From a connection of its own.
async fn mistake_is_visible(
    url: &str,
    statements: &[String],
    id: &str,
) -> Result<Vec<Check>, DrillError> {
    let failed = |source| DrillError::Sql {
        what: "looking at the mistake",
        source,
    };
    let mut connection = PgConnection::connect(url).await.map_err(failed)?;
    let mut proof = Vec::new();
    for statement in statements.iter().filter(|text| is_delete(text)) {
        let mut transaction = connection.begin().await.map_err(failed)?;
        let text = fill_in(statement, id, "");
        // Orders that the probe entered since are there again; they have no lines.
        let left = sqlx::raw_sql(AssertSqlSafe(text))
            .execute(&mut *transaction)
            .await
            .map_err(failed)?
            .rows_affected();
        transaction.rollback().await.map_err(failed)?;
        let what = format!("nothing is left of: {}", statement.trim());
        proof.push(Check::seen(
            "fault",
            what,
            left <= SINCE_THE_FAULT_MAX,
            format!("{left} rows"),
        ));
    }
    Ok(proof)
}

/// The probe goes on entering rows for the tenant after the mistake.
const SINCE_THE_FAULT_MAX: u64 = 20;

fn is_delete(statement: &str) -> bool {
    statement
        .trim_start()
        .get(..6)
        .is_some_and(|word| word.eq_ignore_ascii_case("delete"))
}

fn tenant_folders(
    sandbox: &Sandbox,
    config: &Config,
    workloads: &[WorkloadName],
    id: &str,
    name: &str,
) -> Result<Vec<PathBuf>, DrillError> {
    let mut folders = Vec::new();
    for workload in workloads {
        let found = config.workload(workload.as_str())?;
        let WorkloadSource::Files(source) = found.source else {
            continue;
        };
        let glob = found
            .config
            .tenancy
            .as_ref()
            .and_then(|tenancy| tenancy.path.clone());
        let glob = glob.unwrap_or_else(|| "{name}/**".to_owned());
        let own = glob
            .trim_end_matches("/**")
            .replace("{name}", name)
            .replace("{id}", id);
        if own.contains(['*', '?', '[']) {
            return Err(DrillError::Unsuitable(format!(
                "tenant_mistake: the tenants of `{workload}` have no folder of their own ({glob})"
            )));
        }
        let folder = source.path.join(own);
        sandbox.must_contain(&folder)?;
        folders.push(folder);
    }
    Ok(folders)
}

fn empty(folder: &Path) -> Result<(), DrillError> {
    for entry in std::fs::read_dir(folder).map_err(DrillError::file("list", folder))? {
        let path = entry.map_err(DrillError::file("list", folder))?.path();
        let removed = if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(DrillError::file("remove", &path))?;
    }
    Ok(())
}

async fn delete_stream(
    config: &Config,
    workload: &WorkloadName,
    stream: &str,
) -> Result<Injected, DrillError> {
    let broker = |what, reason: String| DrillError::Broker { what, reason };
    let WorkloadSource::Nats(source) = config.workload(workload.as_str())?.source else {
        return Err(DrillError::Unsuitable(format!(
            "delete_stream: `{workload}` is no queue"
        )));
    };
    let client = async_nats::connect(&source.url)
        .await
        .map_err(|error| broker("connecting", error.to_string()))?;
    let context = async_nats::jetstream::new(client);
    let begun = begin();
    context
        .delete_stream(stream)
        .await
        .map_err(|error| broker("deleting the stream", error.to_string()))?;
    // Listed by another connection.
    let there = dr_sources::nats::stream_exists(&source.url, stream).await?;
    let seen = if there {
        "it is listed"
    } else {
        "it is not listed"
    };
    let proof = vec![Check::seen(
        "fault",
        format!("stream {stream} is gone"),
        !there,
        seen,
    )];
    Ok(Injected {
        action: format!("stream {stream} deleted with its messages and consumers"),
        target: format!("{workload}: {}", source.url),
        at_ns: begun.at_ns,
        at: begun.at,
        proof,
    })
}
