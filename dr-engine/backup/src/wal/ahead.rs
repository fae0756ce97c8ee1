//! Segments that recovery will ask for next, fetched while it works on the one before.
//!
//! PostgreSQL calls `restore_command` for one segment at a time and waits. From the second segment in a row on,
//! the first call that finds nothing prepared starts a helper; it fetches a few segments ahead into a folder
//! beside the place where PostgreSQL wants them, each whole and verified before it has its name, and durable unless the
//! server is thrown away; later calls only rename. The helper ends with the recovery, and removes the folder.
//!
//! Nothing rests on it. Only whole segments are prepared, whose content never changes; what is not there
//! when it is asked for is fetched as if there were no helper; that a segment is in no archive is said by no
//! one but the call itself.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dr_installation::open_for_wal;
use dr_model::{WalFileName, WorkloadName};
use dr_store::Repository;
use sha2::{Digest, Sha256};

use super::{Flushing, identity};
use crate::BackupError;
use crate::error::{file_error, store_error};

/// In the folder that PostgreSQL fetches into, its `pg_wal`.
const FOLDER: &str = ".dr-ahead";
/// The last segment that was delivered.
const DELIVERED: &str = "delivered";
/// Held by the helper.
const LOCK: &str = "lock";
/// What has not its name yet.
const PART: &str = "part";
/// So much is prepared, and one segment at least.
const BYTES_MAX: u64 = 128 << 20;
/// How often the helper looks whether something was taken, and whether recovery still runs: at first, and
/// when nothing happens for long.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(2);
const LOOK_INTERVAL_MAX: Duration = Duration::from_millis(200);
/// How often it asks for a segment that the repository does not hold. A standby waits for ever.
const ABSENT_INTERVAL: Duration = Duration::from_secs(30);
/// Shells between PostgreSQL and this program.
const PARENTS_MAX: usize = 3;

/// The process of PostgreSQL that recovers, and calls `restore_command`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// Its process id.
    pub pid: u32,
    /// Where it works: the data directory.
    pub directory: PathBuf,
}

impl Recovery {
    /// The recovering server that called this process; `None` when it was called by somebody else, or the
    /// system does not tell.
    #[must_use]
    pub fn of_caller() -> Option<Self> {
        let directory = std::env::current_dir().ok()?;
        let mut pid = std::os::unix::process::parent_id();
        for _ in 0..PARENTS_MAX {
            let found = Self {
                pid,
                directory: directory.clone(),
            };
            if found.runs() {
                // A server that is the first process of its system (in a container) gets every process that
                // loses its parent, and takes the end of one for that of a process of its own.
                return (parent_of(pid)? != 1 || !is_server(1)).then_some(found);
            }
            pid = parent_of(pid)?;
        }
        None
    }

    /// The process of this id, if it recovers the cluster in this data directory.
    #[must_use]
    pub fn of(pid: u32, directory: PathBuf) -> Option<Self> {
        let found = Self { pid, directory };
        found.runs().then_some(found)
    }

    /// A process that has got the same number since works elsewhere, or is no server.
    fn runs(&self) -> bool {
        let cwd = fs::read_link(format!("/proc/{}/cwd", self.pid));
        is_server(self.pid) && cwd.is_ok_and(|cwd| cwd == self.directory)
    }
}

fn is_server(pid: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end() == "postgres"
}

fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

/// The folder of what was prepared for one recovery.
#[derive(Debug, Clone)]
pub struct Spool {
    folder: PathBuf,
}

impl Spool {
    /// Beside the place where PostgreSQL wants a file. What another configuration or workload prepared is
    /// not looked at.
    #[must_use]
    pub fn beside(to: &Path, config: &Path, workload: Option<&WorkloadName>) -> Self {
        let config = fs::canonicalize(config).unwrap_or_else(|_| config.to_owned());
        let mut name = Sha256::new();
        name.update(config.as_os_str().as_encoded_bytes());
        name.update([0]);
        name.update(workload.map_or("", |workload| workload.as_str()));
        let name = hex::encode(name.finalize().get(..8).unwrap_or_default());
        let wal = to.parent().unwrap_or(Path::new(""));
        Self {
            folder: wal.join(FOLDER).join(name),
        }
    }

