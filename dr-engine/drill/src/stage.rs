//! One drill as it is being held: its phases, in order, and what they leave for the report.
//!
//! A phase that fails ends the run with a cause; the clean-up and the report come whatever happened.
//! From the steady state to the fault nothing here touches the service: the only client is the probe.

use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dr_config::{DrillFile, ProbeFile, RunbookFile, Tier, WorkloadSource};
use dr_installation::Installation;
use dr_model::{Clock, DrillRunId, Progress, SystemClock, WorkloadName};
use dr_report::{Check, Moment, Phase, Status};
use dr_runbook::RunbookExecution;
use rustix::process::{Pid, Signal, kill_process};
use tokio_util::sync::CancellationToken;

use crate::DrillError;
use crate::evidence::Collection;
use crate::fault::{self, Injected};
use crate::measure::{self, Seen};
use crate::probe::ProbeLog;
use crate::recovered::{self, Found};
use crate::sandbox::{self, Sandbox, SandboxRequest, last_lines};
use crate::witness::{Process, postmaster};

/// How often the probe's log is read.
const LOG_INTERVAL: Duration = Duration::from_millis(100);
/// The probe serves its first good cycles within this.
const STEADY_TIME_MAX: Duration = Duration::from_secs(60);
/// A fault that nobody noticed for so long will not be noticed.
const DETECTION_TIME_MAX: Duration = Duration::from_secs(90);
/// The least time a runbook gets, however short the promise is.
const RECOVERY_TIME_MIN: Duration = Duration::from_secs(120);
/// Recovery is given up after this many times the promised RTO.
const RECOVERY_TIME_FACTOR: u32 = 3;
/// The probe ends within this of being told to, its last cycle with all its timeouts included.
const PROBE_END_TIME_MAX: Duration = Duration::from_secs(60);

/// Who plays what.
#[derive(Debug)]
pub(crate) struct Cast {
    pub(crate) id: DrillRunId,
    pub(crate) parent: Installation,
    pub(crate) sandbox: SandboxRequest,
    pub(crate) workload: WorkloadName,
    pub(crate) drill: DrillFile,
    pub(crate) drill_file: PathBuf,
    pub(crate) probe: ProbeFile,
    pub(crate) runbook: RunbookFile,
    pub(crate) tier: Tier,
    pub(crate) out: PathBuf,
}

/// Production at one moment, as far as it can be seen without asking it anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Production {
    pub(crate) servers: Vec<(String, Option<Process>)>,
}

/// A drill that is being held.
pub(crate) struct Stage {
    pub(crate) cast: Cast,
    pub(crate) progress: Arc<dyn Progress>,
    pub(crate) evidence: Collection,
    pub(crate) started: Moment,
    pub(crate) status: Status,
    pub(crate) cause: Option<String>,
    pub(crate) phases: Vec<Phase>,
    pub(crate) sandbox: Option<Sandbox>,
    pub(crate) probe: Option<Child>,
    /// The daemon runs in the sandbox.
    pub(crate) keeps_schedules: bool,
    /// The WAL is received in the sandbox as it is written.
    pub(crate) is_streamed: bool,
    pub(crate) fault: Option<Injected>,
    pub(crate) detected: Option<Seen>,
    pub(crate) declared: Option<Moment>,
    pub(crate) decided: Option<Moment>,
    pub(crate) parameters: Vec<(String, String)>,
    pub(crate) runbook_command: String,
    pub(crate) execution: Option<RunbookExecution>,
    pub(crate) usable: Option<Seen>,
    pub(crate) normal: Option<Moment>,
    pub(crate) log: Option<ProbeLog>,
    pub(crate) found: Option<Found>,
    pub(crate) checks: Vec<Check>,
    pub(crate) cleaned: sandbox::Cleaned,
    pub(crate) residual: Option<String>,
    pub(crate) production: (Production, Production),
}

pub(crate) fn now() -> Moment {
    Moment {
        at: SystemClock.now(),
        at_ns: SystemClock.monotonic_ns(),
    }
}

