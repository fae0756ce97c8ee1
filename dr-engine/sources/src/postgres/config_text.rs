//! The text of PostgreSQL's configuration files (20.1.2): one `name = value` a line, and includes.

use std::path::{Path, PathBuf};

use crate::SourceError;

/// `CONF_FILE_MAX_DEPTH`: PostgreSQL refuses deeper nesting.
pub(crate) const DEPTH_MAX: u32 = 10;

/// One line that says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// In lower case: names are case-insensitive.
    pub(crate) name: String,
    /// Without quotes.
    pub(crate) value: String,
}

/// Reads one line; `None` for blank lines, comments and what PostgreSQL would refuse.
pub(crate) fn parse_line(line: &str) -> Option<Setting> {
    let line = line.trim_start();
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$' | '-');
    let end = line.find(|c: char| !is_name(c)).unwrap_or(line.len());
    let (name, rest) = line.split_at_checked(end)?;
    if name.is_empty() {
        return None;
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match rest.strip_prefix('\'') {
        Some(quoted) => unquote(quoted)?,
        None => {
            let end = rest
                .find(|c: char| c.is_whitespace() || c == '#')
                .unwrap_or(rest.len());
            rest.get(..end)?.to_owned()
        }
    };
    Some(Setting {
        name: name.to_ascii_lowercase(),
        value,
    })
}

/// The value up to its closing quote; a quote inside is doubled or escaped.
fn unquote(text: &str) -> Option<String> {
    let mut value = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\'' if characters.peek() == Some(&'\'') => {
                characters.next();
                value.push('\'');
            }
            '\'' => return Some(value),
            '\\' => value.push(characters.next()?),
            other => value.push(other),
        }
    }
    None
}

/// A line that sets `name`.
pub(crate) fn setting_line(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('\'', "''");
    format!("{name} = '{value}'")
}

/// The files an include line of the file in `folder` names, in the order they are read. Files that
/// do not exist are left out: PostgreSQL has the say about them.
pub(crate) fn included(setting: &Setting, folder: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let target = folder.join(&setting.value);
    match setting.name.as_str() {
        "include" | "include_if_exists" if target.is_file() => Ok(vec![target]),
        "include_dir" if target.is_dir() => {
            let mut files: Vec<PathBuf> = std::fs::read_dir(&target)
                .map_err(SourceError::file("list", &target))?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| {
                    let name = path
                        .file_name()
                        .and_then(|name| name.to_str())
                        .unwrap_or("");
                    name.ends_with(".conf") && !name.starts_with('.') && path.is_file()
                })
                .collect();
            files.sort();
            Ok(files)
        }
        _ => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_postgresql_reads_them() {
        let read = |line| parse_line(line).map(|s| (s.name, s.value));
        let pair = |n: &str, v: &str| Some((n.to_owned(), v.to_owned()));
        assert_eq!(read("Port = 5432 # comment"), pair("port", "5432"));
        assert_eq!(
            read("  include_dir 'conf.d'\t# x"),
            pair("include_dir", "conf.d")
        );
        assert_eq!(
            read(r"a.b = 'it''s \'so\' # here'"),
            pair("a.b", "it's 'so' # here")
        );
        assert_eq!(read("# port = 1"), None);
        assert_eq!(read(""), None);
        assert_eq!(read("x = 'open"), None);
        let line = setting_line("restore_command", r"dr 'a\b' %f");
        assert_eq!(read(&line), pair("restore_command", r"dr 'a\b' %f"));
    }
}
