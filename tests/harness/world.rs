//! One installation: cluster, configuration folder, repository, `dr.yaml`, tiers.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use super::cluster::Cluster;
use super::folder::{Account, TempFolder};
use super::json::Json;
use super::program::{Output, Program, free_port, wait_until};
use super::schema::Schema;

/// How a world is made.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) name: &'static str,
    pub(crate) schema: Option<&'static Schema>,
    pub(crate) wal_segment_megabytes: u32,
    /// Further lines of postgresql.conf.
    pub(crate) settings: &'static str,
    /// When the gold tier backs up.
    pub(crate) gold_cron: &'static str,
    /// When the silver tier backs up.
    pub(crate) silver_cron: &'static str,
    /// Whether there is a NATS server, as workload `orders`.
    pub(crate) queue: bool,
    /// Put before the generated archive command: `NAME=value`.
    pub(crate) archive_environment: String,
}

impl Options {
    pub(crate) fn new(name: &'static str, schema: &'static Schema) -> Self {
        Self {
            name,
            schema: Some(schema),
            wal_segment_megabytes: 1,
            settings: "archive_timeout = 10",
            gold_cron: "0 0 3 * * *",
            silver_cron: "0 0 3 * * *",
            queue: false,
            archive_environment: String::new(),
        }
    }
}

/// An installation with its servers running; nothing initialised yet.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) account: Account,
    pub(crate) cluster: Cluster,
    pub(crate) schema: &'static Schema,
    pub(crate) nats_port: u16,
    nats: Option<Child>,
    // Last: everything above lives in it.
    pub(crate) folder: TempFolder,
}

