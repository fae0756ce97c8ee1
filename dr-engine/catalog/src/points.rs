//! Restore points, as found in the repositories.

use dr_model::{RepositoryName, RestorePoint, RestorePointId, WorkloadName};
use sqlx::Row;

use crate::error::database;
use crate::{Catalog, CatalogError};

impl Catalog {
    /// Indexes a restore point; one that is indexed already is brought up to date.
    ///
    /// # Errors
    /// When the catalog cannot be written.
    pub async fn upsert_point(
        &self,
        point: &RestorePoint,
        repository: &RepositoryName,
    ) -> Result<(), CatalogError> {
        let body = serde_json::to_string(point).map_err(|error| CatalogError::Row {
            what: "restore point",
            detail: error.to_string(),
        })?;
        sqlx::query(
            "insert into restore_point (id, repository, workload, moment, body) values (?, ?, ?, ?, ?) \
             on conflict (id) do update set repository = excluded.repository, body = excluded.body",
        )
        .bind(point.id.as_str())
        .bind(repository.as_str())
        .bind(point.workload.as_str())
        .bind(point.moment.to_rfc3339())
        .bind(body)
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(database("index a restore point"))
    }

    /// The indexed restore points of a workload, or of all, by moment.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn points(
        &self,
        workload: Option<&WorkloadName>,
    ) -> Result<Vec<RestorePoint>, CatalogError> {
        let rows = sqlx::query(
            "select body from restore_point where ?1 is null or workload = ?1 order by moment, id",
        )
        .bind(workload.map(WorkloadName::as_str))
        .fetch_all(&self.pool)
        .await
        .map_err(database("list restore points"))?;
        rows.iter()
            .map(|row| {
                let body: String = row.try_get(0).map_err(database("read a restore point"))?;
                serde_json::from_str(&body).map_err(|error| CatalogError::Row {
                    what: "restore point",
                    detail: error.to_string(),
                })
            })
            .collect()
    }

    /// Forgets one restore point.
    ///
    /// # Errors
    /// When the catalog cannot be written.
    pub async fn forget_point(&self, point: &RestorePointId) -> Result<(), CatalogError> {
        sqlx::query("delete from restore_point where id = ?")
            .bind(point.as_str())
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(database("forget a restore point"))
    }

    /// Forgets everything that was indexed, and how far lists of restore points went. Jobs, schedule runs
    /// and alerts stay.
    ///
    /// # Errors
    /// When the catalog cannot be written.
    pub async fn clear_index(&self) -> Result<(), CatalogError> {
        sqlx::query("delete from list_anchor")
            .execute(&self.pool)
            .await
            .map_err(database("clear the index"))?;
        sqlx::query("delete from restore_point")
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(database("clear the index"))
    }
}
