//! Tenants and the tenancy map of a live database.

use dr_installation::Installation;
use dr_model::WorkloadName;

use crate::row_counts::{self, RowCounts};
use crate::tenants::{self, Place};
use crate::{TenancyMap, Tenant, TenantError, rows};

/// Lists the tenants of a database workload, as its `tenants` query names them.
///
/// # Errors
/// When the workload has no such query or the database does not answer.
pub async fn list(
    installation: &Installation,
    workload: &WorkloadName,
) -> Result<Vec<Tenant>, TenantError> {
    let place = tenants::place(installation, workload)?;
    let server = format!("workload `{workload}`");
    place.tenants(&place.live, &server).await
}

/// Finds the tenancy map of a database workload; of a tenant's own database, if it has one and is named.
///
/// # Errors
/// When the workload has no tenancy or the database does not answer. Tables in no class are no error
/// here: they are in the map.
pub async fn map(
    installation: &Installation,
    workload: &WorkloadName,
    tenant: Option<&str>,
) -> Result<TenancyMap, TenantError> {
    let place = match tenant {
        Some(tenant) => place_of(installation, workload, tenant).await?,
        None => tenants::place(installation, workload)?,
    };
    live_map(&place, None).await
}

/// Where the rows of a tenant are that the live database knows.
async fn place_of(
    installation: &Installation,
    workload: &WorkloadName,
    tenant: &str,
) -> Result<Place, TenantError> {
    match tenants::find(installation, tenant, Some(workload)).await? {
        (place, Some(known)) => place.of_tenant(&known),
        (_, None) => Err(TenantError::UnknownTenant {
            name: tenant.to_owned(),
            place: format!("in workload `{workload}`"),
            nearest: Vec::new(),
        }),
    }
}

/// Counts whose rows there are, table by table, and where a row and what it refers to are different
/// tenants'. Reads whole tables.
///
/// # Errors
/// When the database does not answer.
pub async fn row_counts(
    installation: &Installation,
    workload: &WorkloadName,
    tenant: Option<&str>,
    map: &TenancyMap,
) -> Result<RowCounts, TenantError> {
    let place = match tenant {
        Some(tenant) => place_of(installation, workload, tenant).await?,
        None => tenants::place(installation, workload)?,
    };
    let mut live = rows::session(&place.live, &format!("workload `{workload}`")).await?;
    let counts = row_counts::count(&mut live, &place.tenancy, map).await?;
    rows::close(live).await;
    Ok(counts)
}

/// The map as it is now; `gone` is a tenant that is in no list any more.
async fn live_map(place: &Place, gone: Option<&Tenant>) -> Result<TenancyMap, TenantError> {
    let mut live = rows::session(&place.live, &format!("workload `{}`", place.workload)).await?;
    let owners = place.owners(gone).await?;
    let map = rows::map(&mut live, &place.workload, &place.tenancy, &owners).await?;
    rows::close(live).await;
    // A parameter of the URL could name another one than its path does.
    if map.database == place.database() {
        return Ok(map);
    }
    Err(TenantError::Refused(vec![format!(
        "the URL leads to database `{}`, and `{}` is meant: name the database in its path only",
        map.database,
        place.database()
    )]))
}

/// Where a tenant's rows are, and the whole map of it.
pub(crate) async fn place_and_map(
    registry: &Place,
    tenant: &Tenant,
    gone: Option<&Tenant>,
) -> Result<(Place, TenancyMap), TenantError> {
    let place = registry.clone().of_tenant(tenant)?;
    let map = rows::complete(live_map(&place, gone).await?)?;
    Ok((place, map))
}
