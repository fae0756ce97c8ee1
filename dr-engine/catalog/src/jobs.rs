//! Jobs as rows: claimed under one transaction, kept alive by heartbeats, fenced by an epoch.

use chrono::{DateTime, Utc};
use dr_model::JobId;
use serde::Serialize;
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, Row};

use crate::error::database;
use crate::{Catalog, CatalogError};

/// The process that runs a job. The pair of id and start time names a process for ever, within a boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Owner {
    /// The host's name.
    pub host: String,
    /// The boot of that host.
    pub boot: String,
    /// The process id.
    pub pid: u32,
    /// Its start, in clock ticks since boot.
    pub pid_started: u64,
}

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Its process works on it, or died without a word.
    Running,
    /// Ended well.
    Done,
    /// Ended with a reason.
    Failed,
    /// Was asked to stop.
    Cancelled,
    /// Its process ended without a word, and that was noticed.
    Died,
}

impl JobState {
    /// As stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Died => "died",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [
            Self::Running,
            Self::Done,
            Self::Failed,
            Self::Cancelled,
            Self::Died,
        ]
        .into_iter()
        .find(|state| state.as_str() == text)
    }
}

/// One job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobRow {
    /// Its id.
    pub id: String,
    /// backup, restore, ...
    pub kind: String,
    /// What it holds for itself: a workload's name.
    pub lane: String,
    /// For people.
    pub detail: String,
    /// How it stands.
    pub state: JobState,
    /// Who runs it.
    pub owner: Owner,
    /// Fences writes of a process that was taken over.
    pub epoch: i64,
    /// When it began.
    pub started: DateTime<Utc>,
    /// Its last sign of life.
    pub heartbeat: DateTime<Utc>,
    /// Why it ended, when not well.
    pub reason: Option<String>,
}

impl std::fmt::Display for JobRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} of {} ({}, process {}, since {})",
            self.kind,
            self.lane,
            self.id,
            self.owner.pid,
            self.started.format("%Y-%m-%dT%H:%M:%SZ")
        )
    }
}

/// The answer to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The lane is ours.
    Claimed,
    /// Someone else has it.
    Busy(Box<JobRow>),
}

const COLUMNS: &str = "id, kind, lane, detail, state, host, boot, pid, pid_started, epoch, started, \
                       heartbeat, reason";

fn row_to_job(row: &SqliteRow) -> Result<JobRow, CatalogError> {
    let text = |name| {
        row.try_get::<String, _>(name)
            .map_err(database("read a job"))
    };
    let number = |name| row.try_get::<i64, _>(name).map_err(database("read a job"));
    let bad = |detail: String| CatalogError::Row {
        what: "job",
        detail,
    };
    let time = |name| {
        DateTime::parse_from_rfc3339(&text(name)?)
            .map(|time| time.with_timezone(&Utc))
            .map_err(|error| bad(format!("{name}: {error}")))
    };
    let state = text("state")?;
    Ok(JobRow {
        id: text("id")?,
        kind: text("kind")?,
        lane: text("lane")?,
        detail: text("detail")?,
        state: JobState::parse(&state).ok_or_else(|| bad(format!("state {state}")))?,
        owner: Owner {
            host: text("host")?,
            boot: text("boot")?,
            pid: u32::try_from(number("pid")?).map_err(|error| bad(error.to_string()))?,
            pid_started: number("pid_started")?.cast_unsigned(),
        },
        epoch: number("epoch")?,
        started: time("started")?,
        heartbeat: time("heartbeat")?,
        reason: row.try_get("reason").map_err(database("read a job"))?,
    })
}

