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

/// An error about the first line of `text` that holds `needle`: for what only shows when the whole
/// file is known.
pub(crate) fn invalid_at(
    path: &Path,
    text: &str,
    needle: &str,
    message: impl Into<String>,
    hint: impl Into<Option<String>>,
) -> ConfigError {
    let place = text.lines().enumerate().find_map(|(number, line)| {
        let code = line.split(" #").next().unwrap_or(line);
        code.find(needle).map(|byte| (number + 1, byte + 1))
    });
    let (line, column) = place.unwrap_or((0, 0));
    ConfigError::Invalid {
        path: path.to_owned(),
        line,
        column,
        message: message.into(),
        hint: hint.into(),
    }
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
        YamlError::SerdeMissingField { field, .. } => (format!("missing key `{field}`"), None),
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
            key,
            format!("`{key}` is zero"),
            "write a duration like 200ms, 30s or 15m".to_owned(),
        ));
    }
    Ok(())
}
