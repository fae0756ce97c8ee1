//! Folders of files: capturing one, putting it back, comparing it with what is stored.
//!
//! **Capture** walks the folder with several threads, without following links, and hands every regular
//! file, folder and symbolic link to the sink, with mode, owner and times. A file that the sink knows to
//! be unchanged is not read. A folder is live: a file that vanishes between its listing and its opening
//! is left out, with a note; one that changes while it is read is read again, and after
//! [`capture::ATTEMPTS`] attempts (a very large one: after the first) it is taken as last read and
//! listed as changing. Sockets, pipes and devices are skipped with a note. A name that is not UTF-8 ends
//! the capture: it could not be written back under its own name.
//!
//! **Putting back** ([`FolderWriter`]) writes below one folder and nowhere else. Folders are opened
//! below it by a call that refuses links and `..` in every component, so that neither a stored `..` nor
//! a link that someone put into the target leads out of it. A file is written beside its final name,
//! given mode, owner and time, and renamed: at any instant the old or the new file is there whole. What
//! replaces a file is flushed before; all else is flushed at the end, much of it by one call for each
//! file system ([`Flush`]), so that a crash before that may leave new files short or empty. Folder times and modes
//! are set just before ([`FolderWriter::finish`]), because writing into a folder changes its time and a
//! mode without `w` would stop us.
//!
//! **Comparing** ([`compare::differences`]) tells what of a tree is not as stored, by content and not
//! by time.

mod below;
mod capture;
mod compare;
mod early;
mod flush;
mod past_cache;
mod put_back;

pub use capture::{ATTEMPTS, CaptureSummary, capture, capture_selected};
pub use compare::{Difference, DifferenceKind, Expected, crc32c_of_file, differences};
pub use early::EarlyWrites;
pub use flush::Flush;
pub use past_cache::PastCache;
pub use put_back::{FolderWriter, safe_path};
