//! A tenant as it was at a target, in a scratch instance beside production: what an export and a clone read.

use std::sync::Arc;

use dr_installation::Installation;
use dr_model::Progress;
use dr_restore::Scratch;
use tokio_util::sync::CancellationToken;

use crate::erase::refuse_erased;
use crate::plan::{Tenant, TenantRequest};
use crate::tenants::{self, Place};
use crate::{TenantError, work};

/// The state at the target, and who is where in it. Dropping it removes the scratch instance.
#[derive(Debug)]
pub(crate) struct Then {
    pub(crate) scratch: Scratch,
    /// All tenants of then.
    pub(crate) all: Vec<Tenant>,
    /// Those whose rows are everybody's.
    pub(crate) everybody: Vec<Tenant>,
    pub(crate) tenant: Tenant,
    /// Where it was then.
    pub(crate) place: Place,
    /// What was erased of it since, a sentence.
    pub(crate) erasures: String,
}

/// Brings the target back, and finds the tenant in it: by the id that it has live, if it is there.
pub(crate) async fn bring_back(
    installation: &Installation,
    request: &TenantRequest,
    (registry, live): (&Place, Option<&Tenant>),
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<Then, TenantError> {
    refuse_erased(installation, &registry.workload, live, &request.tenant).await?;
    progress.note(&format!(
        "bringing back {} at {}",
        registry.workload, request.target
    ));
    let mut scratch = dr_restore::scratch(
        installation,
        &registry.workload,
        &request.target,
        &work::base(),
        progress,
        cancel,
    )
    .await
    .map_err(TenantError::Restore)?;
    let server = "the scratch instance";
    let options = scratch.connect_options(registry.registry());
    let all = registry.tenants(&options, server).await?;
    let everybody = registry.everybodys(&options, server).await?;
    let wanted = match live {
        Some(tenant) => format!("id:{}", tenant.id),
        None => request.tenant.clone(),
    };
    let at_target = format!("in workload `{}` at the target", registry.workload);
    let tenant = tenants::choose(&all, &wanted, &at_target)?;
    let shown = std::iter::once(&tenant).chain(&everybody);
    let shown: Vec<&str> = shown.map(|tenant| tenant.id.as_str()).collect();
    let forgotten = scratch.forget(installation, &shown).await;
    let erasures = forgotten.map_err(TenantError::Restore)?.to_string();
    let place = registry.clone().of_tenant(&tenant)?;
    Ok(Then {
        scratch,
        all,
        everybody,
        tenant,
        place,
        erasures,
    })
}
