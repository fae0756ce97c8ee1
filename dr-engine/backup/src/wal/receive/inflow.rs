//! Pure: bytes that arrive, cut into what is stored next.
//!
//! Held is the segment that grows, from its beginning, and what arrived behind it. A whole segment is
//! stored as such; of the growing one, whatever is not durable yet is a tail. So that a segment that grows
//! for hours does not have a tail for each half second of them, a tail takes in the last [`MERGED`] of
//! its size: there are never more than a few dozen, and each byte is stored a few times.
//!
//! What is stored already of the segments to come has to be what arrives, byte for byte. Nothing is stored
//! before that is seen, and the first tail begins where the segment does: it was made durable by somebody
//! who may have died before that was sure.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use dr_model::{Lsn, Timeline, WalFileName};
use dr_store::WalTail;

/// A tail takes in so many before it that took in equally many.
const MERGED: usize = 16;
/// Reading stops when so many bytes wait behind the segment that is being stored.
const AHEAD_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// What is to be stored next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Work {
    /// A whole segment.
    Segment {
        /// Its name.
        name: WalFileName,
        /// Its bytes.
        body: Vec<u8>,
    },
    /// What is new of the growing one.
    Tail {
        /// What is stored.
        tail: WalTail,
        /// Whether it takes in earlier ones, which say nothing any more then.
        merges: bool,
    },
}

/// What arrived is not what was stored of a segment before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Differs(pub(super) WalFileName);

/// When the last bytes were sent.
#[derive(Debug, Clone, Copy)]
struct News {
    sent_at: DateTime<Utc>,
    server_end: Lsn,
}

/// The bytes of one timeline on their way into the repository.
#[derive(Debug)]
pub(super) struct Inflow {
    timeline: Timeline,
    segment_bytes: u64,
    /// Where `held` begins: a segment's beginning.
    start: Lsn,
    held: Vec<u8>,
    /// Everything before is durable in the repository.
    durable: Lsn,
    /// Everything before is durable or being stored.
    begun: Lsn,
    /// What was stored of segments before, by their numbers.
    expected: BTreeMap<u64, Vec<u8>>,
    /// Everything before was compared with that.
    compared: Lsn,
    /// The tails of the growing segment: where each begins, and how often it was taken in.
    tails: Vec<(Lsn, u32)>,
    news: Option<News>,
}

impl Inflow {
    /// Begins at `start`, the beginning of a segment before which everything is stored. `expected` is what
    /// is stored of it and later ones, from their beginnings, by their numbers.
    pub(super) fn new(
        timeline: Timeline,
        segment_bytes: u64,
        start: Lsn,
        expected: BTreeMap<u64, Vec<u8>>,
    ) -> Self {
        Self {
            timeline,
            segment_bytes,
            start,
            held: Vec::new(),
            durable: start,
            begun: start,
            expected,
            compared: start,
            tails: Vec::new(),
            news: None,
        }
    }

    pub(super) fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// Everything before is durable in the repository.
    pub(super) fn durable(&self) -> Lsn {
        self.durable
    }

    /// The position after the last byte that arrived.
    pub(super) fn received(&self) -> Lsn {
        Lsn(self.start.0.saturating_add(self.held.len() as u64))
    }

    /// The segment that is held first, and the position it begins at.
    pub(super) fn growing(&self) -> (WalFileName, Lsn) {
        let name = WalFileName::containing(self.start, self.timeline, self.segment_bytes);
        (name, self.start)
    }

    /// Whether more may be read.
    pub(super) fn has_room(&self) -> bool {
        let waits = self.received().0 - self.begun.0;
        // What was stored before is compared only, and is as long as it is.
        let is_known = self.received() < self.known_to();
        (is_known || waits < AHEAD_BYTES_MAX)
            && (self.held.len() as u64) < self.segment_bytes.saturating_add(AHEAD_BYTES_MAX)
    }

