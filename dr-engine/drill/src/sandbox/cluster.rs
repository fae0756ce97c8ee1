//! The sandbox's database server: out of recovery first, archiving to the sandbox's own repository
//! afterwards.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use dr_config::PostgresSource;
use dr_sources::instance::{PostgresInstance, StartOptions, StopMode, WaitFor};
use dr_sources::postgres::{ConnectOptions, connect};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection};

use super::Sandbox;
use crate::DrillError;

/// Recovery of a restore point by itself replays only what was written during the backup.
const RECOVERY_TIME_MAX: Duration = Duration::from_secs(1800);
/// Everyone on this host may connect to the sandbox: it is reachable by loopback and by a socket in a
/// folder of its owner only, and it is gone after the drill.
/// `all` does not mean `replication`, which is how WAL is received as it is written.
const HOST_BASED_AUTHENTICATION: &str =
    "local all,replication all trust\nhost all,replication all 127.0.0.1/32 trust\n";
const HBA_FILE: &str = "pg_hba.sandbox.conf";

/// The parent's URL on another server.
pub(super) fn loopback_url(url: &str, port: u16) -> Result<String, DrillError> {
    let options = PgConnectOptions::from_str(url).map_err(|source| DrillError::Sql {
        what: "reading the workload's URL",
        source,
    })?;
    let user = options.get_username();
    let database = options.get_database().unwrap_or(user);
    Ok(format!("postgres://{user}@127.0.0.1:{port}/{database}"))
}

impl Sandbox {
    /// Sees the restored cluster through recovery with archiving off, gives it the sandbox's settings,
    /// and starts it for good.
    pub(super) async fn start_cluster(
        &mut self,
        source: &PostgresSource,
    ) -> Result<(), DrillError> {
        let data = &source.data_directory;
        let hba = data.join(HBA_FILE);
        std::fs::write(&hba, HOST_BASED_AUTHENTICATION).map_err(DrillError::file("write", &hba))?;
        self.own(&hba)?;
        let options = self.start_options(source)?;
        let mut quiet = options.clone();
        let pid_file = self.folder.join("run/external.pid");
        quiet.settings = first_start_settings(&hba, &pid_file);
        let first = start(quiet).await?;
        self.remember("postgres, in recovery", first.pid())?;
        self.write_settings(source).await?;
        tokio::task::spawn_blocking(move || first.stop(StopMode::Fast))
            .await
            .map_err(|_| DrillError::Cancelled)??;
        let server = start(options).await?;
        self.remember("postgres", server.pid())?;
        server.leave_running();
        Ok(())
    }

    fn start_options(&self, source: &PostgresSource) -> Result<StartOptions, DrillError> {
        let data = &source.data_directory;
        let version = data.join("PG_VERSION");
        let major =
            std::fs::read_to_string(&version).map_err(DrillError::file("read", &version))?;
        let major = major
            .trim()
            .parse()
            .map_err(|error| DrillError::Malformed {
                path: version.clone(),
                what: "a major version",
                reason: format!("{error}"),
            })?;
        let bin =
            dr_sources::postgres::tools::bin_directory(source.bin_directory.as_deref(), major)?;
        let port = PgConnectOptions::from_str(&source.url)
            .map_err(|source| DrillError::Sql {
                what: "reading the sandbox's URL",
                source,
            })?
            .get_port();
        let mut options = StartOptions::new(&bin, data, self.run_as.clone(), port);
        options.socket_directory = Some(self.folder.join("run"));
        options.log_file = self.folder.join("logs/postgres.log");
        options.timeout = RECOVERY_TIME_MAX;
        options.wait_for = WaitFor::ReadWrite;
        Ok(options)
    }

    /// Settings for good, in the cluster's own file: the server that the runbook brings back from the
    /// sandbox's repository has them too.
    async fn write_settings(&self, source: &PostgresSource) -> Result<(), DrillError> {
        let failed = |source| DrillError::Sql {
            what: "configuring the sandbox's server",
            source,
        };
        let options = ConnectOptions {
            url: source.url.clone(),
            password: None,
        };
        let mut connection = connect(&options).await?;
        for (name, value) in self.lasting_settings(&source.data_directory) {
            let value = value.replace('\'', "''");
            sqlx::raw_sql(AssertSqlSafe(format!(
                "alter system set {name} = '{value}'"
            )))
            .execute(&mut connection)
            .await
            .map_err(failed)?;
        }
        for name in [
            "restore_command",
            "recovery_target",
            "recovery_target_timeline",
        ] {
            sqlx::raw_sql(AssertSqlSafe(format!("alter system reset {name}")))
                .execute(&mut connection)
                .await
                .map_err(failed)?;
        }
        connection.close().await.map_err(failed)
    }

    fn lasting_settings(&self, data_directory: &Path) -> Vec<(&'static str, String)> {
        let quoted = |path: &PathBuf| {
            // The shell's quotes, and %, which PostgreSQL itself reads in this setting.
            path.display()
                .to_string()
                .replace('\'', "'\\''")
                .replace('%', "%%")
        };
        let archive = format!(
            "'{}' --config '{}' wal push %p",
            quoted(&self.dr_binary),
            quoted(&self.config)
        );
        vec![
            ("archive_mode", "on".to_owned()),
            ("archive_command", archive),
            ("listen_addresses", "127.0.0.1".to_owned()),
            (
                "unix_socket_directories",
                self.folder.join("run").display().to_string(),
            ),
            // Absolute: PostgreSQL would look below the folder that it was started in.
            (
                "hba_file",
                data_directory.join(HBA_FILE).display().to_string(),
            ),
            ("ssl", "off".to_owned()),
            ("logging_collector", "off".to_owned()),
            ("log_destination", "stderr".to_owned()),
            (
                "external_pid_file",
                self.folder.join("run/external.pid").display().to_string(),
            ),
            ("primary_conninfo", String::new()),
            ("primary_slot_name", String::new()),
            ("synchronous_standby_names", String::new()),
            ("max_logical_replication_workers", "0".to_owned()),
        ]
    }
}

/// For the first start: nothing goes out before the settings for good are in place.
fn first_start_settings(hba: &Path, pid_file: &Path) -> Vec<(String, String)> {
    let (hba, pid_file) = (hba.display().to_string(), pid_file.display().to_string());
    [
        ("archive_mode", "off"),
        ("hba_file", hba.as_str()),
        ("ssl", "off"),
        ("synchronous_standby_names", ""),
        ("max_logical_replication_workers", "0"),
        ("primary_conninfo", ""),
        ("primary_slot_name", ""),
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        ("external_pid_file", pid_file.as_str()),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

async fn start(options: StartOptions) -> Result<PostgresInstance, DrillError> {
    tokio::task::spawn_blocking(move || PostgresInstance::start(options))
        .await
        .map_err(|_| DrillError::Cancelled)?
        .map_err(Into::into)
}
