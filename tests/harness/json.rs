//! Looking things up in an answer of `--json`, with a message that shows the answer.

use serde_json::Value;

/// A parsed answer.
#[derive(Debug, Clone)]
pub(crate) struct Json(pub(crate) Value);

impl Json {
    pub(crate) fn parse(text: &str) -> Self {
        Self(
            serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON: {error}:\n{text}")),
        )
    }

    pub(crate) fn at(&self, pointer: &str) -> Self {
        Self(
            self.0
                .pointer(pointer)
                .unwrap_or_else(|| panic!("no {pointer} in {:#}", self.0))
                .clone(),
        )
    }

    pub(crate) fn text(&self, pointer: &str) -> String {
        let found = self.at(pointer);
        found
            .0
            .as_str()
            .unwrap_or_else(|| panic!("{pointer} is no text in {:#}", self.0))
            .to_owned()
    }

    pub(crate) fn number(&self, pointer: &str) -> u64 {
        let found = self.at(pointer);
        found
            .0
            .as_u64()
            .unwrap_or_else(|| panic!("{pointer} is no number in {:#}", self.0))
    }

    pub(crate) fn list(&self, pointer: &str) -> Vec<Self> {
        let found = self.at(pointer);
        found
            .0
            .as_array()
            .unwrap_or_else(|| panic!("{pointer} is no list in {:#}", self.0))
            .iter()
            .cloned()
            .map(Self)
            .collect()
    }
}
