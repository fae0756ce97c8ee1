//! Reading PostgreSQL's write-ahead log: pages, records, and what they say about blocks and
//! transactions. Versions 14 to 18.
//!
//! Everything here is computed over bytes that the caller has; nothing reads a file or a clock. The
//! layout of pages and records is nowhere in PostgreSQL's documentation: it is what the headers in its
//! source say (`access/xlogrecord.h`, `access/xlog_internal.h`, `access/xact.h`, `access/heapam_xlog.h`,
//! `catalog/storage_xlog.h`, `commands/dbcommands_xlog.h`), and tests compare each record with
//! `pg_waldump`.
//!
//! What cannot be told is said to be unknown, never guessed: a resource manager that is not known, a
//! record whose checksum is wrong, a page of another version.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod bytes;
pub mod page;
mod pglz;
pub mod reader;
pub mod record;
pub mod rows;
pub mod summary;
pub mod transaction;
pub mod tuple;

pub use reader::{Reader, WalError};
pub use record::{Block, Fork, Manager, Record, Relation};
pub use rows::{RowChange, RowPlace, Written, row_changes};
pub use summary::{Change, Summary};
pub use transaction::{Ended, NamedPoint, Outcome, Running};
pub use tuple::{Layout, Tuple, Value};
