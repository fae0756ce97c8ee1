//! What `dr demo` shows its product on: an ERP with many tenants, its configuration folders, its
//! outbox relay and the consumer behind it.
//!
//! Only this crate (and the test kit) knows a table, stream or folder of that ERP. Everything is
//! real: the rows are in PostgreSQL, the events go through a JetStream stream, the folders have
//! links and modes. Nothing here is needed to protect another system.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

pub mod configuration;
pub mod consumer;
pub mod erp;
mod error;
pub mod relay;
mod story;

pub use configuration::write_configuration;
pub use error::DemoError;
pub use story::{Narrator, StoryError, StoryRequest, clean, story};

use std::path::Path;

use tokio_util::sync::CancellationToken;

/// Runs the outbox relay and the consumer behind it until `cancel` is triggered.
///
/// # Errors
/// The first error of either; the other one is stopped then.
pub async fn relay_and_consume(
    database_url: &str,
    nats_url: &str,
    log_file: &Path,
    cancel: CancellationToken,
) -> Result<(), DemoError> {
    let relay = relay::RelayOptions {
        database_url: database_url.to_owned(),
        nats_url: nats_url.to_owned(),
    };
    let consumer = consumer::ConsumerOptions {
        nats_url: nats_url.to_owned(),
        log_file: log_file.to_owned(),
    };
    tokio::try_join!(
        relay::run(&relay, &cancel),
        consumer::run(&consumer, &cancel)
    )
    .map(|_| ())
}
