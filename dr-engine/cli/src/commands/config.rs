//! `dr config`.

use dr_config::{BaseBackupBy, StreamConfig, Workload, WorkloadSource};
use dr_installation::Installation;
use dr_sources::postgres::{ClusterIdentity, ConnectOptions};

use crate::args::ConfigCommand;
use crate::context::Context;
use crate::failure::{FAILED, Failure};
use crate::output;

pub(crate) async fn run(context: &Context, command: ConfigCommand) -> Result<u8, Failure> {
    let ConfigCommand::Check = command;
    let installation = context.installation()?;
    let mut problems = Vec::new();
    check_repositories(&installation, &mut problems).await;
    for workload in installation.config.workloads() {
        if let WorkloadSource::Postgres(source) = workload.source {
            let password = installation.postgres_password(&workload)?;
            let options = ConnectOptions {
                url: source.url.clone(),
                password,
            };
            match check_postgres(&options, &workload).await {
                Ok(found) => problems.extend(found),
                Err(failure) => {
                    problems.push(format!("{}: {}", workload.name, failure.chain.join(": ")));
                }
            }
        }
    }
    if context.json {
        output::json(&serde_json::json!({
            "config": installation.config.path, "problems": problems,
        }))?;
    } else if problems.is_empty() {
        output::data(&format!(
            "{}: {} workloads, {} tiers, no problem found",
            installation.config.path.display(),
            installation.config.engine.workloads.len(),
            installation.config.tiers.len()
        ));
    } else {
        for problem in &problems {
            output::data(&format!("! {problem}"));
        }
    }
    Ok(if problems.is_empty() { 0 } else { FAILED })
}

async fn check_repositories(installation: &Installation, problems: &mut Vec<String>) {
    for name in installation.config.engine.repositories.keys() {
        let (this, name) = (installation.clone(), name.clone());
        let opened = tokio::task::spawn_blocking(move || this.repository(&name).map(drop)).await;
        match opened {
            Ok(Ok(())) => {}
            Ok(Err(error)) => problems.push(Failure::from(error).chain.join(": ")),
            Err(error) => problems.push(error.to_string()),
        }
    }
}

/// Whether the server can keep what the tier promises.
async fn check_postgres(
    options: &ConnectOptions,
    workload: &dr_config::Workload<'_>,
) -> Result<Vec<String>, Failure> {
    let mut connection = dr_sources::postgres::connect(options).await?;
    let cluster = dr_sources::postgres::identify(&mut connection).await?;
    let mut problems = Vec::new();
    if let WorkloadSource::Postgres(source) = workload.source {
        if source.stream.is_some() || source.base_backup == BaseBackupBy::Receive {
            problems = check_walsender(&mut connection, &cluster, workload).await?;
        }
        if source.base_backup == BaseBackupBy::Receive {
            let unreadable = dr_sources::postgres::unreadable_configuration(&mut connection);
            problems.extend(
                unreadable
                    .await?
                    .map(|what| format!("{}: {what}", workload.name)),
            );
        }
        if let Some(stream) = &source.stream {
            problems.extend(check_stream(&mut connection, stream, workload).await?);
            return Ok(problems);
        }
    }
    let archiving = cluster.archive_mode != "off" && !cluster.archive_command.is_empty();
    if !archiving {
        problems.push(format!(
            "{}: WAL is not archived, so nothing between two backups can be recovered; set \
             archive_mode = on and archive_command = 'dr --config FILE wal push %p'",
            workload.name
        ));
    } else if let Err(problem) =
        dr_config::check_rpo(workload.tier, cluster.archive_timeout_seconds)
    {
        problems.push(format!("{}: {problem}", workload.name));
    }
    Ok(problems)
}

/// Whether the server sends anything to us as it does to a standby.
async fn check_walsender(
    connection: &mut dr_sources::postgres::PgConnection,
    cluster: &ClusterIdentity,
    workload: &Workload<'_>,
) -> Result<Vec<String>, Failure> {
    let limits = dr_sources::postgres::stream_limits(connection).await?;
    let mut problems = Vec::new();
    if cluster.wal_level == "minimal" || limits.senders_max == 0 {
        problems.push(format!(
            "{}: the server streams no WAL; set wal_level = replica and max_wal_senders = 10",
            workload.name
        ));
    }
    if !limits.may_replicate {
        problems.push(format!(
            "{}: its role may not receive WAL or base backups; ALTER ROLE ... REPLICATION, and a line for \
             `replication` in pg_hba.conf",
            workload.name
        ));
    }
    Ok(problems)
}

/// The same as [`check_postgres`] where WAL is received as it is written.
async fn check_stream(
    connection: &mut dr_sources::postgres::PgConnection,
    stream: &StreamConfig,
    workload: &Workload<'_>,
) -> Result<Vec<String>, Failure> {
    let limits = dr_sources::postgres::stream_limits(connection).await?;
    let mut problems = Vec::new();
    if limits.slot_keep_bytes.is_none() {
        problems.push(format!(
            "{}: while its repository is away, slot `{}` keeps WAL until the server's disk is full; set \
             max_slot_wal_keep_size to what there is room for",
            workload.name,
            stream.slot_of(workload.name)
        ));
    }
    if stream.every() > workload.tier.rpo.0 {
        problems.push(format!(
            "{}: tier {} promises an RPO of {}, and what has arrived may wait {} ms: `every` has to be \
             shorter",
            workload.name,
            workload.tier.tier,
            workload.tier.rpo,
            stream.every().as_millis()
        ));
    }
    Ok(problems)
}