    /// Takes what arrived; `false` where it is not what comes next.
    pub(super) fn push(
        &mut self,
        at: Lsn,
        bytes: &[u8],
        sent_at: DateTime<Utc>,
        server_end: Lsn,
    ) -> Result<bool, Differs> {
        if at != self.received() {
            return Ok(false);
        }
        self.held.extend_from_slice(bytes);
        self.news = Some(News {
            sent_at,
            server_end,
        });
        self.compare()?;
        Ok(true)
    }

    /// Compares what arrived with what was stored before.
    fn compare(&mut self) -> Result<(), Differs> {
        let received = self.received();
        while self.compared < received {
            let number = self.compared.0 / self.segment_bytes;
            let segment = number.saturating_mul(self.segment_bytes);
            let end = received.0.min(segment.saturating_add(self.segment_bytes));
            if let Some(expected) = self.expected.get(&number) {
                let to = end.min(segment.saturating_add(expected.len() as u64));
                let slice = |bytes: &[u8], base: u64| {
                    let from = usize::try_from(self.compared.0.checked_sub(base)?).ok()?;
                    let to = usize::try_from(to.checked_sub(base)?).ok()?;
                    bytes.get(from..to).map(<[u8]>::to_vec)
                };
                if to > self.compared.0
                    && slice(&self.held, self.start.0) != slice(expected, segment)
                {
                    let at = Lsn(segment);
                    let name = WalFileName::containing(at, self.timeline, self.segment_bytes);
                    return Err(Differs(name));
                }
            }
            self.compared = Lsn(end);
        }
        Ok(())
    }

    /// The end of what was stored before of the growing segment.
    fn known_to(&self) -> Lsn {
        let known = self.expected.get(&(self.start.0 / self.segment_bytes));
        Lsn(self
            .start
            .0
            .saturating_add(known.map_or(0, |known| known.len() as u64)))
    }

    /// Whether a whole segment waits.
    pub(super) fn holds_segment(&self) -> bool {
        self.held.len() as u64 >= self.segment_bytes
    }

    /// Whether something is not on its way yet that may be stored.
    pub(super) fn has_news(&self) -> bool {
        self.received() > self.begun && (self.holds_segment() || self.received() >= self.known_to())
    }

    /// What is to be stored now, if anything: one at a time, each followed by [`Self::done`].
    pub(super) fn next(&mut self) -> Option<Work> {
        let bytes = usize::try_from(self.segment_bytes).ok()?;
        if self.held.len() >= bytes {
            let name = self.growing().0;
            let rest = self.held.split_off(bytes);
            let body = std::mem::replace(&mut self.held, rest);
            self.expected.remove(&(self.start.0 / self.segment_bytes));
            self.start = Lsn(self.start.0.saturating_add(self.segment_bytes));
            self.begun = self.begun.max(self.start);
            self.tails.clear();
            return Some(Work::Segment { name, body });
        }
        if !self.has_news() {
            return None;
        }
        let news = self.news?;
        let (from, merges) = self.merged();
        let place = usize::try_from(from.0.checked_sub(self.start.0)?).ok()?;
        let data = self.held.get(place..)?.to_vec();
        let received = self.received();
        self.begun = received;
        Some(Work::Tail {
            tail: WalTail {
                timeline: self.timeline,
                from,
                sent_at: news.sent_at,
                is_servers_end: received >= news.server_end,
                data,
            },
            merges,
        })
    }

    /// Where the next tail begins, and whether it takes in others.
    fn merged(&mut self) -> (Lsn, bool) {
        let (mut from, mut often) = (self.begun, 0);
        while let Some(first) = self.tails.len().checked_sub(MERGED)
            && let Some(last) = self.tails.get(first..)
            && last.iter().all(|(_, taken_in)| *taken_in == often)
            && let Some((begins, _)) = last.first().copied()
        {
            self.tails.truncate(first);
            (from, often) = (begins, often + 1);
        }
        // The first one takes in whatever was stored of the segment before.
        let is_first = self.tails.is_empty();
        self.tails.push((from, often));
        (from, often > 0 || is_first)
    }

