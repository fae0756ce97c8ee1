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
pub mod erp;
mod error;

pub use configuration::write_configuration;
pub use error::DemoError;