type Went = Result<String, DrillError>;

impl Stage {
    pub(crate) fn new(cast: Cast, progress: Arc<dyn Progress>) -> Self {
        Self {
            cast,
            progress,
            evidence: Collection::default(),
            started: now(),
            status: Status::Completed,
            cause: None,
            phases: Vec::new(),
            sandbox: None,
            probe: None,
            keeps_schedules: false,
            is_streamed: false,
            fault: None,
            detected: None,
            declared: None,
            decided: None,
            parameters: Vec::new(),
            runbook_command: String::new(),
            execution: None,
            usable: None,
            normal: None,
            log: None,
            found: None,
            checks: Vec::new(),
            cleaned: sandbox::Cleaned::default(),
            residual: None,
            production: Default::default(),
        }
    }

    /// All phases but the clean-up.
    pub(crate) async fn hold(&mut self, cancel: &CancellationToken) -> Result<(), DrillError> {
        let begun = self.begin("environment");
        let went = self.environment(cancel).await;
        self.end(begun, went)?;
        let begun = self.begin("steady state");
        let went = self.steady_state(cancel).await;
        self.end(begun, went)?;
        let begun = self.begin("load");
        let went = self.load(cancel).await;
        self.end(begun, went)?;
        let begun = self.begin("fault");
        let went = self.break_it().await;
        self.end(begun, went)?;
        let begun = self.begin("detection");
        let went = self.detection(cancel).await;
        self.end(begun, went)?;
        let begun = self.begin("declaration");
        let went = self.declare();
        self.end(begun, went)?;
        let begun = self.begin("runbook");
        let went = self.run_the_runbook(cancel).await;
        let ran = self.end(begun, went);
        // A runbook that failed is not the end of the measurement: what counts is the service.
        let begun = self.begin("verification");
        let went = self.verification(cancel).await;
        let verified = self.end(begun, went);
        ran.and(verified)?;
        let begun = self.begin("steady state again");
        let went = self.steady_again(cancel).await;
        self.end(begun, went)?;
        let begun = self.begin("counting");
        let went = self.count().await;
        self.end(begun, went)
    }

    fn begin(&mut self, name: &str) -> (String, Moment) {
        self.progress.phase(name, None);
        (name.to_owned(), now())
    }

    fn end(&mut self, begun: (String, Moment), went: Went) -> Result<(), DrillError> {
        let (passed, detail) = match &went {
            Ok(detail) => (true, detail.clone()),
            Err(error) => (false, told(error)),
        };
        self.progress.note(&format!("{}: {detail}", begun.0));
        self.phases.push(Phase {
            name: begun.0,
            started_ns: begun.1.at_ns,
            finished_ns: SystemClock.monotonic_ns(),
            started: begun.1.at,
            passed,
            detail,
        });
        went.map(drop)
    }

    /// Notes why the run ended early.
    pub(crate) fn stopped(&mut self, error: DrillError) {
        self.status = match error {
            DrillError::Cancelled => Status::Aborted,
            _ => Status::Failed,
        };
        // A runbook that failed and a service that stayed away say more together.
        let failed: Vec<String> = self
            .phases
            .iter()
            .filter(|phase| !phase.passed)
            .map(|phase| format!("{}: {}", phase.name, phase.detail))
            .collect();
        self.cause = Some(if failed.is_empty() {
            told(&error)
        } else {
            failed.join("; ")
        });
    }

    fn sandbox(&mut self) -> Result<&mut Sandbox, DrillError> {
        self.sandbox
            .as_mut()
            .ok_or_else(|| DrillError::Unsuitable("there is no sandbox".to_owned()))
    }

    fn log_path(&self) -> PathBuf {
        self.cast.sandbox.folder.join("logs/probe.jsonl")
    }

    fn read_log(&mut self) -> Result<Option<ProbeLog>, DrillError> {
        if let Some(Ok(Some(status))) = self.probe.as_mut().map(Child::try_wait) {
            let said = self.cast.sandbox.folder.join("logs/probe.log");
            let said = std::fs::read_to_string(&said).unwrap_or_default();
            return Err(DrillError::Command {
                command: "dr probe run".to_owned(),
                status: status.to_string(),
                output: last_lines(&said),
            });
        }
        ProbeLog::read(&self.log_path())
    }

