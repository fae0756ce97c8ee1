//! Amounts with their units: durations as operators write them, byte counts as they read them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A duration written as `200ms`, `30s`, `15m`, `4h`, `14d` or `2w`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HumanDuration(pub Duration);

/// A text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a duration: write a whole number and one of ms, s, m, h, d, w, like 30s or 15m"
)]
pub struct InvalidDuration(String);

const UNITS: [(&str, u64); 6] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
    ("w", 604_800_000),
];

impl FromStr for HumanDuration {
    type Err = InvalidDuration;
    fn from_str(value: &str) -> Result<Self, InvalidDuration> {
        let invalid = || InvalidDuration(value.to_owned());
        let split = value
            .find(|c: char| !c.is_ascii_digit())
            .ok_or_else(invalid)?;
        let (number, unit) = value.split_at_checked(split).ok_or_else(invalid)?;
        let factor = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, f)| *f)
            .ok_or_else(invalid)?;
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let milliseconds = number.checked_mul(factor).ok_or_else(invalid)?;
        Ok(Self(Duration::from_millis(milliseconds)))
    }
}

impl fmt::Display for HumanDuration {
    /// The largest unit that loses nothing; below a millisecond is not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let (unit, factor) = UNITS
            .iter()
            .rev()
            .find(|(_, factor)| milliseconds >= *factor && milliseconds % factor == 0)
            .unwrap_or(&("ms", 1));
        f.pad(&format!("{}{unit}", milliseconds / factor))
    }
}
impl TryFrom<String> for HumanDuration {
    type Error = InvalidDuration;
    fn try_from(value: String) -> Result<Self, InvalidDuration> {
        value.parse()
    }
}
impl From<HumanDuration> for String {
    fn from(value: HumanDuration) -> Self {
        value.to_string()
    }
}

/// A number of bytes; printed with a binary unit.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ByteCount(pub u64);

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return f.pad(&format!("{} B", self.0));
        }
        #[allow(clippy::cast_precision_loss, reason = "one decimal is printed")]
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = "KiB";
        for larger in UNITS.iter().skip(1) {
            if value < 1024.0 {
                break;
            }
            value /= 1024.0;
            unit = larger;
        }
        f.pad(&format!("{value:.1} {unit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print_as_operators_write_them() {
        for text in ["200ms", "30s", "15m", "4h", "13d", "2w"] {
            assert_eq!(
                text.parse::<HumanDuration>().expect("valid").to_string(),
                text
            );
        }
        assert_eq!(
            "90s".parse::<HumanDuration>().expect("valid").to_string(),
            "90s"
        );
        for bad in [
            "",
            "5",
            "s",
            "-1s",
            "1.5s",
            "1 s",
            "1y",
            "99999999999999999999s",
        ] {
            assert!(
                bad.parse::<HumanDuration>().is_err(),
                "{bad:?} was accepted"
            );
        }
    }

    #[test]
    fn byte_counts_use_binary_units() {
        assert_eq!(ByteCount(1023).to_string(), "1023 B");
        assert_eq!(ByteCount(16 << 20).to_string(), "16.0 MiB");
        assert_eq!(ByteCount(3 << 30).to_string(), "3.0 GiB");
    }
}
