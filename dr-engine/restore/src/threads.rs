//! Many files at once.

use std::num::NonZero;
use std::sync::{Mutex, PoisonError};

/// Half of them wait for the disk or the repository while the others compute.
const THREADS_PER_CORE: usize = 2;
/// The same where each request waits for a network.
const THREADS_PER_CORE_FAR: usize = 4;
/// More would only take packs away from each other.
const THREADS_MAX: usize = 8;
/// What is taken at once: neighbours, which lie in one folder and in one pack.
const STRETCH_MAX: usize = 16;
/// So many shares are made of what is left: at the end single files are taken, so that large ones are
/// spread over all threads.
const SHARES_PER_THREAD: usize = 2;

/// Does `work` for every one of `jobs` with several threads, each going forward; `is_far` says that what
/// it reads from is behind a network. The first failure ends it, when what was begun is done.
///
/// # Errors
/// The first of `work`.
pub(crate) fn each<T: Sync, E: Send>(
    jobs: &[T],
    is_far: bool,
    work: impl Fn(&T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let per_core = match is_far {
        true => THREADS_PER_CORE_FAR,
        false => THREADS_PER_CORE,
    };
    let threads = (cores * per_core).min(THREADS_MAX).min(jobs.len());
    let left = Mutex::new(jobs);
    let failed = Mutex::new(None);
    let is_over = || lock(&failed).is_some();
    let take = || {
        let mut left = lock(&left);
        let share = left.len() / (SHARES_PER_THREAD * threads);
        let (taken, rest) = left.split_at_checked(share.clamp(1, STRETCH_MAX))?;
        *left = rest;
        Some(taken)
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(stretch) = take() {
                    for job in stretch {
                        if is_over() {
                            return;
                        }
                        if let Err(error) = work(job) {
                            lock(&failed).get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_job_is_done_once() {
        for count in [0, 1, 3, 1000] {
            let jobs: Vec<usize> = (0..count).collect();
            let done = Mutex::new(BTreeSet::new());
            let result: Result<(), ()> = each(&jobs, count == 3, |job| {
                assert!(done.lock().unwrap().insert(*job), "{job} came twice");
                Ok(())
            });
            assert_eq!(result, Ok(()));
            assert_eq!(done.lock().unwrap().len(), count);
        }
    }

    #[test]
    fn the_first_failure_ends_the_work() {
        let jobs: Vec<usize> = (0..100_000).collect();
        let done = Mutex::new(0);
        let result = each(&jobs, true, |job| {
            *done.lock().unwrap() += 1;
            if *job == 100 { Err("no") } else { Ok(()) }
        });
        assert_eq!(result, Err("no"));
        assert!(*done.lock().unwrap() < 50_000);
    }
}