    async fn environment(&mut self, cancel: &CancellationToken) -> Went {
        let sandbox = Sandbox::build(&self.cast.sandbox, self.progress.clone(), cancel).await?;
        let points: Vec<String> = sandbox
            .built_from
            .iter()
            .map(|point| point.id.to_string())
            .collect();
        let detail = format!("{} from {}", sandbox.folder.display(), points.join(", "));
        self.sandbox = Some(sandbox);
        Ok(detail)
    }

    /// The probe is started, and serves its first good cycles.
    async fn steady_state(&mut self, cancel: &CancellationToken) -> Went {
        let file = self.cast.drill.probe.file.display().to_string();
        // The sandbox's user may not be able to enter the drill's folder.
        let copy = self.cast.sandbox.folder.join("probe.yaml");
        let from = PathBuf::from(&file);
        std::fs::copy(&from, &copy).map_err(DrillError::file("copy", &from))?;
        self.keep_schedules()?;
        let log = self.log_path().display().to_string();
        let output = self.cast.sandbox.folder.join("logs/probe.log");
        let copy = copy.display().to_string();
        let probe = self
            .sandbox()?
            .spawn_dr(&["probe", "run", &copy, "--log", &log], &output)?;
        self.probe = Some(probe);
        let seen = self
            .wait_for(
                cancel,
                STEADY_TIME_MAX,
                "the probe's first good cycles",
                |log| measure::usable(log, 0),
            )
            .await?;
        Ok(format!(
            "served since {}",
            seen.wall.format("%H:%M:%S%.3fZ")
        ))
    }

    /// A queue or a folder is protected by its schedule alone, so the sandbox runs the daemon, as
    /// production does. A database is protected by its archive; there a scheduled backup could fall
    /// between the load and the fault and switch the WAL, which would flatter the loss. Where production
    /// receives the WAL as it is written, so does the sandbox.
    fn keep_schedules(&mut self) -> Result<(), DrillError> {
        let workload = self
            .cast
            .parent
            .config
            .workload(self.cast.workload.as_str())?;
        let is_streamed = match workload.source {
            WorkloadSource::Postgres(source) if source.stream.is_none() => return Ok(()),
            WorkloadSource::Postgres(_) => true,
            WorkloadSource::Nats(_) | WorkloadSource::Files(_) => false,
        };
        let name = self.cast.workload.to_string();
        let (arguments, log) = match is_streamed {
            true => (vec!["wal", "receive", &name], "logs/receive.log"),
            false => (vec!["serve"], "logs/serve.log"),
        };
        let output = self.cast.sandbox.folder.join(log);
        // It is in the sandbox's notes: the clean-up ends it, and somebody must wait for that end.
        let mut daemon = self.sandbox()?.spawn_dr(&arguments, &output)?;
        self.keeps_schedules = !is_streamed;
        self.is_streamed = is_streamed;
        std::thread::spawn(move || daemon.wait());
        Ok(())
    }

