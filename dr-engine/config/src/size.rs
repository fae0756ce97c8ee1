//! Amounts of bytes and rates, as operators write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const UNITS: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

/// Bytes, written `512KiB`, `64MiB`, `50GiB` or `2TiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size {
    /// The number.
    pub bytes: u64,
}

/// A text that is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size: write a whole number above 0 and KiB, MiB, GiB or TiB, like 50GiB")]
pub struct InvalidSize(String);

/// Bytes in a second, written `512KiB/s`, `20MiB/s` or `1GiB/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate {
    /// The number.
    pub bytes_per_second: u64,
}

/// A text that is not a rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a rate: write a whole number above 0 and KiB/s, MiB/s or GiB/s, like 20MiB/s"
)]
pub struct InvalidRate(String);

/// `None` for what is not a whole number above 0 and a unit.
fn bytes_of(text: &str) -> Option<u64> {
    let (number, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))?;
    let only_digits = number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = number.parse().ok().filter(|_| only_digits)?;
    number.checked_mul(factor).filter(|bytes| *bytes > 0)
}

/// In the largest unit that loses nothing; what was made from one of them always fits.
fn text_of(bytes: u64) -> String {
    let (unit, factor) = UNITS
        .iter()
        .find(|(_, factor)| bytes.is_multiple_of(*factor))
        .unwrap_or(&("KiB", 1 << 10));
    format!("{}{unit}", bytes / factor)
}

impl FromStr for Size {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let bytes = bytes_of(text).ok_or_else(|| InvalidSize(text.to_owned()))?;
        Ok(Self { bytes })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text_of(self.bytes))
    }
}

impl TryFrom<String> for Size {
    type Error = InvalidSize;

    fn try_from(text: String) -> Result<Self, InvalidSize> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

impl FromStr for Rate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        let bytes_per_second = text
            .strip_suffix("/s")
            .and_then(bytes_of)
            .ok_or_else(|| InvalidRate(text.to_owned()))?;
        Ok(Self { bytes_per_second })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", text_of(self.bytes_per_second))
    }
}

impl TryFrom<String> for Rate {
    type Error = InvalidRate;

    fn try_from(text: String) -> Result<Self, InvalidRate> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_read_as_it_is_written() {
        for (text, bytes) in [("1KiB/s", 1024), ("20MiB/s", 20 << 20), ("3GiB/s", 3 << 30)] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(rate.bytes_per_second, bytes);
            assert_eq!(rate.to_string(), text);
        }
        for bad in [
            "20MiB", "20", "20MB/s", "0KiB/s", "-1KiB/s", "+1KiB/s", "1.5MiB/s", "/s", "",
        ] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_size_is_read_as_it_is_written() {
        for (text, bytes) in [
            ("512KiB", 512 << 10),
            ("50GiB", 50 << 30),
            ("2TiB", 2 << 40),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!(size.bytes, bytes);
            assert_eq!(size.to_string(), text);
        }
        for bad in [
            "50GB",
            "50",
            "GiB",
            "0MiB",
            "-1GiB",
            "1.5GiB",
            "50GiB/s",
            "99999999999TiB",
            "",
        ] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
