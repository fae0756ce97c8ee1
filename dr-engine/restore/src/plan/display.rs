//! A plan as an operator reads it.

use std::fmt;

use dr_model::Target;

use super::{PlannedSource, PostgresPlan, RecoveryEnd, RestorePlan};

impl fmt::Display for RestorePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "restore `{}` to {}{}",
            self.workload,
            self.target,
            match (self.exclusive, &self.target) {
                // Who asks for it needs not be told.
                (false, _) | (_, Target::Before(_)) => "",
                (true, _) => " (just before it)",
            }
        )?;
        writeln!(
            f,
            "  from   {} of {}",
            self.point.id,
            self.point.moment.to_rfc3339()
        )?;
        if let Some(into) = &self.into {
            writeln!(f, "  into   {}", into.display())?;
        }
        for (was, now) in &self.tablespaces {
            writeln!(f, "  tablespace {} into {}", was.display(), now.display())?;
        }
        match &self.source {
            PlannedSource::Postgres(plan) => plan.fmt(f)?,
            PlannedSource::Files => {}
            PlannedSource::Nats { streams } => {
                writeln!(f, "  streams {}", streams.join(", "))?;
            }
        }
        if self.as_primary {
            writeln!(f, "  as     the new primary: it goes on archiving")?;
        }
        for note in &self.notes {
            writeln!(f, "  note   {note}")?;
        }
        Ok(())
    }
}

impl fmt::Display for PostgresPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  replay {} .. {} ({} segments) on timeline {}",
            self.first_segment, self.last_segment, self.segments, self.timeline
        )?;
        match &self.end {
            RecoveryEnd::Consistent => {
                writeln!(
                    f,
                    "  until  the copy is consistent at {}",
                    self.consistent_lsn
                )
            }
            RecoveryEnd::Time { time } => writeln!(f, "  until  {}", time.to_rfc3339()),
            RecoveryEnd::Lsn { lsn } => writeln!(f, "  until  {lsn}"),
            RecoveryEnd::EndOfArchive => writeln!(f, "  until  the last stored record"),
        }
    }
}
