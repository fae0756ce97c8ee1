//! An installation: what one configuration names, opened on demand.
//!
//! A verb opens an [`Installation`] from the engine file and asks it for the repositories and the
//! catalog it needs. Opening is lazy so that a verb only depends on what it uses: `wal push` must work
//! with the catalog locked or gone. Only [`init`] and [`adopt`] create anything; every other
//! path refuses when a repository is missing, because an unmounted disk must not become an empty
//! repository.
//!
//! Order of creation in [`init`]: configuration, key, repository, catalog. A crash leaves a prefix of
//! these, and running it again goes on from there. A key is durable before the repository that it
//! opens exists.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod adopt;
mod error;
mod init;
mod key;
mod open;
mod place;
mod rebuild;
mod rotate;
mod snapshot;

pub use adopt::{AdoptRequest, AdoptSource, adopt};
pub use error::InstallationError;
pub use init::{InitOutcome, InitRequest, init};
pub use key::{key_of, key_place, secret, write_new_key};
pub use open::{Installation, open_for_wal};
pub use place::{create_folder, write_new_file};
pub use rebuild::RebuildReport;
pub use rotate::{RotationOutcome, rotate_key};
pub use snapshot::ConfigurationSnapshot;
