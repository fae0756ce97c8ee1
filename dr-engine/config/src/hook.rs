//! A tenant's hook that is an HTTP request.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dr_model::HumanDuration;
use serde::{Deserialize, Deserializer, Serialize};

use crate::engine::WordOr;

/// What is sent where. An answer with a status of 200 to 299 is success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpHook {
    /// `http://` or `https://`.
    pub url: String,
    /// `POST` unless it is said; `PUT` or `PATCH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Further headers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, HeaderSource>,
    /// How long the answer may take; ten minutes unless it is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
}

/// The value of a header, or where it is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum HeaderSource {
    /// As it stands.
    Plain(String),
    /// A secret.
    Secret(SecretSource),
}

/// Where a secret is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretSource {
    /// In this environment variable.
    Env(String),
    /// In this file.
    File(PathBuf),
}

impl<'de> Deserialize<'de> for HeaderSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordOr {
            expected: "a value, or `{ env: NAME }`, or `{ file: PATH }`",
            word: Self::Plain,
            more: Self::Secret,
        })
    }
}

/// Headers that the request makes for itself.
const OWN_HEADERS: [&str; 4] = ["content-length", "transfer-encoding", "connection", "host"];

impl HttpHook {
    /// The method.
    #[must_use]
    pub fn method(&self) -> &str {
        self.method.as_deref().unwrap_or("POST")
    }

    /// What is wrong with it, and what to try. No value of a header is said.
    pub(crate) fn mistake(&self) -> Option<(String, &'static str)> {
        let rest = ["http://", "https://"]
            .into_iter()
            .find_map(|scheme| self.url.strip_prefix(scheme));
        let authority = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
        let is_odd = |letter: char| !letter.is_ascii_graphic();
        match authority {
            Some(authority) if !authority.is_empty() && !self.url.contains(is_odd) => {
                if authority.contains('@') {
                    return Some((
                        "the URL of a hook holds a name or a password".to_owned(),
                        "send it in a header: headers: { Authorization: { env: NAME } }",
                    ));
                }
            }
            _ => {
                return Some((
                    "the `url` of a hook is no address for HTTP".to_owned(),
                    "write http://HOST:PORT/PATH or https://HOST/PATH",
                ));
            }
        }
        if !["POST", "PUT", "PATCH"].contains(&self.method()) {
            return Some((
                format!("a hook cannot send `{}`", self.method()),
                "POST, PUT or PATCH",
            ));
        }
        if self.timeout.is_some_and(|timeout| timeout.0.is_zero()) {
            return Some(("the `timeout` of a hook is zero".to_owned(), "like 30s"));
        }
        let is_token = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        for name in self.headers.keys() {
            if name.is_empty() || !name.chars().all(is_token) {
                return Some((
                    format!("`{name}` is no name of a header"),
                    "letters, digits and -",
                ));
            }
            if OWN_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
                return Some((
                    format!("the header `{name}` is not to be chosen"),
                    "leave it out: the request makes it",
                ));
            }
        }
        None
    }
}
