//! What a configuration wants to happen by itself.

use dr_config::Config;
use dr_model::WorkloadName;

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
}

impl Activity {
    /// The word in schedule names and job kinds.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Verify { .. } => "verify",
            Self::Drill { .. } => "drill",
        }
    }
}

/// One schedule of one workload.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Names it in the catalog: `<workload>/<activity>`.
    pub key: String,
    /// The workload, also the lane.
    pub workload: WorkloadName,
    /// What.
    pub activity: Activity,
    /// When.
    pub schedule: CivilSchedule,
}

/// Every schedule of every workload, in order of name.
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
                workload: workload.name.clone(),
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
    Ok(planned)
}
