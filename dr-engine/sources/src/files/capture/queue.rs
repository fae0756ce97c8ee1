//! What is left to do, and who is at it.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Names taken at once: the queue's lock costs nothing then.
const NAMES_MAX: usize = 64;
/// So many shares are made of what is left of a folder: at its end single names are taken, so that
/// large files are spread over all threads.
const SHARES_PER_THREAD: usize = 2;

/// A folder that is to be listed.
#[derive(Debug)]
pub(super) struct Unlisted {
    /// Its path below the root; empty for the root.
    pub(super) path: String,
    /// How many folders it is below the root.
    pub(super) depth: usize,
}

/// A folder whose names are known.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) path: String,
    pub(super) depth: usize,
    pub(super) folder: OwnedFd,
    /// In order, without repetition.
    pub(super) names: Vec<String>,
}

#[derive(Debug)]
pub(super) enum Task {
    List(Unlisted),
    /// Names `from..to` of a folder.
    Capture {
        folder: Arc<Listed>,
        from: usize,
        to: usize,
    },
}

#[derive(Debug)]
pub(super) struct Queue {
    threads: usize,
    /// Changed only under the lock of `state`; read without it between two names.
    stopped: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Last in, first out: what is nearest to the end of the tree is finished first, and the list
    /// stays as short as the tree is deep.
    unlisted: Vec<Unlisted>,
    /// With the first name that nobody took yet.
    listed: Vec<(Arc<Listed>, usize)>,
    /// Threads that may still add something.
    working: usize,
}

/// A thread is at a task until this is dropped, even by a panic.
#[derive(Debug)]
pub(super) struct Working<'a>(&'a Queue);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.working -= 1;
        if std::thread::panicking() {
            self.0.stopped.store(true, Ordering::Relaxed);
        }
        if state.working == 0 || self.0.is_stopped() {
            self.0.changed.notify_all();
        }
    }
}

impl Queue {
    /// A queue with the root in it.
    pub(super) fn new(threads: usize) -> Self {
        let root = Unlisted {
            path: String::new(),
            depth: 0,
        };
        let state = State {
            unlisted: vec![root],
            ..State::default()
        };
        Self {
            threads,
            stopped: AtomicBool::new(false),
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Waits for something to do; `None` when all is done or was stopped.
    pub(super) fn next(&self) -> Option<(Task, Working<'_>)> {
        let mut state = self.state();
        loop {
            if self.is_stopped() {
                return None;
            }
            if let Some(task) = self.take(&mut state) {
                state.working += 1;
                return Some((task, Working(self)));
            }
            if state.working == 0 {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take(&self, state: &mut State) -> Option<Task> {
        while let Some((folder, next)) = state.listed.last_mut() {
            let left = folder.names.len().saturating_sub(*next);
            if left > 0 {
                let share = left / (SHARES_PER_THREAD * self.threads);
                let from = *next;
                *next += share.clamp(1, NAMES_MAX);
                return Some(Task::Capture {
                    folder: Arc::clone(folder),
                    from,
                    to: *next,
                });
            }
            state.listed.pop();
        }
        state.unlisted.pop().map(Task::List)
    }

    pub(super) fn add_folder(&self, folder: Unlisted) {
        self.state().unlisted.push(folder);
        self.changed.notify_one();
    }

    pub(super) fn add_names(&self, folder: Listed) {
        self.state().listed.push((Arc::new(folder), 0));
        self.changed.notify_all();
    }

    /// Nobody begins anything new.
    pub(super) fn stop(&self) {
        let state = self.state();
        self.stopped.store(true, Ordering::Relaxed);
        drop(state);
        self.changed.notify_all();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(names: usize) -> Listed {
        Listed {
            path: String::new(),
            depth: 0,
            folder: std::fs::File::open("/").unwrap().into(),
            names: (0..names).map(|n| format!("{n:06}")).collect(),
        }
    }

    #[test]
    fn names_are_shared_out_once_each_and_singly_at_the_end() {
        let queue = Queue::new(4);
        let (Task::List(_), working) = queue.next().unwrap() else {
            panic!("the root is to be listed first");
        };
        queue.add_names(listed(1000));
        drop(working);
        let (mut expected, mut shares) = (0, Vec::new());
        while let Some((task, _working)) = queue.next() {
            let Task::Capture { from, to, .. } = task else {
                panic!("there is no other folder");
            };
            assert_eq!(from, expected);
            expected = to;
            shares.push(to - from);
        }
        assert_eq!(expected, 1000);
        assert_eq!(shares.first(), Some(&NAMES_MAX));
        assert!(shares.iter().rev().take(8).all(|share| *share == 1));
    }

    #[test]
    fn nobody_leaves_while_another_may_add_something() {
        let queue = Queue::new(2);
        let (_, working) = queue.next().unwrap();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| queue.next().is_some());
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!other.is_finished());
            queue.add_folder(Unlisted {
                path: "a".to_owned(),
                depth: 1,
            });
            drop(working);
            assert!(other.join().unwrap());
        });
        assert!(queue.next().is_none());
    }

    #[test]
    fn a_thread_that_panics_stops_the_others() {
        let queue = Queue::new(2);
        std::thread::scope(|scope| {
            let working = scope.spawn(|| {
                let _working = queue.next();
                std::panic::resume_unwind(Box::new(()));
            });
            assert!(working.join().is_err());
        });
        assert!(queue.is_stopped() && queue.next().is_none());
    }
}
