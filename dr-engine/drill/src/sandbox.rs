//! A whole installation of its own under one folder: cluster, broker, folders, repository, key, catalog
//! and `dr.yaml`, made from restore points of the parent installation, and removed afterwards.
//!
//! The sandbox is built by the product's own commands, each told as it is run: what a drill relies on
//! is what an operator would type. The parent's repository is only read, through an engine file of the
//! sandbox that names the parent's repositories and the sandbox's places (`from-production.yaml`); no
//! server of production is asked for anything.
//!
//! Invariants:
//!
//! - The folder is made here or was empty. Its notes (`sandbox.json`) exist before anything else in it.
//! - A process is stopped only if it is in the notes with its start time, descends from one that is, or
//!   carries the sandbox's mark in its environment.
//! - The restored cluster never archives into the parent's repository: it is first started with
//!   archiving off, and gets the sandbox's own `archive_command` before archiving is switched on.
//!
//! A crash leaves the folder with its notes and perhaps servers; [`clean`] removes both.

mod cluster;
mod notes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use dr_config::{
    BaseBackupBy, Config, EngineFile, FilesSource, KeySource, PruneSchedule, RepositoryConfig,
    Tier, WorkloadConfig, WorkloadSource,
};
use dr_installation::Installation;
use dr_model::{Progress, RestorePoint, RestorePointId, WorkloadName};
use dr_sources::instance::{NatsInstance, RunAs, command, free_port, give};
use tokio_util::sync::CancellationToken;

pub use notes::{Cleaned, Notes, clean};

use crate::DrillError;
use crate::witness::Process;

/// A single command of the product may take this long.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(3600);
/// How much of a failed command's output an error shows.
const OUTPUT_LINES_SHOWN: usize = 25;

/// What to build.
#[derive(Debug, Clone)]
pub struct SandboxRequest {
    /// The `dr` binary.
    pub dr_binary: PathBuf,
    /// The parent installation.
    pub parent: Installation,
    /// The folder; made, or empty.
    pub folder: PathBuf,
    /// The workloads, each from a restore point; `None`: its newest.
    pub workloads: Vec<(WorkloadName, Option<RestorePointId>)>,
}

/// An installation of its own.
#[derive(Debug)]
pub struct Sandbox {
    /// Everything lies below it.
    pub folder: PathBuf,
    /// Its engine file.
    pub config: PathBuf,
    /// The `dr` binary as it is run here.
    pub dr_binary: PathBuf,
    /// The user everything in it runs as.
    pub run_as: Option<RunAs>,
    /// The restore points it was built from.
    pub built_from: Vec<RestorePoint>,
    /// Every command that was run, in order.
    pub commands: Vec<String>,
    /// Loopback ports its servers listen on.
    pub ports: Vec<u16>,
    notes: Notes,
    progress: Arc<dyn ProgressDebug>,
}

/// A tier without what only a bucket can keep: a sandbox's repositories are folders.
fn in_sandbox(tier: &Tier) -> Tier {
    Tier {
        lock: None,
        storage_class: None,
        ..tier.clone()
    }
}

trait ProgressDebug: Progress + std::fmt::Debug {}

struct Told(Arc<dyn Progress>);

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Progress")
    }
}

impl Progress for Told {
    fn phase(&self, name: &str, bytes_total: Option<u64>) {
        self.0.phase(name, bytes_total);
    }
    fn advance(&self, bytes: u64) {
        self.0.advance(bytes);
    }
    fn note(&self, text: &str) {
        self.0.note(text);
    }
}

impl ProgressDebug for Told {}

/// What a command said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// Its stdout.
    pub stdout: String,
    /// Its stderr.
    pub stderr: String,
}

impl Sandbox {
    /// Builds a sandbox. On failure what was made is removed again.
    ///
    /// # Errors
    /// When the folder is not empty, a restore point is missing, or a command fails.
    pub async fn build(
        request: &SandboxRequest,
        progress: Arc<dyn Progress>,
        cancel: &CancellationToken,
    ) -> Result<Self, DrillError> {
        let mut sandbox = Self::begin(request, progress)?;
        match sandbox.fill(request, cancel).await {
            Ok(()) => Ok(sandbox),
            Err(error) => {
                let removed = clean(&sandbox.folder);
                if let Err(left) = removed {
                    tracing::warn!(folder = %sandbox.folder.display(), error = %left, "a sandbox could not be removed");
                }
                Err(error)
            }
        }
    }

