//! Who the tenants are, and where: the configured `tenants` query, live and at the target.

use std::collections::BTreeMap;

use dr_config::{PostgresSource, TenancyConfig, TenancyModel, Workload, WorkloadSource};
use dr_installation::Installation;
use dr_model::WorkloadName;
use dr_sources::postgres::ConnectOptions;

use crate::{Tenant, TenantError, sql};

/// Names this alike (0 to 1) are shown to somebody who mistyped one.
const ALIKE: f64 = 0.7;
/// That many of them.
const ALIKE_SHOWN: usize = 3;

/// A database with tenants, as configured.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) workload: WorkloadName,
    pub(crate) source: PostgresSource,
    pub(crate) tenancy: TenancyConfig,
    pub(crate) query: String,
    pub(crate) live: ConnectOptions,
}

impl Place {
    /// The database in the workload's URL; PostgreSQL takes the user's name when there is none.
    pub(crate) fn database(&self) -> String {
        let without_query = self.source.url.split('?').next().unwrap_or_default();
        let after_scheme = without_query.split("://").nth(1).unwrap_or_default();
        let named = after_scheme
            .split_once('/')
            .map(|(_, name)| name)
            .filter(|name| !name.is_empty());
        let user = after_scheme
            .split_once('@')
            .map_or("postgres", |(user, _)| user);
        named.unwrap_or(user).to_owned()
    }
}

/// Reads what a workload's configuration says of its tenants.
pub(crate) fn place(
    installation: &Installation,
    name: &WorkloadName,
) -> Result<Place, TenantError> {
    let workload = installation
        .config
        .workload(name.as_str())
        .map_err(dr_installation::InstallationError::from)?;
    place_of(installation, &workload)
}

fn place_of(installation: &Installation, workload: &Workload<'_>) -> Result<Place, TenantError> {
    let missing = |missing| TenantError::NotConfigured {
        workload: workload.name.clone(),
        missing,
    };
    let WorkloadSource::Postgres(source) = workload.source else {
        return Err(missing("postgres"));
    };
    let tenancy = workload
        .config
        .tenancy
        .as_ref()
        .ok_or_else(|| missing("tenancy"))?;
    match tenancy.model {
        None | Some(TenancyModel::Pooled) => {}
        Some(TenancyModel::Schema) => return Err(TenantError::NotYet("tenancy model `schema`")),
        Some(TenancyModel::Database) => {
            return Err(TenantError::NotYet("tenancy model `database`"));
        }
    }
    let query = tenancy
        .tenants
        .clone()
        .ok_or_else(|| missing("tenancy.tenants"))?;
    let password = installation.postgres_password(workload)?;
    Ok(Place {
        workload: workload.name.clone(),
        source: source.clone(),
        tenancy: tenancy.clone(),
        query,
        live: ConnectOptions {
            url: source.url.clone(),
            password,
        },
    })
}

/// All databases with tenants.
fn places(installation: &Installation) -> Result<Vec<Place>, TenantError> {
    installation
        .config
        .workloads()
        .filter(|w| matches!(w.source, WorkloadSource::Postgres(_)) && w.config.tenancy.is_some())
        .map(|workload| place_of(installation, &workload))
        .collect()
}

impl Place {
    /// Lists the tenants, of the live database or of a copy. Whose rows are everybody's is none.
    pub(crate) async fn tenants(
        &self,
        options: &ConnectOptions,
        server: &str,
    ) -> Result<Vec<Tenant>, TenantError> {
        let mut tenants = list(options, &self.query, server).await?;
        tenants.retain(|tenant| !self.tenancy.shared_ids.contains(&tenant.id));
        Ok(tenants)
    }
}

/// Lists the tenants of a database. The query runs with the session's own search path, in a transaction
/// that cannot write.
pub(crate) async fn list(
    options: &ConnectOptions,
    query: &str,
    server: &str,
) -> Result<Vec<Tenant>, TenantError> {
    let mut connection = dr_sources::postgres::connect(options)
        .await
        .map_err(|source| TenantError::Connect {
            place: server.to_owned(),
            source,
        })?;
    sql::run(&mut connection, "begin read only", "listing tenants").await?;
    let query = query.trim().trim_end_matches(';');
    let wrapped = format!(
        "select id::text, name::text, (to_jsonb(dr_tenants) - 'id' - 'name')::text \
         from ({query}) dr_tenants order by 2, 1"
    );
    let rows = sql::rows(
        &mut connection,
        &wrapped,
        "listing tenants (tenancy.tenants)",
    )
    .await?;
    let tenants = rows
        .iter()
        .map(|row| {
            Ok(Tenant {
                id: sql::column(row, 0)?,
                name: sql::column(row, 1)?,
                others: other_ids(&sql::column::<String>(row, 2)?)?,
            })
        })
        .collect();
    crate::rows::close(connection).await;
    tenants
}

