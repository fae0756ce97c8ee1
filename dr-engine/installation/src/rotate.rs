//! `dr key rotate`: another key file in the place of the one in use.
//!
//! The order is such that after a crash at any instant the file that the configuration names opens
//! every repository, and running it again goes on from there:
//!
//! 1. `K.new` is written, with owner and mode of `K`;
//! 2. in every repository that `K` opens, a slot for it is made, read back and opened;
//! 3. `K` also gets the name `K.old-TIME`; then `K.new` is renamed to `K`, in one step: at no instant
//!    is there no `K`, because an archiver may be reading it;
//! 4. the slots of the old key are taken away.
//!
//! What a crash leaves: a `K.new` that is used the next time; after step 3 a `K.old-TIME` that still
//! opens something, which the next run finds and finishes. The old file is kept: it opens nothing any
//! more in these repositories, but does in copies of them made before.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use dr_config::{Config, KeySource, RepositoryConfig};
use dr_model::{Clock, RepositoryName, SystemClock};
use dr_store::{NewSlot, Repository, RepositoryKey, StoreError};

use crate::place::{parent_of, sync_folder};
use crate::{InstallationError, key, open};

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotationOutcome {
    /// The key file: the new key, under the name the configuration has.
    pub file: PathBuf,
    /// The old key.
    pub old: PathBuf,
    /// The repositories that the new key opens and the old one does not.
    pub repositories: Vec<RepositoryName>,
    /// Whether an earlier rotation that was interrupted was brought to its end, and none begun.
    pub finished_earlier: bool,
}

/// A step that is done; for tests, which end there as a crash would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    NewKeyWritten,
    SlotMade,
    OldKeyKept,
    Replaced,
    SlotRemoved,
}

type AfterStep<'a> = &'a mut dyn FnMut(Step) -> Result<(), InstallationError>;

/// Rotates the key file of a repository, and with it of every repository that has the same one.
/// Blocks.
///
/// # Errors
/// When the key is not in a file, or one of the repositories cannot be opened or written: then the
/// file that the configuration names still opens all of them.
pub fn rotate_key(
    config: &Config,
    repository: &RepositoryName,
) -> Result<RotationOutcome, InstallationError> {
    rotate(config, repository, &mut |_| Ok(()))
}

pub(crate) fn rotate(
    config: &Config,
    repository: &RepositoryName,
    after: AfterStep<'_>,
) -> Result<RotationOutcome, InstallationError> {
    let file =
        config
            .repository(repository)?
            .key
            .file
            .clone()
            .ok_or(InstallationError::NotRotatable {
                repository: repository.clone(),
            })?;
    let sharing: Vec<(RepositoryName, RepositoryConfig)> = config
        .engine
        .repositories
        .iter()
        .filter(|(_, other)| other.key.file.as_ref() == Some(&file))
        .map(|(name, other)| (name.clone(), other.clone()))
        .collect();
    let rotation = Rotation {
        new: with_ending(&file, ".new"),
        file,
        sharing,
    };
    if !rotation.new.exists()
        && let Some(finished) = rotation.finish_earlier(after)?
    {
        return Ok(finished);
    }
    rotation.run(after)
}

struct Rotation {
    file: PathBuf,
    new: PathBuf,
    sharing: Vec<(RepositoryName, RepositoryConfig)>,
}