    fn begin(request: &SandboxRequest, progress: Arc<dyn Progress>) -> Result<Self, DrillError> {
        let run_as = user_of(request)?;
        let folder = request.folder.clone();
        let notes = Notes::begin(&folder, run_as.as_ref())?;
        let mut sandbox = Self {
            config: folder.join("dr.yaml"),
            dr_binary: request.dr_binary.clone(),
            folder,
            run_as,
            built_from: Vec::new(),
            commands: Vec::new(),
            ports: Vec::new(),
            notes,
            progress: Arc::new(Told(progress)),
        };
        if sandbox.run_as.is_some() {
            // The servers' user may not be able to enter the folder the program was built in.
            let copy = sandbox.folder.join("dr");
            std::fs::copy(&request.dr_binary, &copy).map_err(DrillError::file("copy to", &copy))?;
            sandbox.own(&copy)?;
            sandbox.dr_binary = copy;
        }
        for name in ["tier-configs", "logs", "run"] {
            sandbox.make_folder(&sandbox.folder.join(name))?;
        }
        Ok(sandbox)
    }

    async fn fill(
        &mut self,
        request: &SandboxRequest,
        cancel: &CancellationToken,
    ) -> Result<(), DrillError> {
        let parent = &request.parent.config;
        for (name, tier) in &parent.tiers {
            let tier = in_sandbox(tier);
            self.write_yaml(
                &self.folder.join(format!("tier-configs/{name}.yaml")),
                &tier,
            )?;
        }
        let mut workloads = BTreeMap::new();
        for (name, _) in &request.workloads {
            workloads.insert(name.clone(), self.own_place_of(parent, name)?);
        }
        let from_production = self.folder.join("from-production.yaml");
        let mut engine = EngineFile {
            repositories: parent.engine.repositories.clone(),
            catalog: format!("sqlite:{}", self.folder.join("unused.db").display()),
            tiers: self.folder.join("tier-configs"),
            workloads: workloads.clone(),
            // Production's repositories are only read here, and the sandbox's own go with it.
            prune: PruneSchedule {
                enabled: false,
                ..PruneSchedule::default()
            },
        };
        self.write_yaml(&from_production, &engine)?;
        for (name, repository) in &mut engine.repositories {
            *repository = RepositoryConfig {
                path: Some(self.folder.join(format!("repository-{name}"))),
                s3: None,
                retrieval: None,
                key: KeySource::of_file(self.folder.join(format!("repository-{name}.key"))),
            };
        }
        engine.catalog = format!("sqlite:{}", self.folder.join("catalog.db").display());
        self.write_yaml(&self.config.clone(), &engine)?;
        self.dr(&["init"], cancel).await?;
        for (name, wanted) in &request.workloads {
            let point = chosen_point(&request.parent, name, wanted.as_ref()).await?;
            self.bring_back(&from_production, &engine, &point, cancel)
                .await?;
            self.built_from.push(point);
        }
        for (name, _) in &request.workloads {
            self.dr(&["backup", "run", name.as_str()], cancel).await?;
        }
        Ok(())
    }

    /// A workload of the parent with its place inside the sandbox.
    fn own_place_of(
        &mut self,
        parent: &Config,
        name: &WorkloadName,
    ) -> Result<WorkloadConfig, DrillError> {
        let found = parent.workload(name.as_str())?;
        let mut own = found.config.clone();
        let place = self.folder.join(name.as_str());
        match found.source {
            WorkloadSource::Postgres(source) => {
                let port = free_port();
                self.ports.push(port);
                let mut source = source.clone();
                source.url = cluster::loopback_url(&source.url, port)?;
                source.data_directory = place.join("data");
                // It is on this host, wherever the original is.
                source.base_backup = BaseBackupBy::Read;
                source.password_env = None;
                source.password_file = None;
                own.postgres = Some(source);
            }
            WorkloadSource::Nats(source) => {
                let port = free_port();
                self.ports.push(port);
                let mut source = source.clone();
                source.url = format!("nats://127.0.0.1:{port}");
                own.nats = Some(source);
            }
            WorkloadSource::Files(_) => {
                own.files = Some(FilesSource {
                    path: place.join("files"),
                });
            }
        }
        Ok(own)
    }

