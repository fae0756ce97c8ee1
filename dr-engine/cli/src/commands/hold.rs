//! `dr hold`.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use dr_backup::{HoldRequest, HoldScope, StoredHold};
use dr_model::HoldId;

use crate::args::{HoldAddArgs, HoldCommand};
use crate::context::Context;
use crate::failure::{Failure, USAGE};
use crate::output;

pub(crate) async fn run(context: &Context, command: HoldCommand) -> Result<u8, Failure> {
    match command {
        HoldCommand::Add(arguments) => add(context, arguments).await,
        HoldCommand::List { all } => list(context, all).await,
        HoldCommand::Remove { id, reason } => remove(context, id, reason).await,
    }
}

async fn add(context: &Context, arguments: HoldAddArgs) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let until = arguments.until.as_deref().map(end_of).transpose()?;
    let now = installation.clock.now();
    if until.is_some_and(|until| until <= now) {
        return Err(Failure::plain(
            USAGE,
            "the hold would have ended already".to_owned(),
            Some("give --until a day to come"),
        ));
    }
    let request = HoldRequest {
        on: arguments.on,
        from: arguments.from.map(|from| from.to_utc()),
        to: arguments.to.map(|to| to.to_utc()),
        reason: arguments.reason,
        by: who()?,
        until,
    };
    let hold = blocking(move || Ok(dr_backup::add_hold(&installation, &request)?)).await?;
    if context.json {
        output::json(&hold)?;
    } else {
        let until = hold.until.map_or_else(
            || "until it is removed".to_owned(),
            |until| format!("until {}", output::time(until)),
        );
        output::data(&format!(
            "{} holds {} {until}",
            hold.id,
            scope(&hold.scope, hold.workload.as_str())
        ));
    }
    Ok(0)
}

async fn list(context: &Context, all: bool) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let now = installation.clock.now();
    // The same hold stands in every repository that has what it holds.
    let found = blocking(move || {
        let mut found: BTreeMap<(DateTime<Utc>, HoldId), StoredHold> = BTreeMap::new();
        for (_, repository) in installation.all_repositories()? {
            for stored in dr_backup::holds(&repository)? {
                let key = (stored.hold.at, stored.hold.id.clone());
                let known = found.entry(key).or_insert_with(|| stored.clone());
                if known.release.is_none() {
                    known.release = stored.release;
                }
            }
        }
        Ok(found)
    })
    .await?;
    let shown: Vec<&StoredHold> = found
        .values()
        .filter(|stored| all || stored.is_in_force(now))
        .collect();
    if context.json {
        output::json(&shown)?;
        return Ok(0);
    }
    if shown.is_empty() {
        output::talk("no holds; `dr hold add POINT|WORKLOAD --reason TEXT` places one");
        return Ok(0);
    }
    let columns = ["hold", "on", "by", "since", "ends", "reason"];
    let rows = shown.iter().map(|stored| row(stored, now)).collect();
    output::data(&output::table(&columns, rows));
    Ok(0)
}

fn row(stored: &StoredHold, now: DateTime<Utc>) -> Vec<String> {
    let hold = &stored.hold;
    let ends = match stored.ends() {
        None => "when removed".to_owned(),
        Some(end) if end <= now => format!("ended {}", output::time(end)),
        Some(end) => output::time(end),
    };
    vec![
        hold.id.to_string(),
        scope(&hold.scope, hold.workload.as_str()),
        hold.by.clone(),
        output::time(hold.at),
        ends,
        hold.reason.clone(),
    ]
}

async fn remove(context: &Context, id: HoldId, reason: String) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let by = who()?;
    let release =
        blocking(move || Ok(dr_backup::release_hold(&installation, &id, &reason, &by)?)).await?;
    if context.json {
        output::json(&release)?;
    } else {
        output::data(&format!("{} is removed", release.hold));
    }
    Ok(0)
}

fn scope(scope: &HoldScope, workload: &str) -> String {
    match scope {
        HoldScope::Point { point } => point.to_string(),
        HoldScope::Workload { from, to } => match (from, to) {
            (None, None) => format!("{workload}, all"),
            (Some(from), None) => format!("{workload} from {}", output::time(*from)),
            (None, Some(to)) => format!("{workload} to {}", output::time(*to)),
            (Some(from), Some(to)) => {
                format!(
                    "{workload} {} to {}",
                    output::time(*from),
                    output::time(*to)
                )
            }
        },
    }
}

/// The end of a day in UTC, or a moment with its offset.
fn end_of(text: &str) -> Result<DateTime<Utc>, Failure> {
    if let Ok(moment) = DateTime::parse_from_rfc3339(text) {
        return Ok(moment.to_utc());
    }
    text.parse::<NaiveDate>()
        .ok()
        .and_then(|day| day.succ_opt())
        .map(|next| next.and_time(NaiveTime::MIN).and_utc())
        .ok_or_else(|| {
            Failure::plain(
                USAGE,
                format!("`{text}` is neither a day nor a moment with an offset"),
                Some("write 2026-12-31, or 2026-12-31T18:00:00-06:00"),
            )
        })
}

/// Who holds: a hold without a name is nobody's.
pub(crate) fn who() -> Result<String, Failure> {
    let variable = |name| {
        std::env::var(name)
            .ok()
            .filter(|text| !text.trim().is_empty())
    };
    let user = variable("USER")
        .or_else(|| variable("LOGNAME"))
        .or_else(whoami);
    match (variable("SUDO_USER"), user) {
        (Some(person), Some(user)) if person != user => Ok(format!("{person} as {user}")),
        (Some(name), _) | (None, Some(name)) => Ok(name),
        (None, None) => Err(Failure::plain(
            USAGE,
            "nobody's name is known to record it with".to_owned(),
            Some("set USER to the name of who does it"),
        )),
    }
}

/// The system's name for this process's user.
fn whoami() -> Option<String> {
    let answer = std::process::Command::new("id").arg("-un").output().ok()?;
    let name = String::from_utf8(answer.stdout).ok()?.trim().to_owned();
    (answer.status.success() && !name.is_empty()).then_some(name)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::of("the work ended early", &error))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_ends_with_its_last_moment() {
        let end = end_of("2026-12-31").expect("a day");
        assert_eq!(end.to_rfc3339(), "2027-01-01T00:00:00+00:00");
        let end = end_of("2026-12-31T18:00:00-06:00").expect("a moment");
        assert_eq!(end.to_rfc3339(), "2027-01-01T00:00:00+00:00");
        for bad in ["tomorrow", "2026-13-01", "2026-12-31T18:00:00"] {
            assert!(end_of(bad).is_err(), "{bad}");
        }
    }
}
