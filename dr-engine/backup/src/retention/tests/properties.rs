//! What holds for every history of a cluster: an oracle that knows what happened asks for every moment
//! whether it can still be reached.

use proptest::prelude::*;

use super::*;

/// One thing that happens to a cluster.
#[derive(Debug, Clone)]
enum Event {
    /// Time goes by, and so much WAL is written.
    Work { hours: i64, segments: u64 },
    /// A base backup; `false` when it is damaged.
    Base { clean: bool },
    /// Put back by so many segments; a new timeline goes on from there.
    PutBack { segments: u64 },
    /// A segment (counted from the newest) is lost.
    Lose { back: u64 },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1..40_i64, 0..4_u64).prop_map(|(hours, segments)| Event::Work { hours, segments }),
        5 => prop::bool::weighted(0.8).prop_map(|clean| Event::Base { clean }),
        1 => (0..6_u64).prop_map(|segments| Event::PutBack { segments }),
        1 => (0..20_u64).prop_map(|back| Event::Lose { back }),
    ]
}

/// A moment of the past: where the cluster stood.
#[derive(Debug, Clone, Copy)]
struct Stood {
    at: DateTime<Utc>,
    timeline: Timeline,
    segment: u64,
}

/// A cluster, as its archive sees it.
#[derive(Debug)]
struct Cluster {
    now: DateTime<Utc>,
    timeline: u32,
    /// The segment that is written next.
    next: u64,
    born: u64,
    points: Vec<PointFacts>,
    names: BTreeSet<WalFileName>,
    histories: BTreeMap<Timeline, Vec<TimelineSwitch>>,
    last_written: BTreeMap<Timeline, DateTime<Utc>>,
    past: Vec<Stood>,
}

impl Cluster {
    fn new() -> Self {
        Self {
            now: utc(2026, 1, 1, 0),
            timeline: 1,
            next: 1,
            born: 1,
            points: Vec::new(),
            names: BTreeSet::new(),
            histories: BTreeMap::new(),
            last_written: BTreeMap::new(),
            past: Vec::new(),
        }
    }

    fn write(&mut self) {
        let timeline = Timeline(self.timeline);
        self.names
            .insert(WalFileName::of_number(self.next, timeline, SEGMENT));
        self.last_written.insert(timeline, self.now);
        self.past.push(Stood {
            at: self.now,
            timeline,
            segment: self.next,
        });
        self.next += 1;
    }

    fn happens(&mut self, event: &Event) {
        match event {
            Event::Work { hours, segments } => {
                for _ in 0..*segments {
                    self.write();
                }
                self.now += TimeDelta::hours(*hours);
            }
            Event::Base { clean } => {
                let start = self.next * SEGMENT + 40;
                self.write();
                let stop = self.next * SEGMENT;
                let position = Position::Postgres(base(self.timeline, start, stop));
                let mut facts = point(self.points.len(), self.now, position);
                facts.fault = (!clean).then(|| "damaged".to_owned());
                self.points.push(facts);
                self.now += TimeDelta::minutes(10);
            }
            Event::PutBack { segments } => {
                let at = (self.next - segments.min(&(self.next - self.born))) * SEGMENT + 100;
                let (parent, child) = (Timeline(self.timeline), Timeline(self.timeline + 1));
                let mut history = self.histories.get(&parent).cloned().unwrap_or_default();
                history.push(TimelineSwitch {
                    parent,
                    at: Lsn(at),
                });
                self.histories.insert(child, history);
                self.names.insert(WalFileName::History { timeline: child });
                self.last_written.insert(child, self.now);
                self.timeline += 1;
                self.next = at / SEGMENT;
                self.born = self.next;
            }
            Event::Lose { back } => {
                let number = self.next.saturating_sub(*back);
                let lost = WalFileName::of_number(number, Timeline(self.timeline), SEGMENT);
                self.names.remove(&lost);
            }
        }
    }

    fn case(&self, policy: RetentionPolicy) -> Case {
        let mut case = Case::of(self.points.clone(), policy, self.now);
        let names = self.names.iter().cloned().collect();
        case.wal = Some(self.wal(names));
        case
    }

    fn wal(&self, names: Vec<WalFileName>) -> WalFacts {
        WalFacts {
            tails: Vec::new(),
            index: WalIndex::new(&names, self.histories.clone(), SEGMENT),
            names,
            last_written: self.last_written.clone(),
        }
    }

