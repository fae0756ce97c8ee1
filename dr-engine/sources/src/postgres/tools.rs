//! Finding PostgreSQL's programs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::SourceError;

/// The major versions looked for.
const MAJORS: std::ops::RangeInclusive<u32> = 10..=30;

/// The folder with `postgres` of a major version: `configured` if given, else where Debian, the PGDG
/// packages and PATH have it.
///
/// # Errors
/// When there is none of that version.
pub fn bin_directory(configured: Option<&Path>, major: u32) -> Result<PathBuf, SourceError> {
    if let Some(folder) = configured {
        return match major_version(folder) {
            Some(found) if found == major => Ok(folder.to_owned()),
            Some(found) => Err(SourceError::Refused(format!(
                "{} holds PostgreSQL {found}, but version {major} is needed",
                folder.display()
            ))),
            None => Err(SourceError::ProgramMissing {
                program: format!("{}", folder.join("postgres").display()),
            }),
        };
    }
    candidates(major)
        .into_iter()
        .find(|folder| major_version(folder) == Some(major))
        .ok_or_else(|| SourceError::ProgramMissing {
            program: format!("PostgreSQL {major}"),
        })
}

/// The major version of the `postgres` in a folder, by asking it.
#[must_use]
pub fn major_version(bin_directory: &Path) -> Option<u32> {
    let output = Command::new(bin_directory.join("postgres"))
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// All major versions found, newest first, with their folders.
#[must_use]
pub fn installed() -> Vec<(u32, PathBuf)> {
    MAJORS
        .rev()
        .filter_map(|major| Some((major, bin_directory(None, major).ok()?)))
        .collect()
}

fn candidates(major: u32) -> Vec<PathBuf> {
    let packaged = [
        format!("/usr/lib/postgresql/{major}/bin"),
        format!("/usr/pgsql-{major}/bin"),
    ];
    let path = std::env::var_os("PATH").unwrap_or_default();
    packaged
        .into_iter()
        .map(PathBuf::from)
        .chain(std::env::split_paths(&path))
        .filter(|folder| folder.join("postgres").is_file())
        .collect()
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`, `postgres (PostgreSQL) 18beta1`.
fn parse_version(text: &str) -> Option<u32> {
    let version = text.split_ascii_whitespace().nth(2)?;
    let digits = version
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(version.len());
    version.get(..digits)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_postgres_prints() {
        assert_eq!(
            parse_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(parse_version("something else"), None);
    }
}
