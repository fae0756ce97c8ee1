//! For tests only: repositories in temporary folders, an S3 protocol server within the process, and
//! the file system as it would be after a power cut.
//!
//! Depending on this crate switches on feature `testing` of `dr-store`, which no release carries;
//! that is why it is not among the workspace's default members. Unit tests inside `dr-store` must not
//! use it: the types would be those of another copy of the crate.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot be set up fails at once, at the place that says why"
)]

mod faulty;
mod power_cut;
mod proxy;
mod real_s3;
mod repository;
mod s3;

pub use faulty::{Failure, Fault, FaultyBackend, Operation, Recorded, When};
pub use power_cut::drop_unsynced;
pub use proxy::{FaultyProxy, ProxyFault, ProxyRule, SeenRequest};
pub use real_s3::{RawS3, RealS3};
pub use repository::{TempRepository, files_point, meta};
pub use s3::{ACCESS_KEY, S3Server, SECRET_KEY};
