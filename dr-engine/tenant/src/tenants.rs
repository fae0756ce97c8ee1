//! Who the tenants are, and where: the configured `tenants` query, live and at the target.

use std::collections::{BTreeMap, BTreeSet};

use dr_config::{
    DirectBy, PostgresSource, TenancyConfig, TenancyModel, TenantTable, Workload, WorkloadSource,
};
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
    /// The database in which tenants are listed.
    registry: String,
    /// Whose the database is, where it is one tenant's.
    only: Option<String>,
}

/// The column of the `tenants` query that names the schema in which all is a tenant's.
pub(crate) const SCHEMA_OF: &str = "schema";
/// The same for databases.
pub(crate) const DATABASE_OF: &str = "database";

/// What holds nothing but one tenant's rows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Owners {
    /// Schemas, each with its tenant's id.
    pub(crate) schemas: BTreeMap<String, String>,
    /// The tenant whose the whole database is.
    pub(crate) database: Option<String>,
    /// What a tenant column can hold.
    pub(crate) ids: Vec<String>,
}

impl Owners {
    /// Of a database that several tenants share.
    pub(crate) fn of(tenants: &[Tenant]) -> Self {
        let schemas = tenants.iter().filter_map(|tenant| {
            let schema = tenant.others.get(SCHEMA_OF)?;
            Some((schema.clone(), tenant.id.clone()))
        });
        Self {
            schemas: schemas.collect(),
            database: None,
            ids: tenants.iter().map(|tenant| tenant.id.clone()).collect(),
        }
    }
}

impl Place {
    /// The database that is restored.
    pub(crate) fn database(&self) -> String {
        database_in(&self.source.url)
    }

    /// The database in which tenants are listed.
    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    /// The place of a tenant: a database of its own, where the `tenants` query names one.
    pub(crate) fn of_tenant(mut self, tenant: &Tenant) -> Result<Self, TenantError> {
        let Some(database) = tenant.others.get(DATABASE_OF) else {
            return Ok(self);
        };
        self.source.url = with_database(&self.source.url, database)?;
        self.live.url = with_database(&self.live.url, database)?;
        self.only = Some(tenant.id.clone());
        Ok(self)
    }

    /// How another database of the server is reached.
    pub(crate) fn in_database(&self, database: &str) -> Result<ConnectOptions, TenantError> {
        Ok(ConnectOptions {
            url: with_database(&self.live.url, database)?,
            password: self.live.password.clone(),
        })
    }

    /// What of the database is wholly one tenant's; also of one that is in no list any more.
    pub(crate) async fn owners(&self, gone: Option<&Tenant>) -> Result<Owners, TenantError> {
        if self.only.is_some() {
            return Ok(self.owners_among(&[]));
        }
        let server = format!("workload `{}`", self.workload);
        let mut tenants = self.tenants(&self.live, &server).await?;
        tenants.extend(gone.cloned());
        Ok(self.owners_among(&tenants))
    }

    /// The same, where the tenants are known.
    pub(crate) fn owners_among(&self, tenants: &[Tenant]) -> Owners {
        match &self.only {
            Some(only) => Owners {
                database: Some(only.clone()),
                ..Owners::default()
            },
            None => Owners::of(tenants),
        }
    }
}

