//! Filling in the `{{ name }}` of steps. A name without a value is an error: a recovery must not go on
//! with a hole where a path should be.

use std::collections::BTreeMap;

use dr_config::{Step, WorkloadSource};
use dr_installation::Installation;
use dr_model::WorkloadName;
use minijinja::{Environment, UndefinedBehavior};

/// Values by name.
pub(crate) type Values = BTreeMap<String, String>;

/// The values a step can use: the given ones, and what the configuration says of its workload.
pub(crate) fn values_for(
    installation: &Installation,
    given: &Values,
    workload: Option<&WorkloadName>,
) -> Values {
    let mut values = given.clone();
    let Some(found) = workload.and_then(|name| installation.config.workload(name.as_str()).ok())
    else {
        return values;
    };
    let mut know = |name: &str, value: String| {
        values.entry(name.to_owned()).or_insert(value);
    };
    match found.source {
        WorkloadSource::Postgres(source) => {
            know(
                "data_directory",
                source.data_directory.display().to_string(),
            );
            know("url", source.url.clone());
        }
        WorkloadSource::Nats(source) => know("url", source.url.clone()),
        WorkloadSource::Files(source) => know("path", source.path.display().to_string()),
    }
    values
}

/// The workload a step is about.
pub(crate) fn workload_of(step: &Step) -> Option<&WorkloadName> {
    match step {
        Step::RescueWal(step) => Some(&step.workload),
        Step::Restore(step) => Some(&step.workload),
        Step::Start(step) => Some(&step.workload),
        Step::TenantRestore(step) => Some(&step.workload),
        Step::Backup(step) => Some(&step.workload),
        Step::VerifySql(step) => Some(&step.workload),
        Step::VerifyStream(step) => Some(&step.workload),
        Step::Command(_) | Step::Approval(_) => None,
    }
}

/// A step with all its templates filled in.
///
/// # Errors
/// The template engine's words.
pub(crate) fn filled(step: &Step, values: &Values) -> Result<Step, String> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let fill = |text: &str| {
        environment.render_str(text, values).map_err(|error| {
            // The engine's own text names a file it made up; the detail says which name is missing.
            error.detail().map_or_else(
                || format!("{} in `{text}`", error.kind()),
                |detail| format!("{} ({detail}) in `{text}`", error.kind()),
            )
        })
    };
    let mut step = step.clone();
    match &mut step {
        Step::Restore(step) => {
            step.to = fill(&step.to)?;
            if let Some(into) = &step.into {
                step.into = Some(fill(into)?);
            }
        }
        Step::TenantRestore(step) => {
            step.tenant = fill(&step.tenant)?;
            step.to = fill(&step.to)?;
        }
        Step::VerifySql(step) => step.sql = fill(&step.sql)?,
        Step::Command(step) => {
            step.run = step
                .run
                .iter()
                .map(|part| fill(part))
                .collect::<Result<_, _>>()?;
        }
        Step::Approval(step) => step.ask = fill(&step.ask)?,
        Step::RescueWal(_) | Step::Start(_) | Step::Backup(_) | Step::VerifyStream(_) => {}
    }
    Ok(step)
}

#[cfg(test)]
mod tests {
    use dr_config::{ApprovalStep, CommandStep};

    use super::*;

    #[test]
    fn a_name_without_a_value_is_an_error_that_shows_the_text() {
        let step = Step::Command(CommandStep {
            run: vec!["/bin/echo".to_owned(), "{{ nowhere }}".to_owned()],
            timeout: None,
            retries: 0,
            why: None,
        });
        let error = filled(&step, &Values::new()).unwrap_err();
        assert!(error.contains("{{ nowhere }}"), "{error}");
        let values = Values::from([("nowhere".to_owned(), "here".to_owned())]);
        let Step::Command(step) = filled(&step, &values).unwrap() else {
            panic!("another step")
        };
        assert_eq!(step.run, ["/bin/echo", "here"]);
    }

    #[test]
    fn a_value_is_never_taken_for_a_template_itself() {
        let step = Step::Approval(ApprovalStep {
            ask: "{{ q }}".to_owned(),
            timeout: None,
            retries: 0,
            why: None,
        });
        let values = Values::from([("q".to_owned(), "{{ secret }}".to_owned())]);
        let Step::Approval(step) = filled(&step, &values).unwrap() else {
            panic!("another step")
        };
        assert_eq!(step.ask, "{{ secret }}");
    }
}
