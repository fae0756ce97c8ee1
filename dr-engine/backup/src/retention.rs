//! What is kept and what may go: pure deciding over restore points, holds and WAL file names.
//!
//! A restore point goes only when no rule needs it. Each rule looks at all points and never at what
//! another rule decided, so a rule (a hold, a longer window) can only ever keep more:
//!
//! - the newest point, and the newest clean one, always;
//! - the newest point of each of the last N hours, days, weeks, months, years that have one, on the
//!   civil time of the tier's backups. A period without any point uses up nothing: when backups stop,
//!   nothing more goes;
//! - the window: for each timeline that is still followed, the newest clean point at or before its
//!   beginning, and every point after the oldest of these;
//! - never fewer clean points than `min_redundancy`;
//! - holds, whatever else is said;
//! - what the configuration does not name any more, unless it is asked for.
//!
//! *Clean* means: the source was whole when it was captured, and the last verification did not fail.
//! A damaged point does not count, so the last clean copy outlives any number of damaged ones.
//!
//! Write-ahead log: `.history` files never go. The segments from a kept point's START to its STOP live
//! as long as it does. Behind the points of the window everything is kept, along every timeline that
//! can be reached from them. Positions are compared along one line of history only; a timeline whose
//! history file is not there keeps everything it has.
//!
//! What follows from this, and is tested as such: a hold never removes more; planning again over what
//! was kept removes nothing; with time passing and nothing else changing, nothing comes back; a
//! smaller policy keeps a part of what a larger one keeps.

mod periods;
mod wal;
mod window;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use dr_config::Tier;
use dr_model::{HoldId, HumanDuration, RestorePoint, RestorePointId, TierName, WorkloadName};
use serde::Serialize;

pub use wal::{WalFacts, WalPlan};

use crate::window::is_whole_workload;

/// What a tenant restore saved before it wrote is kept this long, or as long as the window where that
/// is longer: a mistaken restore is noticed within weeks.
pub const UNDO_KEPT: TimeDelta = TimeDelta::days(90);

/// How many of what is kept; the `retention` of a tier, with the zone of its backups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RetentionPolicy {
    /// Hours of which the newest point is kept.
    pub hourly: u32,
    /// Days.
    pub daily: u32,
    /// ISO weeks.
    pub weekly: u32,
    /// Months.
    pub monthly: u32,
    /// Years.
    pub yearly: u32,
    /// Every moment this far back can be reached.
    pub pitr: Option<HumanDuration>,
    /// Never fewer clean points than this.
    pub min_redundancy: u32,
    /// Whose civil time days and weeks are.
    #[serde(serialize_with = "zone_name")]
    pub zone: Tz,
}

fn zone_name<S: serde::Serializer>(zone: &Tz, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(zone.name())
}

impl RetentionPolicy {
    /// The policy of a tier. A validated tier has a zone that is one; any other is read as UTC.
    #[must_use]
    pub fn of(tier: &Tier) -> Self {
        let zone = tier.backup.timezone.as_deref().unwrap_or("UTC");
        let retention = &tier.retention;
        Self {
            hourly: retention.hourly,
            daily: retention.daily,
            weekly: retention.weekly,
            monthly: retention.monthly,
            yearly: retention.yearly,
            pitr: retention.pitr,
            min_redundancy: retention.min_redundancy,
            zone: Tz::from_str(zone).unwrap_or(Tz::UTC),
        }
    }

    /// Keeps nothing but the newest: for a workload that is given up.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            hourly: 0,
            daily: 0,
            weekly: 0,
            monthly: 0,
            yearly: 0,
            pitr: None,
            min_redundancy: 0,
            zone: Tz::UTC,
        }
    }

    pub(crate) fn window(&self) -> TimeDelta {
        let length = self.pitr.map_or(Duration::ZERO, |pitr| pitr.0);
        TimeDelta::from_std(length).unwrap_or(TimeDelta::MAX)
    }
}

/// A restore point and what was found out about it since.
#[derive(Debug, Clone)]
pub struct PointFacts {
    /// The point.
    pub point: RestorePoint,
    /// Why it does not count, if it does not: a damaged source, a failed verification.
    pub fault: Option<String>,
}

impl PointFacts {
    pub(crate) fn is_clean(&self) -> bool {
        self.fault.is_none()
    }
}

/// A hold on points of this workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldOn {
    /// Its name.
    pub id: HoldId,
    /// On what.
    pub what: Held,
    /// When it ended or will end; `None` while nobody ends it.
    pub ends: Option<DateTime<Utc>>,
}

/// What a hold holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// One point.
    Point(RestorePointId),
    /// Every moment of a span, open where an end is left out.
    Span {
        /// Its beginning.
        from: Option<DateTime<Utc>>,
        /// Its end.
        to: Option<DateTime<Utc>>,
    },
}

