//! Private PostgreSQL servers are started, found, stopped and killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

#[path = "instance/scratch.rs"]
mod scratch;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use dr_sources::SourceError;
use dr_sources::instance::{
    FolderKind, InitdbOptions, PostgresInstance, ProcessFolder, RunAs, StartOptions, StopMode,
    descendants, free_port, give, is_alive, scratch_settings,
};
use sqlx::{Connection, PgConnection};

struct Home {
    folder: tempfile::TempDir,
    run_as: Option<RunAs>,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("dr-instance")
            .tempdir()
            .unwrap();
        let run_as = RunAs::for_postgres().unwrap();
        give(folder.path(), run_as.as_ref()).unwrap();
        Self { folder, run_as }
    }

    fn bin() -> std::path::PathBuf {
        dr_sources::postgres::tools::bin_directory(None, 15).unwrap()
    }

    fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }

    fn initdb(&self) {
        let options = InitdbOptions::new(&Self::bin(), &self.data(), self.run_as.clone());
        PostgresInstance::initdb(&InitdbOptions {
            arguments: vec!["--no-sync".to_owned()],
            ..options
        })
        .unwrap();
    }

    fn options(&self) -> StartOptions {
        StartOptions::new(&Self::bin(), &self.data(), self.run_as.clone(), free_port())
    }
}

async fn answer(url: &str) -> i32 {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let answer = sqlx::query_scalar("select 42")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    answer
}

#[tokio::test]
async fn a_private_server_starts_answers_and_is_gone_after_the_stop() {
    let home = Home::new();
    home.initdb();

    let server = PostgresInstance::start(home.options()).unwrap();
    assert_eq!(answer(&server.url("postgres")).await, 42);
    let pid = server.pid();
    assert!(!descendants(pid).is_empty());
    server.stop(StopMode::Fast).unwrap();
    assert!(!is_alive(pid));

    // By a socket only, with the settings of a scratch server.
    let socket = StartOptions {
        socket_directory: Some(home.folder.path().to_owned()),
        listen_loopback: false,
        settings: scratch_settings(),
        ..home.options()
    };
    let port = socket.port;
    let server = PostgresInstance::start(socket).unwrap();
    assert_eq!(answer(&server.url("postgres")).await, 42);
    assert!(server.listens_below(home.folder.path()));
    assert!(!server.listens_below(&home.data()));
    assert!(
        std::net::TcpStream::connect(("127.0.0.1", port)).is_err(),
        "it listens on TCP"
    );
    let pid = server.pid();
    drop(server);
    assert!(
        !is_alive(pid),
        "dropping the handle left the server running"
    );
}

#[tokio::test]
async fn a_server_left_running_is_found_again_and_killed_with_its_children() {
    let home = Home::new();
    home.initdb();
    assert!(matches!(
        PostgresInstance::attach(&home.data()),
        Err(SourceError::NotRunning { .. })
    ));

    let server = PostgresInstance::start(home.options()).unwrap();
    let (pid, port) = (server.pid(), server.port());
    server.leave_running();
    assert!(is_alive(pid));

    let server = PostgresInstance::attach(&home.data()).unwrap();
    assert_eq!((server.pid(), server.port()), (pid, port));
    assert_eq!(answer(&server.url("postgres")).await, 42);
    let children = descendants(pid);
    server.kill_all();
    assert!(!is_alive(pid));
    assert!(!children.iter().any(|child| is_alive(*child)));
    assert!(
        PostgresInstance::attach(&home.data()).is_err(),
        "the stale lock file was believed"
    );
}

#[test]
fn a_failed_start_shows_the_end_of_the_log() {
    let home = Home::new();
    home.initdb();
    let options = StartOptions {
        settings: vec![("no_such_setting".to_owned(), "1".to_owned())],
        timeout: Duration::from_secs(20),
        ..home.options()
    };
    let error = PostgresInstance::start(options).unwrap_err().to_string();
    assert!(error.contains("no_such_setting"), "{error}");
    assert!(!Path::new(&home.data().join("postmaster.pid")).exists());
}

#[test]
fn initdb_says_why_it_fails() {
    let home = Home::new();
    std::fs::create_dir(home.data()).unwrap();
    std::fs::write(home.data().join("something"), "").unwrap();
    let options = InitdbOptions::new(&Home::bin(), &home.data(), home.run_as.clone());
    let error = PostgresInstance::initdb(&options).unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
}

const HOLD: &str = "DR_TEST_HOLD_FOLDER_IN";
const HELD: &str = "the folder is held";
const KIND: FolderKind = FolderKind {
    prefix: "dr-held-",
    is_id: |id| id.len() == 1,
    server: Some("data"),
    elsewhere: |_| None,
};
/// No process has it: the kernel's limit is 2^22.
const NOBODY: &str = "1073741824";

/// Not a test: what the next one runs in a process of its own, to be killed.
#[test]
fn hold_a_folder_when_asked() {
    let Some(place) = std::env::var_os(HOLD).map(PathBuf::from) else {
        return;
    };
    let run_as = RunAs::for_postgres().unwrap();
    let folder = ProcessFolder::create(&KIND, &place, "a", run_as.as_ref()).unwrap();
    let data = place.join("data");
    std::os::unix::fs::symlink(&data, folder.path().join("data")).unwrap();
    let mut options = StartOptions::new(&Home::bin(), &data, run_as, free_port());
    options.socket_directory = Some(folder.path().to_owned());
    let _server = PostgresInstance::start(options).unwrap();
    writeln!(std::io::stdout(), "{HELD}").unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn what_a_killed_process_left_is_cleared_away_with_its_server_and_nothing_before() {
    let home = Home::new();
    home.initdb();
    let place = home.folder.path();
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hold_a_folder_when_asked", "--nocapture"])
        .env(HOLD, place)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(holder.stdout.take().unwrap()).lines();
    let held = said.map_while(Result::ok).any(|line| line.contains(HELD));
    let server = PostgresInstance::attach(&home.data());
    let folder = place.join("dr-held-a");
    // As its number would be in another container.
    std::fs::write(folder.join("owner"), format!("locked by {NOBODY}")).unwrap();
    ProcessFolder::clear_left_behind(&KIND, place);
    let stayed = folder.join("owner").is_file();
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(held && stayed);
    // Stops it, should anything be wrong below.
    let server = server.unwrap();

    // Of somebody else, who leads us to a server that is not his; and one whose data is served by another by now.
    for owner in [None, home.run_as.as_ref()] {
        let foreign = place.join("dr-held-b");
        std::fs::create_dir(&foreign).unwrap();
        std::fs::write(foreign.join("owner"), NOBODY).unwrap();
        std::os::unix::fs::symlink(home.data(), foreign.join("data")).unwrap();
        give(&foreign, owner).unwrap();
        ProcessFolder::clear_left_behind(
            &FolderKind {
                is_id: |id| id == "b",
                ..KIND
            },
            place,
        );
        assert!(!foreign.exists(), "{owner:?}");
        assert!(server.is_running(), "{owner:?}");
    }

    assert!(folder.exists() && server.is_running());
    ProcessFolder::clear_left_behind(&KIND, place);
    assert!(!folder.exists(), "the server inherited the lock");
    assert!(!server.is_running());
    assert!(home.data().is_dir(), "the link was followed");
}