    /// What was handed out is durable.
    pub(super) fn done(&mut self) {
        self.durable = self.durable.max(self.begun);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 1 << 20;
    const START: u64 = 3 * SEGMENT;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
    }

    fn inflow_after(expected: &[(u64, Vec<u8>)]) -> Inflow {
        let expected = expected.iter().cloned().collect();
        Inflow::new(Timeline(1), SEGMENT, Lsn(START), expected)
    }

    fn inflow() -> Inflow {
        inflow_after(&[])
    }

    #[track_caller]
    fn tail(work: Option<Work>) -> (WalTail, bool) {
        match work {
            Some(Work::Tail { tail, merges }) => (tail, merges),
            other => panic!("{other:?}"),
        }
    }

    fn whole() -> usize {
        usize::try_from(SEGMENT).unwrap()
    }

    #[test]
    fn each_tail_begins_where_the_one_before_it_ended() {
        let mut inflow = inflow();
        assert_eq!(inflow.next(), None);
        assert_eq!(
            inflow.push(Lsn(START), &[1; 100], at(1), Lsn(START + 300)),
            Ok(true)
        );
        let (first, _) = tail(inflow.next());
        assert_eq!((first.from, first.data.len()), (Lsn(START), 100));
        assert!(!first.is_servers_end, "the server has more");
        assert!(inflow.has_room());
        // Not durable before it is said to be.
        assert_eq!(inflow.durable(), Lsn(START));
        assert_eq!(inflow.next(), None);
        inflow
            .push(Lsn(START + 100), &[2; 200], at(2), Lsn(START + 300))
            .unwrap();
        inflow.done();
        assert_eq!(inflow.durable(), Lsn(START + 100));
        let (second, _) = tail(inflow.next());
        assert_eq!((second.from, second.sent_at), (Lsn(START + 100), at(2)));
        assert!(second.is_servers_end);
        inflow.done();
        assert_eq!(inflow.durable(), Lsn(START + 300));
    }

    #[test]
    fn a_whole_segment_is_stored_from_its_beginning_whatever_tails_there_were() {
        let mut inflow = inflow();
        inflow
            .push(Lsn(START), &[1; 1000], at(1), Lsn(START + 1000))
            .unwrap();
        let _ = tail(inflow.next());
        inflow.done();
        let rest = vec![2; whole()];
        inflow
            .push(Lsn(START + 1000), &rest, at(2), Lsn(START + 9000))
            .unwrap();
        let Some(Work::Segment { name, body }) = inflow.next() else {
            panic!("no segment");
        };
        assert_eq!(name.to_string(), "000000010000000000000003");
        assert_eq!(body.len() as u64, SEGMENT);
        assert!(body[..1000].iter().all(|byte| *byte == 1) && body[1000] == 2);
        inflow.done();
        assert_eq!(inflow.durable(), Lsn(4 * SEGMENT));
        let (after, _) = tail(inflow.next());
        assert_eq!((after.from, after.data.len()), (Lsn(4 * SEGMENT), 1000));
    }

    #[test]
    fn what_does_not_follow_is_not_taken() {
        let mut inflow = inflow();
        assert_eq!(inflow.push(Lsn(START + 1), &[1], at(1), Lsn(0)), Ok(false));
        assert_eq!(inflow.push(Lsn(START), &[1], at(1), Lsn(0)), Ok(true));
        assert_eq!(inflow.push(Lsn(START), &[1], at(1), Lsn(0)), Ok(false));
    }

    #[test]
    fn what_was_stored_before_is_compared_and_then_stored_again_with_what_is_new() {
        let mut inflow = inflow_after(&[(3, vec![7; 50])]);
        inflow.push(Lsn(START), &[7; 20], at(1), Lsn(0)).unwrap();
        // Less than what is there: nothing to do, nothing to report.
        assert!(!inflow.has_news());
        assert_eq!(inflow.next(), None);
        assert_eq!(inflow.durable(), Lsn(START));
        inflow
            .push(Lsn(START + 20), &[7; 60], at(1), Lsn(0))
            .unwrap();
        let (new, _) = tail(inflow.next());
        assert_eq!((new.from, new.data.len()), (Lsn(START), 80));

        let mut inflow = inflow_after(&[(3, vec![7; 50])]);
        inflow.push(Lsn(START), &[7; 49], at(1), Lsn(0)).unwrap();
        let differs = inflow.push(Lsn(START + 49), &[8; 1], at(1), Lsn(0));
        assert!(differs.is_err());
    }

