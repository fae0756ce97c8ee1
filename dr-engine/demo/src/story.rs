//! The story of `dr demo`: the product's own commands run one after the other, each shown as it runs.
//!
//! Everything lives under one folder that the story makes and marks (`folder`). Servers are private, on
//! free loopback ports, started as children of this process and stopped when it ends, whatever the
//! reason (`world`). What the story shows is what a person would type (`shell`): it calls no engine
//! crate, so that it cannot show anything the command line cannot do.
//!
//! A crash leaves the folder and perhaps servers; `dr demo --clean`, and the next `dr demo`, end
//! what the folder's notes name and remove it.

mod closing;
mod error;
mod folder;
mod game_days;
mod mistake;
mod protect;
mod shell;
mod world;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use error::StoryError;
pub use folder::clean;

/// A drill that is interrupted removes its sandbox first.
const INTERRUPTED_TIME_MAX: Duration = Duration::from_secs(45);

/// Where the story is told.
pub trait Narrator: Send + Sync {
    /// Says one line.
    fn line(&self, text: &str);
}

/// What to tell, and where.
#[derive(Debug, Clone)]
pub struct StoryRequest {
    /// The demo's folder; made anew.
    pub folder: PathBuf,
    /// The `dr` binary whose commands are shown.
    pub dr_binary: PathBuf,
}

/// Tells the story; true when every objective was met.
///
/// # Errors
/// The first chapter that failed, and why. Whatever was started is stopped.
pub async fn story(
    request: &StoryRequest,
    narrator: Arc<dyn Narrator>,
    cancel: CancellationToken,
) -> Result<bool, StoryError> {
    let mut world = world::World::prepare(request, narrator, cancel.clone())?;
    let told = {
        let telling = tell(&mut world);
        tokio::pin!(telling);
        tokio::select! {
            told = &mut telling => told,
            // The command that is running is asked to end and cleans up what it made.
            () = cancel.cancelled() => tokio::time::timeout(INTERRUPTED_TIME_MAX, telling)
                .await
                .unwrap_or(Err(StoryError::Interrupted)),
        }
    };
    // The servers are stopped on every path; on the good one, before the last word.
    let stopped = tokio::task::spawn_blocking(move || {
        world.stop_everything();
        world
    })
    .await;
    let ending = told?;
    if let Ok(world) = stopped {
        closing::tell(&world.shell, &ending);
    }
    Ok(ending.objectives_met)
}

async fn tell(world: &mut world::World) -> Result<closing::Ending, StoryError> {
    let mut ending = closing::Ending::default();
    world
        .shell
        .chapter("1. The business: an ERP, its queue and its configuration");
    world.build().await?;
    world
        .shell
        .chapter("2. Protection: a repository, a key, a promise for each workload");
    protect::initialise(world).await?;
    world
        .shell
        .chapter("3. Unattended: `dr serve` keeps the promises while everyone works");
    protect::serve(world, &mut ending).await?;
    world
        .shell
        .chapter("4. A mistake: one tenant is wiped, everyone else keeps working");
    mistake::happen_and_recover(world, &mut ending).await?;
    world
        .shell
        .chapter("5. Game days: something is really broken, and recovered by the runbook");
    game_days::hold(world, &mut ending).await?;
    Ok(ending)
}