    /// Whether the oracle gets to a moment with these points and files.
    fn reaches(&self, points: &[&PointFacts], names: &BTreeSet<WalFileName>, to: Stood) -> bool {
        let line = self
            .histories
            .get(&to.timeline)
            .cloned()
            .unwrap_or_default();
        let file_of = |number: u64| {
            let left = line.iter().find(|switch| number < switch.at.0 / SEGMENT);
            let timeline = left.map_or(to.timeline, |switch| switch.parent);
            WalFileName::of_number(number, timeline, SEGMENT)
        };
        points.iter().any(|facts| {
            let base = facts.point.postgres().unwrap();
            let on_line = base.timeline == to.timeline
                || line
                    .iter()
                    .any(|s| s.parent == base.timeline && s.at >= base.stop_lsn);
            let (first, last) = (base.start_lsn.0 / SEGMENT, (base.stop_lsn.0 - 1) / SEGMENT);
            facts.fault.is_none()
                && on_line
                && last <= to.segment
                && (first..=to.segment).all(|number| names.contains(&file_of(number)))
        })
    }
}

fn cluster() -> impl Strategy<Value = Cluster> {
    prop::collection::vec(event(), 1..60).prop_map(|events| {
        let mut cluster = Cluster::new();
        for event in &events {
            cluster.happens(event);
        }
        cluster
    })
}

fn policies() -> impl Strategy<Value = RetentionPolicy> {
    let few = 0..4_u32;
    let zone = prop::sample::select(vec![Tz::UTC, Tz::America__Chicago, Tz::Pacific__Apia]);
    (
        (
            few.clone(),
            few.clone(),
            few.clone(),
            few.clone(),
            few.clone(),
        ),
        prop::option::of(1..400_u64),
        few,
        zone,
    )
        .prop_map(|(counts, hours, min_redundancy, zone)| RetentionPolicy {
            hourly: counts.0,
            daily: counts.1,
            weekly: counts.2,
            monthly: counts.3,
            yearly: counts.4,
            pitr: hours.map(|hours| HumanDuration(Duration::from_secs(hours * 3600))),
            min_redundancy,
            zone,
        })
}

fn after(case: &Case, plan: &RetentionPlan, cluster: &Cluster) -> Case {
    let kept: BTreeSet<_> = plan.kept().cloned().collect();
    let gone: BTreeSet<_> = plan.wal.remove.iter().cloned().collect();
    let names = cluster.names.difference(&gone).cloned().collect();
    Case {
        points: case
            .points
            .iter()
            .filter(|facts| kept.contains(&facts.point.id))
            .cloned()
            .collect(),
        policy: case.policy.clone(),
        holds: case.holds.clone(),
        wal: Some(cluster.wal(names)),
        now: case.now,
    }
}

fn files_of(case: &Case) -> BTreeSet<WalFileName> {
    case.wal.as_ref().unwrap().names.iter().cloned().collect()
}

