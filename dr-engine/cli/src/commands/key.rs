//! `dr key`: who can open a repository, and whose data can be destroyed by destroying a key.

use std::collections::BTreeMap;

use dr_config::{KeyCommandSource, KeySource};
use dr_installation::Installation;
use dr_model::{RepositoryName, WorkloadName};
use dr_store::{KeySlot, NewSlot, Repository, Shredding, TenantKey};
use serde::Serialize;

use crate::args::{KeyAddArgs, KeyCommand};
use crate::context::{Context, absolute};
use crate::failure::{FAILED, Failure, USAGE};
use crate::output;

mod shred;

pub(crate) async fn run(context: &Context, command: KeyCommand) -> Result<u8, Failure> {
    match command {
        KeyCommand::List { repository } => list(context, repository).await,
        KeyCommand::Add(arguments) => add(context, arguments).await,
        KeyCommand::Remove {
            slot,
            repository,
            yes,
        } => remove(context, slot, repository, yes).await,
        KeyCommand::Rotate { repository } => rotate(context, repository).await,
        KeyCommand::Shred {
            tenant,
            workload,
            yes,
        } => shred::run(context, tenant, &workload, yes).await,
    }
}

/// The keys of one repository, as `dr key list` shows them.
#[derive(Debug, Serialize)]
struct Listed {
    repository: RepositoryName,
    place: String,
    slots: Vec<KeySlot>,
    tenants: Vec<TenantKey>,
    shredded: Vec<Shredding>,
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::of("the work on keys ended early", &error))?
}

/// The repository that is meant, when only one can be.
fn chosen(installation: &Installation, given: Option<String>) -> Result<RepositoryName, Failure> {
    if let Some(name) = given {
        let name: RepositoryName = name.parse()?;
        installation.config.repository(&name)?;
        return Ok(name);
    }
    let mut names = installation.config.engine.repositories.keys();
    match (names.next(), names.next()) {
        (Some(only), None) => Ok(only.clone()),
        (None, _) => Err(Failure::plain(USAGE, "no repository is configured", None)),
        _ => Err(Failure::plain(
            USAGE,
            "several repositories are configured, each with key slots of its own",
            Some("name one with --repository"),
        )),
    }
}

async fn list(context: &Context, only: Option<String>) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let json = context.json;
    let listed = blocking(move || {
        let names: Vec<RepositoryName> = match only {
            Some(name) => vec![chosen(&installation, Some(name))?],
            None => installation
                .config
                .engine
                .repositories
                .keys()
                .cloned()
                .collect(),
        };
        let mut listed = Vec::new();
        for name in names {
            let repository = installation.place(&name)?;
            listed.push(listed_of(&installation, name, &repository)?);
        }
        Ok(listed)
    })
    .await?;
    let damaged = |listed: &Listed| listed.slots.iter().any(|slot| slot.problem.is_some());
    let code = if listed.iter().any(damaged) {
        FAILED
    } else {
        0
    };
    if json {
        output::json(&listed)?;
    } else {
        listed.iter().for_each(show);
    }
    Ok(code)
}

fn listed_of(
    installation: &Installation,
    name: RepositoryName,
    repository: &Repository,
) -> Result<Listed, Failure> {
    let mut listed = Listed {
        place: repository.describe(),
        slots: repository.key_slots()?,
        repository: name,
        tenants: Vec::new(),
        shredded: Vec::new(),
    };
    for workload in installation.config.engine.workloads.keys() {
        listed.tenants.extend(repository.tenant_keys(workload)?);
        listed.shredded.extend(repository.shreddings(workload)?);
    }
    Ok(listed)
}

fn show(listed: &Listed) {
    output::data(&format!("{} at {}", listed.repository, listed.place));
    let rows = listed.slots.iter().map(|slot| {
        let made = slot.made.map_or_else(|| "-".to_owned(), output::time);
        let about = match (&slot.problem, &slot.recipient) {
            (Some(problem), _) => format!("DAMAGED: {problem}"),
            (None, Some(recipient)) => format!("{} {recipient}", slot.label).trim().to_owned(),
            (None, None) => slot.label.clone(),
        };
        vec![
            slot.id.clone(),
            slot.kind
                .map_or_else(|| "-".to_owned(), |kind| kind.to_string()),
            made,
            if slot.opened_now { "yes" } else { "" }.to_owned(),
            about,
        ]
    });
    let columns = ["slot", "kind", "made", "opened now", "label"];
    output::data(&output::table(&columns, rows.collect()));
    if !listed.tenants.is_empty() {
        let row = |key: &TenantKey| {
            vec![
                key.tenant.clone(),
                key.workload.to_string(),
                key.key_id.clone(),
            ]
        };
        let rows = listed.tenants.iter().map(row).collect();
        output::data(&format!(
            "\n{}",
            output::table(&["tenant", "workload", "data key"], rows)
        ));
    }
    if !listed.shredded.is_empty() {
        let row = |one: &Shredding| {
            vec![
                one.tenant.clone(),
                one.workload.to_string(),
                output::time(one.at),
                one.by.clone(),
            ]
        };
        let rows = listed.shredded.iter().map(row).collect();
        output::data(&format!(
            "\n{}",
            output::table(&["shredded", "workload", "at", "by"], rows)
        ));
    }
}

