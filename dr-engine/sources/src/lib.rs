//! Capturing data from its sources and putting it back: PostgreSQL clusters, NATS streams, folders.
//!
//! Nothing here knows where captured data is kept. A source hands [`item::Item`]s to an
//! [`item::ItemSink`], and what comes back is ordinary files in a folder, plus what the system they
//! belong to needs to start from them. A source is never written to: a capture that ends in the
//! middle, however it ends, leaves the source as it was.
//!
//! [`instance`] starts private servers, for scratch restores, drills, the demo and tests alike.
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

pub mod error;
pub mod files;
pub mod instance;
pub mod item;
pub mod nats;
pub mod postgres;

pub use error::SourceError;
pub use item::{ContentKind, Item, ItemKind, ItemSink, SinkError};