/// Whatever `larger` removes, `smaller` removes too.
fn keeps_a_part(smaller: &RetentionPlan, larger: &RetentionPlan) -> Result<(), TestCaseError> {
    let removed: BTreeSet<_> = smaller.removed().collect();
    for id in larger.removed() {
        prop_assert!(
            removed.contains(id),
            "{} comes back:\n{}\n{}",
            id,
            larger,
            smaller
        );
    }
    for name in &larger.wal.remove {
        prop_assert!(smaller.wal.remove.contains(name), "{} comes back", name);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_moment_of_the_window_that_could_be_reached_can_still_be(
        cluster in cluster(), policy in policies(),
    ) {
        let case = cluster.case(policy.clone());
        let rest = after(&case, &case.plan(), &cluster);
        let begin = cluster.now - policy.window();
        let (before, now): (Vec<_>, Vec<_>) =
            (case.points.iter().collect(), rest.points.iter().collect());
        let files = files_of(&rest);
        // Where it stands now counts under every policy; the rest under a window.
        let newest = cluster.past.last().copied();
        let in_window = cluster
            .past
            .iter()
            .copied()
            .filter(|stood| policy.pitr.is_some() && stood.at >= begin);
        for to in in_window.chain(newest) {
            if cluster.reaches(&before, &cluster.names, to) {
                prop_assert!(cluster.reaches(&now, &files, to), "{:?} is lost\n{}", to, case.plan());
            }
        }
    }

    #[test]
    fn a_kept_point_keeps_its_own_wal_and_no_history_goes(
        cluster in cluster(), policy in policies(),
    ) {
        let case = cluster.case(policy);
        let plan = case.plan();
        let rest = after(&case, &plan, &cluster);
        let (before, now) = (case.wal.as_ref().unwrap(), rest.wal.as_ref().unwrap());
        for facts in &rest.points {
            let base = facts.point.postgres().unwrap();
            prop_assert_eq!(before.index.has_own_wal(base), now.index.has_own_wal(base));
        }
        let is_history = |name: &WalFileName| matches!(name, WalFileName::History { .. });
        prop_assert!(!plan.wal.remove.iter().any(is_history));
    }

    #[test]
    fn enough_clean_points_stay_and_every_decision_has_its_reason(
        cluster in cluster(), policy in policies(),
    ) {
        let case = cluster.case(policy.clone());
        let plan = case.plan();
        let clean = |facts: &&PointFacts| facts.is_clean();
        let wanted = case.points.iter().filter(clean).count()
            .min(policy.min_redundancy.max(1) as usize);
        let rest = after(&case, &plan, &cluster);
        prop_assert!(rest.points.iter().filter(clean).count() >= wanted);
        prop_assert_eq!(plan.points.len(), case.points.len());
        for decision in &plan.points {
            match &decision.fate {
                Fate::Kept { reasons } => prop_assert!(!reasons.is_empty()),
                Fate::Removed { since } => {
                    prop_assert!(*since <= case.now && *since >= decision.moment);
                }
            }
        }
    }

    #[test]
    fn planning_again_removes_nothing_more(cluster in cluster(), policy in policies()) {
        let case = cluster.case(policy);
        let rest = after(&case, &case.plan(), &cluster);
        let again = rest.plan();
        prop_assert_eq!(again.removed().count(), 0, "{}", again);
        prop_assert_eq!(again.wal.remove, vec![]);
    }

    #[test]
    fn a_hold_never_removes_more(
        cluster in cluster(), policy in policies(), which in 0..100_usize, length in 0..500_i64,
        kind in 0..3_u8,
    ) {
        let mut case = cluster.case(policy);
        let without = case.plan();
        let Some(facts) = case.points.get(which % case.points.len().max(1)) else { return Ok(()) };
        let moment = facts.point.moment;
        let what = match kind {
            0 => Held::Point(facts.point.id.clone()),
            1 => Held::Span { from: Some(moment), to: Some(moment + TimeDelta::hours(length)) },
            _ => Held::Span { from: Some(moment + TimeDelta::minutes(5)), to: None },
        };
        let id = facts.point.id.clone();
        case.holds.push(HoldOn { id: "hold-1".parse().unwrap(), what, ends: None });
        let with = case.plan();
        if kind < 2 {
            prop_assert!(with.kept().any(|kept| *kept == id));
        }
        keeps_a_part(&without, &with)?;
        let rest = after(&case, &with, &cluster);
        prop_assert_eq!(rest.plan().removed().count(), 0);
    }

    #[test]
    fn nothing_comes_back_with_time(
        cluster in cluster(), policy in policies(), hours in 0..2_000_i64,
    ) {
        let mut case = cluster.case(policy);
        let early = case.plan();
        case.now += TimeDelta::hours(hours);
        keeps_a_part(&case.plan(), &early)?;
    }

    #[test]
    fn a_smaller_policy_keeps_a_part_of_what_a_larger_one_keeps(
        cluster in cluster(), large in policies(), cut in policies(),
    ) {
        let small = RetentionPolicy {
            hourly: large.hourly.min(cut.hourly),
            daily: large.daily.min(cut.daily),
            weekly: large.weekly.min(cut.weekly),
            monthly: large.monthly.min(cut.monthly),
            yearly: large.yearly.min(cut.yearly),
            pitr: large.pitr.and_then(|pitr| cut.pitr.map(|cut| pitr.min(cut))),
            min_redundancy: large.min_redundancy.min(cut.min_redundancy),
            zone: large.zone,
        };
        let (large, small) = (cluster.case(large).plan(), cluster.case(small).plan());
        keeps_a_part(&small, &large)?;
    }
}
