//! Writing configuration, for adoption and sandboxes.

/// A configuration value as YAML text.
///
/// # Errors
/// The serializer's own words, for values that YAML cannot express.
pub fn to_yaml<T: serde::Serialize>(value: &T) -> Result<String, String> {
    serde_saphyr::to_string(value).map_err(|error| error.to_string())
}
