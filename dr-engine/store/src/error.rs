//! What can go wrong with a repository, and what to try.

use chrono::{DateTime, Utc};
use dr_model::{RestorePointId, WalFileName, WorkloadName};

use crate::BackendError;
use crate::crypto::SlotKind;

/// A failed operation on a repository. `Display` says what failed on what; the cause is the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The place itself failed.
    #[error("{action} in repository {place}")]
    Backend {
        /// What was being done, with the object's name.
        action: String,
        /// The repository's place.
        place: String,
        /// What the place answered.
        #[source]
        source: BackendError,
    },
    /// The place exists and holds no repository.
    #[error("{place} holds no repository")]
    Missing {
        /// The place.
        place: String,
    },
    /// `create` found a repository.
    #[error("{place} already holds a repository")]
    AlreadyExists {
        /// The place.
        place: String,
    },
    /// `create` found things that are not ours.
    #[error("{place} is not empty: it holds `{example}`")]
    NotEmpty {
        /// The place.
        place: String,
        /// One thing found.
        example: String,
    },
    /// `create` was refused because of what the place does.
    #[error("no repository can be kept in {place}: {reason}")]
    Unfit {
        /// The place.
        place: String,
        /// What it was seen to do.
        reason: &'static str,
    },
    /// A place that was to be a copy holds something else.
    #[error("{place} holds another repository")]
    OtherRepository {
        /// The place.
        place: String,
    },
    /// The place of a copy could not be opened.
    #[error("copy `{name}` cannot be opened")]
    CopyAway {
        /// The copy.
        name: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Only a copy answers, and something was to be written.
    #[error("repository {first} does not answer; its copy in {place} can only be read")]
    FirstPlaceAway {
        /// The first place.
        first: String,
        /// The copy.
        place: String,
    },
    /// A copy knows a newer list of restore points than the first place.
    #[error(
        "the list of restore points of `{workload}` in {place} is not the one that {copy} goes on from: \
         {place} went back"
    )]
    WentBack {
        /// The workload.
        workload: WorkloadName,
        /// The first place.
        place: String,
        /// The copy.
        copy: String,
    },
    /// The text is no key.
    #[error("the repository key is not valid: {what}")]
    InvalidKey {
        /// What is wrong with it; never the key.
        what: &'static str,
    },
    /// No key slot opens with this key.
    #[error("the key does not open repository {place}")]
    WrongKey {
        /// The place.
        place: String,
    },
    /// No key slot is of the kind that the configured key opens.
    #[error("no key slot of {place} is opened by a key of kind {kind}; it has {found}")]
    NoSlotOfKind {
        /// The place.
        place: String,
        /// What kind of key was given.
        kind: SlotKind,
        /// The kinds that there are.
        found: String,
    },
    /// The program that keeps a slot's secret failed.
    #[error("the key command `{program}` ({role}) failed: {what}")]
    KeyCommand {
        /// `wrap` or `unwrap`.
        role: &'static str,
        /// The program, without its arguments.
        program: String,
        /// What happened; never a secret.
        what: String,
    },
    /// A key slot that is not there, or cannot be taken away.
    #[error("key slot `{slot}` of {place} {what}")]
    KeySlot {
        /// The slot's id.
        slot: String,
        /// The place.
        place: String,
        /// What stands against it.
        what: &'static str,
    },
    /// Written by a newer program.
    #[error(
        "`{object}` in {place} has format version {found}; this program reads version {supported}"
    )]
    UnsupportedVersion {
        /// The object.
        object: String,
        /// The place.
        place: String,
        /// What it says.
        found: u32,
        /// What is known here.
        supported: u32,
    },
    /// Something stored is not what was stored.
    #[error("`{object}` in {place} is damaged: {what}")]
    Damaged {
        /// The object.
        object: String,
        /// The place.
        place: String,
        /// How it was noticed.
        what: String,
    },
    /// The key of a tenant's data was destroyed on purpose.
    #[error("the data of tenant `{tenant}` was shredded on {}", at.format("%Y-%m-%d %H:%M:%S UTC"))]
    Shredded {
        /// The tenant.
        tenant: String,
        /// When it was ordered.
        at: DateTime<Utc>,
    },
    /// Something that was deleted can still be read.
    #[error("`{object}` in {place} was deleted and is still there")]
    NotGone {
        /// The object.
        object: String,
        /// The place.
        place: String,
    },
    /// Something that must be there is not.
    #[error("`{object}` is missing in {place}")]
    ObjectMissing {
        /// The object.
        object: String,
        /// The place.
        place: String,
    },
    /// The same WAL file was stored before with other content.
    #[error("WAL file {name} of workload `{workload}` is already stored with other content")]
    WalConflict {
        /// The workload.
        workload: WorkloadName,
        /// The file.
        name: WalFileName,
    },
    /// A record is written once.
    #[error("the record {kind}/{name} is already stored with other content")]
    RecordConflict {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// A name that cannot be an object's.
    #[error("`{name}` cannot be stored: {rule}")]
    InvalidName {
        /// The name.
        name: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// Two entries of one restore point have the same path.
    #[error("two entries have the path `{path}`")]
    DuplicatePath {
        /// The path.
        path: String,
    },
    /// The source of a file's content failed.
    #[error("cannot read `{path}` for storing")]
    Source {
        /// The entry's path.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The receiver of a file's content failed.
    #[error("cannot write out `{path}` of restore point {point}")]
    Sink {
        /// The entry's path.
        path: String,
        /// The restore point.
        point: RestorePointId,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Prune ended the session: it was silent for too long.
    #[error("this backup was given up: its session in {place} was ended")]
    SessionEnded {
        /// The place.
        place: String,
    },
    /// Prune condemned what was just written or relied on.
    #[error("this backup cannot be finished: data it needs in {place} is about to be deleted")]
    Condemned {
        /// The place.
        place: String,
    },
    /// The tier asks for a lock that the store does not honour.
    #[error("{place} does not lock objects: the tier's `lock` cannot be kept there")]
    CannotLock {
        /// The place.
        place: String,
    },
    /// The list of restore points changed after it was decided what to remove.
    #[error("the restore points of `{workload}` changed since it was decided what to remove")]
    PlanOutdated {
        /// The workload.
        workload: WorkloadName,
    },
    /// Another process prunes.
    #[error("another prune of `{workload}` runs on {host} (process {pid})")]
    PruneRuns {
        /// The workload.
        workload: WorkloadName,
        /// Where.
        host: String,
        /// Which process.
        pid: u32,
    },
    /// An earlier failure of the same backup.
    #[error("this backup cannot be finished: storing a pack failed before")]
    WriterFailed,
    /// Something could not be put in stored form.
    #[error("cannot encode {what}")]
    Encode {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// What an operator can try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Backend { source, .. } => source.hint(),
            Self::Missing { .. } => Some(
                "check that the disk is mounted and the path is right; `dr init` creates a new repository"
                    .to_owned(),
            ),
            Self::OtherRepository { .. } => Some(
                "a copy is made by `dr init` in an empty place; name another place, or clear this \
                 one if nothing in it is wanted"
                    .to_owned(),
            ),
            Self::FirstPlaceAway { .. } => Some(
                "mend the first place; if it is lost for good, name the copy first in \
                 `repositories:` of every workload"
                    .to_owned(),
            ),
            Self::WentBack { .. } => Some(
                "was an old state of it put back, or another folder mounted? Nothing was changed in \
                 the copy; `dr repo repair` brings back what is missing"
                    .to_owned(),
            ),
            Self::NotEmpty { .. } => {
                Some("name an empty or a new folder (or prefix) for the repository".to_owned())
            }
            Self::Unfit { .. } => Some(
                "the list of restore points relies on the store refusing to overwrite; use a store \
                 that honours If-None-Match on PUT (AWS S3, Ceph, MinIO), or a newer version of this one"
                    .to_owned(),
            ),
            Self::InvalidKey { .. } | Self::WrongKey { .. } => Some(
                "use a key that one of the repository's slots was made for: the key file written when \
                 it was created (copies must be equal byte for byte), or what `dr key add` was given"
                    .to_owned(),
            ),
            Self::NoSlotOfKind { .. } => Some(
                "configure `key:` with something that a slot was made for; `dr key add` makes further \
                 slots, where the repository opens"
                    .to_owned(),
            ),
            Self::KeyCommand { .. } => Some(
                "run the command by hand with some text on its standard input; it must end within 30 \
                 seconds and print nothing but its result"
                    .to_owned(),
            ),
            Self::KeySlot { .. } => Some("`dr key list` shows the slots".to_owned()),
            Self::UnsupportedVersion { .. } => Some("use a newer version of dr".to_owned()),
            Self::Damaged { .. } | Self::ObjectMissing { .. } => Some(
                "`dr repo check --read` lists everything damaged and the restore points it \
                 affects; `dr repo repair` brings the object back from a copy"
                    .to_owned(),
            ),
            Self::WalConflict { .. } => Some(
                "two clusters may be archiving into one workload (a copy that was started with \
                 archiving on?); find the other one before anything else"
                    .to_owned(),
            ),
            Self::Shredded { .. } => Some(
                "its key is gone from every place that could be reached: nothing brings this data \
                 back; what belongs to others is not affected"
                    .to_owned(),
            ),
            Self::SessionEnded { .. } => Some(
                "`dr repo prune` ends sessions that seem dead; run the backup again, and see why it \
                 stood still for so long"
                    .to_owned(),
            ),
            Self::CannotLock { .. } => Some(
                "use a bucket made with Object Lock on a store that honours it, or take `lock` out \
                 of the tier"
                    .to_owned(),
            ),
            Self::Condemned { .. } | Self::WriterFailed => {
                Some("run the backup again".to_owned())
            }
            _ => None,
        }
    }
}

impl From<BackendError> for StoreError {
    fn from(source: BackendError) -> Self {
        Self::Backend {
            action: "an operation".to_owned(),
            place: source.place().to_owned(),
            source,
        }
    }
}
