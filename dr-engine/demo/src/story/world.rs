//! The servers of the story, and the promise that none of them outlives it.

use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dr_sources::instance::{
    self, InitdbOptions, NatsInstance, PostgresInstance, RunAs, StartOptions, StopMode,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use tokio_util::sync::CancellationToken;

use super::error::{StoryError, file};
use super::shell::Shell;
use super::{Narrator, StoryRequest, folder};
use crate::erp;

/// The same data in every demo.
const SEED: u32 = 20_261_123;
const POSTGRES_BIN: &str = "/usr/lib/postgresql/15/bin";

/// Everything that runs.
pub(crate) struct World {
    pub(crate) shell: Shell,
    pub(crate) url: String,
    pub(crate) nats_url: String,
    postgres: Option<PostgresInstance>,
    postgres_options: Option<StartOptions>,
    nats: Option<NatsInstance>,
    /// By name, in order of start.
    background: Vec<(&'static str, Child)>,
}

impl World {
    /// Makes the folder and puts the binary into it: the servers' user may not be able to read where
    /// it was built.
    pub(crate) fn prepare(
        request: &StoryRequest,
        narrator: Arc<dyn Narrator>,
        cancel: CancellationToken,
    ) -> Result<Self, StoryError> {
        let run_as = RunAs::for_postgres().map_err(|source| StoryError::Server {
            action: "find the user to run as",
            source,
        })?;
        folder::prepare(&request.folder, run_as.as_ref(), narrator.as_ref())?;
        let shell = Shell::new(&request.folder, run_as, narrator, cancel);
        for name in ["bin", "logs", "reports", "drills", "runbooks"] {
            shell.make_folder(&request.folder.join(name))?;
        }
        std::fs::copy(&request.dr_binary, shell.binary())
            .map_err(file("copy the program from", &request.dr_binary))?;
        shell.give(&shell.binary())?;
        Ok(Self {
            shell,
            url: String::new(),
            nats_url: String::new(),
            postgres: None,
            postgres_options: None,
            nats: None,
            background: Vec::new(),
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.shell.folder.join(name)
    }

    /// Chapter 1.
    pub(crate) async fn build(&mut self) -> Result<(), StoryError> {
        let who = self
            .shell
            .run_as
            .as_ref()
            .map_or("you", |user| user.name.as_str());
        self.shell.say(&format!(
            "everything lives in {} and runs as {who}; servers are private, on free loopback ports",
            self.shell.folder.display()
        ));
        self.create_cluster().await?;
        self.start_queue()?;
        let tenants: Vec<(String, String)> = self
            .rows("select tenant_id::text, code from public.tenant order by tenant_id")
            .await?
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        let configuration = self.path("config");
        self.shell.make_folder(&configuration)?;
        crate::write_configuration(&configuration, &tenants, self.shell.run_as.as_ref()).map_err(
            |error| StoryError::Erp {
                action: "write the configuration",
                source: error.into(),
            },
        )?;
        let (url, nats_url) = (self.url.clone(), self.nats_url.clone());
        let (log, seen) = (self.path("logs/relay.log"), self.path("logs/consumer.log"));
        let seen = seen.display().to_string();
        self.run_in_background("relay", &["demo", "--relay", &url, &nats_url, &seen], &log)?;
        self.shell.say(&format!(
            "NATS JetStream at {nats_url}: the outbox relay fills stream ORDERS, a consumer reads it"
        ));
        self.shell.say(&format!(
            "a folder of configuration for each tenant in {}",
            configuration.display()
        ));
        Ok(())
    }

    async fn create_cluster(&mut self) -> Result<(), StoryError> {
        let data = self.path("erp/data");
        self.shell.make_folder(&self.path("erp"))?;
        let bin = PathBuf::from(POSTGRES_BIN);
        let failed = |action| move |source| StoryError::Server { action, source };
        PostgresInstance::initdb(&InitdbOptions::new(&bin, &data, self.shell.run_as.clone()))
            .map_err(failed("create the cluster"))?;
        let port = instance::free_port();
        let mut options = StartOptions::new(&bin, &data, self.shell.run_as.clone(), port);
        options.log_file = self.path("logs/postgres.log");
        // Loading needs no durability: a crash here starts the demo over. Nothing is archived yet.
        options.settings = [
            ("fsync", "off"),
            ("max_wal_size", "4GB"),
            ("archive_mode", "off"),
            ("autovacuum", "off"),
            ("maintenance_work_mem", "256MB"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        let loading =
            PostgresInstance::start(options.clone()).map_err(failed("start PostgreSQL"))?;
        self.postgres = Some(loading);
        self.url = format!("postgres://postgres@127.0.0.1:{port}/erp");
        let began = Instant::now();
        let summary = self.load(port).await?;
        if let Some(loading) = self.postgres.take() {
            loading
                .stop(StopMode::Fast)
                .map_err(failed("stop PostgreSQL"))?;
        }
        sync_all(&self.shell)?;
        options.settings = Vec::new();
        self.shell.say(&format!(
            "PostgreSQL 15 on 127.0.0.1:{port}: {summary} in {:.0} s",
            began.elapsed().as_secs_f64()
        ));
        self.write_settings(&data, port)?;
        let running =
            PostgresInstance::start(options.clone()).map_err(failed("start PostgreSQL"))?;
        folder::note_process(&self.shell.folder, running.pid())?;
        self.postgres = Some(running);
        self.postgres_options = Some(options);
        Ok(())
    }

    async fn load(&self, port: u16) -> Result<String, StoryError> {
        let admin = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        let mut connection = connect(&admin).await?;
        execute(&mut connection, "create database erp").await?;
        let mut connection = connect(&self.url).await?;
        let summary = erp::install(&mut connection, erp::Scale::demo(), SEED)
            .await
            .map_err(|error| StoryError::Erp {
                action: "create the ERP",
                source: error.into(),
            })?;
        execute(&mut connection, "checkpoint").await?;
        Ok(summary.to_string())
    }

    fn write_settings(&self, data: &std::path::Path, port: u16) -> Result<(), StoryError> {
        use std::io::Write;
        let path = data.join("postgresql.conf");
        // archive_command stays empty until there is a repository: PostgreSQL then keeps the WAL.
        let text = format!(
            "\n# the demo\nlisten_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\n\
             archive_mode = on\narchive_timeout = 5\narchive_command = ''\n\
             shared_buffers = '128MB'\nmax_wal_size = '1GB'\n"
        );
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(file("write", &path))
    }

    fn start_queue(&mut self) -> Result<(), StoryError> {
        let folder = self.path("nats");
        self.shell.make_folder(&folder)?;
        let nats = NatsInstance::start(&folder, instance::free_port(), self.shell.run_as.as_ref())
            .map_err(|source| StoryError::Server {
                action: "start the NATS server",
                source,
            })?;
        folder::note_process(&self.shell.folder, nats.pid())?;
        self.nats_url = nats.url();
        self.nats = Some(nats);
        Ok(())
    }

    pub(crate) fn run_in_background(
        &mut self,
        name: &'static str,
        arguments: &[&str],
        log: &std::path::Path,
    ) -> Result<(), StoryError> {
        let child = self.shell.start(arguments, log)?;
        self.background.push((name, child));
        Ok(())
    }

    /// Stops one background process and waits for its end.
    pub(crate) fn stop_background(&mut self, name: &str) {
        let (stop, keep): (Vec<_>, Vec<_>) = std::mem::take(&mut self.background)
            .into_iter()
            .partition(|(n, _)| *n == name);
        self.background = keep;
        for (_, child) in stop {
            end(child);
        }
    }

    /// Whether a background process has ended by itself.
    pub(crate) fn has_ended(&mut self, name: &str) -> bool {
        self.background
            .iter_mut()
            .filter(|(n, _)| *n == name)
            .any(|(_, child)| !matches!(child.try_wait(), Ok(None)))
    }

    pub(crate) async fn rows(
        &self,
        statement: &str,
    ) -> Result<Vec<sqlx::postgres::PgRow>, StoryError> {
        let mut connection = connect(&self.url).await?;
        sqlx::query(AssertSqlSafe(statement.to_owned()))
            .fetch_all(&mut connection)
            .await
            .map_err(|source| StoryError::Sql {
                statement: statement.to_owned(),
                source,
            })
    }

    /// The one text value of a query.
    pub(crate) async fn text(&self, statement: &str) -> Result<String, StoryError> {
        let rows = self.rows(statement).await?;
        rows.first()
            .and_then(|row| row.try_get::<String, _>(0).ok())
            .ok_or_else(|| StoryError::NotAsBefore(format!("no answer to: {statement}")))
    }

    /// Runs a statement as a person in psql would, shown.
    pub(crate) async fn psql(&self, statement: &str) -> Result<(), StoryError> {
        self.shell.say(&format!("erp=# {statement};"));
        let mut connection = connect(&self.url).await?;
        execute(&mut connection, statement).await
    }

    /// Stops everything, last started first.
    pub(crate) fn stop_everything(&mut self) {
        while let Some((_, child)) = self.background.pop() {
            end(child);
        }
        drop(self.nats.take());
        if let Some(postgres) = self.postgres.take() {
            // A refusal to stop ends in the immediate stop of its own drop.
            drop(postgres.stop(StopMode::Fast));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop_everything();
    }
}

fn end(mut child: Child) {
    if matches!(child.try_wait(), Ok(None)) {
        folder::end_child(&mut child, Duration::from_secs(20));
    }
}

fn sync_all(shell: &Shell) -> Result<(), StoryError> {
    // The cluster was loaded without fsync; from here on it must be as durable as any other.
    let status = std::process::Command::new("sync")
        .arg("-f")
        .arg(&shell.folder)
        .status();
    status.map(drop).map_err(file("flush", &shell.folder))
}

pub(crate) async fn connect(url: &str) -> Result<PgConnection, StoryError> {
    PgConnection::connect(url)
        .await
        .map_err(|source| StoryError::Sql {
            statement: format!("connect to {url}"),
            source,
        })
}

pub(crate) async fn execute(
    connection: &mut PgConnection,
    statement: &str,
) -> Result<(), StoryError> {
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
        .execute(connection)
        .await
        .map(drop)
        .map_err(|source| StoryError::Sql {
            statement: statement.to_owned(),
            source,
        })
}
