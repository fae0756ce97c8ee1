//! A decorator around any place that records what is done and goes wrong as told.
//!
//! For a suite that fails every step of a run: run once with a recorder, read [`FaultyBackend::record`],
//! and run again for each recorded operation with one fault at it.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use dr_testkit::{Fault, FaultyBackend, When};
//! # fn run(_: Arc<FaultyBackend>) {}
//! # fn place() -> Arc<dyn dr_store::Backend> { unimplemented!() }
//! let recorder = Arc::new(FaultyBackend::new(place()));
//! run(Arc::clone(&recorder));
//! for operation in recorder.record() {
//!     let dies = FaultyBackend::new(place()).with(When::Number(operation.number), Fault::DieBefore);
//!     run(Arc::new(dies));
//! }
//! ```
//!
//! A process that dies takes everything with it: after [`Fault::DieBefore`] and [`Fault::DieAfter`]
//! every operation fails until [`FaultyBackend::revive`]. What several threads do is numbered in the
//! order in which it begins, which differs from run to run; [`When::Nth`] names an operation by what it
//! does instead.

mod place;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dr_store::{Backend, BackendError};

/// An operation of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `put_new` and `put_new_with`.
    Put,
    /// `get`.
    Get,
    /// `get_range`.
    GetRange,
    /// `list`.
    List,
    /// `delete`.
    Delete,
    /// `now`.
    Now,
    /// `prepare`; the trials in it are not recorded.
    Prepare,
    /// `probe_capabilities`; the trials in it are not recorded.
    Probe,
    /// `sweep`.
    Sweep,
    /// `versions`.
    Versions,
    /// `get_version`.
    GetVersion,
    /// `undelete`.
    Undelete,
    /// `delete_all_versions`.
    DeleteAllVersions,
    /// `lock_of`.
    LockOf,
    /// `extend_lock`.
    ExtendLock,
}

impl Operation {
    /// Whether it changes what is stored; killing after one that does not equals killing before the
    /// next.
    #[must_use]
    pub fn changes(self) -> bool {
        matches!(
            self,
            Self::Put
                | Self::Delete
                | Self::Prepare
                | Self::Sweep
                | Self::Undelete
                | Self::DeleteAllVersions
                | Self::ExtendLock
        )
    }
}

/// One operation of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Its number, from 1, in the order in which operations began.
    pub number: u64,
    /// What it was.
    pub operation: Operation,
    /// The object, or the prefix of a listing; empty where there is none.
    pub name: String,
    /// The size of what was to be written, or of the part that was asked for.
    pub bytes: u64,
    /// What was done to it.
    pub fault: Option<Fault>,
}

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// [`BackendError::Unreachable`].
    Unreachable,
    /// [`BackendError::Full`].
    Full,
    /// [`BackendError::NotPermitted`].
    NotPermitted,
    /// [`BackendError::Refused`].
    Refused,
    /// [`BackendError::Store`].
    Store,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process dies before the operation reaches the place.
    DieBefore,
    /// The process dies after the place did it and before the caller knows.
    DieAfter,
    /// The operation fails and changes nothing; the next one works.
    Fail(Failure),
    /// The place does it and the answer is lost: the caller is told of a time-out.
    LoseAnswer,
}

/// When it goes wrong; once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    /// At the operation of this number.
    Number(u64),
    /// At the `nth` operation (from 1) of a kind on names that begin so.
    Nth {
        /// The kind.
        operation: Operation,
        /// How the name begins.
        prefix: String,
        /// Which of them.
        nth: u64,
    },
}

#[derive(Debug)]
struct Plan {
    when: When,
    fault: Fault,
    passed: u64,
    used: bool,
}

#[derive(Debug, Default)]
struct State {
    record: Vec<Recorded>,
    plans: Vec<Plan>,
    dead: bool,
    /// Names in the order in which they were stored through here.
    stored: Vec<String>,
}

/// A place that records and goes wrong as told.
#[derive(Debug)]
pub struct FaultyBackend {
    inner: Arc<dyn Backend>,
    latency: Duration,
    late: usize,
    overwrites: bool,
    ignores_locks: bool,
    state: Mutex<State>,
}

