//! Many files at once.

use std::num::NonZero;
use std::sync::{Mutex, PoisonError};

/// Half of them wait for the disk or the repository while the others compute.
const THREADS_PER_CORE: usize = 2;
/// The same where each request waits for a network.
const THREADS_PER_CORE_FAR: usize = 4;
/// More would only take packs away from each other.
const THREADS_MAX: usize = 8;
/// A file of this size or more keeps a thread busy for a while, and is taken by itself.
const LARGE_BYTES: u64 = 4 << 20;
/// What is taken at once of smaller ones: neighbours, which lie in one folder and in one pack.
const STRETCH_MAX: usize = 16;
/// So many shares are made of what is left: at the end single files are taken, so that large ones are
/// spread over all threads.
const SHARES_PER_THREAD: usize = 2;

/// Does `work` for every one of `jobs` with several threads; `is_far` says that what it reads from is behind a
/// network. Large ones come first, by `bytes`: one that came last would keep one thread while the others have nothing
/// left to do. Of about the same size, and small ones, they come in the order given. The first failure ends it, when
/// what was begun is done.
///
/// # Errors
/// The first of `work`.
pub(crate) fn each<T: Sync, E: Send>(
    jobs: &[T],
    bytes: impl Fn(&T) -> u64,
    is_far: bool,
    work: impl Fn(&T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let per_core = match is_far {
        true => THREADS_PER_CORE_FAR,
        false => THREADS_PER_CORE,
    };
    let threads = (cores * per_core).min(THREADS_MAX).min(jobs.len());
    let (large, small) = in_order(jobs, bytes);
    let left = Mutex::new((large.as_slice(), small.as_slice()));
    let failed = Mutex::new(None);
    let is_over = || lock(&failed).is_some();
    let take = || {
        let mut left = lock(&left);
        let (large, small) = &mut *left;
        if let Some((one, rest)) = large.split_at_checked(1) {
            *large = rest;
            return Some(one);
        }
        let share = small.len() / (SHARES_PER_THREAD * threads);
        let (taken, rest) = small.split_at_checked(share.clamp(1, STRETCH_MAX))?;
        *small = rest;
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

/// Large jobs, the largest first, and the others.
fn in_order<T>(jobs: &[T], bytes: impl Fn(&T) -> u64) -> (Vec<&T>, Vec<&T>) {
    let (mut large, small): (Vec<&T>, Vec<&T>) =
        jobs.iter().partition(|job| bytes(job) >= LARGE_BYTES);
    // By power of two: files that were captured side by side stay beside each other.
    large.sort_by_key(|job| std::cmp::Reverse(bytes(job).checked_ilog2()));
    (large, small)
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
            let bytes = |job: &usize| (*job as u64) << 18;
            let result: Result<(), ()> = each(&jobs, bytes, count == 3, |job| {
                assert!(done.lock().unwrap().insert(*job), "{job} came twice");
                Ok(())
            });
            assert_eq!(result, Ok(()));
            assert_eq!(done.lock().unwrap().len(), count);
        }
    }

    #[test]
    fn large_ones_come_first_and_neighbours_of_about_a_size_together() {
        let mib = [0, 70, 5, 1, 900, 80, 3, 6];
        let (large, small) = in_order(&mib, |mib| mib << 20);
        assert_eq!(large, [&900, &70, &80, &5, &6]);
        assert_eq!(small, [&0, &1, &3]);
    }

    #[test]
    fn the_first_failure_ends_the_work() {
        let jobs: Vec<usize> = (0..100_000).collect();
        let done = Mutex::new(0);
        let result = each(
            &jobs,
            |_| 0,
            true,
            |job| {
                *done.lock().unwrap() += 1;
                if *job == 100 { Err("no") } else { Ok(()) }
            },
        );
        assert_eq!(result, Err("no"));
        assert!(*done.lock().unwrap() < 50_000);
    }
}
