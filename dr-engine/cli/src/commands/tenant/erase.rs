//! `dr tenant erase` and `dr tenant erasures`.

use dr_restore::{Erasure, ErasureScope};
use dr_tenant::{ErasePlan, EraseRequest};

use super::chosen;
use crate::args::TenantEraseArgs;
use crate::commands::hold;
use crate::context::Context;
use crate::failure::{FAILED, Failure, USAGE};
use crate::output;

pub(crate) async fn record(context: &Context, arguments: &TenantEraseArgs) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let workload = chosen(&installation, arguments.workload.as_deref())?;
    let request = EraseRequest {
        tenant: arguments.tenant.clone(),
        workload: Some(workload),
        rows: arguments.rows.clone(),
        conditions: arguments.conditions.clone(),
        dependents: arguments.dependents,
        reason: arguments.reason.clone(),
        by: hold::who()?,
    };
    if !(arguments.preview || arguments.yes || output::can_ask()) {
        return Err(Failure::plain(
            USAGE,
            "an erasure cannot be taken back, and there is no terminal to ask on",
            Some("look at it first with --preview, then run it with --yes"),
        ));
    }
    let prepared = dr_tenant::prepare_erasure(&installation, &request).await?;
    let plan = prepared.plan();
    if arguments.preview {
        match context.json {
            true => output::json(plan)?,
            false => output::data(plan.to_string().trim_end()),
        }
        output::talk("this was a preview: nothing was recorded");
        return Ok(0);
    }
    output::talk(&plan.to_string());
    // A plan that is refused is not worth asking about.
    if plan.refused.is_empty() && !arguments.yes {
        confirm(plan)?;
    }
    let erasure = prepared.record().await?;
    if context.json {
        output::json(&erasure)?;
        return Ok(0);
    }
    output::data(&format!(
        "{} is recorded: every restore of {} takes it out from now on, whatever its moment",
        erasure.id, erasure.workload
    ));
    Ok(0)
}

fn confirm(plan: &ErasePlan) -> Result<(), Failure> {
    let name = &plan.tenant.name;
    let answer = output::ask(&format!(
        "An entry cannot be taken back. Type the tenant's name ({name}) to go on:"
    ))?;
    if answer == *name {
        return Ok(());
    }
    Err(Failure::plain(
        FAILED,
        "not confirmed; nothing was recorded",
        None,
    ))
}

pub(crate) async fn list(context: &Context, name: Option<&str>) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let workload = chosen(&installation, name)?;
    let entries = dr_tenant::erasures(&installation, &workload).await?;
    if context.json {
        output::json(&entries)?;
        return Ok(0);
    }
    let rows = entries
        .iter()
        .map(|entry| {
            vec![
                entry.id.to_string(),
                entry.at.format("%Y-%m-%d %H:%M:%SZ").to_string(),
                entry.tenant.name.clone(),
                what(entry),
                entry.by.clone(),
                entry.reason.clone(),
            ]
        })
        .collect();
    let header = ["erasure", "recorded", "tenant", "what", "by", "reason"];
    output::data(&output::table(&header, rows));
    Ok(0)
}

fn what(entry: &Erasure) -> String {
    if entry.scope == ErasureScope::Tenant {
        return "everything".to_owned();
    }
    let tables = entry.databases.iter().flat_map(|part| &part.tables);
    let named = tables.filter_map(|table| match &table.rows {
        dr_restore::ErasedRows::Keys { keys, .. } => {
            Some(format!("{} of {}", keys.len(), table.table))
        }
        _ => None,
    });
    named.collect::<Vec<_>>().join(", ")
}
