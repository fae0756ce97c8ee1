//! A PostgreSQL cluster run by PostgreSQL's own programs, and `psql` to ask it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::folder::Account;
use super::postgres_program;
use super::program::{Output, Program, free_port, wait_until};

/// One data directory and the port its server listens on.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    pub(crate) account: Account,
    pub(crate) data: PathBuf,
    pub(crate) port: u16,
    pub(crate) database: String,
}

impl Cluster {
    /// `initdb`, settings, start, and an empty database.
    pub(crate) fn create(
        account: &Account,
        data: &Path,
        database: &str,
        wal_segment_megabytes: u32,
        settings: &str,
    ) -> Self {
        let port = free_port();
        Program::new(account, postgres_program("initdb"))
            .args([
                "--data-checksums",
                "--no-sync",
                "--locale=C.UTF-8",
                "--encoding=UTF8",
            ])
            .args(["--username=postgres", "--auth=trust"])
            .args([format!("--wal-segsize={wal_segment_megabytes}")])
            .args(["-D".as_ref(), data.as_os_str()])
            .run()
            .ok();
        // What is killed here is never the server without its files being thrown away too.
        let fixed = format!(
            "\nlisten_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\n\
             shared_buffers = 16MB\nfsync = off\nlogging_collector = off\nlog_min_messages = log\n\
             timezone = 'UTC'\nmax_connections = 40\n{settings}\n"
        );
        let path = data.join("postgresql.conf");
        fs::write(&path, fs::read_to_string(&path).unwrap() + &fixed).unwrap();
        let cluster = Self {
            account: account.clone(),
            data: data.to_owned(),
            port,
            database: "postgres".to_owned(),
        };
        cluster.start();
        cluster.psql(&format!("create database {database}"));
        Self {
            database: database.to_owned(),
            ..cluster
        }
    }

    /// The cluster whose server runs on a folder: found by the server's own lock file.
    #[track_caller]
    pub(crate) fn running(account: &Account, data: &Path, database: &str) -> Self {
        let path = data.join("postmaster.pid");
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let port = text.lines().nth(3).unwrap().trim().parse().unwrap();
        let cluster = Self {
            account: account.clone(),
            data: data.to_owned(),
            port,
            database: database.to_owned(),
        };
        wait_until(
            "the restored server to accept writes",
            Duration::from_secs(60),
            || {
                let answer = cluster.try_psql("select pg_is_in_recovery()");
                (answer.code == Some(0) && answer.stdout.trim() == "f").then_some(())
            },
        );
        cluster
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    fn pg_ctl(&self, arguments: &[&str]) -> Output {
        Program::new(&self.account, postgres_program("pg_ctl"))
            .args(["-D".as_ref(), self.data.as_os_str()])
            .args(["-l".as_ref(), self.log().as_os_str()])
            .args(["-w", "-t", "60", "-s"])
            .args(arguments)
            .run()
    }

    /// Starts it, whatever comes of that.
    pub(crate) fn try_start(&self) -> Output {
        self.pg_ctl(&["start"])
    }

    pub(crate) fn start(&self) {
        let output = self.try_start();
        let log = || fs::read_to_string(self.log()).unwrap_or_default();
        assert_eq!(output.code, Some(0), "{output}\n{}", log());
    }

    pub(crate) fn stop(&self, mode: &str) {
        self.pg_ctl(&["stop", "-m", mode]).ok();
    }

    pub(crate) fn reload(&self) {
        self.pg_ctl(&["reload"]).ok();
    }

    pub(crate) fn runs(&self) -> bool {
        self.pg_ctl(&["status"]).code == Some(0)
    }

    pub(crate) fn set(&self, name: &str, value: &str) {
        self.psql(&format!(
            "alter system set {name} = '{}'",
            value.replace('\'', "''")
        ));
        self.reload();
    }

    pub(crate) fn url(&self) -> String {
        format!(
            "postgres://postgres@127.0.0.1:{}/{}",
            self.port, self.database
        )
    }

    /// psql without configuration, unaligned, tuples only.
    pub(crate) fn psql_program(&self) -> Program {
        Program::new(&self.account, postgres_program("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d"])
            .args([self.url()])
    }

    pub(crate) fn try_psql(&self, sql: &str) -> Output {
        self.psql_program().args(["-c", sql]).run()
    }

    /// Rows as lines.
    #[track_caller]
    pub(crate) fn psql(&self, sql: &str) -> Vec<String> {
        self.try_psql(sql)
            .ok()
            .stdout
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// The only value of the only row.
    #[track_caller]
    pub(crate) fn value(&self, sql: &str) -> String {
        self.psql(sql).join("\n")
    }

    pub(crate) fn psql_file(&self, path: &Path) {
        self.psql_program()
            .args(["-1".as_ref(), "-f".as_ref(), path.as_os_str()])
            .run()
            .ok();
    }

    /// The server's time, to the microsecond, with its offset: a moment after everything before and
    /// before everything later.
    pub(crate) fn moment(&self) -> String {
        let format = "YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"";
        self.value(&format!(
            "select to_char(clock_timestamp() at time zone 'UTC', '{format}')"
        ))
    }

    /// Ends the present segment and waits until PostgreSQL was told that it is archived.
    pub(crate) fn switch_and_wait(&self) -> String {
        // The byte before: at a boundary version 17 names the segment that begins there.
        let name = self.value("select pg_walfile_name(pg_switch_wal() - 1)");
        self.wait_archived(&name);
        name
    }

    pub(crate) fn wait_archived(&self, name: &str) {
        let status = self
            .data
            .join("pg_wal/archive_status")
            .join(format!("{name}.done"));
        let segment = self.data.join("pg_wal").join(name);
        wait_until(
            &format!("{name} to be archived"),
            Duration::from_secs(60),
            || (status.exists() || !segment.exists()).then_some(()),
        );
    }

    /// Names that PostgreSQL was told are in the archive.
    pub(crate) fn acknowledged_wal(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.data.join("pg_wal/archive_status"))
            .unwrap()
            .flatten()
            .filter_map(|entry| {
                entry
                    .file_name()
                    .to_string_lossy()
                    .strip_suffix(".done")
                    .map(str::to_owned)
            })
            .collect();
        names.sort();
        names
    }
}