    async fn bring_back(
        &mut self,
        from_production: &Path,
        engine: &EngineFile,
        point: &RestorePoint,
        cancel: &CancellationToken,
    ) -> Result<(), DrillError> {
        let name = &point.workload;
        let Some(own) = engine.workloads.get(name) else {
            return Ok(());
        };
        let place = self.folder.join(name.as_str());
        self.make_folder(&place)?;
        let production = from_production.display().to_string();
        let id = point.id.to_string();
        let mut restore = vec![
            "--config",
            &production,
            "restore",
            name.as_str(),
            "--to",
            &id,
        ];
        if let Some(source) = &own.postgres {
            let into = source.data_directory.display().to_string();
            restore.extend(["--into", &into]);
            self.program(&restore, cancel).await?;
            self.own_tree(&source.data_directory)?;
            self.start_cluster(source).await
        } else if let Some(source) = &own.nats {
            let port = source
                .url
                .rsplit(':')
                .next()
                .and_then(|port| port.parse().ok())
                .unwrap_or(0);
            let (store, run_as) = (place.join("jetstream"), self.run_as.clone());
            let server = tokio::task::spawn_blocking(move || {
                NatsInstance::start(&store, port, run_as.as_ref())
            })
            .await
            .map_err(|_| DrillError::Cancelled)??;
            self.remember("nats-server", server.pid())?;
            server.leave_running();
            self.program(&restore, cancel).await.map(drop)
        } else {
            let into = place.join("files").display().to_string();
            restore.extend(["--into", &into]);
            self.program(&restore, cancel).await?;
            self.own_tree(&place.join("files"))
        }
    }

    /// Runs `dr` with the sandbox's configuration; anything but exit 0 is an error.
    ///
    /// # Errors
    /// When it fails; with the end of what it said.
    pub async fn dr(
        &mut self,
        arguments: &[&str],
        cancel: &CancellationToken,
    ) -> Result<Said, DrillError> {
        let config = self.config.display().to_string();
        let all: Vec<&str> = ["--config", &config]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        self.program(&all, cancel).await
    }

    async fn program(
        &mut self,
        arguments: &[&str],
        cancel: &CancellationToken,
    ) -> Result<Said, DrillError> {
        let said = self.run_within(arguments, COMMAND_TIME_MAX, cancel).await?;
        if said.code == 0 {
            return Ok(said);
        }
        Err(DrillError::Command {
            command: format!("dr {}", arguments.join(" ")),
            status: format!("exit {}", said.code),
            output: last_lines(&format!("{}{}", said.stdout, said.stderr)),
        })
    }