/// A command line as a list of words: JSON, or words between spaces. No shell takes part.
fn words(text: &str) -> Result<Vec<String>, Failure> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).map_err(|error| {
            Failure::plain(
                USAGE,
                format!("`{text}` is no list of words: {error}"),
                Some("write it like [\"PROGRAM\", \"ARGUMENT\"]"),
            )
        });
    }
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// What the new slot is for, and the key file that is made for it.
fn source_of(arguments: &KeyAddArgs) -> Result<KeySource, Failure> {
    let mut source = KeySource::default();
    if let Some(file) = &arguments.file {
        source.file = Some(absolute(file)?);
    } else if let Some(file) = &arguments.passphrase_file {
        source.passphrase_file = Some(absolute(file)?);
    } else if let (Some(wrap), Some(unwrap)) = (&arguments.wrap, &arguments.unwrap) {
        source.command = Some(KeyCommandSource {
            wrap: words(wrap)?,
            unwrap: words(unwrap)?,
        });
    }
    Ok(source)
}

async fn add(context: &Context, arguments: KeyAddArgs) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let name = chosen(&installation, arguments.repository.clone())?;
    let json = context.json;
    let (slot, created) = blocking(move || {
        let repository = installation.place(&name)?;
        let mut created = None;
        let new = if let Some(recipient) = &arguments.age_recipient {
            NewSlot::age_recipient(recipient)?
        } else {
            let source = source_of(&arguments)?;
            if let Some(file) = &source.file
                && !file.exists()
            {
                dr_installation::write_new_key(file).map_err(|error| {
                    Failure::of(&format!("cannot write {}", file.display()), &error)
                })?;
                created = Some(file.clone());
            }
            NewSlot::For(dr_installation::key_of(&source)?)
        };
        let label = arguments.label.as_deref().unwrap_or_default();
        Ok((repository.add_key_slot(&new, label)?, created))
    })
    .await?;
    if json {
        output::json(&slot)?;
        return Ok(0);
    }
    if let Some(file) = created {
        output::data(&format!("created key {}", file.display()));
    }
    output::data(&format!(
        "slot {} opens the repository by {}",
        slot.id,
        slot.kind.map_or_else(String::new, |kind| kind.to_string())
    ));
    if slot.recipient.is_some() {
        output::talk(
            "its identity was not needed and not tried: try it once, with `dr init --adopt \
             REPOSITORY --age-identity FILE` into an empty folder",
        );
    }
    Ok(0)
}

async fn remove(
    context: &Context,
    slot: String,
    repository: Option<String>,
    yes: bool,
) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let name = chosen(&installation, repository)?;
    let json = context.json;
    let left = blocking(move || {
        let repository = installation.place(&name)?;
        if repository.opened_slot() == slot && !yes {
            return Err(Failure::plain(
                FAILED,
                format!("slot {slot} is the one that this configuration opens {name} with"),
                Some("with --yes it goes all the same; nothing here opens the repository then"),
            ));
        }
        repository.remove_key_slot(&slot, yes)?;
        Ok(repository.key_slots()?)
    })
    .await?;
    if json {
        output::json(&left)?;
    } else {
        output::data(&format!("removed; {} slots are left", left.len()));
        output::talk(
            "who had its key and a copy of the repository can still read that copy: the master key \
             stays the same",
        );
    }
    Ok(0)
}

async fn rotate(context: &Context, repository: Option<String>) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let name = chosen(&installation, repository)?;
    let json = context.json;
    let config = std::sync::Arc::clone(&installation.config);
    let done = blocking(move || Ok(dr_installation::rotate_key(&config, &name)?)).await?;
    if json {
        let mut answer: BTreeMap<&str, serde_json::Value> = BTreeMap::new();
        answer.insert("file", serde_json::json!(done.file));
        answer.insert("old", serde_json::json!(done.old));
        answer.insert("repositories", serde_json::json!(done.repositories));
        answer.insert("finished_earlier", serde_json::json!(done.finished_earlier));
        output::json(&answer)?;
        return Ok(0);
    }
    let names: Vec<String> = done.repositories.iter().map(ToString::to_string).collect();
    output::data(&format!(
        "{} is the new key of {}{}",
        done.file.display(),
        names.join(", "),
        if done.finished_earlier {
            " (an earlier rotation was interrupted; it is finished now, and no other was begun)"
        } else {
            ""
        }
    ));
    output::data(&format!(
        "\nKEEP A COPY OF THE NEW KEY ELSEWHERE, and bring it to every host that has the old one.\n\
         The old key is kept in {}. It opens nothing in these repositories any more; it opens\n\
         copies of them made before. Destroy it when no such copy is needed.\n\
         The master key itself stays: who had the old key AND a copy of the repository can still\n\
         read that copy.",
        done.old.display()
    ));
    Ok(0)
}

/// The workload of a command line, as the configuration names it.
fn workload_of(installation: &Installation, name: &str) -> Result<WorkloadName, Failure> {
    crate::context::workload(installation, name)
}