/// Further columns of the query as text.
fn other_ids(json: &str) -> Result<BTreeMap<String, String>, TenantError> {
    let columns: BTreeMap<String, serde_json::Value> = serde_json::from_str(json)
        .map_err(|error| TenantError::format("other ids of tenants", error))?;
    let text = |value: serde_json::Value| match value {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text),
        other => Some(other.to_string()),
    };
    let ids = columns.into_iter();
    Ok(ids
        .filter_map(|(name, value)| Some((name, text(value)?)))
        .collect())
}

/// The tenant that `wanted` (a name, or `id:VALUE`) means.
pub(crate) fn choose(tenants: &[Tenant], wanted: &str, place: &str) -> Result<Tenant, TenantError> {
    let found: Vec<&Tenant> = match wanted.strip_prefix("id:") {
        Some(id) => tenants.iter().filter(|tenant| tenant.id == id).collect(),
        None => tenants
            .iter()
            .filter(|tenant| tenant.name == wanted)
            .collect(),
    };
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(TenantError::UnknownTenant {
            name: wanted.to_owned(),
            place: place.to_owned(),
            nearest: nearest(tenants, wanted),
        }),
        several => Err(TenantError::AmbiguousTenant {
            name: wanted.to_owned(),
            candidates: several
                .iter()
                .map(|t| format!("id:{}", t.id))
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}

fn nearest(tenants: &[Tenant], wanted: &str) -> Vec<String> {
    let wanted = wanted.to_lowercase();
    let mut scored: Vec<(f64, &str)> = tenants
        .iter()
        .map(|t| {
            (
                strsim::jaro_winkler(&t.name.to_lowercase(), &wanted),
                t.name.as_str(),
            )
        })
        .filter(|(score, _)| *score >= ALIKE)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored
        .into_iter()
        .take(ALIKE_SHOWN)
        .map(|(_, name)| name.to_owned())
        .collect()
}

/// Where a tenant is, and whether the live database knows it. One whose registry row is gone is looked
/// for at the target only when asked for by `id:VALUE` and workload: a typing mistake should not cost
/// a restore.
pub(crate) async fn find(
    installation: &Installation,
    wanted: &str,
    workload: Option<&WorkloadName>,
) -> Result<(Place, Option<Tenant>), TenantError> {
    let places = match workload {
        Some(name) => vec![place(installation, name)?],
        None => places(installation)?,
    };
    let mut found = Vec::new();
    let mut unknown = None;
    for place in places {
        let server = format!("workload `{}`", place.workload);
        let tenants = place.tenants(&place.live, &server).await?;
        match choose(
            &tenants,
            wanted,
            &format!("in workload `{}`", place.workload),
        ) {
            Ok(tenant) => found.push((place, Some(tenant))),
            Err(TenantError::UnknownTenant { .. })
                if workload.is_some() && wanted.starts_with("id:") =>
            {
                found.push((place, None));
            }
            Err(error @ TenantError::UnknownTenant { .. }) => unknown = Some(error),
            Err(error) => return Err(error),
        }
    }
    if found.len() > 1 {
        let names: Vec<String> = found
            .iter()
            .map(|(place, _)| place.workload.to_string())
            .collect();
        return Err(TenantError::AmbiguousTenant {
            name: wanted.to_owned(),
            candidates: format!("it is in the workloads {}", names.join(", ")),
        });
    }
    found.pop().ok_or_else(|| {
        unknown.unwrap_or_else(|| TenantError::UnknownTenant {
            name: wanted.to_owned(),
            place: "(no workload of the configuration has tenants)".to_owned(),
            nearest: Vec::new(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_name_is_answered_with_the_nearest() {
        let tenants = [("1", "ACME"), ("2", "BOLT"), ("3", "BOLT")].map(|(id, name)| Tenant {
            id: id.to_owned(),
            name: name.to_owned(),
            others: BTreeMap::new(),
        });
        let error = choose(&tenants, "ACNE", "here").unwrap_err().to_string();
        assert!(error.contains("did you mean ACME"), "{error}");
        assert!(
            choose(&tenants, "BOLT", "here")
                .unwrap_err()
                .to_string()
                .contains("id:3")
        );
        assert_eq!(choose(&tenants, "id:3", "here").unwrap().id, "3");
    }
}
