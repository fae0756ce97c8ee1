//! A cluster: restored, judged by `pg_verifybackup`, started, asked.

use std::process::Stdio;
use std::sync::Arc;

use dr_model::Target;
use dr_sources::instance::command;
use dr_sources::postgres::connect;

use super::{Checks, Work};
use crate::error::{blocking, source_error};
use crate::scratch::{Prepared, prepare};
use crate::{RestoreError, RestoreRequest, Scratch, plan};

pub(super) async fn verify(work: &Work<'_>, checks: &mut Checks) -> Result<(), RestoreError> {
    let target = Target::RestorePoint(work.point.id.clone());
    let request = RestoreRequest::new(work.point.workload.clone(), None, target);
    let plan = plan(work.installation, &request).await?;
    let prepared = prepare(
        work.installation,
        plan,
        &work.folder,
        &work.progress,
        &work.cancel,
    )
    .await?;
    checks.held(
        "restored",
        format!("into {}", prepared.data_directory.display()),
    );
    judge(&prepared, checks).await?;
    let scratch = prepared
        .open(work.installation, Arc::clone(&work.progress))
        .await?;
    checks.held(
        "started",
        format!(
            "recovered to {} on timeline {}",
            scratch.reached.lsn, scratch.reached.timeline
        ),
    );
    ask(&scratch, checks).await?;
    blocking("stop the scratch server", move || {
        drop(scratch);
        Ok(())
    })
    .await
}

/// Someone else's program compares every file with the checksums taken when it was captured.
async fn judge(prepared: &Prepared, checks: &mut Checks) -> Result<(), RestoreError> {
    let program = prepared.bin_directory.join("pg_verifybackup");
    let mut judge = command(prepared.user.as_ref(), &program);
    judge
        .arg("-n")
        .arg(&prepared.data_directory)
        .current_dir("/")
        .stdin(Stdio::null());
    let output = blocking("run pg_verifybackup", move || {
        judge
            .output()
            .map_err(crate::error::file_error("run", &program))
    })
    .await?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    checks.add("pg_verifybackup", output.status.success(), text);
    Ok(())
}

/// Every database answers, and its catalog can be read from end to end.
async fn ask(scratch: &Scratch, checks: &mut Checks) -> Result<(), RestoreError> {
    let sql = |source| RestoreError::Source {
        action: "ask the restored server".to_owned(),
        source: dr_sources::SourceError::Sql {
            action: "answer",
            source,
        },
    };
    let open = |database: String| async move {
        connect(&scratch.connect_options(&database))
            .await
            .map_err(source_error(format!(
                "reach database `{database}` of the restored server"
            )))
    };
    let mut connection = open("postgres".to_owned()).await?;
    let databases: Vec<String> = sqlx::query_scalar(
        "select datname::text from pg_database where datallowconn order by datname",
    )
    .fetch_all(&mut connection)
    .await
    .map_err(sql)?;
    let (mut tables, mut rows) = (0_i64, 0_i64);
    for database in &databases {
        let mut connection = open(database.clone()).await?;
        let names: Vec<String> = sqlx::query_scalar(
            "select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where c.relkind = 'r' and c.relpersistence = 'p' and n.nspname not like 'pg\\_temp%' \
             order by c.oid",
        )
        .fetch_all(&mut connection)
        .await
        .map_err(sql)?;
        for name in names {
            // The name comes quoted from the server itself.
            let count = format!("select count(*) from only {name}");
            let found: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(count))
                .fetch_one(&mut connection)
                .await
                .map_err(sql)?;
            tables += 1;
            rows += found;
        }
    }
    checks.held(
        "every table of every database read",
        format!(
            "{} databases, {tables} tables, {rows} rows",
            databases.len()
        ),
    );
    Ok(())
}
