//! Chapter 4: one tenant is wiped, put back, un-put and put back again, while all others keep working.

use std::path::Path;
use std::time::{Duration, Instant};

use super::closing::Ending;
use super::error::{StoryError, file};
use super::protect::start_probe;
use super::world::World;

/// A clean-up script with its condition on the wrong column: meant for cancelled orders of one customer,
/// it takes all orders of the tenant.
const BAD_STATEMENTS: [&str; 5] = [
    "update public.edi_document set order_id = null where tenant_id = $T",
    "delete from public.invoice where tenant_id = $T",
    "delete from public.order_line l using public.sales_order o \
     where o.order_id = l.order_id and o.tenant_id = $T",
    "delete from public.sales_order where tenant_id = $T and status = status",
    "update public.setting set value = '{}' where tenant_id = $T",
];

const SILVER_RPO: Duration = Duration::from_secs(60);

/// Counts of the tenant's rows where the mistake struck.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rows(String);

pub(super) async fn happen_and_recover(
    world: &mut World,
    ending: &mut Ending,
) -> Result<(), StoryError> {
    // Not the largest and not the smallest.
    let tenant = world
        .text(
            "select tenant_id::text || ' ' || code from \
             (select t.tenant_id, t.code, row_number() over (order by count(*) desc, t.tenant_id) n \
              from public.tenant t join public.sales_order o using (tenant_id) group by 1, 2) r where n = 12",
        )
        .await?;
    let (id, name) = tenant.split_once(' ').unwrap_or((tenant.as_str(), ""));
    world.shell.say(&format!(
        "{name} calls: a clean-up ran wild. {name} stops working; all others go on."
    ));
    world.stop_background("everyone");
    start_probe(world, "others", &format!(" where tenant_id <> {id}"))?;
    world.shell.dr(&["tenant", "map", "erp"]).await?;
    let folder = world.path("config").join(name);
    wait_for_configuration(world, &folder).await?;
    let before = rows(world, id).await?;
    let others = others_settled(world, id).await?;
    let moment = world
        .text("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
        .await?;
    world.shell.say("");
    world.shell.say(&format!(
        "the moment before: {moment}; {name} has {}",
        before.0
    ));
    strike(world, id, &folder).await?;
    let struck = rows(world, id).await?;
    world
        .shell
        .say(&format!("after the mistake {name} has {}", struck.0));
    inject_fault(world).await?;

    let restore = ["tenant", "restore", name, "--to", moment.as_str()];
    world
        .shell
        .dr(&[&restore[..], &["--preview"]].concat())
        .await?;
    let began = Instant::now();
    let first = world.shell.dr(&[&restore[..], &["--yes"]].concat()).await?;
    ending.tenant_restore_seconds = began.elapsed().as_secs_f64();
    same(&before, &rows(world, id).await?, name, "after the restore")?;
    untouched(world, id, &others).await?;
    configuration_is_back(&folder, true)?;

    let undo = restore_id(&first)?;
    world.shell.dr(&["tenant", "undo", &undo, "--yes"]).await?;
    same(&struck, &rows(world, id).await?, name, "after the undo")?;
    configuration_is_back(&folder, false)?;
    world.shell.dr(&[&restore[..], &["--yes"]].concat()).await?;
    same(
        &before,
        &rows(world, id).await?,
        name,
        "after the second restore",
    )?;
    configuration_is_back(&folder, true)?;
    untouched(world, id, &others).await?;
    world.shell.say("");
    world.shell.say(&format!(
        "{name} has {} again; every other tenant's rows are as they were",
        before.0
    ));
    ending.tenant = name.to_owned();
    Ok(())
}

async fn rows(world: &World, id: &str) -> Result<Rows, StoryError> {
    let digest = |table: &str, from: &str| {
        format!(
            "(select count(*)::text || ' {table} (' || left(coalesce(md5(string_agg(r::text, '|' order by r::text \
             collate \"C\")), '-'), 8) || ')' from {from} r where {condition})",
            condition = if table == "lines" {
                format!(
                    "order_id in (select order_id from public.sales_order where tenant_id = {id})"
                )
            } else {
                format!("tenant_id = {id}")
            }
        )
    };
    let parts = [
        digest("orders", "public.sales_order"),
        digest("lines", "public.order_line"),
        digest("invoices", "public.invoice"),
        digest("settings", "public.setting"),
        digest("documents", "public.edi_document"),
    ];
    world
        .text(&format!("select {}", parts.join(" || ', ' || ")))
        .await
        .map(Rows)
}

fn same(expected: &Rows, found: &Rows, name: &str, when: &str) -> Result<(), StoryError> {
    if expected == found {
        return Ok(());
    }
    Err(StoryError::NotAsBefore(format!(
        "{name} should have {} {when}, but has {}",
        expected.0, found.0
    )))
}

/// A digest of everything of the other tenants that the probe does not add to.
async fn others_settled(world: &World, id: &str) -> Result<String, StoryError> {
    world
        .text(&format!(
            "select md5(string_agg(d, '' order by d collate \"C\")) from ( \
               select md5(o::text) d from public.sales_order o where tenant_id <> {id} and order_no not like 'probe-%' \
               union all select md5(l::text) from public.order_line l join public.sales_order o using (order_id) \
                 where o.tenant_id <> {id} \
               union all select md5(i::text) from public.invoice i where tenant_id <> {id} \
               union all select md5(s::text) from public.setting s where tenant_id <> {id}) x"
        ))
        .await
}

async fn untouched(world: &World, id: &str, before: &str) -> Result<(), StoryError> {
    if others_settled(world, id).await? == before {
        return Ok(());
    }
    Err(StoryError::NotAsBefore(
        "rows of another tenant changed".to_owned(),
    ))
}

async fn strike(world: &World, id: &str, folder: &Path) -> Result<(), StoryError> {
    let script: Vec<String> = BAD_STATEMENTS
        .iter()
        .map(|statement| statement.replace("$T", id))
        .collect();
    world
        .psql(&format!("begin; {}; commit", script.join("; ")))
        .await?;
    world.shell.say(&format!("$ rm -r {}/*", folder.display()));
    for entry in std::fs::read_dir(folder).map_err(file("list", folder))? {
        let path = entry.map_err(file("list", folder))?.path();
        let removed = if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(file("remove", &path))?;
    }
    Ok(())
}

fn configuration_is_back(folder: &Path, expected: bool) -> Result<(), StoryError> {
    let there = folder.join("settings.yaml").is_file();
    if there == expected {
        return Ok(());
    }
    Err(StoryError::NotAsBefore(format!(
        "{} is {}",
        folder.display(),
        if there { "still there" } else { "not back" }
    )))
}

/// The configuration's newest backup must be of the folder as it is.
async fn wait_for_configuration(world: &World, folder: &Path) -> Result<(), StoryError> {
    let began = Instant::now();
    let changed = std::fs::metadata(folder)
        .and_then(|m| m.modified())
        .map_err(file("examine", folder))?;
    loop {
        let points = world.shell.ask(&["backup", "list", "config"]).await?;
        let newest = points
            .as_array()
            .and_then(|all| all.last())
            .and_then(|point| point.pointer("/point/moment"))
            .and_then(|moment| moment.as_str())
            .and_then(|text| chrono::DateTime::parse_from_rfc3339(text).ok());
        if newest.is_some_and(|at| std::time::SystemTime::from(at) > changed) {
            return Ok(());
        }
        if began.elapsed() > SILVER_RPO {
            return Err(StoryError::Waited {
                what: "a backup of the configuration".to_owned(),
                seconds: began.elapsed().as_secs(),
                log: world.path("logs/serve.log"),
            });
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The id that the restore printed for its undo.
fn restore_id(output: &str) -> Result<String, StoryError> {
    output
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .find(|word| word.parse::<dr_model::TenantRestoreId>().is_ok())
        .map(str::to_owned)
        .ok_or_else(|| StoryError::Answer {
            command: "dr tenant restore".to_owned(),
            detail: "it named no id to undo it by".to_owned(),
        })
}

/// Test builds can take a WAL segment away: the demo must then end and say which is missing.
#[cfg(feature = "testing")]
async fn inject_fault(world: &World) -> Result<(), StoryError> {
    if std::env::var("DR_TEST_DEMO_FAULT").as_deref() != Ok("remove-wal-segment") {
        return Ok(());
    }
    world.rows("select pg_switch_wal()").await?;
    let folder = world.path("repository/wal/erp");
    let mut segments = Vec::new();
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)
            .map_err(file("list", &folder))?
            .flatten()
        {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if entry.file_name().len() == 24 {
                segments.push(path);
            }
        }
    }
    segments.sort();
    // One in the middle of what the restore has to replay.
    let Some(victim) = segments.iter().rev().nth(1) else {
        return Ok(());
    };
    std::fs::remove_file(victim).map_err(file("remove", victim))
}

#[cfg(not(feature = "testing"))]
async fn inject_fault(_world: &World) -> Result<(), StoryError> {
    Ok(())
}
