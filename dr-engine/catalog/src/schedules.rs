//! Planned runs: each happens once.

use chrono::{DateTime, Utc};
use sqlx::Row;

use crate::error::database;
use crate::{Catalog, CatalogError};

/// The newest run of a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleRun {
    /// When it was planned.
    pub planned_at: DateTime<Utc>,
    /// When it ended, RFC 3339; `None` while it runs or when it died.
    pub finished: Option<String>,
    /// How it ended.
    pub outcome: Option<String>,
}

impl Catalog {
    /// Claims a planned run; false when it was claimed before.
    ///
    /// # Errors
    /// When the catalog cannot be written.
    pub async fn claim_run(
        &self,
        schedule: &str,
        planned_at: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<bool, CatalogError> {
        let claimed = sqlx::query(
            "insert into schedule_run (schedule, planned_at, claimed) values (?, ?, ?) \
             on conflict do nothing",
        )
        .bind(schedule)
        .bind(planned_at.to_rfc3339())
        .bind(now.to_rfc3339())
        .execute(&self.pool)
        .await
        .map_err(database("claim a planned run"))?;
        Ok(claimed.rows_affected() == 1)
    }

    /// Records how a claimed run ended.
    ///
    /// # Errors
    /// When the catalog cannot be written.
    pub async fn finish_run(
        &self,
        schedule: &str,
        planned_at: DateTime<Utc>,
        now: DateTime<Utc>,
        outcome: &str,
    ) -> Result<(), CatalogError> {
        sqlx::query(
            "update schedule_run set finished = ?, outcome = ? where schedule = ? and planned_at = ?",
        )
        .bind(now.to_rfc3339())
        .bind(outcome)
        .bind(schedule)
        .bind(planned_at.to_rfc3339())
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(database("record a run's end"))
    }

    /// The newest claimed run of a schedule.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn last_run(&self, schedule: &str) -> Result<Option<ScheduleRun>, CatalogError> {
        let row = sqlx::query(
            "select planned_at, finished, outcome from schedule_run where schedule = ? \
             order by planned_at desc limit 1",
        )
        .bind(schedule)
        .fetch_optional(&self.pool)
        .await
        .map_err(database("read a schedule's runs"))?;
        let Some(row) = row else { return Ok(None) };
        let planned: String = row.try_get(0).map_err(database("read a planned run"))?;
        let planned_at = DateTime::parse_from_rfc3339(&planned)
            .map_err(|error| CatalogError::Row {
                what: "planned run",
                detail: error.to_string(),
            })?
            .with_timezone(&Utc);
        Ok(Some(ScheduleRun {
            planned_at,
            finished: row.try_get(1).map_err(database("read a planned run"))?,
            outcome: row.try_get(2).map_err(database("read a planned run"))?,
        }))
    }
}
