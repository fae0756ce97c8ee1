//! Hooks for tests, compiled only with feature `testing`: places where the process can be made to
//! die, and a journal from which a test can drop what was not fsynced.

#[cfg(feature = "testing")]
pub use active::{kill_point, note};

/// Does nothing in a release.
#[cfg(not(feature = "testing"))]
#[inline]
pub(crate) fn kill_point(_name: &str) {}

#[cfg(feature = "testing")]
mod active {
    use std::io::Write;
    use std::path::Path;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Aborts the process when `DR_TEST_KILL_AT` names this place: `store.after-pack`, or
    /// `store.after-pack:3` for the third time.
    pub fn kill_point(name: &str) {
        static PASSED: AtomicU64 = AtomicU64::new(0);
        let Ok(wanted) = std::env::var("DR_TEST_KILL_AT") else {
            return;
        };
        let (place, times) = wanted.split_once(':').unwrap_or((&wanted, "1"));
        if place == name && PASSED.fetch_add(1, Ordering::SeqCst) + 1 >= times.parse().unwrap_or(1)
        {
            std::process::abort();
        }
    }

    /// Appends a line to the file that `DR_TEST_FS_JOURNAL` names: the operation and its paths,
    /// separated by tabs, in one write.
    ///
    /// Recorded before it is done: `create`, `mkdir`, `rename`, `delete`. Recorded after it is done:
    /// `fsync-file`, `fsync-folder`. So the journal never says more is durable than is.
    pub fn note(operation: &str, paths: &[&Path]) {
        static LOCK: Mutex<()> = Mutex::new(());
        let Some(journal) = std::env::var_os("DR_TEST_FS_JOURNAL") else {
            return;
        };
        let _guard = LOCK.lock();
        let mut line = operation.to_owned();
        for path in paths {
            line.push('\t');
            line.push_str(&path.to_string_lossy());
        }
        line.push('\n');
        let written = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&journal)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        assert!(
            written.is_ok(),
            "the journal {} cannot be written",
            journal.display()
        );
    }
}
