//! Hooks for tests, compiled only with feature `testing`: places where the process can be made to
//! die, and a journal from which a test can drop what was not fsynced.

#[cfg(feature = "testing")]
pub use active::{kill_point, note};
#[cfg(feature = "testing")]
pub use figures::{OpenedIndex, fill_index, open_index};

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

/// For measuring what the index costs with more chunks than a test would store.
#[cfg(feature = "testing")]
mod figures {
    use std::time::{Duration, Instant};

    use dr_model::WorkloadName;

    use crate::format::header::Kind;
    use crate::format::index::{self, IndexedPack};
    use crate::format::pack::PackedChunk;
    use crate::repo::index::index_prefix;
    use crate::{Domain, Repository, StoreError};

    /// Chunks of 256 KiB in a pack of 16 MiB that compressed to a quarter.
    const CHUNKS_IN_A_PACK: usize = 256;
    const PACKS_IN_AN_INDEX: usize = 256;

    /// Stores index objects that name so many chunks of packs that do not exist.
    ///
    /// # Errors
    /// When the place fails.
    pub fn fill_index(
        repository: &Repository,
        workload: &WorkloadName,
        chunks: usize,
    ) -> Result<(), StoreError> {
        let repo = repository.inner();
        let keys = repo.data_keys_or_new(workload, &Domain::Workload)?;
        let mut left = chunks;
        while left > 0 {
            let mut packs = Vec::new();
            while left > 0 && packs.len() < PACKS_IN_AN_INDEX {
                let count = left.min(CHUNKS_IN_A_PACK);
                packs.push(random_pack(count));
                left -= count;
            }
            let object = format!("{}{}", index_prefix(workload), dr_model::random::hex(16));
            repo.put_sealed(&keys, Kind::Index, &object, &index::encode(&packs))?;
        }
        Ok(())
    }

    fn random_pack(chunks: usize) -> IndexedPack {
        let mut id = [0; 16];
        dr_model::random::fill(&mut id);
        let mut names = vec![0; chunks * 32];
        dr_model::random::fill(&mut names);
        let chunk = |name: &[u8]| PackedChunk {
            name: name.try_into().unwrap_or_default(),
            stored: 65_000,
            length: 262_144,
        };
        IndexedPack {
            id,
            chunks: names.chunks_exact(32).map(chunk).collect(),
        }
    }

    /// What opening an index came to.
    #[derive(Debug, Clone, Copy)]
    pub struct OpenedIndex {
        /// Chunks in it.
        pub chunks: usize,
        /// How long reading and merging its objects took.
        pub open: Duration,
        /// How long looking a chunk up takes, one that is not there, on average.
        pub look_up: Duration,
    }

    /// Opens an index as a backup does.
    ///
    /// # Errors
    /// When the place fails.
    pub fn open_index(
        repository: &Repository,
        workload: &WorkloadName,
    ) -> Result<OpenedIndex, StoreError> {
        const LOOK_UPS: u32 = 1_000_000;
        let began = Instant::now();
        let index = repository.inner().load_index(workload)?;
        let open = began.elapsed();
        let mut names = vec![0; 32 * 4096];
        dr_model::random::fill(&mut names);
        let mut name = [0; 32];
        let began = Instant::now();
        let mut found = 0usize;
        for number in 0..LOOK_UPS {
            let from = usize::try_from(number).unwrap_or(0) * 31 % (names.len() - 32);
            name.copy_from_slice(names.get(from..from + 32).unwrap_or(&[0; 32]));
            found += usize::from(index.contains(&name));
        }
        let look_up = began.elapsed() / LOOK_UPS;
        tracing::debug!(found, "looked up");
        Ok(OpenedIndex {
            chunks: index.chunks(),
            open,
            look_up,
        })
    }
}
