//! `dr tenant`.

mod aside;
mod certificate;
mod erase;
mod timeline;

use dr_config::WorkloadSource;
use dr_installation::Installation;
use dr_model::WorkloadName;
use dr_tenant::{
    Filter, Mode, OnConflict, TenantPlan, TenantRequest, TenantRestoreReport, Writing,
};

use crate::args::{TenantCommand, TenantRestoreArgs};
use crate::commands::hold;
use crate::context::{self, Context};
use crate::failure::{FAILED, Failure, USAGE};
use crate::{output, progress};

pub(crate) async fn run(context: &Context, command: TenantCommand) -> Result<u8, Failure> {
    match command {
        TenantCommand::List { workload } => list(context, &workload).await,
        TenantCommand::Map {
            workload,
            tenant,
            yaml,
            check,
            rows,
        } => {
            let view = MapView { yaml, check, rows };
            map(context, &workload, tenant.as_deref(), view).await
        }
        TenantCommand::Timeline(arguments) => timeline::run(context, &arguments).await,
        TenantCommand::Restore(arguments) => restore(context, &arguments).await,
        TenantCommand::Erase(arguments) => erase::record(context, &arguments).await,
        TenantCommand::Erasures { workload } => erase::list(context, workload.as_deref()).await,
        TenantCommand::History { workload } => history(context, workload.as_deref()).await,
        TenantCommand::Certificate { restore, out } => {
            certificate::make(context, &restore, &out).await
        }
        TenantCommand::VerifyCertificate { file, key } => {
            certificate::verify(context, &file, key.as_deref()).await
        }
        TenantCommand::Undo {
            restore,
            workload,
            preview,
            writing,
            yes,
        } => undo(context, &restore, workload, writing.into(), (preview, yes)).await,
    }
}

async fn list(context: &Context, name: &str) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let workload = context::workload(&installation, name)?;
    let tenants = dr_tenant::list(&installation, &workload).await?;
    if context.json {
        output::json(&tenants)?;
        return Ok(0);
    }
    let rows = tenants
        .iter()
        .map(|t| vec![t.name.clone(), format!("id:{}", t.id)])
        .collect();
    output::data(&output::table(&["tenant", "id"], rows));
    Ok(0)
}

async fn history(context: &Context, name: Option<&str>) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let workload = chosen(&installation, name)?;
    let past = dr_tenant::history(&installation, &workload).await?;
    if context.json {
        output::json(&past)?;
        return Ok(0);
    }
    let rows = past
        .iter()
        .map(|one| {
            let taken_back = one.undone_by.as_ref().map(|by| format!(", undone by {by}"));
            let why = (one.not_known_because.as_ref()).map(|why| format!(" ({why})"));
            vec![
                one.id.to_string(),
                one.started.format("%Y-%m-%d %H:%M:%SZ").to_string(),
                one.tenant.name.clone(),
                match one.filter.lines().join(", ") {
                    only if only.is_empty() => one.purpose.to_string(),
                    only => format!("{}, only {only}", one.purpose),
                },
                format!(
                    "{}{}{}",
                    one.became,
                    why.unwrap_or_default(),
                    taken_back.unwrap_or_default()
                ),
            ]
        })
        .collect();
    let header = ["restore", "started", "tenant", "what", "became"];
    output::data(&output::table(&header, rows));
    Ok(0)
}

/// How a map is looked at.
#[derive(Debug, Clone, Copy)]
struct MapView {
    yaml: bool,
    check: bool,
    rows: bool,
}

async fn map(
    context: &Context,
    name: &str,
    tenant: Option<&str>,
    view: MapView,
) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let workload = context::workload(&installation, name)?;
    let map = dr_tenant::map(&installation, &workload, tenant).await?;
    let rows = match view.rows {
        true => Some(dr_tenant::row_counts(&installation, &workload, tenant, &map).await?),
        false => None,
    };
    let undeclared: Vec<String> = match view.check {
        true => map
            .undeclared()
            .map(|mapped| mapped.table.to_string())
            .collect(),
        false => Vec::new(),
    };
    if context.json {
        match &rows {
            Some(rows) => output::json(&serde_json::json!({ "map": map, "rows": rows }))?,
            None => output::json(&map)?,
        }
    } else if view.yaml {
        output::data(map.declarations().trim_end());
    } else {
        output::data(map.to_string().trim_end());
        if let Some(rows) = &rows {
            output::data(&format!("\n{rows}"));
        }
        for table in &undeclared {
            output::data(&format!(
                "! {table} is not in the declared map: `dr tenant map {name} --yaml`"
            ));
        }
    }
    let is_whole = map.unclassified().next().is_none() && undeclared.is_empty();
    let disagree = rows.is_some_and(|rows| !rows.disagreements.is_empty());
    Ok(if is_whole && !disagree { 0 } else { FAILED })
}

/// The workload that holds the tenants' rows, when there is only one.
fn only_tenancy(installation: &Installation) -> Result<WorkloadName, Failure> {
    let mut found: Vec<WorkloadName> = installation
        .config
        .workloads()
        .filter(|w| matches!(w.source, WorkloadSource::Postgres(_)) && w.config.tenancy.is_some())
        .map(|w| w.name.clone())
        .collect();
    match (found.pop(), found.is_empty()) {
        (Some(workload), true) => Ok(workload),
        (None, _) => Err(Failure::plain(
            USAGE,
            "no PostgreSQL workload has a `tenancy` section",
            Some("add one to the engine file: model, column and tenants"),
        )),
        (Some(_), false) => Err(Failure::plain(
            USAGE,
            "several workloads hold tenants",
            Some("name one with --workload"),
        )),
    }
}