fn with_ending(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallationError {
    let path = path.to_owned();
    move |source| InstallationError::File {
        action,
        path,
        source,
    }
}

impl Rotation {
    fn run(&self, after: AfterStep<'_>) -> Result<RotationOutcome, InstallationError> {
        let mut old_slots = Vec::new();
        // All of them, before anything is changed.
        for (name, _) in &self.sharing {
            old_slots.push(self.opened(name, &self.file)?.opened_slot().to_owned());
        }
        self.write_new()?;
        after(Step::NewKeyWritten)?;
        for (name, _) in &self.sharing {
            self.make_slot(name)?;
            after(Step::SlotMade)?;
        }
        let old = self.keep_old()?;
        after(Step::OldKeyKept)?;
        fs::rename(&self.new, &self.file).map_err(failed("put in place", &self.file))?;
        self.sync()?;
        after(Step::Replaced)?;
        for ((name, _), slot) in self.sharing.iter().zip(&old_slots) {
            let repository = self.opened(name, &self.file)?;
            repository
                .remove_key_slot(slot, true)
                .map_err(|source| self.store_failed("remove the old key slot", name, source))?;
            after(Step::SlotRemoved)?;
        }
        Ok(self.outcome(old, false))
    }

    fn outcome(&self, old: PathBuf, finished_earlier: bool) -> RotationOutcome {
        RotationOutcome {
            file: self.file.clone(),
            old,
            repositories: self.sharing.iter().map(|(name, _)| name.clone()).collect(),
            finished_earlier,
        }
    }

    fn store_failed(
        &self,
        action: &'static str,
        name: &RepositoryName,
        source: StoreError,
    ) -> InstallationError {
        InstallationError::Store {
            action,
            place: name.to_string(),
            source,
        }
    }

    /// A repository, opened with the key in `file`.
    fn opened(&self, name: &RepositoryName, file: &Path) -> Result<Repository, InstallationError> {
        let found = self.sharing.iter().find(|(other, _)| other == name);
        let (_, config) = found.ok_or(InstallationError::Worker {
            action: "open a repository",
        })?;
        let mut config = config.clone();
        config.key = KeySource::of_file(file.to_owned());
        open::open_repository(name, &config)
    }

    /// The new key, with owner and mode of the one in use: whoever reads that must read this.
    fn write_new(&self) -> Result<(), InstallationError> {
        if !self.new.exists() {
            key::write_new_key(&self.new).map_err(failed("write", &self.new))?;
        }
        let metadata = fs::metadata(&self.file).map_err(failed("examine", &self.file))?;
        if rustix::process::geteuid().is_root() {
            chown(&self.new, Some(metadata.uid()), Some(metadata.gid()))
                .map_err(failed("give away", &self.new))?;
        }
        let mode = fs::Permissions::from_mode(metadata.mode() & 0o777);
        fs::set_permissions(&self.new, mode).map_err(failed("protect", &self.new))
    }

    fn make_slot(&self, name: &RepositoryName) -> Result<(), InstallationError> {
        // Made before a crash: then it opens already.
        if self.opened(name, &self.new).is_err() {
            let text = fs::read_to_string(&self.new)
                .map(zeroize::Zeroizing::new)
                .map_err(failed("read", &self.new))?;
            let action = "make a key slot";
            let key = RepositoryKey::parse(&text)
                .map_err(|source| self.store_failed(action, name, source))?;
            let label = format!("rotated {}", SystemClock.now().format("%Y-%m-%d"));
            self.opened(name, &self.file)?
                .add_key_slot(&NewSlot::For(key), &label)
                .map_err(|source| self.store_failed(action, name, source))?;
        }
        // As anyone will open it from now on.
        self.opened(name, &self.new).map(|_| ())
    }

    fn old_files(&self) -> Result<Vec<PathBuf>, InstallationError> {
        let begins = with_ending(&self.file, ".old-");
        let begins = begins
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let folder = parent_of(&self.file);
        let entries = fs::read_dir(folder).map_err(failed("list", folder))?;
        let mut found: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&begins))
            .map(|entry| entry.path())
            .collect();
        found.sort();
        Ok(found)
    }

    /// Gives the key in use its second name; one from an interrupted run will do.
    fn keep_old(&self) -> Result<PathBuf, InstallationError> {
        let number = |path: &Path| fs::metadata(path).map(|found| found.ino());
        let mine = number(&self.file).map_err(failed("examine", &self.file))?;
        for old in self.old_files()? {
            if number(&old).is_ok_and(|other| other == mine) {
                return Ok(old);
            }
        }
        let stamp = SystemClock
            .now()
            .format(".old-%Y%m%dT%H%M%S%3fZ")
            .to_string();
        let old = with_ending(&self.file, &stamp);
        fs::hard_link(&self.file, &old).map_err(failed("keep the old key as", &old))?;
        self.sync()?;
        Ok(old)
    }

    fn sync(&self) -> Result<(), InstallationError> {
        sync_folder(parent_of(&self.file)).map_err(failed("make durable", &self.file))
    }

    /// Takes away the slots of a key that an earlier run replaced and did not get rid of.
    fn finish_earlier(
        &self,
        after: AfterStep<'_>,
    ) -> Result<Option<RotationOutcome>, InstallationError> {
        let mut finished = None;
        for old in self.old_files()? {
            for (name, _) in &self.sharing {
                let Ok(by_old) = self.opened(name, &old) else {
                    continue; // As it should be.
                };
                let repository = self.opened(name, &self.file)?;
                if repository.opened_slot() == by_old.opened_slot() {
                    continue; // The same key under another name.
                }
                repository
                    .remove_key_slot(by_old.opened_slot(), false)
                    .map_err(|source| self.store_failed("remove the old key slot", name, source))?;
                after(Step::SlotRemoved)?;
                finished = Some(old.clone());
            }
        }
        Ok(finished.map(|old| self.outcome(old, true)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dr_store::{Backend, LocalBackend};

    use super::*;

    struct Scene {
        folder: PathBuf,
        config: Config,
        first: String,
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    fn name() -> RepositoryName {
        "main".parse().unwrap()
    }

    /// Two repositories with one key file.
    fn scene() -> Scene {
        let folder = std::env::temp_dir().join(format!("dr-rotate-{}", dr_model::random::hex(6)));
        fs::create_dir(&folder).unwrap();
        let key = folder.join("repository.key");
        key::write_new_key(&key).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        let first = fs::read_to_string(&key).unwrap();
        let text = "repositories:\n  main: { path: one, key: { file: repository.key } }\n  \
                    east: { path: two, key: { file: repository.key } }\n\
                    catalog: sqlite:catalog.db\ntiers: .\nworkloads: {}\n";
        fs::write(folder.join("dr.yaml"), text).unwrap();
        for place in ["one", "two"] {
            let backend = Arc::new(LocalBackend::new(&folder.join(place)));
            Repository::create(backend, &RepositoryKey::parse(&first).unwrap()).unwrap();
        }
        Scene {
            config: Config::load_engine_only(&folder.join("dr.yaml")).unwrap(),
            folder,
            first,
        }
    }

    impl Scene {
        /// How many of the repositories the text of a key opens.
        fn opened_by(&self, text: &str) -> usize {
            let key = RepositoryKey::parse(text).unwrap();
            ["one", "two"]
                .iter()
                .filter(|place| {
                    let backend: Arc<dyn Backend> =
                        Arc::new(LocalBackend::new(&self.folder.join(place)));
                    Repository::open(backend, &key).is_ok()
                })
                .count()
        }

        fn slots(&self) -> usize {
            let count = |place: &str| {
                fs::read_dir(self.folder.join(place).join("keys/slot"))
                    .unwrap()
                    .count()
            };
            count("one") + count("two")
        }

        fn current(&self) -> String {
            fs::read_to_string(self.folder.join("repository.key")).unwrap()
        }
    }

    #[test]
    fn after_a_rotation_the_new_key_opens_and_the_old_one_does_not() {
        let scene = scene();
        let outcome = rotate_key(&scene.config, &name()).unwrap();
        assert_eq!(outcome.repositories.len(), 2);
        assert_eq!(fs::read_to_string(&outcome.old).unwrap(), scene.first);
        assert_ne!(scene.current(), scene.first);
        assert_eq!(scene.opened_by(&scene.current()), 2);
        assert_eq!(scene.opened_by(&scene.first), 0);
        assert_eq!(scene.slots(), 2);
        let mode = fs::metadata(&outcome.file).unwrap().mode() & 0o777;
        assert_eq!(
            mode, 0o640,
            "who could read the old file can read the new one"
        );
        // And again, over the old file that lies there.
        let second = rotate_key(&scene.config, &name()).unwrap();
        assert!(!second.finished_earlier);
        assert_ne!(second.old, outcome.old);
    }

    #[test]
    fn a_crash_after_any_step_leaves_the_named_file_opening_and_the_next_run_finishes() {
        let mut steps = Vec::new();
        rotate(&scene().config, &name(), &mut |step| {
            steps.push(step);
            Ok(())
        })
        .unwrap();
        assert!(steps.len() >= 7, "{steps:?}");
        for (stop, after) in steps.iter().enumerate() {
            let scene = scene();
            let mut done = 0;
            let crashed = rotate(&scene.config, &name(), &mut |_| {
                done += 1;
                if done > stop {
                    return Err(InstallationError::Worker { action: "crash" });
                }
                Ok(())
            });
            assert!(crashed.is_err());
            assert_eq!(scene.opened_by(&scene.current()), 2, "after {after:?}");
            rotate_key(&scene.config, &name()).unwrap();
            assert_eq!(scene.opened_by(&scene.current()), 2, "after {after:?}");
            assert_eq!(scene.opened_by(&scene.first), 0, "after {after:?}");
            assert_eq!(scene.slots(), 2, "after {after:?}");
            assert!(!scene.folder.join("repository.key.new").exists());
        }
    }

    #[test]
    fn nothing_is_changed_while_one_of_the_repositories_is_away() {
        let scene = scene();
        fs::rename(scene.folder.join("two"), scene.folder.join("away")).unwrap();
        assert!(rotate_key(&scene.config, &name()).is_err());
        assert_eq!(scene.current(), scene.first);
        fs::rename(scene.folder.join("away"), scene.folder.join("two")).unwrap();
        assert_eq!(scene.opened_by(&scene.first), 2);
        assert_eq!(scene.slots(), 2);
    }
}
