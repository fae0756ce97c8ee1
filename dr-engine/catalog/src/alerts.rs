//! Alerts: raised when a promise is broken, cleared when it is kept again.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::Row;

use crate::error::database;
use crate::{Catalog, CatalogError};

/// An open alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alert {
    /// What it is about: one open alert for each subject.
    pub subject: String,
    /// What is wrong.
    pub message: String,
    /// Since when, RFC 3339.
    pub raised: String,
}

impl std::fmt::Display for Alert {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (since {})", self.message, self.raised)
    }
}

impl Catalog {
    /// Raises an alert; true when there was none open on this subject.
    ///
    /// # Errors
    /// When the catalog cannot be written.
    pub async fn raise_alert(
        &self,
        subject: &str,
        message: &str,
        now: DateTime<Utc>,
    ) -> Result<bool, CatalogError> {
        let inserted = sqlx::query(
            "insert into alert (subject, message, raised) values (?, ?, ?) \
             on conflict (subject) where cleared is null do nothing",
        )
        .bind(subject)
        .bind(message)
        .bind(now.to_rfc3339())
        .execute(&self.pool)
        .await
        .map_err(database("raise an alert"))?;
        Ok(inserted.rows_affected() == 1)
    }

    /// Clears the alert on this subject; true when one was open.
    ///
    /// # Errors
    /// When the catalog cannot be written.
    pub async fn clear_alert(
        &self,
        subject: &str,
        now: DateTime<Utc>,
    ) -> Result<bool, CatalogError> {
        let cleared =
            sqlx::query("update alert set cleared = ? where subject = ? and cleared is null")
                .bind(now.to_rfc3339())
                .bind(subject)
                .execute(&self.pool)
                .await
                .map_err(database("clear an alert"))?;
        Ok(cleared.rows_affected() > 0)
    }

    /// The open alerts, oldest first.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn open_alerts(&self) -> Result<Vec<Alert>, CatalogError> {
        let rows = sqlx::query(
            "select subject, message, raised from alert where cleared is null order by raised, id",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(database("list alerts"))?;
        rows.iter()
            .map(|row| {
                Ok(Alert {
                    subject: row.try_get(0).map_err(database("read an alert"))?,
                    message: row.try_get(1).map_err(database("read an alert"))?,
                    raised: row.try_get(2).map_err(database("read an alert"))?,
                })
            })
            .collect()
    }
}
