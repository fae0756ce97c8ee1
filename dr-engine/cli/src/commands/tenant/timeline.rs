//! `dr tenant timeline`.

use dr_tenant::TimelineRequest;

use super::{chosen, tenant_lane};
use crate::args::TenantTimelineArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::{output, progress};

pub(super) async fn run(context: &Context, arguments: &TenantTimelineArgs) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let workload = chosen(&installation, arguments.workload.as_deref())?;
    let request = TimelineRequest {
        tenant: arguments.tenant.clone(),
        workload: Some(workload.clone()),
        from: arguments.from,
        to: arguments.to,
    };
    let progress = progress::display();
    // Nothing of production is written: it waits for nobody.
    let lane = tenant_lane(&workload, true);
    let detail = request.tenant.clone();
    context
        .job(
            &installation,
            "tenant-timeline",
            &lane,
            detail,
            false,
            |job| {
                let installation = installation.clone();
                async move {
                    job.step("read").await;
                    let cancel = job.cancel();
                    let told =
                        dr_tenant::timeline(&installation, &request, progress, cancel).await?;
                    match context.json {
                        true => output::json(&told)?,
                        false => output::data(&told.to_string()),
                    }
                    Ok::<u8, Failure>(0)
                }
            },
        )
        .await
}