    /// Waits for something to be seen in the probe's log.
    async fn wait_for(
        &mut self,
        cancel: &CancellationToken,
        limit: Duration,
        what: &str,
        see: impl Fn(&ProbeLog) -> Option<Seen>,
    ) -> Result<Seen, DrillError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(seen) = self.read_log()?.as_ref().and_then(&see) {
                return Ok(seen);
            }
            if Instant::now() >= deadline {
                return Err(DrillError::TooSlow {
                    what: what.to_owned(),
                    seconds: limit.as_secs(),
                });
            }
            tokio::select! {
                () = tokio::time::sleep(LOG_INTERVAL) => {}
                () = cancel.cancelled() => return Err(DrillError::Cancelled),
            }
        }
    }

    async fn load(&mut self, cancel: &CancellationToken) -> Went {
        let before = self.cast.drill.probe.before;
        tokio::select! {
            () = tokio::time::sleep(before.0) => {}
            () = cancel.cancelled() => return Err(DrillError::Cancelled),
        }
        let cycles = self
            .read_log()?
            .map_or(0, |log| measure::cycles(&log).len());
        Ok(format!(
            "{cycles} cycles of the probe for {before}; {}",
            self.beside_the_load()
        ))
    }

    /// What ran besides the probe while it loaded the service.
    pub(crate) fn beside_the_load(&self) -> &'static str {
        if self.is_streamed {
            "its WAL was received as it is written, as in production; no backup, nothing else"
        } else if self.keeps_schedules {
            "the tier's own schedules ran, as in production; nothing else"
        } else {
            "no backup, no WAL switch, nothing else"
        }
    }

    async fn break_it(&mut self) -> Went {
        let probed = self
            .read_log()?
            .map(|log| log.header.tenants)
            .unwrap_or_default();
        let sandbox = self
            .sandbox
            .as_ref()
            .ok_or_else(|| DrillError::Unsuitable("there is no sandbox".to_owned()))?;
        let injected = fault::inject(
            sandbox,
            &self.cast.workload,
            &self.cast.drill.fault,
            &probed,
        )
        .await?;
        let detail = format!("{}: {}", injected.target, injected.action);
        let failed: Vec<String> = injected
            .proof
            .iter()
            .filter(|check| check.passed != Some(true))
            .map(|check| format!("{}: {}", check.what, check.detail))
            .collect();
        self.fault = Some(injected);
        if failed.is_empty() {
            Ok(detail)
        } else {
            Err(DrillError::Unsuitable(format!(
                "the fault did not take effect: {}",
                failed.join("; ")
            )))
        }
    }

    /// Learns of the fault as anyone would: the detector reads the probe's log from its beginning and
    /// is told nothing.
    async fn detection(&mut self, cancel: &CancellationToken) -> Went {
        let count = self.cast.drill.detect.after_failures;
        let what = format!("noticing the fault ({count} failed cycles of the probe in a row)");
        let seen = self
            .wait_for(cancel, DETECTION_TIME_MAX, &what, |log| {
                measure::detected(log, 0, count)
            })
            .await?;
        self.detected = Some(seen);
        Ok(format!("{count} failed cycles of the probe in a row"))
    }

    fn declare(&mut self) -> Went {
        self.declared = Some(now());
        let (log, detected) = (self.read_log()?, self.detected);
        self.parameters = match (log, detected) {
            (Some(log), Some(detected)) => self.parameters_from(&log, detected)?,
            _ => Vec::new(),
        };
        self.decided = Some(now());
        let values: Vec<String> = self
            .parameters
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        Ok(
            format!("runbook {} {}", self.cast.runbook.runbook, values.join(" "))
                .trim_end()
                .to_owned(),
        )
    }

    /// What a person would find out by asking who is affected and when it last worked.
    fn parameters_from(
        &self,
        log: &ProbeLog,
        detected: Seen,
    ) -> Result<Vec<(String, String)>, DrillError> {
        let failing = measure::failing_tenants(log, detected);
        let tenant = failing.first().cloned();
        let served = tenant
            .as_ref()
            .and_then(|tenant| measure::last_served(log, tenant, detected.at_ns));
        let mut values = Vec::new();
        for name in self.cast.runbook.parameters.keys() {
            let value = match name.as_str() {
                "tenant" => tenant.as_ref().map(|tenant| format!("id:{tenant}")),
                "to" => served.map(|seen| {
                    seen.wall
                        .to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
                }),
                _ => None,
            };
            let value = value.ok_or_else(|| {
                DrillError::Unsuitable(format!(
                    "the probe's log says nothing of `{name}`, which runbook `{}` needs",
                    self.cast.runbook.runbook
                ))
            })?;
            values.push((name.clone(), value));
        }
        Ok(values)
    }

    fn recovery_limit(&self) -> Duration {
        (self.cast.tier.rto.0 * RECOVERY_TIME_FACTOR).max(RECOVERY_TIME_MIN)
    }

    async fn run_the_runbook(&mut self, cancel: &CancellationToken) -> Went {
        let original = self.cast.drill.runbook.clone();
        let copy = self.cast.sandbox.folder.join("runbook.yaml");
        std::fs::copy(&original, &copy).map_err(DrillError::file("copy", &original))?;
        let config = self.sandbox()?.config.display().to_string();
        let copy = copy.display().to_string();
        let sets: Vec<String> = self
            .parameters
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let mut arguments = vec![
            "--config", &config, "runbook", "run", &copy, "--json", "--yes",
        ];
        for set in &sets {
            arguments.extend(["--set", set]);
        }
        self.runbook_command = format!("dr {}", arguments.join(" "));
        let limit = self.recovery_limit();
        let said = self
            .sandbox()?
            .run_within(&arguments, limit, cancel)
            .await?;
        self.evidence.add("runbook-output.log", said.stderr.clone());
        let execution: RunbookExecution =
            serde_json::from_str(&said.stdout).map_err(|_| DrillError::Command {
                command: "dr runbook run".to_owned(),
                status: format!("exit {}", said.code),
                output: last_lines(&format!("{}{}", said.stdout, said.stderr)),
            })?;
        self.evidence.add("runbook-execution.json", said.stdout);
        let failure = execution.failure().map(|step| {
            format!(
                "step {} ({}) failed: {}",
                step.number, step.action, step.detail
            )
        });
        let count = execution.steps.len();
        self.execution = Some(execution);
        match failure {
            Some(failure) => Err(DrillError::Unsuitable(failure)),
            None => Ok(format!("{count} steps done")),
        }
    }

    /// Usable means what the probe says, whatever the runbook says.
    async fn verification(&mut self, cancel: &CancellationToken) -> Went {
        let Some(detected) = self.detected else {
            return Ok("nothing was detected".to_owned());
        };
        let spent = SystemClock.monotonic_ns().saturating_sub(detected.at_ns);
        // After a runbook that failed nothing more will happen: only a moment to be sure.
        let limit = if self
            .execution
            .as_ref()
            .is_some_and(RunbookExecution::completed)
        {
            self.recovery_limit()
                .saturating_sub(Duration::from_nanos(spent))
                .max(RECOVERY_TIME_MIN / 4)
        } else {
            RECOVERY_TIME_MIN / 12
        };
        let usable = self
            .wait_for(cancel, limit, "the service being usable again", |log| {
                measure::usable(log, detected.at_ns)
            })
            .await;
        match usable {
            Ok(usable) => {
                self.usable = Some(usable);
                Ok("every probed tenant is served again".to_owned())
            }
            Err(DrillError::TooSlow { .. }) => {
                let has_restore =
                    self.cast.runbook.steps.iter().any(|step| {
                        matches!(step.action(), "restore" | "tenant_restore" | "command")
                    });
                let why = if has_restore {
                    ""
                } else {
                    "; the runbook has no restore step"
                };
                Err(DrillError::Unsuitable(format!(
                    "the service was not usable within {} s of the runbook's end{why}",
                    limit.as_secs()
                )))
            }
            Err(error) => Err(error),
        }
    }

    async fn steady_again(&mut self, cancel: &CancellationToken) -> Went {
        let after = self.cast.drill.probe.after;
        tokio::select! {
            () = tokio::time::sleep(after.0) => {}
            () = cancel.cancelled() => return Err(DrillError::Cancelled),
        }
        self.end_probe().await?;
        let log = ProbeLog::read(&self.log_path())?;
        let usable = self.usable.map_or(0, |seen| seen.at_ns);
        let later: Vec<bool> = log
            .as_ref()
            .map(measure::cycles)
            .unwrap_or_default()
            .into_iter()
            .filter(|cycle| cycle.started_ns >= usable)
            .filter_map(|cycle| cycle.good)
            .collect();
        let failed = later.iter().filter(|good| !**good).count();
        if failed == 0 {
            self.normal = Some(now());
        }
        Ok(format!(
            "{} cycles after recovery, {failed} of them failed",
            later.len()
        ))
    }

    async fn end_probe(&mut self) -> Result<(), DrillError> {
        let Some(mut probe) = self.probe.take() else {
            return Ok(());
        };
        if let Some(pid) = i32::try_from(probe.id()).ok().and_then(Pid::from_raw) {
            // Gone by itself is seen by the wait.
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + PROBE_END_TIME_MAX;
        while matches!(probe.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                // It stays in the sandbox's notes; the clean-up kills it.
                return Err(DrillError::TooSlow {
                    what: "ending the probe".to_owned(),
                    seconds: PROBE_END_TIME_MAX.as_secs(),
                });
            }
            tokio::time::sleep(LOG_INTERVAL).await;
        }
        Ok(())
    }

    async fn count(&mut self) -> Went {
        let log = ProbeLog::read(&self.log_path())?
            .ok_or_else(|| DrillError::Unsuitable("the probe left no log".to_owned()))?;
        let config = self.sandbox()?.load()?;
        let found = recovered::look_up(&config, &self.cast.probe, &log).await?;
        let detail = format!("{} of the probe's writes are there", found.keys.len());
        self.found = Some(found);
        self.log = Some(log);
        Ok(detail)
    }

    /// Always the last phase: what was made is ended and removed, with proof.
    pub(crate) async fn clean_up(&mut self) {
        let begun = self.begin("clean-up");
        let went = self.take_away().await;
        if let Err(error) = &went {
            self.residual = Some(format!(
                "{} may be left: {}",
                self.cast.sandbox.folder.display(),
                told(error)
            ));
        }
        // A clean-up that failed is a finding, not a reason to lose the report.
        drop(self.end(begun, went));
    }

    async fn take_away(&mut self) -> Went {
        // A run that ended early may still have one.
        let ended = self.end_probe().await;
        if self.log.is_none() {
            self.log = ProbeLog::read(&self.log_path()).ok().flatten();
        }
        let folder = self.cast.sandbox.folder.clone();
        for (name, file) in [
            ("probe.jsonl", self.log_path()),
            ("sandbox-dr.yaml", folder.join("dr.yaml")),
            ("postgres.log", folder.join("logs/postgres.log")),
            ("drill.yaml", self.cast.drill_file.clone()),
            ("probe.yaml", self.cast.drill.probe.file.clone()),
            ("runbook.yaml", self.cast.drill.runbook.clone()),
        ] {
            self.evidence.add_file(name, &file);
        }
        let Some(sandbox) = &self.sandbox else {
            return Ok("nothing was left standing".to_owned());
        };
        self.evidence
            .add("commands.txt", sandbox.commands.join("\n") + "\n");
        let ports = sandbox.ports.clone();
        let mut cleaned = tokio::task::spawn_blocking(move || sandbox::clean(&folder))
            .await
            .map_err(|_| DrillError::Cancelled)??;
        for port in ports {
            cleaned
                .proof
                .push(crate::witness::port_is_closed("clean-up", port));
        }
        let failed = cleaned
            .proof
            .iter()
            .filter(|check| check.passed != Some(true))
            .count();
        let detail = format!(
            "{} things removed, {failed} looks failed",
            cleaned.removed.len()
        );
        self.cleaned = cleaned;
        ended?;
        if failed == 0 {
            Ok(detail)
        } else {
            Err(DrillError::Unsuitable(detail))
        }
    }

    /// Looks at production's servers without asking them anything.
    pub(crate) async fn look_at_production(&mut self, before: bool) {
        let mut seen = Production::default();
        for workload in self.cast.parent.config.workloads() {
            if let WorkloadSource::Postgres(source) = workload.source {
                seen.servers.push((
                    workload.name.to_string(),
                    postmaster(&source.data_directory),
                ));
            }
        }
        if before {
            self.production.0 = seen;
        } else {
            self.production.1 = seen;
        }
    }
}

/// An error with its causes, in one line.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}