impl Catalog {
    /// Claims the lane of `job` for it. A job that holds the lane and of which `is_dead` says so is ended
    /// first, with the reason, in the same transaction.
    ///
    /// # Errors
    /// When the catalog cannot be written.
    pub async fn claim_lane(
        &self,
        job: &JobRow,
        is_dead: impl Fn(&JobRow) -> Option<String> + Send,
    ) -> Result<Claim, CatalogError> {
        let mut connection = self
            .pool
            .acquire()
            .await
            .map_err(database("claim a lane"))?;
        let mut transaction = connection
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(database("claim a lane"))?;
        let holder = sqlx::query(sqlx::AssertSqlSafe(format!(
            "select {COLUMNS} from job where lane = ? and state = 'running'"
        )))
        .bind(&job.lane)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(database("claim a lane"))?;
        if let Some(row) = holder {
            let holder = row_to_job(&row)?;
            let Some(reason) = is_dead(&holder) else {
                return Ok(Claim::Busy(Box::new(holder)));
            };
            sqlx::query(
                "update job set state = 'died', reason = ?, finished = ?, epoch = epoch + 1 where id = ?",
            )
            .bind(reason)
            .bind(job.started.to_rfc3339())
            .bind(&holder.id)
            .execute(&mut *transaction)
            .await
            .map_err(database("end a dead job"))?;
        }
        sqlx::query(
            "insert into job (id, kind, lane, detail, state, host, boot, pid, pid_started, epoch, \
             started, heartbeat) values (?, ?, ?, ?, 'running', ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&job.id)
        .bind(&job.kind)
        .bind(&job.lane)
        .bind(&job.detail)
        .bind(&job.owner.host)
        .bind(&job.owner.boot)
        .bind(i64::from(job.owner.pid))
        .bind(job.owner.pid_started.cast_signed())
        .bind(job.epoch)
        .bind(job.started.to_rfc3339())
        .bind(job.heartbeat.to_rfc3339())
        .execute(&mut *transaction)
        .await
        .map_err(database("record a job"))?;
        transaction
            .commit()
            .await
            .map_err(database("claim a lane"))?;
        Ok(Claim::Claimed)
    }

    /// Ends every running job of which `is_dead` says so; gives them back with their reasons.
    ///
    /// # Errors
    /// When the catalog cannot be read or written.
    pub async fn end_dead_jobs(
        &self,
        now: DateTime<Utc>,
        is_dead: impl Fn(&JobRow) -> Option<String> + Send,
    ) -> Result<Vec<JobRow>, CatalogError> {
        let mut ended = Vec::new();
        for mut job in self.running_jobs().await? {
            let Some(reason) = is_dead(&job) else {
                continue;
            };
            let changed = sqlx::query(
                "update job set state = 'died', reason = ?, finished = ?, epoch = epoch + 1 \
                 where id = ? and state = 'running' and epoch = ?",
            )
            .bind(&reason)
            .bind(now.to_rfc3339())
            .bind(&job.id)
            .bind(job.epoch)
            .execute(&self.pool)
            .await
            .map_err(database("end a dead job"))?;
            if changed.rows_affected() == 1 {
                job.state = JobState::Died;
                job.reason = Some(reason);
                ended.push(job);
            }
        }
        Ok(ended)
    }

    /// A sign of life.
    ///
    /// # Errors
    /// [`CatalogError::LeaseLost`] when the job was ended by someone else.
    pub async fn heartbeat(
        &self,
        job: &JobId,
        epoch: i64,
        now: DateTime<Utc>,
    ) -> Result<(), CatalogError> {
        let changed = sqlx::query(
            "update job set heartbeat = ? where id = ? and epoch = ? and state = 'running'",
        )
        .bind(now.to_rfc3339())
        .bind(job.as_str())
        .bind(epoch)
        .execute(&self.pool)
        .await
        .map_err(database("record a heartbeat"))?;
        held(changed.rows_affected(), job)
    }

    /// Journals that a step begins.
    ///
    /// # Errors
    /// [`CatalogError::LeaseLost`] when the job was ended by someone else.
    pub async fn begin_step(
        &self,
        job: &JobId,
        epoch: i64,
        number: i64,
        name: &str,
        now: DateTime<Utc>,
    ) -> Result<(), CatalogError> {
        let changed = sqlx::query(
            "insert into job_step (job, number, name, started) \
             select id, ?, ?, ? from job where id = ? and epoch = ? and state = 'running'",
        )
        .bind(number)
        .bind(name)
        .bind(now.to_rfc3339())
        .bind(job.as_str())
        .bind(epoch)
        .execute(&self.pool)
        .await
        .map_err(database("journal a step"))?;
        held(changed.rows_affected(), job)
    }

    /// Ends a job.
    ///
    /// # Errors
    /// [`CatalogError::LeaseLost`] when it was ended by someone else before.
    pub async fn finish_job(
        &self,
        job: &JobId,
        epoch: i64,
        state: JobState,
        reason: Option<&str>,
        now: DateTime<Utc>,
    ) -> Result<(), CatalogError> {
        let changed = sqlx::query(
            "update job set state = ?, reason = ?, finished = ? \
             where id = ? and epoch = ? and state = 'running'",
        )
        .bind(state.as_str())
        .bind(reason)
        .bind(now.to_rfc3339())
        .bind(job.as_str())
        .bind(epoch)
        .execute(&self.pool)
        .await
        .map_err(database("end a job"))?;
        held(changed.rows_affected(), job)
    }

    /// The jobs that run, oldest first.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn running_jobs(&self) -> Result<Vec<JobRow>, CatalogError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "select {COLUMNS} from job where state = 'running' order by started, id"
        )))
        .fetch_all(&self.pool)
        .await
        .map_err(database("list jobs"))?;
        rows.iter().map(row_to_job).collect()
    }

    /// The newest jobs, newest first.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn recent_jobs(&self, limit: u32) -> Result<Vec<JobRow>, CatalogError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "select {COLUMNS} from job order by started desc, id desc limit ?"
        )))
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(database("list jobs"))?;
        rows.iter().map(row_to_job).collect()
    }

    /// The steps that a job began, in order.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn steps(&self, job: &str) -> Result<Vec<String>, CatalogError> {
        let rows = sqlx::query("select name from job_step where job = ? order by number")
            .bind(job)
            .fetch_all(&self.pool)
            .await
            .map_err(database("read a journal"))?;
        rows.iter()
            .map(|row| row.try_get(0).map_err(database("read a journal")))
            .collect()
    }
}

fn held(rows: u64, job: &JobId) -> Result<(), CatalogError> {
    if rows == 1 {
        Ok(())
    } else {
        Err(CatalogError::LeaseLost {
            job: job.to_string(),
        })
    }
}
