//! Recovery settings of a restored folder.

use std::path::Path;

use super::{RecoveryAction, RecoverySettings, RecoveryTarget, durable};
use crate::SourceError;
use crate::postgres::config_text::{parse_line, setting_line};

const AUTO_CONF: &str = "postgresql.auto.conf";

/// Writes `recovery.signal` and `postgresql.auto.conf`, keeping foreign settings and dropping old
/// recovery targets, because two targets are FATAL (20.5.6); removes `standby.signal`.
///
/// # Errors
/// When a file cannot be read or written durably.
pub fn write_recovery(
    data_directory: &Path,
    settings: &RecoverySettings,
) -> Result<(), SourceError> {
    let path = data_directory.join(AUTO_CONF);
    let old = match std::fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(SourceError::file("read", &path)(error)),
    };
    durable::write(
        data_directory,
        AUTO_CONF,
        rewrite(&old, settings).as_bytes(),
    )?;
    durable::remove(&data_directory.join("standby.signal"))?;
    durable::write(data_directory, "recovery.signal", b"").map(drop)
}

/// The new text of the file.
fn rewrite(old: &str, settings: &RecoverySettings) -> String {
    let ours = lines(settings);
    let is_foreign = |line: &&str| {
        parse_line(line).is_none_or(|setting| {
            !setting.name.starts_with("recovery_target")
                && !ours.iter().any(|(name, _)| *name == setting.name)
        })
    };
    let mut text: String = old
        .lines()
        .filter(is_foreign)
        .map(|line| format!("{line}\n"))
        .collect();
    for (name, value) in &ours {
        text.push_str(&setting_line(name, value));
        text.push('\n');
    }
    text
}

fn lines(settings: &RecoverySettings) -> Vec<(String, String)> {
    let switch = if settings.inclusive { "on" } else { "off" };
    // What the source's own configuration has a recovering server run or wait for was meant for another
    // moment: to clean the archive, to move an address, to lag behind.
    let mut lines = vec![
        ("restore_command", settings.restore_command.clone()),
        ("archive_cleanup_command", String::new()),
        ("recovery_end_command", String::new()),
        ("recovery_min_apply_delay", "0".to_owned()),
    ];
    match &settings.target {
        RecoveryTarget::Latest => {}
        RecoveryTarget::Immediate => lines.push(("recovery_target", "immediate".to_owned())),
        RecoveryTarget::Time(time) => {
            lines.push((
                "recovery_target_time",
                time.format("%Y-%m-%d %H:%M:%S%.6f%:z").to_string(),
            ));
        }
        RecoveryTarget::Lsn(lsn) => lines.push(("recovery_target_lsn", lsn.to_string())),
    }
    if matches!(
        settings.target,
        RecoveryTarget::Time(_) | RecoveryTarget::Lsn(_)
    ) {
        lines.push(("recovery_target_inclusive", switch.to_owned()));
    }
    let timeline = settings
        .timeline
        .map_or_else(|| "latest".to_owned(), |t| t.to_string());
    lines.push(("recovery_target_timeline", timeline));
    if settings.target != RecoveryTarget::Latest {
        let action = match settings.action {
            RecoveryAction::Promote => "promote",
            RecoveryAction::Pause => "pause",
            RecoveryAction::Shutdown => "shutdown",
        };
        lines.push(("recovery_target_action", action.to_owned()));
    }
    if !settings.as_primary {
        // A copy that archives would push its timeline into the original's archive.
        lines.push(("archive_mode", "off".to_owned()));
        // Its subscriptions would take the changes out of the original's slots, and its commits would wait
        // for the original's standbys.
        lines.push(("max_logical_replication_workers", "0".to_owned()));
        lines.push(("synchronous_standby_names", String::new()));
    }
    let extra = settings
        .extra
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
    lines
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .chain(extra)
        .collect()
}

#[cfg(test)]
mod tests {
    use dr_model::{Lsn, Timeline};

    use super::*;

    fn settings(target: RecoveryTarget) -> RecoverySettings {
        RecoverySettings {
            restore_command: "/usr/bin/dr wal fetch '%f' \"%p\"".to_owned(),
            target,
            inclusive: false,
            timeline: Some(Timeline(2)),
            action: RecoveryAction::Promote,
            as_primary: false,
            extra: vec![("port".to_owned(), "5499".to_owned())],
        }
    }

    #[test]
    fn foreign_settings_stay_and_old_targets_go() {
        let old = "# comment\nwork_mem = '8MB'\nrecovery_target_xid = '7'\n\
                   Recovery_Target_Time = 'x'\narchive_mode = 'on'\nport = 5432\n";
        let text = rewrite(old, &settings(RecoveryTarget::Lsn(Lsn(0x0300_0028))));
        assert!(
            text.starts_with("# comment\nwork_mem = '8MB'\nrestore_command = "),
            "{text}"
        );
        assert_eq!(text.matches("recovery_target_").count(), 4, "{text}");
        assert!(
            text.contains("recovery_target_lsn = '0/3000028'\nrecovery_target_inclusive = 'off'")
        );
        assert!(
            text.contains("archive_mode = 'off'") && !text.contains("'on'"),
            "{text}"
        );
        assert_eq!(text.matches("port = ").count(), 1, "{text}");
    }

    #[test]
    fn a_time_keeps_its_microseconds_and_offset() {
        let time =
            chrono::DateTime::parse_from_rfc3339("2026-11-23T14:03:21.123456-06:00").unwrap();
        let text = rewrite("", &settings(RecoveryTarget::Time(time)));
        assert!(
            text.contains("recovery_target_time = '2026-11-23 14:03:21.123456-06:00'"),
            "{text}"
        );
    }

    #[test]
    fn the_end_of_the_archive_needs_no_target_and_a_primary_keeps_archiving() {
        let mut latest = settings(RecoveryTarget::Latest);
        latest.as_primary = true;
        latest.timeline = None;
        let text = rewrite("archive_mode = 'on'\n", &latest);
        assert!(text.contains("archive_mode = 'on'") && text.contains("timeline = 'latest'"));
        assert!(!text.contains("recovery_target_action"), "{text}");
    }
}