impl FaultyBackend {
    /// Only records.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Self {
            inner,
            latency: Duration::ZERO,
            late: 0,
            overwrites: false,
            ignores_locks: false,
            state: Mutex::default(),
        }
    }

    /// Plans a fault; several may be planned.
    #[must_use]
    pub fn with(self, when: When, fault: Fault) -> Self {
        self.plan(when, fault);
        self
    }

    /// Every operation takes this much longer, as to a store some way off (20 ms is usual).
    #[must_use]
    pub fn with_latency(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    /// Listings lack the newest objects that were stored through here, this many; reading finds them.
    #[must_use]
    pub fn listing_late(mut self, newest: usize) -> Self {
        self.late = newest;
        self
    }

    /// Accepts `If-None-Match` and locks and ignores them without a word, as garage does.
    #[must_use]
    pub fn failing_open(mut self) -> Self {
        self.overwrites = true;
        self.ignores_locks = true;
        self
    }

    /// Plans a fault while it is in use.
    pub fn plan(&self, when: When, fault: Fault) {
        self.state().plans.push(Plan {
            when,
            fault,
            passed: 0,
            used: false,
        });
    }

    /// Everything that was asked, in the order in which it began. What a dead process asks is not.
    #[must_use]
    pub fn record(&self) -> Vec<Recorded> {
        self.state().record.clone()
    }

    /// Forgets the record; numbers begin at 1 again.
    pub fn forget(&self) {
        self.state().record.clear();
    }

    /// Whether the process died.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// Another process begins: operations work again. Plans that were not used up stay.
    pub fn revive(&self) {
        self.state().dead = false;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an operation and finds the fault that is planned for it.
    fn begin(
        &self,
        operation: Operation,
        name: &str,
        bytes: usize,
    ) -> Result<Option<Fault>, BackendError> {
        std::thread::sleep(self.latency);
        let mut state = self.state();
        if state.dead {
            return Err(self.dead());
        }
        let number = u64::try_from(state.record.len()).unwrap_or(u64::MAX) + 1;
        let mut fault = None;
        for plan in &mut state.plans {
            let fits = match &plan.when {
                When::Number(at) => *at == number,
                When::Nth {
                    operation: kind,
                    prefix,
                    nth,
                } => {
                    let is_one = *kind == operation && name.starts_with(prefix.as_str());
                    plan.passed += u64::from(is_one);
                    is_one && plan.passed == *nth
                }
            };
            if fits && !plan.used && fault.is_none() {
                plan.used = true;
                fault = Some(plan.fault);
            }
        }
        state.record.push(Recorded {
            number,
            operation,
            name: name.to_owned(),
            bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
            fault,
        });
        Ok(fault)
    }

    /// Runs an operation with what is planned for it.
    fn run<T>(
        &self,
        operation: Operation,
        name: &str,
        bytes: usize,
        work: impl FnOnce() -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        match self.begin(operation, name, bytes)? {
            None => work(),
            Some(Fault::Fail(failure)) => Err(self.failure(failure, name)),
            Some(Fault::DieBefore) => {
                self.state().dead = true;
                Err(self.dead())
            }
            Some(Fault::DieAfter) => {
                let done = work();
                self.state().dead = true;
                done.and(Err(self.dead()))
            }
            Some(Fault::LoseAnswer) => work().and(Err(BackendError::Unreachable {
                action: "hear from",
                place: self.inner.describe(),
                source: "the answer was lost (a planned fault)".into(),
            })),
        }
    }

    fn dead(&self) -> BackendError {
        BackendError::Unreachable {
            action: "reach",
            place: self.inner.describe(),
            source: "the process is dead (a planned fault)".into(),
        }
    }

    fn failure(&self, failure: Failure, name: &str) -> BackendError {
        use std::io::{Error, ErrorKind};
        let action = "use";
        let place = format!("{}/{name}", self.inner.describe());
        let source = "a planned fault".into();
        match failure {
            Failure::Unreachable => BackendError::Unreachable {
                action,
                place,
                source,
            },
            Failure::Full => BackendError::Full {
                action,
                place,
                source: Error::from(ErrorKind::StorageFull),
            },
            Failure::NotPermitted => BackendError::NotPermitted {
                action,
                place,
                user: "user 0".to_owned(),
                source: Error::from(ErrorKind::PermissionDenied),
            },
            Failure::Refused => BackendError::Refused {
                action,
                place,
                source,
            },
            Failure::Store => BackendError::Store {
                action,
                place,
                source,
            },
        }
    }
}
