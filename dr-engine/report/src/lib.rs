//! What a drill leaves for people: reports as plain versioned values, and their renderings.
//!
//! Pure: a value goes in, a text comes out. Nothing here measures or judges; the drill crate fills the
//! values in. A field that nobody measured or gave is `None`, is stored as `null`, and is printed as
//! "not measured" or "not given": a report never hides a gap by leaving it out.
//!
//! The HTML stands alone: one file, styles inside, pictures as SVG in the text, no script, nothing
//! loaded from anywhere. It can be mailed, printed and archived.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

pub mod certificate;
mod drill;
pub mod html;
mod quarter;

pub use drill::*;
pub use quarter::{
    OpenFinding, QuarterFacts, QuarterReport, QuarterRun, RestoreTests, Staleness, quarter_of,
};