/// Everything the decision over one workload needs.
#[derive(Debug, Clone, Copy)]
pub struct RetentionInput<'a> {
    /// Whose points.
    pub workload: &'a WorkloadName,
    /// All its points, in any order.
    pub points: &'a [PointFacts],
    /// `None` for a workload that the configuration does not name: then all of it is kept.
    pub policy: Option<&'a RetentionPolicy>,
    /// Points of other tiers are kept; `None` when they are to go like all others.
    pub known_tiers: Option<&'a BTreeSet<TierName>>,
    /// Its holds, ended ones too.
    pub holds: &'a [HoldOn],
    /// Its WAL, if it has any.
    pub wal: Option<&'a WalFacts>,
    /// The moment of the decision.
    pub now: DateTime<Utc>,
}

/// Why a point is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum KeepReason {
    /// No newer one is there.
    Newest,
    /// No newer one is clean.
    NewestClean,
    /// The newest of a period that is kept.
    Period {
        /// `hour`, `day`, `week`, `month`, `year`.
        unit: &'static str,
        /// Which: `2026-11-23`, `2026-W48`.
        period: String,
    },
    /// The window begins with it.
    WindowBegins,
    /// It lies in the window.
    Window,
    /// Without it there were too few.
    MinRedundancy,
    /// Somebody said so.
    Hold {
        /// The hold.
        id: HoldId,
    },
    /// The configuration does not name its workload any more.
    UnknownWorkload,
    /// The configuration does not name its tier any more.
    UnknownTier {
        /// The tier.
        tier: TierName,
    },
    /// A tenant restore can be undone with it.
    Undo,
}

impl KeepReason {
    /// The kind of reason, without which period or hold.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::NewestClean => "newest clean",
            Self::Period { unit, .. } => unit,
            Self::WindowBegins | Self::Window => "window",
            Self::MinRedundancy => "min_redundancy",
            Self::Hold { .. } => "held",
            Self::UnknownWorkload => "workload not configured",
            Self::UnknownTier { .. } => "tier not configured",
            Self::Undo => "undo",
        }
    }
}

impl fmt::Display for KeepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("newest"),
            Self::NewestClean => f.write_str("newest clean"),
            Self::Period { unit, period } => write!(f, "{unit} {period}"),
            Self::WindowBegins => f.write_str("window begins"),
            Self::Window => f.write_str("window"),
            Self::MinRedundancy => f.write_str("min_redundancy"),
            Self::Hold { id } => write!(f, "{id}"),
            Self::UnknownWorkload => f.write_str("workload not configured"),
            Self::UnknownTier { tier } => write!(f, "tier `{tier}` not configured"),
            Self::Undo => f.write_str("undo of a tenant restore"),
        }
    }
}

/// What happens to a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "fate")]
pub enum Fate {
    /// It stays, for all of these reasons.
    Kept {
        /// Never empty.
        reasons: Vec<KeepReason>,
    },
    /// It may go.
    Removed {
        /// Since then, under this policy, nothing needs it.
        since: DateTime<Utc>,
    },
}

/// The decision over one point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The point.
    pub point: RestorePointId,
    /// The moment it restores to.
    pub moment: DateTime<Utc>,
    /// Why it does not count as a copy, if it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// What happens to it.
    #[serde(flatten)]
    pub fate: Fate,
}

/// The decision over one workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RetentionPlan {
    /// Whose points.
    pub workload: WorkloadName,
    /// Every point, oldest first.
    pub points: Vec<Decision>,
    /// Its WAL.
    pub wal: WalPlan,
}

impl RetentionPlan {
    /// The points that may go, oldest first.
    pub fn removed(&self) -> impl Iterator<Item = &RestorePointId> {
        self.points.iter().filter_map(|decision| {
            matches!(decision.fate, Fate::Removed { .. }).then_some(&decision.point)
        })
    }

    /// The points that stay, oldest first.
    pub fn kept(&self) -> impl Iterator<Item = &RestorePointId> {
        self.points.iter().filter_map(|decision| {
            matches!(decision.fate, Fate::Kept { .. }).then_some(&decision.point)
        })
    }
}

impl fmt::Display for RetentionPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for decision in &self.points {
            write!(f, "{} ", decision.point)?;
            match &decision.fate {
                Fate::Kept { reasons } => {
                    let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
                    writeln!(f, "kept: {}", reasons.join(", "))?;
                }
                Fate::Removed { since } => {
                    writeln!(f, "goes: not needed since {}", since.format("%FT%TZ"))?;
                }
            }
        }
        Ok(())
    }
}

/// What the rules have said of one point so far.
struct Judged<'a> {
    facts: &'a PointFacts,
    reasons: BTreeSet<KeepReason>,
    /// The latest end of a need that has ended.
    needed_until: DateTime<Utc>,
}

impl Judged<'_> {
    fn keep(&mut self, reason: KeepReason) {
        self.reasons.insert(reason);
    }

    fn not_needed_since(&mut self, end: DateTime<Utc>) {
        self.needed_until = self.needed_until.max(end);
    }
}