/// The database in a URL; PostgreSQL takes the user's name when there is none.
fn database_in(url: &str) -> String {
    let without_query = url.split('?').next().unwrap_or_default();
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

/// The same URL with another database.
fn with_database(url: &str, database: &str) -> Result<String, TenantError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if database.is_empty() || !database.chars().all(is_plain) {
        return Err(TenantError::Refused(vec![format!(
            "a database is named `{database}`: only letters, digits, `_`, `-` and `.` are \
             understood in its name"
        )]));
    }
    Ok(dr_restore::with_database(url, database))
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
    let query = tenancy
        .tenants
        .clone()
        .ok_or_else(|| missing("tenancy.tenants"))?;
    let password = installation.postgres_password(workload)?;
    Ok(Place {
        workload: workload.name.clone(),
        source: source.clone(),
        tenancy: tenancy.clone(),
        registry: database_in(&source.url),
        only: None,
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
    /// By which further columns of the query tables know tenants, and where these are.
    fn used_ids(&self) -> BTreeSet<&str> {
        let others = self.tenancy.tables.values().filter_map(other_id);
        others.chain([SCHEMA_OF, DATABASE_OF]).collect()
    }

    /// A schema or database that others share is nobody's own.
    fn check_places(&self, tenants: &[Tenant]) -> Result<(), TenantError> {
        let mut refused = Vec::new();
        for tenant in tenants {
            let (schema, database) = (tenant.others.get(SCHEMA_OF), tenant.others.get(DATABASE_OF));
            if schema.is_some() && database.is_some() {
                refused.push(format!(
                    "{} has a schema and a database of its own: give one of them",
                    tenant.name
                ));
            }
            if schema.is_some_and(|schema| schema == "public" || schema.starts_with("pg_")) {
                refused.push(format!(
                    "the schema of {} is one that all share",
                    tenant.name
                ));
            }
            if database == Some(&self.registry) {
                refused.push(format!(
                    "the database of {} is the one in which tenants are listed: leave it null where rows are \
                     in shared tables",
                    tenant.name
                ));
            }
        }
        nothing_refused(refused)
    }

    /// Those whose rows are everybody's, with what else tables know them by where the query lists them.
    pub(crate) async fn everybodys(
        &self,
        options: &ConnectOptions,
        server: &str,
    ) -> Result<Vec<Tenant>, TenantError> {
        if self.tenancy.shared_ids.is_empty() {
            return Ok(Vec::new());
        }
        let listed = list(options, &self.query, server).await?;
        let of = |id: &String| {
            let found = listed.iter().find(|tenant| tenant.id == *id);
            found.cloned().unwrap_or_else(|| Tenant {
                id: id.clone(),
                name: id.clone(),
                others: BTreeMap::new(),
            })
        };
        Ok(self.tenancy.shared_ids.iter().map(of).collect())
    }

    /// Lists the tenants, of the live database or of a copy. Whose rows are everybody's is none.
    pub(crate) async fn tenants(
        &self,
        options: &ConnectOptions,
        server: &str,
    ) -> Result<Vec<Tenant>, TenantError> {
        let mut tenants = list(options, &self.query, server).await?;
        let used = self.used_ids();
        for tenant in &mut tenants {
            tenant.others.retain(|name, _| used.contains(name.as_str()));
        }
        // Those whose rows are everybody's too: nothing of theirs is a tenant's.
        unique(&tenants)?;
        self.check_places(&tenants)?;
        tenants.retain(|tenant| !self.tenancy.shared_ids.contains(&tenant.id));
        let needed = match self.tenancy.model {
            Some(TenancyModel::Schema) => Some(SCHEMA_OF),
            Some(TenancyModel::Database) => Some(DATABASE_OF),
            None | Some(TenancyModel::Pooled) => None,
        };
        let gives = |column: &str| {
            tenants
                .iter()
                .any(|tenant| tenant.others.contains_key(column))
        };
        match needed.filter(|column| !tenants.is_empty() && !gives(column)) {
            Some(column) => Err(TenantError::Refused(vec![format!(
                "the tenancy of `{}` is one {column} for each tenant: `tenancy.tenants` has to give it as a column \
                 `{column}`",
                self.workload
            )])),
            None => Ok(tenants),
        }
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

fn nothing_refused(refused: Vec<String>) -> Result<(), TenantError> {
    match refused.is_empty() {
        true => Ok(()),
        false => Err(TenantError::Refused(refused)),
    }
}

fn other_id(class: &TenantTable) -> Option<&str> {
    match class {
        TenantTable::Direct(DirectBy::OtherId(other)) => Some(&other.id),
        _ => None,
    }
}

/// Refuses two tenants with one id: a condition on it would be true of both's rows.
fn unique(tenants: &[Tenant]) -> Result<(), TenantError> {
    let mut seen: BTreeMap<(&str, &str), &Tenant> = BTreeMap::new();
    let mut refused = Vec::new();
    for tenant in tenants {
        let own = [("id", tenant.id.as_str())].into_iter();
        let others = tenant
            .others
            .iter()
            .map(|(name, id)| (name.as_str(), id.as_str()));
        for (name, id) in own.chain(others) {
            if let Some(other) = seen.insert((name, id), tenant) {
                refused.push(format!(
                    "{} and {} have the same {name}: {id}",
                    other.name, tenant.name
                ));
            }
        }
    }
    nothing_refused(refused)
}

/// Refuses a tenant whose ids or place are not what they were: rows of one moment could not be told by those of
/// the other, and may be another tenant's by now. `known` is the list of the other moment; `when` says which.
pub(crate) fn same_ids(tenant: &Tenant, known: &[Tenant], when: &str) -> Result<(), TenantError> {
    let mut refused = Vec::new();
    for other in known {
        if other.id == tenant.id {
            // Of a record that was made before there were others.
            if tenant.others.is_empty() {
                continue;
            }
            let names = tenant
                .others
                .keys()
                .chain(other.others.keys())
                .collect::<BTreeSet<_>>();
            for name in names {
                let of = |tenant: &Tenant| match tenant.others.get(name) {
                    Some(id) => format!("`{id}`"),
                    None => "none".to_owned(),
                };
                if of(tenant) != of(other) {
                    refused.push(format!(
                        "the {name} of {} is {}, and {when} it is {}: its rows of the two moments cannot be matched",
                        tenant.name,
                        of(tenant),
                        of(other)
                    ));
                }
            }
            continue;
        }
        for (name, id) in &tenant.others {
            if other.others.get(name) == Some(id) {
                refused.push(format!(
                    "the {name} of {}, `{id}`, is {when} that of {}",
                    tenant.name, other.name
                ));
            }
        }
    }
    nothing_refused(refused)
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

/// The database that lists a tenant, and whether the live one knows it; where its rows are, [`Place::of_tenant`]
/// tells. One whose registry row is gone is looked
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

    fn tenant(id: &str, code: Option<&str>) -> Tenant {
        Tenant {
            id: id.to_owned(),
            name: format!("T{id}"),
            others: code
                .map(|code| ("code".to_owned(), code.to_owned()))
                .into_iter()
                .collect(),
        }
    }

    #[test]
    fn two_tenants_with_one_id_are_refused() {
        let fine = [
            tenant("1", Some("A")),
            tenant("2", Some("B")),
            tenant("3", None),
            tenant("4", None),
        ];
        assert!(unique(&fine).is_ok());
        let same = unique(&[tenant("1", Some("A")), tenant("2", Some("A"))]).unwrap_err();
        assert!(
            same.to_string().contains("T1 and T2 have the same code: A"),
            "{same}"
        );
        assert!(unique(&[tenant("1", None), tenant("1", None)]).is_err());
    }

    #[test]
    fn an_id_that_changed_or_was_given_to_another_is_refused() {
        let (then, now) = (tenant("1", Some("A")), tenant("1", Some("A")));
        assert!(same_ids(&then, &[now, tenant("2", Some("B"))], "now").is_ok());
        let said = |known: &[Tenant]| same_ids(&then, known, "now").unwrap_err().to_string();
        assert!(said(&[tenant("1", Some("C"))]).contains("`A`, and now it is `C`"));
        assert!(said(&[tenant("1", None)]).contains("now it is none"));
        // The tenant is gone, and its code is somebody else's.
        assert!(said(&[tenant("2", Some("A"))]).contains("is now that of T2"));
    }

    #[test]
    fn another_database_of_the_same_server() {
        let of = |url: &str| with_database(url, "t_7").unwrap();
        assert_eq!(of("postgres://u@h:5432/erp"), "postgres://u@h:5432/t_7");
        assert_eq!(
            of("postgres://u@localhost/erp?host=/run/postgresql"),
            "postgres://u@localhost/t_7?host=/run/postgresql"
        );
        assert_eq!(of("postgres://u@h"), "postgres://u@h/t_7");
        assert!(with_database("postgres://u@h/x", "a?host=b").is_err());
        assert_eq!(database_in("postgres://u@h/erp?x=/y"), "erp");
    }
}