    #[test]
    fn later_segments_are_compared_too() {
        let mut stored = vec![0; 100];
        stored[99] = 1;
        let mut inflow = inflow_after(&[(3, vec![0; whole()]), (4, stored)]);
        let piece = vec![0; whole() + 99];
        inflow.push(Lsn(START), &piece, at(1), Lsn(0)).unwrap();
        let differs = inflow.push(Lsn(START + SEGMENT + 99), &[0], at(1), Lsn(0));
        assert_eq!(
            differs.unwrap_err().0.to_string(),
            "000000010000000000000004"
        );
    }

    #[test]
    fn there_are_never_many_tails_and_no_byte_is_stored_often() {
        let mut inflow = inflow();
        let (mut places, mut stored, mut most) = (Vec::new(), 0, 0);
        let pieces = 10_000;
        for number in 0..pieces {
            let from = Lsn(START + number * 100);
            inflow.push(from, &[1; 100], at(1), Lsn(0)).unwrap();
            let (tail, merges) = tail(inflow.next());
            inflow.done();
            stored += tail.data.len() as u64;
            let to = tail.from.0 + tail.data.len() as u64;
            assert_eq!(to, from.0 + 100, "each reaches to the end");
            if merges {
                places.retain(|(begins, _)| *begins < tail.from.0);
            }
            places.push((tail.from.0, to));
            most = most.max(places.len());
            // Together they are the whole stretch.
            let mut end = START;
            for (from, to) in &places {
                assert_eq!(*from, end);
                end = *to;
            }
            assert_eq!(end, to);
        }
        assert!(most <= 4 * MERGED, "{most} tails at once");
        assert!(stored <= 5 * pieces * 100, "{stored} bytes stored");
    }

    #[test]
    fn memory_is_bounded() {
        let mut inflow = inflow();
        let mut next = START;
        let piece = vec![0; 128 * 1024];
        while inflow.has_room() {
            inflow.push(Lsn(next), &piece, at(1), Lsn(0)).unwrap();
            next += piece.len() as u64;
        }
        assert!(inflow.held.len() as u64 <= AHEAD_BYTES_MAX + SEGMENT + piece.len() as u64);
        assert!(inflow.next().is_some());
    }

    #[test]
    fn a_large_segment_of_which_much_is_stored_is_read_to_its_end() {
        const LARGE: u64 = 1 << 28;
        let known = usize::try_from(2 * AHEAD_BYTES_MAX).unwrap();
        let expected = [(3, vec![0; known])].into_iter().collect();
        let mut inflow = Inflow::new(Timeline(1), LARGE, Lsn(3 * LARGE), expected);
        let piece = vec![0; 1 << 20];
        let mut next = 3 * LARGE;
        while next < 3 * LARGE + known as u64 {
            assert!(inflow.has_room(), "stuck at {}", next - 3 * LARGE);
            inflow.push(Lsn(next), &piece, at(1), Lsn(0)).unwrap();
            next += piece.len() as u64;
        }
        assert!(inflow.has_news());
    }

    #[test]
    fn memory_is_bounded_within_a_large_segment_too() {
        let mut inflow = Inflow::new(Timeline(1), 1 << 30, Lsn(0), BTreeMap::new());
        let piece = vec![0; 1 << 20];
        while inflow.has_room() {
            let next = inflow.received();
            inflow.push(next, &piece, at(1), Lsn(0)).unwrap();
        }
        assert!(inflow.held.len() as u64 <= AHEAD_BYTES_MAX + piece.len() as u64);
        // What is stored makes room.
        assert!(inflow.next().is_some());
        inflow.done();
        assert!(inflow.has_room());
    }
}
