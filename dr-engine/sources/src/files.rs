//! Folders of files: capturing one, putting it back, comparing it with what is stored.
//!
//! **Capture** walks the folder without following links and hands every regular file, folder and
//! symbolic link to the sink, with mode, owner and modification time. A folder is live: a file that
//! vanishes between its listing and its opening is left out, with a note; one that changes while it
//! is read is read again, and after [`capture::ATTEMPTS`] attempts it is taken as last read and
//! listed as changing. Sockets, pipes and devices are skipped with a note. A name that is not UTF-8
//! ends the capture: it could not be written back under its own name.
//!
//! **Putting back** ([`FolderWriter`]) writes below one folder and nowhere else. It opens every
//! component of a path by itself, refusing links (openat2-like, with `O_NOFOLLOW`), so that neither
//! a stored `..` nor a link that someone put into the target leads out of it. A file is written
//! beside its final name, flushed, given mode, owner and time, and renamed over it: at any instant
//! the old or the new file is there whole. Folder times and modes are set last ([`FolderWriter::finish`]),
//! because writing into a folder changes its time and a mode without `w` would stop us.
//!
//! **Comparing** ([`compare::differences`]) tells what of a tree is not as stored, by content and not
//! by time.

mod capture;
mod compare;
mod put_back;

pub use capture::{ATTEMPTS, CaptureSummary, capture, capture_selected};
pub use compare::{Difference, DifferenceKind, Expected, crc32c_of_file, differences};
pub use put_back::{FolderWriter, safe_path};