fn chosen(installation: &Installation, given: Option<&str>) -> Result<WorkloadName, Failure> {
    match given {
        Some(name) => context::workload(installation, name),
        None => only_tenancy(installation),
    }
}

async fn restore(context: &Context, arguments: &TenantRestoreArgs) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let mode: Mode = arguments
        .mode
        .parse()
        .map_err(|error: dr_tenant::TenantError| Failure {
            code: USAGE,
            ..error.into()
        })?;
    let workload = chosen(&installation, arguments.workload.as_deref())?;
    let request = TenantRequest {
        tenant: arguments.tenant.clone(),
        workload: Some(workload.clone()),
        target: arguments.to.clone(),
        mode,
        filter: Filter::new(&arguments.tables, &arguments.conditions)?,
        on_conflict: match arguments.on_conflict.as_str() {
            "keep" => OnConflict::Keep,
            _ => OnConflict::Abort,
        },
        by: hold::who().ok(),
    };
    if matches!(mode, Mode::Export | Mode::Clone) {
        return aside::run(context, &installation, &workload, &request, arguments).await;
    }
    if arguments.into.is_some() || arguments.into_database.is_some() {
        let what = "--into is for --mode export, --into-database for --mode clone";
        return Err(Failure::plain(USAGE, what, None));
    }
    let detail = format!("{} to {}", request.tenant, request.target);
    refuse_without_consent(arguments.preview, arguments.yes)?;
    let progress = progress::display();
    let lane = tenant_lane(&workload, arguments.preview);
    context
        .job(
            &installation,
            "tenant-restore",
            &lane,
            detail,
            false,
            |job| {
                let installation = installation.clone();
                async move {
                    job.step("prepare").await;
                    let cancel = job.cancel();
                    let prepared =
                        dr_tenant::prepare(&installation, &request, progress.clone(), cancel)
                            .await?;
                    if !show_plan(context, prepared.plan(), arguments.preview, arguments.yes)? {
                        return Ok::<u8, Failure>(0);
                    }
                    job.step("apply").await;
                    let report = prepared.apply(arguments.writing.into(), progress).await?;
                    show_report(context, &report)
                }
            },
        )
        .await
}

async fn undo(
    context: &Context,
    id: &dr_model::TenantRestoreId,
    workload: Option<String>,
    writing: Writing,
    (preview, yes): (bool, bool),
) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let workload = chosen(&installation, workload.as_deref())?;
    refuse_without_consent(preview, yes)?;
    let progress = progress::display();
    let lane = tenant_lane(&workload, preview);
    let by = hold::who().ok();
    context
        .job(
            &installation,
            "tenant-undo",
            &lane,
            id.to_string(),
            false,
            |job| {
                let installation = installation.clone();
                async move {
                    job.step("prepare").await;
                    let cancel = job.cancel();
                    let prepared =
                        dr_tenant::prepare_undo(&installation, id, by, progress.clone(), cancel)
                            .await?;
                    if !show_plan(context, prepared.plan(), preview, yes)? {
                        return Ok::<u8, Failure>(0);
                    }
                    job.step("apply").await;
                    let report = prepared.apply(writing, progress).await?;
                    show_report(context, &report)
                }
            },
        )
        .await
}

/// Tenant restores of one workload wait for each other and for no backup. A preview changes nothing,
/// so it holds a lane of its own.
fn tenant_lane(workload: &WorkloadName, preview: bool) -> String {
    if preview {
        format!("{workload}/preview-{}", std::process::id())
    } else {
        format!("{workload}/tenants")
    }
}

/// Without `--yes`, without `--preview` and without a terminal there is nobody to ask.
fn refuse_without_consent(preview: bool, yes: bool) -> Result<(), Failure> {
    if preview || yes || output::can_ask() {
        return Ok(());
    }
    Err(Failure::plain(
        USAGE,
        "this changes production and there is no terminal to ask on",
        Some("look at it first with --preview, then run it with --yes"),
    ))
}

/// Shows the plan; true when it is to be carried out.
fn show_plan(
    context: &Context,
    plan: &TenantPlan,
    preview: bool,
    yes: bool,
) -> Result<bool, Failure> {
    if preview && context.json {
        output::json(plan)?;
        return Ok(false);
    }
    if preview {
        output::data(&plan.to_string());
        output::talk("this was a preview: nothing was written");
        return Ok(false);
    }
    output::talk(&plan.to_string());
    if yes {
        return Ok(true);
    }
    let answer = output::ask(&format!(
        "Type the tenant's name ({}) to go on:",
        plan.tenant.name
    ))?;
    if answer == plan.tenant.name {
        return Ok(true);
    }
    Err(Failure::plain(
        FAILED,
        "not confirmed; nothing was changed",
        None,
    ))
}

/// After the commit nothing is an error any more, but what could not be shown must not look like success.
fn show_report(context: &Context, report: &TenantRestoreReport) -> Result<u8, Failure> {
    if context.json {
        output::json(report)?;
    } else {
        output::data(&report.to_string());
    }
    if report.agrees() {
        return Ok(0);
    }
    Err(Failure::plain(
        FAILED,
        format!(
            "{} was committed, but not everything that should hold after it does",
            report.id
        ),
        Some("read the lines above that differ; `dr tenant undo` with its id takes it back"),
    ))
}
