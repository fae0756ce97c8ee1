//! Filling the catalog from the repositories: the catalog is an index, the repositories are the truth.

use dr_catalog::Catalog;
use dr_model::{RepositoryName, RestorePoint};
use serde::Serialize;

use crate::{Installation, InstallationError};

/// What a rebuild found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RebuildReport {
    /// Restore points indexed.
    pub restore_points: usize,
    /// Repositories read.
    pub repositories: usize,
}

impl Installation {
    /// Makes the catalog anew from every repository the configuration names. A missing catalog is
    /// created; jobs and schedule runs of the old one are history and stay where it can be opened.
    ///
    /// # Errors
    /// When a repository cannot be read or the catalog not be written. The catalog is cleared only
    /// after every repository was read.
    pub async fn rebuild_catalog(&self) -> Result<RebuildReport, InstallationError> {
        let points = self.read_all_points().await?;
        let url = self.config.engine.catalog.clone();
        let failed = |action| {
            let url = url.clone();
            move |source| InstallationError::Catalog {
                action,
                url,
                source,
            }
        };
        let catalog = Catalog::create(&url).await.map_err(failed("create"))?;
        catalog.clear_index().await.map_err(failed("clear"))?;
        let mut report = RebuildReport {
            repositories: self.config.engine.repositories.len(),
            ..RebuildReport::default()
        };
        for (repository, point) in points {
            catalog
                .upsert_point(&point, &repository)
                .await
                .map_err(failed("fill"))?;
            report.restore_points += 1;
        }
        Ok(report)
    }

    /// Adds to the catalog what the repositories hold and it lacks (a crash between the two, or a
    /// catalog that was away).
    ///
    /// # Errors
    /// As [`Installation::rebuild_catalog`].
    pub async fn reconcile_catalog(&self) -> Result<usize, InstallationError> {
        let catalog = self.catalog().await?;
        let url = self.config.engine.catalog.clone();
        let points = self.read_all_points().await?;
        let count = points.len();
        for (repository, point) in points {
            catalog
                .upsert_point(&point, &repository)
                .await
                .map_err(|source| InstallationError::Catalog {
                    action: "fill",
                    url: url.clone(),
                    source,
                })?;
        }
        Ok(count)
    }

    async fn read_all_points(
        &self,
    ) -> Result<Vec<(RepositoryName, RestorePoint)>, InstallationError> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            for (name, repository) in this.all_repositories()? {
                let points =
                    repository
                        .points(None)
                        .map_err(|source| InstallationError::Store {
                            action: "list the restore points",
                            place: repository.describe(),
                            source,
                        })?;
                found.extend(points.into_iter().map(|point| (name.clone(), point)));
            }
            Ok(found)
        })
        .await
        .map_err(|_| InstallationError::Worker {
            action: "read the repositories",
        })?
    }
}
