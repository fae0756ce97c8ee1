//! Passwords in the file that every PostgreSQL client reads: "The Password File" (34.16).

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// No such file is larger.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a password is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Purpose<'a> {
    /// The host, and for a socket its folder too.
    pub(crate) hosts: &'a [&'a str],
    pub(crate) port: u16,
    /// Replication goes by the name `replication`; the URL's database is taken as well, so that one line
    /// serves both.
    pub(crate) databases: &'a [&'a str],
    pub(crate) user: &'a str,
}

/// The password in the file that `PGPASSFILE` names, or else in `.pgpass` of the home folder.
pub(crate) fn password(purpose: &Purpose<'_>) -> Option<String> {
    let path = match std::env::var_os("PGPASSFILE") {
        Some(path) => PathBuf::from(path),
        None => std::env::home_dir()?.join(".pgpass"),
    };
    from_file(&path, purpose)
}

/// A file that others may read is not used, as by every other client. One that cannot be read is none.
fn from_file(path: &Path, purpose: &Purpose<'_>) -> Option<String> {
    let file = File::open(path).ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o077 != 0 {
        return None;
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    find(&text, purpose)
}

/// The first line that fits.
fn find(text: &str, purpose: &Purpose<'_>) -> Option<String> {
    let port = purpose.port.to_string();
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(fields)
        .find(|[host, at, database, user, _]| {
            let fits = |field: &str, values: &[&str]| field == "*" || values.contains(&field);
            fits(host, purpose.hosts)
                && fits(at, &[&port])
                && fits(database, purpose.databases)
                && fits(user, &[purpose.user])
        })
        .map(|[_, _, _, _, password]| password)
}

/// `host:port:database:user:password`; a backslash takes its meaning from a colon or backslash.
fn fields(line: &str) -> Option<[String; 5]> {
    let mut fields: [String; 5] = Default::default();
    let mut last = 0;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            // A password may hold colons.
            ':' if last < 4 => last += 1,
            '\\' => fields.get_mut(last)?.push(characters.next()?),
            other => fields.get_mut(last)?.push(other),
        }
    }
    (last == 4).then_some(fields)
}

#[cfg(test)]
mod tests;