/// Decides over the points and the WAL of one workload.
#[must_use]
pub fn plan_retention(input: &RetentionInput<'_>) -> RetentionPlan {
    let mut judged: Vec<Judged<'_>> = input
        .points
        .iter()
        .map(|facts| Judged {
            facts,
            reasons: BTreeSet::new(),
            needed_until: facts.point.finished,
        })
        .collect();
    judged.sort_by(|left, right| in_order(&left.facts.point, &right.facts.point));
    for one in &mut judged {
        keep_unknown(input, one);
    }
    let (mut whole, mut undo): (Vec<_>, Vec<_>) = judged
        .iter_mut()
        .partition(|one| is_whole_workload(&one.facts.point));
    let policy = input
        .policy
        .cloned()
        .unwrap_or_else(RetentionPolicy::nothing);
    keep_newest(&mut whole, |_| true, 1, &KeepReason::Newest);
    keep_newest(
        &mut whole,
        PointFacts::is_clean,
        1,
        &KeepReason::NewestClean,
    );
    let redundancy = usize::try_from(policy.min_redundancy).unwrap_or(usize::MAX);
    let reason = KeepReason::MinRedundancy;
    keep_newest(&mut whole, PointFacts::is_clean, redundancy, &reason);
    periods::keep(&mut whole, &policy);
    let reached = window::keep(&mut whole, &policy, input);
    keep_undo(&mut undo, &policy, input.now);
    let spans = keep_held(&mut judged, input);
    let wal = wal::plan(input, &judged, &reached, &spans);
    RetentionPlan {
        workload: input.workload.clone(),
        points: judged.into_iter().map(decision).collect(),
        wal,
    }
}

/// Points in order of the moment they restore to.
fn in_order(left: &RestorePoint, right: &RestorePoint) -> std::cmp::Ordering {
    (left.moment, &left.id).cmp(&(right.moment, &right.id))
}

fn decision(judged: Judged<'_>) -> Decision {
    let fate = if judged.reasons.is_empty() {
        Fate::Removed {
            since: judged.needed_until,
        }
    } else {
        Fate::Kept {
            reasons: judged.reasons.into_iter().collect(),
        }
    };
    Decision {
        point: judged.facts.point.id.clone(),
        moment: judged.facts.point.moment,
        fault: judged.facts.fault.clone(),
        fate,
    }
}

fn keep_unknown(input: &RetentionInput<'_>, one: &mut Judged<'_>) {
    if input.policy.is_none() {
        one.keep(KeepReason::UnknownWorkload);
    }
    let tier = &one.facts.point.tier;
    if input.known_tiers.is_some_and(|known| !known.contains(tier)) {
        one.keep(KeepReason::UnknownTier { tier: tier.clone() });
    }
}

/// Keeps the newest `count` of those that `counts`.
fn keep_newest(
    points: &mut [&mut Judged<'_>],
    counts: impl Fn(&PointFacts) -> bool,
    count: usize,
    reason: &KeepReason,
) {
    // Newest first: the end of the one that made each superfluous is known when its turn comes.
    let mut finished: Vec<DateTime<Utc>> = Vec::new();
    for one in points.iter_mut().rev().filter(|one| counts(one.facts)) {
        let newer = finished.len();
        if newer < count {
            one.keep(reason.clone());
        } else if let Some(end) = count
            .checked_sub(1)
            .and_then(|c| finished.get(newer - 1 - c))
        {
            one.not_needed_since(*end);
        }
        finished.push(one.facts.point.finished);
    }
}

fn keep_undo(points: &mut [&mut Judged<'_>], policy: &RetentionPolicy, now: DateTime<Utc>) {
    let kept = UNDO_KEPT.max(policy.window());
    for one in points {
        match one.facts.point.moment.checked_add_signed(kept) {
            Some(end) if end <= now => one.not_needed_since(end),
            _ => one.keep(KeepReason::Undo),
        }
    }
}

/// Keeps what is held; returns the points from which spans are reached, each with the span's end.
fn keep_held(
    points: &mut [Judged<'_>],
    input: &RetentionInput<'_>,
) -> Vec<(usize, Option<DateTime<Utc>>)> {
    let mut spans = Vec::new();
    for hold in input.holds {
        let ended = hold.ends.filter(|end| *end <= input.now);
        let held: Vec<usize> = match &hold.what {
            Held::Point(id) => {
                let place = points.iter().position(|one| one.facts.point.id == *id);
                place.into_iter().collect()
            }
            Held::Span { from, to } => window::in_span(points, *from, *to, input),
        };
        for place in held {
            let Some(one) = points.get_mut(place) else {
                continue;
            };
            match ended {
                Some(end) => one.not_needed_since(end),
                None => {
                    one.keep(KeepReason::Hold {
                        id: hold.id.clone(),
                    });
                    if let Held::Span { to, .. } = hold.what {
                        spans.push((place, to));
                    }
                }
            }
        }
    }
    spans
}

#[cfg(test)]
mod tests;
