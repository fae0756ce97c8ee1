//! Can it still be read, and by somebody else? Repositories that are made now, and those that were made
//! once and are never edited, read by a program that was written from `docs/FORMAT.md` alone
//! (`tests/format/reader.py`). That today's program reads and goes on in the old ones is tested in
//! `dr-engine/store/tests/golden.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod flipped;
mod fresh;
mod golden;
mod reader;
