//! Pure: where a receiver begins.

use dr_model::{Lsn, Timeline};

use crate::window::WalIndex;

/// What there is to begin from.
#[derive(Debug)]
pub(super) struct Known<'a> {
    /// What is stored, with the history of `timeline` even if that is not stored yet.
    pub(super) index: &'a WalIndex,
    /// The server's.
    pub(super) timeline: Timeline,
    /// How far its WAL is on its disk.
    pub(super) flushed: Lsn,
    /// From where on the slot keeps WAL.
    pub(super) slot: Option<Lsn>,
}

/// Where to begin: the beginning of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Along which timeline.
    pub(super) timeline: Timeline,
    pub(super) at: Lsn,
}

/// Where to begin, best first: each next one is for when the server does not have that WAL any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Beginning {
    pub(super) places: Vec<Place>,
    /// From here on something is lacking: beginning behind it leaves a gap.
    pub(super) lacking: Lsn,
}

/// Decides: at the first gap that the server may still be able to fill, else behind what is stored. One
/// segment earlier than that, where it is stored: what the server has in it shows whether it is the server
/// it came from, and storing it again makes sure that it is durable.
pub(super) fn beginning(known: &Known<'_>) -> Beginning {
    let size = known.index.segment_bytes.max(1);
    let last = known.flushed.0 / size;
    let place = |number: u64| Place {
        timeline: known.index.timeline_of_segment(known.timeline, number),
        at: Lsn(number.saturating_mul(size)),
    };
    let is_stored = |number: u64| known.index.stored_segment(known.timeline, number).is_some();
    let first_lacking = |from: u64| {
        (from..last)
            .find(|number| !is_stored(*number))
            .unwrap_or(last)
    };
    let slot = known.slot.map(|slot| (slot.0 / size).min(last));
    let kept = first_lacking(slot.unwrap_or(last));
    // The newest stored segment before what the slot keeps: what lies between is a gap that may be filled.
    let newest = known.index.newest_before(known.timeline, last);
    let wanted = match (slot, newest) {
        (Some(slot), Some(newest)) if newest + 1 < slot => newest + 1,
        (None, Some(newest)) => (newest + 1).min(last),
        _ => kept,
    };
    let before = wanted
        .checked_sub(1)
        .filter(|before| is_stored(*before) && place(*before).timeline == place(wanted).timeline);
    // The segment that the server is in it has in any case.
    let mut places: Vec<Place> = before
        .into_iter()
        .chain([wanted, kept, last])
        .map(place)
        .collect();
    places.dedup();
    Beginning {
        places,
        lacking: place(wanted).at,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dr_model::WalFileName;

    use super::*;
    use crate::window::TimelineSwitch;

    const SEGMENT: u64 = 1 << 24;

    fn index(stored: &[(u32, u64)], switches: &[(u32, u32, u64)]) -> WalIndex {
        let names: Vec<WalFileName> = stored
            .iter()
            .map(|(timeline, number)| WalFileName::of_number(*number, Timeline(*timeline), SEGMENT))
            .collect();
        let mut histories: BTreeMap<Timeline, Vec<TimelineSwitch>> = BTreeMap::new();
        for (child, parent, at) in switches {
            histories
                .entry(Timeline(*child))
                .or_default()
                .push(TimelineSwitch {
                    parent: Timeline(*parent),
                    at: Lsn(*at),
                });
        }
        WalIndex::new(&names, histories, SEGMENT)
    }

    fn begin(index: &WalIndex, timeline: u32, flushed: u64, slot: Option<u64>) -> Vec<(u32, u64)> {
        let found = beginning(&Known {
            index,
            timeline: Timeline(timeline),
            flushed: Lsn(flushed * SEGMENT + 77),
            slot: slot.map(|number| Lsn(number * SEGMENT + 33)),
        });
        let place = |place: &Place| {
            assert!(place.at.0.is_multiple_of(SEGMENT));
            (place.timeline.0, place.at.0 / SEGMENT)
        };
        found.places.iter().map(place).collect()
    }

    #[test]
    fn nothing_stored_begins_where_the_slot_does() {
        assert_eq!(begin(&index(&[], &[]), 1, 9, Some(7)), [(1, 7), (1, 9)]);
        assert_eq!(begin(&index(&[], &[]), 1, 9, None), [(1, 9)]);
    }

    #[test]
    fn what_is_stored_is_received_again_for_its_last_segment_only() {
        let stored = index(&[(1, 5), (1, 6), (1, 7), (1, 8)], &[]);
        assert_eq!(begin(&stored, 1, 9, Some(6)), [(1, 8), (1, 9)]);
        // Stored whole although the server is in the middle of it: it went back, which is seen there.
        let stored = index(&[(1, 8), (1, 9)], &[]);
        assert_eq!(begin(&stored, 1, 9, Some(8)), [(1, 8), (1, 9)]);
    }

    #[test]
    fn a_gap_that_the_slot_still_keeps_is_filled() {
        let stored = index(&[(1, 5), (1, 7), (1, 8)], &[]);
        assert_eq!(begin(&stored, 1, 9, Some(5)), [(1, 5), (1, 6), (1, 9)]);
    }

    #[test]
    fn a_gap_before_the_slot_is_tried_and_the_slot_is_the_way_out() {
        let stored = index(&[(1, 3), (1, 4)], &[]);
        assert_eq!(
            begin(&stored, 1, 9, Some(8)),
            [(1, 4), (1, 5), (1, 8), (1, 9)]
        );
        // No slot yet: what the server has from there on.
        assert_eq!(begin(&stored, 1, 9, None), [(1, 4), (1, 5), (1, 9)]);
    }

    #[test]
    fn a_new_timeline_begins_in_the_segment_of_its_switch() {
        let switch = 6 * SEGMENT + 4000;
        let stored = index(&[(1, 4), (1, 5)], &[(2, 1, switch)]);
        assert_eq!(begin(&stored, 2, 7, Some(6)), [(2, 6), (2, 7)]);
        // What the old one lacks before the switch is received along the old one first.
        let stored = index(&[(1, 4)], &[(2, 1, switch)]);
        assert_eq!(begin(&stored, 2, 7, Some(5)), [(1, 4), (1, 5), (2, 7)]);
    }
}
