//! Under which OS user a server runs.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::SourceError;

/// An OS user to become. Only root can; everyone else runs servers as themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAs {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Login name, or the number where there is none.
    pub name: String,
    /// Home folder.
    pub home: PathBuf,
}

impl RunAs {
    /// The user to run PostgreSQL as: `postgres` when we are root, else nobody but ourselves.
    ///
    /// # Errors
    /// When we are root and there is no user `postgres`.
    pub fn for_postgres() -> Result<Option<Self>, SourceError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        accounts()?
            .into_iter()
            .find(|account| account.name == "postgres")
            .map(Some)
            .ok_or_else(|| SourceError::UserMissing {
                name: "postgres".to_owned(),
            })
    }

    /// The owner of `path` when we are root and it is someone else's, else `None`.
    ///
    /// # Errors
    /// When `path` cannot be examined.
    pub fn owner_of(path: &Path) -> Result<Option<Self>, SourceError> {
        let metadata = std::fs::metadata(path).map_err(SourceError::file("examine", path))?;
        if !rustix::process::geteuid().is_root() || metadata.uid() == 0 {
            return Ok(None);
        }
        let known = accounts()?
            .into_iter()
            .find(|account| account.uid == metadata.uid());
        Ok(Some(known.unwrap_or_else(|| Self {
            uid: metadata.uid(),
            gid: metadata.gid(),
            name: metadata.uid().to_string(),
            home: PathBuf::from("/"),
        })))
    }
}

/// The login name of a user id, or the number.
pub(crate) fn user_name(uid: u32) -> String {
    accounts()
        .ok()
        .and_then(|all| all.into_iter().find(|account| account.uid == uid))
        .map_or_else(|| uid.to_string(), |account| account.name)
}

fn accounts() -> Result<Vec<RunAs>, SourceError> {
    let path = Path::new("/etc/passwd");
    let text = std::fs::read_to_string(path).map_err(SourceError::file("read", path))?;
    Ok(text.lines().filter_map(account).collect())
}

/// Reads one line of passwd(5).
fn account(line: &str) -> Option<RunAs> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = PathBuf::from(fields.nth(1)?);
    Some(RunAs {
        uid,
        gid,
        name,
        home,
    })
}

/// Sets all three of a process's identities (setpriv(1), util-linux, essential on Debian).
const SETPRIV: &str = "/usr/bin/setpriv";

/// A command that runs as `run_as` with a matching environment.
///
/// The user's own supplementary groups come with it, because a server may need them: Debian's
/// `postgres` reads its TLS key as a member of `ssl-cert`. Never root's: without `setpriv`, or for a
/// user without an account, there are none (the standard library clears them whenever it changes
/// the user id as root).
#[must_use]
pub fn command(run_as: Option<&RunAs>, program: impl AsRef<OsStr>) -> Command {
    let Some(user) = run_as else {
        return Command::new(program);
    };
    let has_account = user.name != user.uid.to_string();
    let mut command = if has_account && Path::new(SETPRIV).exists() {
        let mut command = Command::new(SETPRIV);
        command
            .arg(format!("--reuid={}", user.uid))
            .arg(format!("--regid={}", user.gid))
            .args(["--init-groups", "--"])
            .arg(program);
        command
    } else {
        let mut command = Command::new(program);
        command.uid(user.uid).gid(user.gid);
        command
    };
    command
        .env("HOME", &user.home)
        .env("USER", &user.name)
        .env("LOGNAME", &user.name);
    command
}

/// Makes `path` the property of `run_as`; does nothing without one.
///
/// # Errors
/// When the owner cannot be changed.
pub fn give(path: &Path, run_as: Option<&RunAs>) -> Result<(), SourceError> {
    match run_as {
        Some(user) => std::os::unix::fs::lchown(path, Some(user.uid), Some(user.gid))
            .map_err(SourceError::file("change the owner of", path)),
        None => Ok(()),
    }
}

/// A loopback TCP port that was free a moment ago; 0 when the system has none left.
#[must_use]
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_or(0, |address| address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passwd_line_is_read_by_its_fields() {
        let user = account("postgres:x:101:104:Administrator,,,:/var/lib/postgresql:/bin/bash")
            .expect("well formed");
        assert_eq!((user.uid, user.gid), (101, 104));
        assert_eq!(user.home, Path::new("/var/lib/postgresql"));
        assert!(account("# a comment").is_none());
        assert!(account("x:y:notanumber:1::/:/").is_none());
    }
}