impl World {
    pub(crate) fn new(options: &Options) -> Self {
        let folder = TempFolder::new(options.name);
        let account = Account::of_servers(folder.path());
        for name in ["bin", "tmp", "logs", "config"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        account.own(folder.path());
        // Last: a hard link shares its owner with the build's own file.
        place_binary(&folder.path().join("bin/dr"));
        let schema = options.schema.unwrap_or(&super::ERP);
        let settings = format!(
            "archive_mode = on\narchive_command = ''\n{}",
            options.settings
        );
        let cluster = Cluster::create(
            &account,
            &folder.path().join("data"),
            "erp",
            options.wal_segment_megabytes,
            &settings,
        );
        let sql = folder.path().join("schema.sql");
        fs::write(&sql, schema.sql).unwrap();
        cluster.psql_file(&sql);
        let nats_port = free_port();
        let mut world = Self {
            account,
            cluster,
            schema,
            nats_port,
            nats: None,
            folder,
        };
        if options.queue {
            world.start_queue();
            world.create_stream();
        }
        world.write_configuration(options);
        world.write_tenants_folders();
        world
    }

    /// A world with a repository, archiving, and a first backup of everything.
    pub(crate) fn protected(options: &Options) -> Self {
        let world = Self::new(options);
        world.dr(&["init"]).ok();
        world.archive(&options.archive_environment);
        for workload in world.workloads(options) {
            world.dr(&["backup", "run", workload]).ok();
        }
        world
    }

    pub(crate) fn workloads(&self, options: &Options) -> Vec<&'static str> {
        if options.queue {
            vec!["erp", "config", "orders"]
        } else {
            vec!["erp", "config"]
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn binary(&self) -> PathBuf {
        self.path("bin/dr")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path("dr.yaml")
    }

    /// Sets the archive command.
    pub(crate) fn archive(&self, environment: &str) {
        // `|| exit 1`: a push killed by a signal fails once instead of ending the archiver, which the
        // server would start again only after ten seconds.
        let command = format!(
            "{environment} '{}' --config '{}' wal push %p || exit 1",
            self.binary().display(),
            self.config().display()
        );
        self.cluster.set("archive_command", command.trim_start());
    }

    /// `dr` with this world's configuration.
    pub(crate) fn program(&self, arguments: &[&str]) -> Program {
        Program::new(&self.account, self.binary())
            .args(["--config".as_ref(), self.config().as_os_str()])
            .args(arguments)
    }

    pub(crate) fn dr(&self, arguments: &[&str]) -> Output {
        self.program(arguments).run()
    }

    /// `dr --json`, done.
    #[track_caller]
    pub(crate) fn ask(&self, arguments: &[&str]) -> Json {
        let output = self.program(arguments).args(["--json"]).run().ok();
        Json::parse(&output.stdout)
    }

    /// Restore points of a workload, oldest first.
    #[track_caller]
    pub(crate) fn points(&self, workload: &str) -> Vec<String> {
        self.ask(&["backup", "list", workload])
            .list("")
            .iter()
            .map(|point| point.text("/point/id"))
            .collect()
    }

    /// Restores the cluster into a folder and starts it.
    #[track_caller]
    pub(crate) fn restore_started(&self, into: &str, target: &str) -> Cluster {
        let folder = self.path(into);
        let folder_text = folder.display().to_string();
        self.dr(&[
            "restore",
            "erp",
            "--into",
            &folder_text,
            "--to",
            target,
            "--start",
        ])
        .ok();
        Cluster::running(&self.account, &folder, &self.cluster.database)
    }

    /// Someone else's program judges a restored folder, before any server has touched it.
    #[track_caller]
    pub(crate) fn pg_verifybackup(&self, data: &Path) {
        Program::new(&self.account, super::postgres_program("pg_verifybackup"))
            .args(["-n".as_ref(), data.as_os_str()])
            .run()
            .ok();
    }

    /// Ids and names.
    pub(crate) fn tenants(&self) -> Vec<(String, String)> {
        self.cluster
            .psql(self.schema.tenants)
            .iter()
            .map(|line| line.split_once('|').unwrap())
            .map(|(id, name)| (id.to_owned(), name.to_owned()))
            .collect()
    }

    /// Makes `dr.yaml` anew with one piece of it replaced.
    pub(crate) fn edit_configuration(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.config()).unwrap();
        assert!(text.contains(from), "`{from}` is not in\n{text}");
        fs::write(self.config(), text.replace(from, to)).unwrap();
    }

    /// Starts the NATS server, on the store it had before.
    pub(crate) fn start_queue(&mut self) {
        let store = self.path("nats");
        let child = Program::new(&self.account, "/usr/sbin/nats-server")
            .args([
                "-a",
                "127.0.0.1",
                "-p",
                &self.nats_port.to_string(),
                "-js",
                "-sd",
            ])
            .args([&store])
            .spawn(&self.path("logs/nats.log"));
        self.nats = Some(child);
        let port = self.nats_port;
        wait_until("the NATS server", Duration::from_secs(20), || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
    }

    /// Speaks the server's own protocol: there may be no client program on the machine.
    fn create_stream(&self) {
        let request = "{\"name\":\"ORDERS\",\"subjects\":[\"orders.>\"],\"storage\":\"file\"}";
        let mut stream = TcpStream::connect(("127.0.0.1", self.nats_port)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        write!(
            stream,
            "CONNECT {{\"verbose\":false}}\r\nSUB answer 1\r\n\
             PUB $JS.API.STREAM.CREATE.ORDERS answer {}\r\n{request}\r\n\
             PUB orders.acme 5\r\nhello\r\nPUB orders.birch 5\r\nworld\r\nPING\r\n",
            request.len()
        )
        .unwrap();
        let created = BufReader::new(stream)
            .lines()
            .map(Result::unwrap)
            .find(|line| line.contains("stream_create_response"))
            .unwrap();
        assert!(!created.contains("\"error\""), "{created}");
    }

    /// Ends the NATS server.
    pub(crate) fn stop_queue(&mut self) {
        if let Some(mut child) = self.nats.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn write_configuration(&self, options: &Options) {
        let tiers = self.path("tier-configs");
        fs::create_dir(&tiers).unwrap();
        for (name, cron) in [("gold", options.gold_cron), ("silver", options.silver_cron)] {
            let text = format!(
                "tier: {name}\nrto: 5m\nrpo: 30s\nbackup: {{ cron: \"{cron}\" }}\n\
                 retention: {{ pitr: 14d, daily: 7, min_redundancy: 2 }}\n"
            );
            fs::write(tiers.join(format!("{name}.yaml")), text).unwrap();
        }
        let programs = super::other_postgres().map_or_else(String::new, |folder| {
            format!(", bin_directory: {}", folder.display())
        });
        let mut text = format!(
            "repositories:\n  main: {{ path: repository, key: {{ file: repository.key }} }}\n\
             catalog: sqlite:catalog.db\ntiers: tier-configs/\nworkloads:\n  erp:\n    tier: gold\n    \
             repositories: [main]\n    postgres: {{ url: \"{}\"{programs}, data_directory: data }}\n{}  config:\n    \
             tier: silver\n    repositories: [main]\n    files: {{ path: config }}\n    \
             tenancy: {{ path: \"{{name}}/**\" }}\n",
            self.cluster.url(),
            self.schema.tenancy
        );
        if options.queue {
            text.push_str(&format!(
                "  orders:\n    tier: silver\n    repositories: [main]\n    \
                 nats: {{ url: \"nats://127.0.0.1:{}\", streams: [ORDERS] }}\n",
                self.nats_port
            ));
        }
        fs::write(self.config(), text).unwrap();
        self.account.own(&tiers);
        self.account.own(&self.config());
    }

    fn write_tenants_folders(&self) {
        for (id, name) in self.tenants() {
            let folder = self.path("config").join(&name);
            fs::create_dir_all(folder.join("templates/empty")).unwrap();
            fs::write(
                folder.join("settings.yaml"),
                format!("id: {id}\nname: {name}\n"),
            )
            .unwrap();
            fs::write(
                folder.join("templates/invoice.txt"),
                "Invoice {{ number }}\n",
            )
            .unwrap();
            fs::write(folder.join("secret.key"), "not for everyone\n").unwrap();
            let mode = fs::Permissions::from_mode(0o600);
            fs::set_permissions(folder.join("secret.key"), mode).unwrap();
            symlink("templates/invoice.txt", folder.join("default")).unwrap();
        }
        self.account.own(&self.path("config"));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop_queue();
    }
}

/// The servers' user may not be able to enter the folder the binary was built in.
fn place_binary(to: &Path) {
    let from = Path::new(env!("CARGO_BIN_EXE_dr"));
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).unwrap();
    }
}
