//! Which of the probe's writes are there after recovery: every one is looked up, one by one, in the
//! restored service.

use std::collections::BTreeSet;

use dr_config::{Config, ProbeFile};

use crate::DrillError;
use crate::probe::{Client, Op, Outcome, ProbeLog};

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Keys that are there.
    pub(crate) keys: BTreeSet<String>,
    /// Acknowledged writes that are there more than once; `None`: cannot be told.
    pub(crate) duplicated: Option<u64>,
}

/// Looks up every write that was acknowledged or whose outcome is unknown.
pub(crate) async fn look_up(
    config: &Config,
    probe: &ProbeFile,
    log: &ProbeLog,
) -> Result<Found, DrillError> {
    // The probe's own limit is for users; a look afterwards may be patient.
    let mut patient = probe.clone();
    patient.timeout = dr_model::HumanDuration(std::time::Duration::from_secs(30));
    let mut client = Client::new(config, &patient)?;
    let mut found = Found::default();
    if matches!(client, Client::Database(_)) {
        found.duplicated = Some(0);
    }
    client.begin_cycle().await;
    let writes = log
        .records
        .iter()
        .filter(|r| r.op == Op::Write && r.outcome != Outcome::Failed);
    for write in writes {
        let refused = |answer: crate::probe::Answer| {
            let why = answer.error.unwrap_or_default();
            DrillError::Unsuitable(format!("{} could not be looked up: {why}", write.key))
        };
        let times = match &mut client {
            Client::Database(client) => client
                .count(&write.tenant, &write.key)
                .await
                .map_err(refused)?,
            Client::Queue(client) => {
                let there = client
                    .is_there(&write.key, write.sequence)
                    .await
                    .map_err(refused)?;
                usize::from(there)
            }
        };
        if times > 0 {
            found.keys.insert(write.key.clone());
        }
        if times > 1 {
            found.duplicated = found.duplicated.map(|count| count + 1);
        }
    }
    Ok(found)
}
