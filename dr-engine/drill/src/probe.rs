//! The outside client: writes and reads like a user, in a process of its own, and logs what was
//! acknowledged when.
//!
//! It knows nothing of drills, faults or restores. Each cycle sends one write for each probed tenant
//! and, when that was acknowledged, reads it back. Every outcome is one line of the log, appended by
//! one write(2), so that a killed probe leaves whole lines, and a reader may follow the file while it
//! grows. All keys are new: `probe-<run>-<seq>-<tenant>`.
//!
//! An outcome is `acked` when the answer arrived, `failed` when nothing was sent or the service
//! refused, and `unknown` when the request was sent and no answer came: such a write may be there or
//! not, and is counted apart.

mod database;
mod log;
mod queue;

use std::path::PathBuf;
use std::time::Duration;

use dr_config::{Config, ProbeFile, WorkloadSource};
use dr_installation::Installation;
use dr_model::{Clock, SystemClock, clock::boot_id};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

pub use database::{DatabaseClient, fill_in};
pub use log::{Header, Op, Outcome, ProbeLog, Record};
pub use queue::QueueClient;

use crate::DrillError;
use log::LogWriter;

/// How often the tenants are asked for until the service answers for the first time.
const FIRST_ANSWER_INTERVAL: Duration = Duration::from_millis(500);
/// The tenant of a queue's probe, whose file names no tenants.
const ONLY_TENANT: &str = "probe";

/// What to probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeRequest {
    /// The engine file, for the workload's address.
    pub config: PathBuf,
    /// The probe's file.
    pub file: PathBuf,
    /// The log; appended to.
    pub log: PathBuf,
}

/// What a probe talks to.
#[derive(Debug)]
pub enum Client {
    /// A database.
    Database(DatabaseClient),
    /// A queue.
    Queue(QueueClient),
}

/// How one operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Acknowledged, refused or neither.
    pub outcome: Outcome,
    /// The service's words.
    pub error: Option<String>,
    /// Queues: the sequence number of the acknowledged message.
    pub sequence: Option<u64>,
}

impl Answer {
    pub(crate) fn acked(sequence: Option<u64>) -> Self {
        Self {
            outcome: Outcome::Acked,
            error: None,
            sequence,
        }
    }

    pub(crate) fn failed(error: impl ToString) -> Self {
        Self {
            outcome: Outcome::Failed,
            error: Some(error.to_string()),
            sequence: None,
        }
    }

    pub(crate) fn unknown(error: impl ToString) -> Self {
        Self {
            outcome: Outcome::Unknown,
            error: Some(error.to_string()),
            sequence: None,
        }
    }
}

impl Client {
    /// A client for the workload of `probe`, not connected yet.
    ///
    /// # Errors
    /// When the workload is unknown, of a kind that cannot be probed, or the file lacks a statement.
    pub fn new(config: &Config, probe: &ProbeFile) -> Result<Self, DrillError> {
        let workload = config.workload(probe.workload.as_str())?;
        match workload.source {
            WorkloadSource::Postgres(source) => {
                let installation =
                    Installation::of(config.clone(), std::sync::Arc::new(SystemClock));
                let password = installation.postgres_password(&workload)?;
                DatabaseClient::new(&source.url, password, probe).map(Self::Database)
            }
            WorkloadSource::Nats(source) => QueueClient::new(&source.url, probe).map(Self::Queue),
            WorkloadSource::Files(_) => Err(DrillError::Unsuitable(format!(
                "workload `{}` of probe `{}` is a folder: databases and queues can be probed",
                probe.workload, probe.probe
            ))),
        }
    }

    /// The tenants to probe.
    ///
    /// # Errors
    /// When the service does not answer.
    pub async fn tenants(&mut self, probe: &ProbeFile) -> Result<Vec<String>, DrillError> {
        let all = match self {
            Self::Database(client) => client.tenants().await?,
            Self::Queue(_) => vec![ONLY_TENANT.to_owned()],
        };
        Ok(pick(all, probe.tenants_max))
    }

    /// Connects again if the connection is broken. A failure shows in the operations that follow.
    pub async fn begin_cycle(&mut self) {
        match self {
            Self::Database(client) => client.begin_cycle().await,
            Self::Queue(client) => client.begin_cycle().await,
        }
    }

    /// Writes `key` for `tenant`.
    pub async fn write(&mut self, tenant: &str, key: &str) -> Answer {
        match self {
            Self::Database(client) => client.write(tenant, key).await,
            Self::Queue(client) => client.write(tenant, key).await,
        }
    }

    /// Looks `key` up; `sequence` is what its write was answered with.
    pub async fn read(&mut self, tenant: &str, key: &str, sequence: Option<u64>) -> Answer {
        match self {
            Self::Database(client) => client.read(tenant, key).await,
            Self::Queue(client) => client.read(key, sequence).await,
        }
    }
}

