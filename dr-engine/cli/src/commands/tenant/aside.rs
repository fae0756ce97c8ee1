//! `dr tenant restore` beside production: into files, or into a database of its own.

use std::path::Path;

use dr_installation::Installation;
use dr_model::WorkloadName;
use dr_tenant::{CloneInto, Mode, TenantRequest};

use super::tenant_lane;
use crate::args::TenantRestoreArgs;
use crate::context::Context;
use crate::failure::{Failure, USAGE};
use crate::{output, progress};

pub(super) async fn run(
    context: &Context,
    installation: &Installation,
    workload: &WorkloadName,
    request: &TenantRequest,
    arguments: &TenantRestoreArgs,
) -> Result<u8, Failure> {
    let refuse = |what: &str| Err(Failure::plain(USAGE, what, None));
    if request.mode == Mode::Clone && !request.filter.is_everything() {
        return refuse("a clone has all tables: --tables and --where do not go with it");
    }
    if arguments.preview {
        return refuse("this changes nothing, and has no preview");
    }
    match (request.mode, &arguments.into, &arguments.into_database) {
        (Mode::Export, Some(into), None) => {
            export(context, installation, workload, request, into).await
        }
        (Mode::Clone, None, Some(database)) => {
            let into = CloneInto {
                database: database.clone(),
                id: arguments.as_id.clone(),
            };
            clone(context, installation, workload, request, &into).await
        }
        _ => refuse("--into is for --mode export, --into-database for --mode clone"),
    }
}

async fn export(
    context: &Context,
    installation: &Installation,
    workload: &WorkloadName,
    request: &TenantRequest,
    into: &Path,
) -> Result<u8, Failure> {
    let detail = format!(
        "{} at {} into {}",
        request.tenant,
        request.target,
        into.display()
    );
    let progress = progress::display();
    // Nothing of production is written: it waits for nobody.
    let lane = tenant_lane(workload, true);
    context
        .job(installation, "tenant-export", &lane, detail, false, |job| {
            let installation = installation.clone();
            async move {
                job.step("export").await;
                let cancel = job.cancel();
                let done =
                    dr_tenant::export(&installation, request, into, progress, cancel).await?;
                if context.json {
                    output::json(&done)?;
                    return Ok::<u8, Failure>(0);
                }
                let rows: u64 = done.tables.iter().map(|table| table.rows).sum();
                output::data(&format!(
                    "{}: {rows} rows of {} tables as they were at {} (LSN {}), in {}",
                    done.tenant.name,
                    done.tables.len(),
                    done.target,
                    done.lsn,
                    into.display()
                ));
                for line in done.filter.lines() {
                    output::data(&format!("  only {line}"));
                }
                for note in &done.notes {
                    output::data(&format!("  note: {note}"));
                }
                Ok(0)
            }
        })
        .await
}

async fn clone(
    context: &Context,
    installation: &Installation,
    workload: &WorkloadName,
    request: &TenantRequest,
    into: &CloneInto,
) -> Result<u8, Failure> {
    let detail = format!(
        "{} at {} into database {}",
        request.tenant, request.target, into.database
    );
    let progress = progress::display();
    // No tenant is written to: it waits for nobody.
    let lane = tenant_lane(workload, true);
    context
        .job(installation, "tenant-clone", &lane, detail, false, |job| {
            let installation = installation.clone();
            async move {
                job.step("clone").await;
                let cancel = job.cancel();
                let done =
                    dr_tenant::clone(&installation, request, into, progress, cancel).await?;
                if context.json {
                    output::json(&done)?;
                    return Ok::<u8, Failure>(0);
                }
                let rows: u64 = done.tables.iter().map(|table| table.rows).sum();
                output::data(&format!(
                    "{}: {rows} rows of {} tables as they were at {} (LSN {}), in database {}, with id {}",
                    done.tenant.name,
                    done.tables.len(),
                    done.target,
                    done.lsn,
                    done.database,
                    done.id
                ));
                for note in &done.notes {
                    output::data(&format!("  note: {note}"));
                }
                Ok(0)
            }
        })
        .await
}
