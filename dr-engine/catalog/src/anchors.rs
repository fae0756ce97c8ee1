//! How far the lists of restore points were seen to go. Kept outside the repository, so that a repository
//! that was put back to an older state, whole and authentic, is noticed.

use chrono::{DateTime, Utc};
use dr_model::{RepositoryName, WorkloadName};
use sqlx::Row;

use crate::error::database;
use crate::{Catalog, CatalogError};

/// An entry of a list that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenList {
    /// The workload.
    pub workload: WorkloadName,
    /// The entry's number.
    pub sequence: u64,
    /// SHA-256 of the entry, in hexadecimal digits.
    pub sha256: String,
    /// When it was seen last, RFC 3339.
    pub seen: String,
}

impl Catalog {
    /// The newest entries that were seen in a repository, one for each workload.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn seen_lists(
        &self,
        repository: &RepositoryName,
    ) -> Result<Vec<SeenList>, CatalogError> {
        let rows = sqlx::query(
            "select workload, sequence, sha256, seen from list_anchor where repository = ? \
             order by workload",
        )
        .bind(repository.as_str())
        .fetch_all(&self.pool)
        .await
        .map_err(database("read how far lists go"))?;
        rows.iter()
            .map(|row| {
                let workload: String = row.try_get(0).map_err(database("read a list's end"))?;
                let sequence: i64 = row.try_get(1).map_err(database("read a list's end"))?;
                Ok(SeenList {
                    workload: workload.parse().map_err(|_| CatalogError::Row {
                        what: "list anchor",
                        detail: format!("`{workload}` is no workload"),
                    })?,
                    sequence: u64::try_from(sequence).unwrap_or(0),
                    sha256: row.try_get(2).map_err(database("read a list's end"))?,
                    seen: row.try_get(3).map_err(database("read a list's end"))?,
                })
            })
            .collect()
    }

    /// Remembers the newest entry of a list.
    ///
    /// # Errors
    /// When the catalog cannot be written.
    pub async fn saw_list(
        &self,
        repository: &RepositoryName,
        workload: &WorkloadName,
        sequence: u64,
        sha256: &str,
        now: DateTime<Utc>,
    ) -> Result<(), CatalogError> {
        sqlx::query(
            "insert into list_anchor (repository, workload, sequence, sha256, seen) \
             values (?, ?, ?, ?, ?) on conflict (repository, workload) do update set \
             sequence = excluded.sequence, sha256 = excluded.sha256, seen = excluded.seen",
        )
        .bind(repository.as_str())
        .bind(workload.as_str())
        .bind(i64::try_from(sequence).unwrap_or(i64::MAX))
        .bind(sha256)
        .bind(now.to_rfc3339())
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(database("remember how far a list goes"))
    }
}
