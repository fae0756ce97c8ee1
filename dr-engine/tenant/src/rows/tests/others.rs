//! Sessions of other tenants that write while one is restored: real connections, a transaction for each statement,
//! and every acknowledged one recorded.

use std::task::Poll;

use futures::future::{join, join_all};

use super::judge::{Effect, people, tell};
use super::schemas::{Dice, Schema};
use super::*;

pub(super) const TENANTS: [&str; 4] = ["1", "2", "3", "4"];

/// A session lets so many answers of the server to anybody go by before it writes again: else all would do nothing
/// but write.
const OTHER_ANSWERS: usize = 5;

/// Carries out `restoring` while all other tenants write; also gives what was acknowledged to them. At which
/// instants they write is left to the machine; what they have written is known.
pub(super) async fn meanwhile<T>(
    bench: &Bench,
    schema: &Schema,
    victim: &str,
    seed: u64,
    restoring: impl Future<Output = T>,
) -> (T, Vec<Effect>) {
    let done = CancellationToken::new();
    let mut sessions = Vec::new();
    for (number, tenant) in (1..).zip(TENANTS) {
        if tenant != victim {
            let connection = people(bench).await;
            let dice = Dice(seed.wrapping_mul(31).wrapping_add(number));
            sessions.push(work(connection, schema, tenant, dice, &done));
        }
    }
    let ended = async {
        let outcome = restoring.await;
        done.cancel();
        outcome
    };
    let (outcome, effects) = join(ended, join_all(sessions)).await;
    (outcome, effects.into_iter().flatten().collect())
}

/// Writes for one tenant until it is told to end.
async fn work(
    mut connection: PgConnection,
    schema: &Schema,
    tenant: &str,
    mut dice: Dice,
    done: &CancellationToken,
) -> Vec<Effect> {
    let mut effects = Vec::new();
    while !done.is_cancelled() {
        if let Some((table, statement)) = schema.daily_work(&mut dice, tenant) {
            effects.extend(tell(&mut connection, &table, &statement).await);
        }
        turn(done).await;
    }
    connection.close().await.unwrap();
    effects
}

/// Waits for its turn. All sessions and the restore are one task, which every answer wakes.
async fn turn(done: &CancellationToken) {
    let mut left = OTHER_ANSWERS;
    std::future::poll_fn(|_| {
        if left == 0 || done.is_cancelled() {
            return Poll::Ready(());
        }
        left -= 1;
        Poll::Pending
    })
    .await;
}