    /// Runs `dr` with these arguments and gives whatever it said.
    ///
    /// # Errors
    /// When it cannot be started, takes longer than `limit` (it is killed then) or is cancelled.
    pub async fn run_within(
        &mut self,
        arguments: &[&str],
        limit: Duration,
        cancel: &CancellationToken,
    ) -> Result<Said, DrillError> {
        let line = format!("dr {}", arguments.join(" "));
        self.progress.note(&format!("$ {line}"));
        self.commands.push(line.clone());
        let mut program = command(self.run_as.as_ref(), &self.dr_binary);
        program
            .args(arguments)
            .current_dir(&self.folder)
            .env(notes::MARK, &self.folder)
            .stdin(Stdio::null());
        let mut program = tokio::process::Command::from(program);
        program
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let spawn_failed = |source| DrillError::Spawn {
            program: line.clone(),
            source,
        };
        let child = program.spawn().map_err(spawn_failed)?;
        let output = tokio::select! {
            output = tokio::time::timeout(limit, child.wait_with_output()) => output,
            () = cancel.cancelled() => return Err(DrillError::Cancelled),
        };
        let output = output
            .map_err(|_| DrillError::TooSlow {
                what: line.clone(),
                seconds: limit.as_secs(),
            })?
            .map_err(spawn_failed)?;
        Ok(Said {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// A `dr` process that goes on beside the caller, its output in `log`. It is in the notes.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_dr(
        &mut self,
        arguments: &[&str],
        log: &Path,
    ) -> Result<std::process::Child, DrillError> {
        let config = self.config.display().to_string();
        self.progress
            .note(&format!("$ dr --config {config} {} &", arguments.join(" ")));
        self.commands
            .push(format!("dr --config {config} {} &", arguments.join(" ")));
        let out = std::fs::File::create(log).map_err(DrillError::file("create", log))?;
        let errors = out.try_clone().map_err(DrillError::file("create", log))?;
        let child = command(self.run_as.as_ref(), &self.dr_binary)
            .args(["--config", &config])
            .args(arguments)
            .current_dir(&self.folder)
            .env(notes::MARK, &self.folder)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(errors)
            .spawn()
            .map_err(|source| DrillError::Spawn {
                program: arguments.join(" "),
                source,
            })?;
        self.remember(&format!("dr {}", arguments.join(" ")), child.id())?;
        Ok(child)
    }

    /// Its configuration, read anew.
    ///
    /// # Errors
    /// When it is not valid, which building has made sure of.
    pub fn load(&self) -> Result<Config, DrillError> {
        Ok(Config::load(&self.config)?)
    }

    /// Whether a path lies inside the sandbox, whatever links lead to it.
    ///
    /// # Errors
    /// [`DrillError::NotOurs`] when it does not.
    pub fn must_contain(&self, path: &Path) -> Result<(), DrillError> {
        let not_ours = || DrillError::NotOurs {
            what: path.display().to_string(),
        };
        let real = std::fs::canonicalize(path).map_err(|_| not_ours())?;
        let root = std::fs::canonicalize(&self.folder).map_err(|_| not_ours())?;
        if real.starts_with(&root) && real != root {
            Ok(())
        } else {
            Err(not_ours())
        }
    }

    /// Whether a process was started for the sandbox.
    ///
    /// # Errors
    /// [`DrillError::NotOurs`] when it was not.
    pub fn must_own(&self, process: Process) -> Result<(), DrillError> {
        if self.notes.processes().contains(&process) {
            Ok(())
        } else {
            Err(DrillError::NotOurs {
                what: format!("process {}", process.pid),
            })
        }
    }

    fn remember(&mut self, what: &str, pid: u32) -> Result<(), DrillError> {
        self.notes.remember(what, pid)
    }

    fn make_folder(&self, path: &Path) -> Result<(), DrillError> {
        std::fs::create_dir_all(path).map_err(DrillError::file("create", path))?;
        self.own(path)
    }

    fn own(&self, path: &Path) -> Result<(), DrillError> {
        Ok(give(path, self.run_as.as_ref())?)
    }

    fn own_tree(&self, path: &Path) -> Result<(), DrillError> {
        if self.run_as.is_none() {
            return Ok(());
        }
        self.own(path)?;
        if path.is_dir() && !path.is_symlink() {
            for entry in std::fs::read_dir(path).map_err(DrillError::file("list", path))? {
                self.own_tree(&entry.map_err(DrillError::file("list", path))?.path())?;
            }
        }
        Ok(())
    }

    fn write_yaml<T: serde::Serialize>(&self, path: &Path, value: &T) -> Result<(), DrillError> {
        let text = dr_config::to_yaml(value).map_err(|reason| DrillError::Malformed {
            path: path.to_owned(),
            what: "a configuration that can be written",
            reason,
        })?;
        std::fs::write(path, text).map_err(DrillError::file("write", path))?;
        self.own(path)
    }
}

/// The owner of what is restored when started as root; else the caller.
fn user_of(request: &SandboxRequest) -> Result<Option<RunAs>, DrillError> {
    let config = &request.parent.config;
    let data = config
        .workloads()
        .find_map(|workload| match workload.source {
            WorkloadSource::Postgres(source) => Some(source.data_directory.clone()),
            WorkloadSource::Nats(_) | WorkloadSource::Files(_) => None,
        });
    let owned = data
        .filter(|path| path.exists())
        .unwrap_or_else(|| config.path.clone());
    match RunAs::owner_of(&owned)? {
        Some(user) => Ok(Some(user)),
        None => Ok(RunAs::for_postgres()?),
    }
}

/// The restore point a workload is built from.
async fn chosen_point(
    parent: &Installation,
    workload: &WorkloadName,
    wanted: Option<&RestorePointId>,
) -> Result<RestorePoint, DrillError> {
    let repository = parent.open_repository_of(workload).await?;
    let name = workload.clone();
    let points = tokio::task::spawn_blocking(move || repository.points(Some(&name)))
        .await
        .map_err(|_| DrillError::Cancelled)?
        .map_err(|source| DrillError::Repository {
            action: "list restore points",
            source,
        })?;
    points
        .into_iter()
        .filter(|point| !matches!(point.position, dr_model::Position::TenantState(_)))
        .rfind(|point| wanted.is_none_or(|wanted| point.id == *wanted))
        .ok_or_else(|| {
            DrillError::Unsuitable(match wanted {
                Some(id) => format!("workload `{workload}` has no restore point {id}"),
                None => format!(
                    "workload `{workload}` has no restore point yet: take one with `dr backup run {workload}`"
                ),
            })
        })
}

pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines
        .get(lines.len().saturating_sub(OUTPUT_LINES_SHOWN)..)
        .unwrap_or_default()
        .join("\n")
}
