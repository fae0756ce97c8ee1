//! Cron expressions and zones, as far as a file can be wrong about them.

use std::path::Path;
use std::str::FromStr;

use crate::ConfigError;
use crate::parse::invalid_at;

/// A cron expression with its seconds: one of five fields begins with minutes and gets a 0 in front.
#[must_use]
pub fn with_seconds(expression: &str) -> String {
    if expression.split_whitespace().count() == 5 {
        format!("0 {expression}")
    } else {
        expression.to_owned()
    }
}

pub(crate) fn check_schedule(
    path: &Path,
    text: &str,
    section: &str,
    expression: &str,
    zone: Option<&str>,
) -> Result<(), ConfigError> {
    if let Err(error) = cron::Schedule::from_str(&with_seconds(expression)) {
        return Err(invalid_at(
            path,
            text,
            &[section, "cron:", expression],
            format!("`{expression}` is no schedule: {error}"),
            "six fields: second minute hour day-of-month month day-of-week (1 or SUN is Sunday), like \
             \"0 30 3 * * *\" for half past three every night"
                .to_owned(),
        ));
    }
    if let Some(zone) = zone
        && chrono_tz::Tz::from_str(zone).is_err()
    {
        let known = chrono_tz::TZ_VARIANTS.iter().map(|known| known.name());
        let nearest = known
            .map(|name| (strsim::damerau_levenshtein(zone, name), name))
            .min()
            .map_or("UTC", |(_, name)| name);
        return Err(invalid_at(
            path,
            text,
            &[section, "timezone:", zone],
            format!("`{zone}` is no time zone"),
            format!("did you mean `{nearest}`? Zones have IANA names like America/Chicago"),
        ));
    }
    Ok(())
}
