//! A bucket of an S3-compatible store, as `dr.yaml` names it.

use serde::{Deserialize, Serialize};

use crate::Rate;

/// Where an S3-compatible store is and how it is used. Credentials come from the usual AWS chain, never
/// from here.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// The bucket; it must exist.
    pub bucket: String,
    /// Put before every object name; may be empty.
    #[serde(default)]
    pub prefix: String,
    /// The region.
    pub region: String,
    /// Another endpoint than AWS's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Whether the bucket is named in the path and not in the host name. When left out: with an
    /// `endpoint`, yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    /// The most that is sent and received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<BandwidthConfig>,
    /// The storage class of every object (`STANDARD_IA`); the bucket's own when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// Asks the store for locks, in this mode. A store that does not honour them is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_lock: Option<ObjectLockMode>,
}

/// How firmly objects are locked (S3's words).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectLockMode {
    /// Whoever holds `s3:BypassGovernanceRetention` can lift a lock.
    Governance,
    /// Nobody can, the account's owner included.
    Compliance,
}

/// A limit for each direction; a direction left out has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BandwidthConfig {
    /// To the store: backups and WAL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write: Option<Rate>,
    /// From the store: restores too, so that a limit lengthens them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<Rate>,
}

/// A key of the `s3` section whose value cannot be used.
pub(crate) struct Wrong {
    /// The key, as written.
    pub(crate) key: &'static str,
    pub(crate) message: String,
    pub(crate) hint: &'static str,
}

/// Classes from which an object must be brought back, for hours, before it can be read.
const ARCHIVES: [&str; 2] = ["GLACIER", "DEEP_ARCHIVE"];

impl S3Config {
    /// What is wrong in it, beyond its types.
    pub(crate) fn wrong(&self) -> Option<Wrong> {
        let wrong = |key, message, hint| Some(Wrong { key, message, hint });
        if self.bucket.is_empty() || self.bucket.contains('/') {
            return wrong(
                "bucket:",
                format!("`{}` is no bucket", self.bucket),
                "the bucket's name alone; what comes before object names is `prefix`",
            );
        }
        if let Some(endpoint) = &self.endpoint {
            let host = endpoint
                .strip_prefix("https://")
                .or_else(|| endpoint.strip_prefix("http://"));
            if host.is_none_or(|host| host.is_empty() || host.contains('@')) {
                return wrong(
                    "endpoint:",
                    "the endpoint is no URL of a store".to_owned(),
                    "https://HOST or http://HOST:PORT, without credentials",
                );
            }
        }
        self.storage_class.as_deref().and_then(wrong_class)
    }
}

/// What is wrong with the name of a storage class.
pub(crate) fn wrong_class(class: &str) -> Option<Wrong> {
    let key = "storage_class:";
    let is_name = !class.is_empty()
        && class
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    if !is_name {
        return Some(Wrong {
            key,
            message: format!("`{class}` is no storage class"),
            hint: "the store's own name in capitals, like STANDARD_IA or GLACIER_IR",
        });
    }
    ARCHIVES.contains(&class).then(|| Wrong {
        key,
        message: format!("objects in {class} cannot be read at once"),
        hint: "every backup reads what the one before it listed, and a restore cannot wait for hours; use a \
               class that answers at once, like STANDARD_IA or GLACIER_IR",
    })
}
