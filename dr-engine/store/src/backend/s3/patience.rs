//! How long a store is waited for, and how often it is asked again.
//!
//! The SDK's own retries are switched off: they end with the head of an answer, and a body that is cut
//! in the middle is the commonest failure of all. So every request, body and checks included, is one
//! attempt here, and all attempts go through [`Patience::retried`].

use std::future::Future;
use std::time::Duration;

use dr_model::{Clock, SystemClock};

use super::answer::Answer;

/// How long a store is waited for, and how often it is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For opening a connection.
    pub connect: Duration,
    /// For one attempt, beside the time its bytes take.
    pub attempt: Duration,
    /// The slowest line that is still waited for: one attempt's time grows by size over this.
    pub bytes_per_second_min: u64,
    /// Attempts of one request, the first included.
    pub attempts_max: u32,
    /// The pause after the first failed attempt; it doubles with each, and is shortened at random by
    /// up to a half, so that many clients do not come back at the same moment.
    pub pause: Duration,
    /// The pause grows no longer than this.
    pub pause_max: Duration,
}

impl Default for Patience {
    /// A store that refuses connections is given up after about 6 s, one that is silent after two
    /// minutes, one that answers 503 after about 6 s.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            attempt: Duration::from_secs(20),
            bytes_per_second_min: 128 << 10,
            attempts_max: 6,
            pause: Duration::from_millis(200),
            pause_max: Duration::from_secs(5),
        }
    }
}

/// Which attempt this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attempt {
    pub(super) is_last: bool,
}

impl Patience {
    /// The time for so many bytes.
    pub(super) fn time_for(&self, bytes: u64) -> Duration {
        self.attempt + Duration::from_secs(bytes / self.bytes_per_second_min.max(1))
    }

    /// Ends what takes longer than so many bytes may take.
    pub(super) async fn within<T>(
        &self,
        bytes: u64,
        work: impl Future<Output = T>,
    ) -> Result<T, Answer> {
        let limit = self.time_for(bytes);
        tokio::time::timeout(limit, work).await.map_err(|_| {
            Answer::Unreachable(format!("no end of the answer within {} s", limit.as_secs()).into())
        })
    }

    fn pause_after(&self, tried: u32) -> Duration {
        let doubled = self
            .pause
            .saturating_mul(1 << tried.saturating_sub(1).min(16));
        let longest = doubled.min(self.pause_max);
        let mut random = [0u8; 1];
        dr_model::random::fill(&mut random);
        longest - longest.mul_f64(f64::from(random[0]) / 512.0)
    }

    /// Asks again until the answer is one that asking again would not change. Pauses included, all
    /// attempts take no longer than so many silent ones.
    pub(super) async fn retried<T, F>(
        &self,
        bytes: u64,
        mut attempt: impl FnMut(Attempt) -> F,
    ) -> Result<T, Answer>
    where
        F: Future<Output = Result<T, Answer>>,
    {
        let began = SystemClock.monotonic_ns();
        let in_all = self.time_for(bytes).saturating_mul(self.attempts_max);
        let mut tried = 0;
        loop {
            tried += 1;
            let is_last = tried >= self.attempts_max;
            let answer = match attempt(Attempt { is_last }).await {
                Err(answer) if answer.may_pass() && !is_last => answer,
                other => return other,
            };
            let passed = Duration::from_nanos(SystemClock.monotonic_ns().saturating_sub(began));
            let pause = self.pause_after(tried);
            if passed + pause >= in_all {
                return Err(answer);
            }
            tracing::debug!(tried, reason = answer.text(), "asking the store again");
            tokio::time::sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quick() -> Patience {
        Patience {
            pause: Duration::from_millis(1),
            ..Patience::default()
        }
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(work)
    }

    #[test]
    fn what_may_pass_is_tried_again_and_nothing_else() {
        let mut asked = 0;
        let answer: Result<(), Answer> = run(quick().retried(0, |_| {
            asked += 1;
            async { Err(Answer::Unreachable("503".into())) }
        }));
        assert!(matches!(answer, Err(Answer::Unreachable(_))));
        assert_eq!(asked, 6);
        let mut asked = 0;
        let answer: Result<(), Answer> = run(quick().retried(0, |_| {
            asked += 1;
            async { Err(Answer::Refused("403".into())) }
        }));
        assert!(matches!(answer, Err(Answer::Refused(_))));
        assert_eq!(asked, 1);
    }

    #[test]
    fn the_last_attempt_knows_that_it_is() {
        let mut told = Vec::new();
        let _: Result<(), Answer> = run(quick().retried(0, |attempt| {
            told.push(attempt.is_last);
            async { Err(Answer::Unreachable("503".into())) }
        }));
        assert_eq!(told, [false, false, false, false, false, true]);
    }

    #[test]
    fn pauses_grow_within_their_limits() {
        let patience = Patience::default();
        for _ in 0..100 {
            for (tried, longest) in [(1, 200), (2, 400), (5, 3200), (6, 5000), (60, 5000)] {
                let pause = patience.pause_after(tried).as_millis();
                assert!((longest / 2..=longest).contains(&pause), "{tried}: {pause}");
            }
        }
    }

    #[test]
    fn a_large_object_is_waited_for_longer() {
        let patience = Patience::default();
        assert_eq!(patience.time_for(0).as_secs(), 20);
        assert_eq!(patience.time_for(16 << 20).as_secs(), 148);
    }

    #[test]
    fn a_silent_store_is_given_up() {
        let patience = Patience {
            attempt: Duration::from_millis(20),
            ..quick()
        };
        let answer: Result<(), Answer> = run(patience.retried(0, |_| async {
            patience.within(0, std::future::pending()).await
        }));
        assert!(matches!(answer, Err(Answer::Unreachable(_))));
    }
}