/// At most `max` of `all`, evenly spread.
fn pick(all: Vec<String>, max: Option<usize>) -> Vec<String> {
    let count = all.len();
    match max {
        Some(max) if max < count => all
            .into_iter()
            .enumerate()
            .filter(|(index, _)| (index * max) / count != ((index + 1) * max) / count)
            .map(|(_, tenant)| tenant)
            .collect(),
        _ => all,
    }
}

/// Probes until cancelled; the cycle that runs then is finished.
///
/// # Errors
/// When the files cannot be read or the log cannot be written. A service that fails is no error: it is
/// what the log is for.
pub async fn run(request: &ProbeRequest, cancel: CancellationToken) -> Result<(), DrillError> {
    let config = Config::load(&request.config)?;
    let probe = ProbeFile::load(&request.file)?;
    let text = std::fs::read(&request.file).map_err(DrillError::file("read", &request.file))?;
    let mut client = Client::new(&config, &probe)?;
    let Some(tenants) = first_tenants(&mut client, &probe, &cancel).await else {
        return Ok(());
    };
    let clock = SystemClock;
    let header = Header {
        version: log::LOG_VERSION,
        probe: probe.probe.clone(),
        probe_sha256: hex(&Sha256::digest(&text)),
        run: dr_model::random::hex(4),
        boot_id: boot_id(),
        interval_ms: milliseconds(probe.every.0),
        timeout_ms: milliseconds(probe.timeout.0),
        started_ns: clock.monotonic_ns(),
        started: clock.now(),
        tenants,
    };
    let mut log = LogWriter::create(&request.log, &header)?;
    let mut ticks = tokio::time::interval(probe.every.0);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut seq = 0;
    for cycle in 0.. {
        tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            _ = ticks.tick() => {}
        }
        run_cycle(&mut client, &header, &mut log, cycle, &mut seq).await?;
    }
    log.finish()
}

async fn run_cycle(
    client: &mut Client,
    header: &Header,
    log: &mut LogWriter,
    cycle: u64,
    seq: &mut u64,
) -> Result<(), DrillError> {
    let clock = SystemClock;
    client.begin_cycle().await;
    for tenant in &header.tenants {
        *seq += 1;
        let key = format!("probe-{}-{seq}-{tenant}", header.run);
        let mut record = Record {
            seq: *seq,
            cycle,
            tenant: tenant.clone(),
            key: key.clone(),
            op: Op::Write,
            sent_ns: clock.monotonic_ns(),
            done_ns: 0,
            outcome: Outcome::Unknown,
            wall: clock.now(),
            error: None,
            sequence: None,
        };
        let answer = client.write(tenant, &key).await;
        record.done_ns = clock.monotonic_ns();
        let (written, sequence) = (answer.outcome == Outcome::Acked, answer.sequence);
        log.append(&record.answered(answer))?;
        if written {
            let mut record = Record {
                op: Op::Read,
                sent_ns: clock.monotonic_ns(),
                wall: clock.now(),
                error: None,
                ..record
            };
            let answer = client.read(tenant, &key, sequence).await;
            record.done_ns = clock.monotonic_ns();
            record.sequence = sequence;
            log.append(&record.answered(answer))?;
        }
    }
    Ok(())
}

/// The tenants, once the service answers; `None` when cancelled before.
async fn first_tenants(
    client: &mut Client,
    probe: &ProbeFile,
    cancel: &CancellationToken,
) -> Option<Vec<String>> {
    let mut told = false;
    loop {
        let answer = tokio::select! {
            answer = client.tenants(probe) => answer,
            () = cancel.cancelled() => return None,
        };
        match answer {
            Ok(tenants) if !tenants.is_empty() => return Some(tenants),
            Ok(_) if !told => tracing::warn!(probe = %probe.probe, "the probe found no tenants"),
            Err(error) if !told => {
                tracing::warn!(probe = %probe.probe, %error, "the probed service does not answer yet");
            }
            _ => {}
        }
        told = true;
        tokio::select! {
            () = tokio::time::sleep(FIRST_ANSWER_INTERVAL) => {}
            () = cancel.cancelled() => return None,
        }
    }
}

pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_are_picked_evenly_and_never_more_than_asked_for() {
        let all: Vec<String> = (0..64).map(|n| n.to_string()).collect();
        let picked = pick(all.clone(), Some(12));
        assert_eq!(picked.len(), 12);
        let places: Vec<usize> = picked.iter().map(|text| text.parse().unwrap()).collect();
        assert!(
            places
                .windows(2)
                .all(|pair| (5..=6).contains(&(pair[1] - pair[0]))),
            "{places:?}"
        );
        assert_eq!(pick(all.clone(), None).len(), 64);
        assert_eq!(pick(all, Some(100)).len(), 64);
    }
}