    /// Gives a segment its place, if it was prepared. Whatever fails, it was not.
    #[must_use]
    pub fn take(&self, name: &str, to: &Path) -> bool {
        let is_segment = matches!(name.parse(), Ok(WalFileName::Segment { .. }));
        let taken = is_segment && fs::rename(self.folder.join(name), to).is_ok();
        if taken {
            self.delivered(name);
        }
        taken
    }

    /// Tells the helper, if there is one, how far recovery is.
    pub fn delivered(&self, name: &str) {
        // Others, histories, are asked for in between.
        if !matches!(name.parse(), Ok(WalFileName::Segment { .. })) {
            return;
        }
        let path = self.folder.join(DELIVERED);
        let told = OpenOptions::new().write(true).open(path);
        // One write of always the same length: the helper reads one name or another.
        let _ = told.and_then(|mut file| file.write_all(name.as_bytes()));
    }

    /// The size of the segment before this one, if that was fetched too and no helper runs: then the ones
    /// behind it will be asked for, and a helper is worth it.
    #[must_use]
    pub fn wants_helper(&self, name: &str) -> Option<u64> {
        let Ok(WalFileName::Segment {
            timeline,
            log,
            segment,
        }) = name.parse()
        else {
            return None;
        };
        let before = WalFileName::Segment {
            timeline,
            log,
            // The first of its 4 GiB: the next call will do.
            segment: segment.checked_sub(1)?,
        };
        // PostgreSQL keeps a segment that it has fetched under its own name.
        let wal = self.folder.ancestors().nth(2)?;
        let bytes = fs::metadata(wal.join(before.to_string())).ok()?.len();
        (bytes.is_power_of_two() && !self.has_helper()).then_some(bytes)
    }

    fn has_helper(&self) -> bool {
        let lock = File::open(self.folder.join(LOCK));
        lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// The folder, for the helper's command line.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn last_delivered(&self) -> Option<WalFileName> {
        let text = fs::read_to_string(self.folder.join(DELIVERED)).ok()?;
        text.parse().ok()
    }

