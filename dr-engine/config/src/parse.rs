//! From YAML text to a value, or to an error that points at the place.

use std::path::Path;

use dr_model::HumanDuration;
use serde::de::DeserializeOwned;
use serde_saphyr::Error as YamlError;

use crate::ConfigError;

/// Reads a file of configuration.
pub(crate) fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Parses `text`, which came from `path`.
pub(crate) fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    serde_saphyr::from_str(text).map_err(|error| {
        let location = error.location();
        let narrow = |number: u64| usize::try_from(number).unwrap_or(0);
        let (message, hint) = explain(error.without_snippet());
        ConfigError::Invalid {
            path: path.to_owned(),
            line: location.map_or(0, |at| narrow(at.line())),
            column: location.map_or(0, |at| narrow(at.column())),
            message,
            hint,
        }
    })
}

/// An error about the whole file.
pub(crate) fn invalid(
    path: &Path,
    message: impl Into<String>,
    hint: impl Into<Option<String>>,
) -> ConfigError {
    ConfigError::Invalid {
        path: path.to_owned(),
        line: 0,
        column: 0,
        message: message.into(),
        hint: hint.into(),
    }
}

/// An error about the place in `text` that is reached by finding the `route`'s parts one after the other:
/// for what only shows when the whole file is known. A part that ends in `:` is a key, others are values.
/// Comments are not looked at.
pub(crate) fn invalid_at(
    path: &Path,
    text: &str,
    route: &[&str],
    message: impl Into<String>,
    hint: impl Into<Option<String>>,
) -> ConfigError {
    let (line, column) = place(text, route).unwrap_or((0, 0));
    ConfigError::Invalid {
        path: path.to_owned(),
        line,
        column,
        message: message.into(),
        hint: hint.into(),
    }
}

/// Line and column of the last part of the route that is found; `None` when not even the first is.
fn place(text: &str, route: &[&str]) -> Option<(usize, usize)> {
    let lines: Vec<&str> = text.lines().map(without_comment).collect();
    let mut reached = None;
    let mut next = (0, 0);
    for part in route {
        let hit = lines
            .iter()
            .enumerate()
            .skip(next.0)
            .find_map(|(number, line)| {
                let from = if number == next.0 { next.1 } else { 0 };
                whole_word(line, part, from).map(|byte| (number, byte))
            });
        let Some((number, byte)) = hit else { break };
        let column = lines
            .get(number)
            .and_then(|line| line.get(..byte))
            .map_or(0, |before| before.chars().count());
        reached = Some((number + 1, column + 1));
        next = (number, byte + part.len());
    }
    reached
}

fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with('#') {
        return "";
    }
    line.split(" #").next().unwrap_or(line)
}

/// Where `part` stands in `line`, from byte `from`, and is not a piece of a longer word.
fn whole_word(line: &str, part: &str, from: usize) -> Option<usize> {
    let in_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
    line.match_indices(part)
        .filter(|(byte, _)| *byte >= from)
        .find_map(|(byte, _)| {
            let before = line.get(..byte)?.chars().next_back();
            let after = line.get(byte + part.len()..)?.chars().next();
            let begins = !before.is_some_and(in_word) || !part.starts_with(in_word);
            let ends = if part.ends_with(':') {
                after.is_none_or(char::is_whitespace)
            } else {
                !after.is_some_and(in_word) || !part.ends_with(in_word)
            };
            (begins && ends).then_some(byte)
        })
}

/// The nearest of the known names, if one is near, else the list.
pub(crate) fn suggestion<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let nearest = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(given, name), *name))
        .filter(|(distance, name)| *distance <= name.len().max(given.len()) / 2)
        .min();
    match (nearest, known.as_slice()) {
        (Some((_, name)), _) => format!("did you mean `{name}`?"),
        (None, []) => "none are defined".to_owned(),
        (None, names) => format!("known are {}", names.join(", ")),
    }
}

fn explain(error: &YamlError) -> (String, Option<String>) {
    match error {
        YamlError::SerdeUnknownField {
            field, expected, ..
        } => (
            format!("unknown key `{field}`"),
            Some(suggestion(field, expected.iter().copied())),
        ),
        YamlError::SerdeUnknownVariant {
            variant, expected, ..
        } => (
            format!("unknown word `{variant}`"),
            Some(suggestion(variant, expected.iter().copied())),
        ),
        // The place is that of another key of the same mapping.
        YamlError::SerdeMissingField { field, .. } => (
            format!("missing key `{field}`"),
            Some("it belongs beside the key that stands here".to_owned()),
        ),
        YamlError::InvalidScalar { ty, .. } => (format!("expected {}", in_words(ty)), None),
        YamlError::DuplicateMappingKey { key, .. } => (
            key.as_ref().map_or_else(
                || "a key twice".to_owned(),
                |key| format!("key `{key}` twice"),
            ),
            Some("keep one of them".to_owned()),
        ),
        YamlError::SerdeInvalidType {
            unexpected,
            expected,
            ..
        }
        | YamlError::SerdeInvalidValue {
            unexpected,
            expected,
            ..
        } => (format!("expected {expected}, found {unexpected}"), None),
        other => (first_line(&other.render()), None),
    }
}

/// Rust's name of a type in words that mean something in a file.
fn in_words(ty: &str) -> String {
    match ty {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, not below 0".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "boolean" => "true or false".to_owned(),
        other => other.to_owned(),
    }
}

/// The renderer puts the place in front and the text's lines below; the place is already known.
fn first_line(rendered: &str) -> String {
    let line = rendered.lines().next().unwrap_or(rendered);
    let line = line.strip_prefix("error: ").unwrap_or(line);
    match line.split_once(": ") {
        Some((place, rest)) if place.starts_with("line ") || place.starts_with('<') => {
            rest.to_owned()
        }
        _ => line.split(" at line ").next().unwrap_or(line).to_owned(),
    }
}

/// Something that must be longer than nothing.
pub(crate) fn positive(
    path: &Path,
    text: &str,
    key: &str,
    value: HumanDuration,
) -> Result<(), ConfigError> {
    if value.0.is_zero() {
        return Err(invalid_at(
            path,
            text,
            &[&format!("{key}:")],
            format!("`{key}` is zero"),
            "write a duration like 200ms, 30s or 15m".to_owned(),
        ));
    }
    Ok(())
}
