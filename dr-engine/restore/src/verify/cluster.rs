//! A cluster: restored, judged by `pg_verifybackup`, started, asked, judged by `pg_amcheck`, and, shut down,
//! by `pg_checksums`.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use dr_model::Target;
use dr_sources::instance::{RunAs, command};
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
    let judges = Judges {
        programs: prepared.bin_directory.clone(),
        user: prepared.user.clone(),
    };
    judges.backup(&prepared, checks).await?;
    let has_checksums = (work.point.postgres()).is_some_and(|position| position.page_checksums);
    let scratch = prepared
        .open(work.installation, Arc::clone(&work.progress))
        .await?;
    let note = scratch.reached.note.as_ref();
    checks.held(
        "started",
        format!(
            "recovered to {} on timeline {}{}",
            scratch.reached.lsn,
            scratch.reached.timeline,
            note.map_or(String::new(), |note| format!("; {note}"))
        ),
    );
    ask(&scratch, checks).await?;
    judges.structures(&scratch, checks).await?;
    let stopped = blocking("stop the scratch server", move || scratch.stop()).await?;
    if has_checksums {
        let data = stopped.data_directory.clone();
        let all = |judge: &mut Command| {
            judge.args(["--check", "-D"]).arg(data);
        };
        judges.run("pg_checksums", all, checks).await?;
    }
    blocking("remove the scratch folder", move || {
        drop(stopped);
        Ok(())
    })
    .await
}

/// Of what a judge says: a damaged table is told row by row.
const LINES_KEPT: usize = 40;

/// Someone else's programs: those that come with the server.
struct Judges {
    programs: PathBuf,
    user: Option<RunAs>,
}

impl Judges {
    /// Compares every file with the checksums taken when it was captured or put together.
    async fn backup(&self, prepared: &Prepared, checks: &mut Checks) -> Result<(), RestoreError> {
        let data = &prepared.data_directory;
        let all = |judge: &mut Command| {
            judge.arg("-n").arg(data);
        };
        self.run("pg_verifybackup", all, checks).await
    }

    /// Whether tables and indexes are what they should be, and fit each other. Its extension comes in
    /// packages of its own on some systems.
    async fn structures(&self, scratch: &Scratch, checks: &mut Checks) -> Result<(), RestoreError> {
        let mut connection = connect(&scratch.connect_options("postgres"))
            .await
            .map_err(source_error("reach the restored server"))?;
        let is_there: bool = sqlx::query_scalar(
            "select exists (select from pg_available_extensions where name = 'amcheck')",
        )
        .fetch_one(&mut connection)
        .await
        .map_err(sql)?;
        if !is_there || !self.programs.join("pg_amcheck").is_file() {
            checks.held("pg_amcheck not run", "it is not installed on this host");
            return Ok(());
        }
        let (folder, port, user) = scratch.reach();
        // Indexes that were made where texts are sorted otherwise are not in order here, and are right.
        let tables_alone = scratch.reads_everything();
        if tables_alone {
            checks.held(
                "indexes not judged by pg_amcheck",
                "this host may sort texts differently than the source",
            );
        }
        let all = |judge: &mut Command| {
            judge
                .args(["--all", "--install-missing", "--no-strict-names", "-j", "2"])
                .args(tables_alone.then_some("--no-dependent-indexes"))
                .arg("-h")
                .arg(folder)
                .args(["-p", &port.to_string(), "-U", user]);
        };
        self.run("pg_amcheck", all, checks).await
    }

    async fn run(
        &self,
        name: &'static str,
        arguments: impl FnOnce(&mut Command),
        checks: &mut Checks,
    ) -> Result<(), RestoreError> {
        let program = self.programs.join(name);
        let mut judge = command(self.user.as_ref(), &program);
        judge.current_dir("/").stdin(Stdio::null());
        // What the host's environment says of servers is about others.
        let foreign =
            std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG"));
        for (name, _) in foreign {
            judge.env_remove(name);
        }
        // What was set for roles and databases of production must not stop it, nor what a restored
        // prepared transaction has locked.
        judge.env(
            "PGOPTIONS",
            "-c statement_timeout=0 -c lock_timeout=60s -c default_transaction_read_only=off \
             -c row_security=off",
        );
        arguments(&mut judge);
        let output = blocking("run one of PostgreSQL's programs", move || {
            judge
                .output()
                .map_err(crate::error::file_error("run", &program))
        })
        .await?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.trim().lines();
        let mut told: Vec<&str> = lines.by_ref().take(LINES_KEPT).collect();
        let more = match lines.count() {
            0 => String::new(),
            more => format!("and {more} more lines"),
        };
        told.extend((!more.is_empty()).then_some(more.as_str()));
        checks.add(name, output.status.success(), told.join("\n"));
        Ok(())
    }
}

fn sql(source: sqlx::Error) -> RestoreError {
    RestoreError::Source {
        action: "ask the restored server".to_owned(),
        source: dr_sources::SourceError::Sql {
            action: "answer",
            source,
        },
    }
}

/// Every database answers, and its catalog can be read from end to end.
async fn ask(scratch: &Scratch, checks: &mut Checks) -> Result<(), RestoreError> {
    let open = |database: String| async move {
        let mut session =
            connect(&scratch.connect_options(&database))
                .await
                .map_err(source_error(format!(
                    "reach database `{database}` of the restored server"
                )))?;
        // What production sets for its roles, and what a restored prepared transaction has locked.
        sqlx::raw_sql("set statement_timeout = 0; set lock_timeout = '60s'")
            .execute(&mut session)
            .await
            .map_err(sql)?;
        Ok::<_, RestoreError>(session)
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