    /// What is prepared; what recovery has left behind is removed.
    fn prepared(&self, after: &WalFileName) -> io::Result<u64> {
        let mut prepared = 0;
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(Ok(name)) = name.to_str().map(str::parse::<WalFileName>) else {
                continue;
            };
            if name > *after && name.timeline() == after.timeline() {
                prepared += 1;
            } else if name != *after {
                // The one that is delivered now may be on its way.
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(prepared)
    }

    /// Keeps a segment, while the folder is ours.
    fn put(
        &self,
        name: &WalFileName,
        body: &[u8],
        flushing: Flushing,
        lock: &File,
    ) -> io::Result<()> {
        // A name of its own: should another helper take our place, neither writes into what the other does.
        let part = self
            .folder
            .join(format!("{PART}.{}.{}", std::process::id(), name));
        let put = || {
            let mut file = File::options().write(true).create_new(true).open(&part)?;
            file.write_all(body)?;
            if flushing == Flushing::Each {
                // After a crash of the machine a name may be there without the content, were it given before.
                file.sync_all()?;
            }
            if !self.is_held(lock) {
                return Err(io::Error::other("another helper has taken its place"));
            }
            fs::rename(&part, self.folder.join(name.to_string()))
        };
        put().inspect_err(|_| {
            let _ = fs::remove_file(&part);
        })
    }

    /// Whether the lock that is held is the folder's still.
    fn is_held(&self, lock: &File) -> bool {
        let of = |found: io::Result<fs::Metadata>| found.ok().map(|it| (it.dev(), it.ino()));
        let held = of(lock.metadata());
        held.is_some() && held == of(fs::metadata(self.folder.join(LOCK)))
    }
}

/// What a helper is started with.
#[derive(Debug, Clone)]
pub struct Ahead {
    /// Where what is prepared goes.
    pub folder: PathBuf,
    /// The segment before the first that is fetched.
    pub after: WalFileName,
    /// The size of a segment.
    pub segment_bytes: u64,
    /// Who asks for them.
    pub recovery: Recovery,
    /// How they are kept.
    pub flushing: Flushing,
}

/// Fetches ahead of recovery until that ends. Blocks.
///
/// # Errors
/// When a segment cannot be fetched or kept. What is prepared is removed in any case.
pub fn fetch_ahead(
    config: &Path,
    workload: Option<&WorkloadName>,
    ahead: &Ahead,
) -> Result<(), BackupError> {
    let folder = &ahead.folder;
    let failed = || file_error("prepare segments in", folder);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(failed())?;
    let lock = File::create(folder.join(LOCK)).map_err(failed())?;
    if lock.try_lock().is_err() {
        // Another one was faster.
        return Ok(());
    }
    let spool = Spool {
        folder: folder.clone(),
    };
    let done = fs::write(folder.join(DELIVERED), ahead.after.to_string())
        .map_err(failed())
        .and_then(|()| {
            let installation = open_for_wal(config)?;
            let workload = match workload {
                Some(given) => given.clone(),
                None => identity::workload_of_directory(&installation, &ahead.after)?,
            };
            let repository = installation.repository_of(&workload)?;
            follow(&spool, &repository, &workload, ahead, &lock)
        });
    if spool.is_held(&lock) {
        // What cannot be removed is removed by the next helper, or with the cluster.
        let _ = fs::remove_dir_all(folder);
        if let Some(all) = folder.parent() {
            let _ = fs::remove_dir(all);
        }
    }
    done
}

fn follow(
    spool: &Spool,
    repository: &Repository,
    workload: &WorkloadName,
    ahead: &Ahead,
    lock: &File,
) -> Result<(), BackupError> {
    let failed = || file_error("prepare segments in", &spool.folder);
    let room = (BYTES_MAX / ahead.segment_bytes.max(1)).max(1);
    let mut newest = ahead.after.clone();
    let mut pause = Pause::default();
    while ahead.recovery.runs() {
        let delivered = spool.last_delivered().unwrap_or(newest.clone());
        let prepared = spool.prepared(&delivered).map_err(failed())?;
        // Recovery has overtaken, or went to another timeline.
        if newest < delivered || newest.timeline() != delivered.timeline() {
            newest = delivered.clone();
        }
        let Some(next) = after(&newest, ahead.segment_bytes) else {
            return Ok(());
        };
        if prepared >= room || !pause.is_over_for(&next) {
            pause.wait(&delivered);
            continue;
        }
        let found = repository.get_wal(workload, &next);
        let found = found.map_err(store_error(
            format!("fetch {next} of `{workload}`"),
            repository,
        ))?;
        match found {
            // It may have taken long, and recovery have ended.
            Some(_) if !ahead.recovery.runs() => break,
            Some(body) => {
                spool
                    .put(&next, &body, ahead.flushing, lock)
                    .map_err(failed())?;
                newest = next;
            }
            // The archive ends here, for now; recovery finds that out by itself.
            None => pause.asked_in_vain(next),
        }
    }
    Ok(())
}

/// Waiting for recovery to take something: often at first, less often the longer nothing happens.
#[derive(Debug, Default)]
struct Pause {
    delivered: Option<WalFileName>,
    next: Duration,
    absent: Option<(WalFileName, Instant)>,
}

impl Pause {
    fn wait(&mut self, delivered: &WalFileName) {
        if self.delivered.as_ref() != Some(delivered) {
            self.delivered = Some(delivered.clone());
            self.next = LOOK_INTERVAL_MIN;
        }
        std::thread::sleep(self.next);
        self.next = (self.next * 2).min(LOOK_INTERVAL_MAX);
    }

    fn asked_in_vain(&mut self, segment: WalFileName) {
        self.absent = Some((segment, Instant::now()));
    }

