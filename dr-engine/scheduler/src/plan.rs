//! What a configuration wants to happen by itself.

use std::collections::BTreeSet;

use dr_config::Config;
use dr_model::{RepositoryName, WorkloadName};

use crate::{CivilSchedule, ScheduleError};

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Activity {
    /// Back the workload up.
    Backup,
    /// Prove its newest restore point.
    Verify {
        /// By really restoring it.
        restore: bool,
    },
    /// Exercise its recovery.
    Drill {
        /// The drill's name.
        script: String,
    },
    /// Remove from a repository what is not needed any more.
    Prune,
}

/// What something is done to: also its lane, on which one thing is done at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A workload.
    Workload(WorkloadName),
    /// A repository.
    Repository(RepositoryName),
}

impl Subject {
    /// The workload, if it is one.
    #[must_use]
    pub fn workload(&self) -> Option<&WorkloadName> {
        match self {
            Self::Workload(name) => Some(name),
            Self::Repository(_) => None,
        }
    }

    /// The lane's name: no workload's name has a `/` in it.
    #[must_use]
    pub fn lane(&self) -> String {
        match self {
            Self::Workload(name) => name.to_string(),
            Self::Repository(name) => format!("repository/{name}"),
        }
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Workload(name) => write!(f, "`{name}`"),
            Self::Repository(name) => write!(f, "repository `{name}`"),
        }
    }
}

impl Activity {
    /// The word in schedule names and job kinds.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Verify { .. } => "verify",
            Self::Drill { .. } => "drill",
            Self::Prune => "prune",
        }
    }
}

/// One schedule of one workload or repository.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Names it in the catalog: `<lane>/<activity>`.
    pub key: String,
    /// To what.
    pub subject: Subject,
    /// What.
    pub activity: Activity,
    /// When.
    pub schedule: CivilSchedule,
}

/// Every schedule of every workload, in order of name, then those of the repositories that backups are
/// made into.
///
/// # Errors
/// When a schedule cannot be read; a validated configuration has none like that.
pub fn plan(config: &Config) -> Result<Vec<Planned>, ScheduleError> {
    let mut planned = Vec::new();
    for workload in config.workloads() {
        let tier = workload.tier;
        let mut add = |activity: Activity, cron: &str, zone: Option<&str>| {
            planned.push(Planned {
                key: format!("{}/{}", workload.name, activity.name()),
                subject: Subject::Workload(workload.name.clone()),
                activity,
                schedule: CivilSchedule::new(cron, zone)?,
            });
            Ok(())
        };
        add(
            Activity::Backup,
            &tier.backup.cron,
            tier.backup.timezone.as_deref(),
        )?;
        if let Some(verify) = &tier.verify {
            let activity = Activity::Verify {
                restore: verify.restore,
            };
            add(activity, &verify.cron, verify.timezone.as_deref())?;
        }
        if let Some(drill) = &tier.drill {
            let activity = Activity::Drill {
                script: drill.script.clone(),
            };
            add(activity, &drill.cron, drill.timezone.as_deref())?;
        }
    }
    let prune = &config.engine.prune;
    let workloads = config.engine.workloads.values();
    let repositories: BTreeSet<&RepositoryName> = workloads
        .filter_map(|workload| workload.repositories.first())
        .filter(|_| prune.enabled)
        .collect();
    for name in repositories {
        let subject = Subject::Repository(name.clone());
        planned.push(Planned {
            key: format!("{}/{}", subject.lane(), Activity::Prune.name()),
            subject,
            activity: Activity::Prune,
            schedule: CivilSchedule::new(&prune.cron, prune.timezone.as_deref())?,
        });
    }
    Ok(planned)
}
