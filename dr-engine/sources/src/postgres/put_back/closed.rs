//! A restored cluster that nobody may open yet.
//!
//! Two lines at the end of `postgresql.auto.conf`, which every server reads last whatever configuration it is started
//! with, take away every address and socket; PostgreSQL then ends with "no socket created for listening". Only the
//! command line beats them. They are written before the control file is in place, and taken out by rename, so that a
//! crash at any moment leaves a cluster that does not open.

use std::path::Path;

use super::durable;
use crate::SourceError;

const AUTO_CONF: &str = "postgresql.auto.conf";
const MARKER: &str = "# dr: this copy is not finished and must not be opened";
const LINES: [&str; 2] = ["listen_addresses = ''", "unix_socket_directories = ''"];

fn text_of(data_directory: &Path) -> Result<String, SourceError> {
    let path = data_directory.join(AUTO_CONF);
    let bytes = std::fs::read(&path).map_err(SourceError::file("read", &path))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Keeps a cluster that has its recovery settings from being opened; durable on return.
///
/// # Errors
/// When the file cannot be read or written durably.
pub fn close_to_clients(data_directory: &Path) -> Result<(), SourceError> {
    let text = text_of(data_directory)?;
    let closed = format!("{}{MARKER}\n{}\n", without(&text), LINES.join("\n"));
    durable::write(data_directory, AUTO_CONF, closed.as_bytes()).map(drop)
}

/// Lets it be opened; durable on return.
///
/// # Errors
/// When the file cannot be read or written durably.
pub fn open_to_clients(data_directory: &Path) -> Result<(), SourceError> {
    let text = text_of(data_directory)?;
    durable::write(data_directory, AUTO_CONF, without(&text).as_bytes()).map(drop)
}

/// Whether it must not be opened.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn is_closed(data_directory: &Path) -> Result<bool, SourceError> {
    let there = data_directory.join(AUTO_CONF).exists();
    Ok(there && text_of(data_directory)?.lines().any(|line| line == MARKER))
}

/// The marker and the lines behind it, wherever a server's ALTER SYSTEM may have put them.
fn without(text: &str) -> String {
    let mut kept = String::new();
    let mut behind = false;
    for line in text.lines() {
        behind |= line == MARKER;
        if behind && (line == MARKER || LINES.contains(&line)) {
            continue;
        }
        kept.push_str(line);
        kept.push('\n');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_cluster_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(AUTO_CONF);
        let text = "listen_addresses = ''\nwork_mem = '8MB'\n";
        std::fs::write(&path, text).unwrap();
        assert!(!is_closed(folder.path()).unwrap());
        for _ in 0..2 {
            close_to_clients(folder.path()).unwrap();
            assert!(is_closed(folder.path()).unwrap());
        }
        let closed = std::fs::read_to_string(&path).unwrap();
        assert!(closed.ends_with("listen_addresses = ''\nunix_socket_directories = ''\n"));
        open_to_clients(folder.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert!(!is_closed(&folder.path().join("gone")).unwrap());
    }
}