    /// Whether it is worth asking the repository for this segment.
    fn is_over_for(&self, segment: &WalFileName) -> bool {
        let absent = self.absent.as_ref();
        absent.is_none_or(|(absent, at)| absent != segment || at.elapsed() >= ABSENT_INTERVAL)
    }
}

/// The segment behind another on its timeline.
fn after(segment: &WalFileName, segment_bytes: u64) -> Option<WalFileName> {
    let number = segment.number(segment_bytes)? + 1;
    let timeline = segment.timeline()?;
    Some(WalFileName::of_number(number, timeline, segment_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 16 << 20;

    fn segment(number: u64) -> WalFileName {
        WalFileName::of_number(number, dr_model::Timeline(1), BYTES)
    }

    fn spool(wal: &Path) -> (Spool, File) {
        let spool = Spool::beside(&wal.join("RECOVERYXLOG"), Path::new("/dr.yaml"), None);
        fs::create_dir_all(spool.folder()).unwrap();
        let lock = File::create(spool.folder().join(LOCK)).unwrap();
        (spool, lock)
    }

    #[test]
    fn what_is_prepared_is_taken_once_and_told() {
        let wal = tempfile::tempdir().unwrap();
        let (spool, lock) = spool(wal.path());
        let to = wal.path().join("RECOVERYXLOG");
        fs::write(spool.folder().join(DELIVERED), segment(6).to_string()).unwrap();
        spool
            .put(&segment(7), b"content", Flushing::Each, &lock)
            .unwrap();
        let name = segment(7).to_string();
        assert!(spool.take(&name, &to));
        assert_eq!(fs::read(&to).unwrap(), b"content");
        assert_eq!(spool.last_delivered(), Some(segment(7)));
        assert!(!spool.take(&name, &to));
        spool.delivered("00000002.history");
        assert_eq!(spool.last_delivered(), Some(segment(7)), "no segment");
        // Nothing but a segment, however it is called.
        assert!(!spool.take("lock", &to));
        assert!(!spool.take("../../x", &to));
    }

    #[test]
    fn what_recovery_left_behind_is_removed() {
        let wal = tempfile::tempdir().unwrap();
        let (spool, lock) = spool(wal.path());
        for number in 5..10 {
            spool
                .put(&segment(number), b"x", Flushing::Spared, &lock)
                .unwrap();
        }
        let other = WalFileName::of_number(9, dr_model::Timeline(2), BYTES);
        spool.put(&other, b"x", Flushing::Spared, &lock).unwrap();
        assert_eq!(spool.prepared(&segment(7)).unwrap(), 2);
        let mut left: Vec<_> = fs::read_dir(spool.folder())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut expected: Vec<_> = (7..10).map(|number| segment(number).to_string()).collect();
        expected.push(LOCK.to_owned());
        assert_eq!(left, expected);
    }

    #[test]
    fn a_helper_whose_place_was_taken_prepares_nothing() {
        let wal = tempfile::tempdir().unwrap();
        let (spool, lock) = spool(wal.path());
        fs::remove_file(spool.folder().join(LOCK)).unwrap();
        let _theirs = File::create(spool.folder().join(LOCK)).unwrap();
        assert!(!spool.is_held(&lock));
        spool
            .put(&segment(7), b"content", Flushing::Each, &lock)
            .unwrap_err();
        assert_eq!(fs::read_dir(spool.folder()).unwrap().count(), 1);
    }

    #[test]
    fn a_helper_is_worth_it_from_the_second_segment_in_a_row_on() {
        let wal = tempfile::tempdir().unwrap();
        let (spool, lock) = spool(wal.path());
        assert_eq!(spool.wants_helper(&segment(8).to_string()), None);
        let before = File::create(wal.path().join(segment(7).to_string())).unwrap();
        before.set_len(BYTES).unwrap();
        assert_eq!(spool.wants_helper(&segment(8).to_string()), Some(BYTES));
        assert_eq!(spool.wants_helper("00000002.history"), None);
        assert_eq!(spool.wants_helper(&segment(256).to_string()), None);
        lock.lock().unwrap();
        assert_eq!(spool.wants_helper(&segment(8).to_string()), None);
    }

    #[test]
    fn the_segment_behind_the_last_of_four_gigabytes_is_the_first_of_the_next() {
        assert_eq!(after(&segment(255), BYTES), Some(segment(256)));
        assert_eq!(segment(256).to_string(), "000000010000000100000000");
        assert_eq!(after(&"00000002.history".parse().unwrap(), BYTES), None);
    }

    #[test]
    fn a_shell_is_no_recovering_server() {
        assert_eq!(Recovery::of_caller(), None);
        let here = std::env::current_dir().unwrap();
        assert_eq!(Recovery::of(std::process::id(), here), None);
    }
}
