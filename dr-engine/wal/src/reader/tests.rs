use dr_model::{SystemId, Timeline};

use super::*;

const PAGE: usize = 8192;
const SEGMENT: u64 = 1 << 20;
const MAGIC_15: u16 = 0xD110;

/// Writes a log as PostgreSQL lays it out.
pub(crate) struct Log {
    bytes: Vec<u8>,
    last: u64,
    /// Flags for the next page that begins.
    flags: u16,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            last: 0,
            flags: 0,
        }
    }

    fn start(&self) -> u64 {
        SEGMENT * 3
    }

    fn at(&self) -> u64 {
        self.start() + self.bytes.len() as u64
    }

    fn begin_page(&mut self, continued: usize) {
        let is_long = (self.bytes.len() as u64).is_multiple_of(SEGMENT);
        let mut flags = std::mem::take(&mut self.flags);
        flags |= u16::from(continued > 0) | if is_long { 2 } else { 0 };
        let at = self.at();
        self.bytes.extend_from_slice(&MAGIC_15.to_le_bytes());
        self.bytes.extend_from_slice(&flags.to_le_bytes());
        self.bytes.extend_from_slice(&1u32.to_le_bytes());
        self.bytes.extend_from_slice(&at.to_le_bytes());
        let rest = u32::try_from(continued).unwrap();
        self.bytes.extend_from_slice(&rest.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        if is_long {
            self.bytes.extend_from_slice(&77u64.to_le_bytes());
            self.bytes
                .extend_from_slice(&u32::try_from(SEGMENT).unwrap().to_le_bytes());
            self.bytes
                .extend_from_slice(&u32::try_from(PAGE).unwrap().to_le_bytes());
        }
    }

    fn write(&mut self, mut bytes: &[u8], whole: usize) {
        let mut written = 0;
        while !bytes.is_empty() {
            if self.bytes.len().is_multiple_of(PAGE) {
                let continued = if written > 0 { whole - written } else { 0 };
                self.begin_page(continued);
            }
            let room = PAGE - self.bytes.len() % PAGE;
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.bytes.extend_from_slice(now);
            written += now.len();
            bytes = rest;
        }
    }

    /// Adds a record of `data` bytes; returns where it begins.
    fn record(&mut self, manager: u8, info: u8, data: usize) -> u64 {
        let data: Vec<u8> = (0..data).map(|byte| byte.to_le_bytes()[0]).collect();
        self.record_of(manager, info, &data)
    }

    /// Adds a record that says this; returns where it begins.
    pub(crate) fn record_of(&mut self, manager: u8, info: u8, data: &[u8]) -> u64 {
        let bytes = self.made(manager, info, data);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        if self.bytes.len().is_multiple_of(PAGE) {
            self.begin_page(0);
        }
        let at = self.at();
        self.write(&bytes, bytes.len());
        self.last = at;
        at
    }

    fn made(&self, manager: u8, info: u8, data: &[u8]) -> Vec<u8> {
        let mut body = match data.len() {
            0 => Vec::new(),
            bytes @ 1..=255 => vec![255, u8::try_from(bytes).unwrap()],
            bytes => {
                let mut long = vec![254];
                long.extend_from_slice(&u32::try_from(bytes).unwrap().to_le_bytes());
                long
            }
        };
        body.extend_from_slice(data);
        let mut head = Vec::new();
        head.extend_from_slice(&u32::try_from(24 + body.len()).unwrap().to_le_bytes());
        head.extend_from_slice(&5u32.to_le_bytes());
        head.extend_from_slice(&self.last.to_le_bytes());
        head.extend_from_slice(&[info, manager, 0, 0]);
        let sum = crc32c::crc32c_append(crc32c::crc32c(&body), &head);
        head.extend_from_slice(&sum.to_le_bytes());
        head.extend_from_slice(&body);
        head
    }

    /// Hands over its records, as the reader finds them.
    pub(crate) fn each(&self, with: &mut dyn FnMut(&Record<'_>)) {
        let mut bytes = self.bytes.clone();
        bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
        let (mut reader, mut last) = (reader(), 0);
        for page in bytes.chunks(PAGE) {
            let read = reader.page(page, &mut |record| {
                last = record.lsn.0;
                with(record);
            });
            // Where its records end.
            assert!(read.is_ok() || last == self.last, "{read:?}");
        }
    }

    fn end_segment(&mut self) {
        let end = (self.bytes.len() as u64).next_multiple_of(SEGMENT);
        self.bytes.resize(usize::try_from(end).unwrap(), 0);
    }
}

fn reader() -> Reader {
    Reader::new(&SegmentHeader {
        magic: MAGIC_15,
        timeline: Timeline(1),
        start: Lsn(SEGMENT * 3),
        system_id: SystemId(77),
        segment_bytes: SEGMENT,
        page_bytes: u32::try_from(PAGE).unwrap(),
    })
    .unwrap()
}

/// Where the records begin, and how the reading ended.
fn read(bytes: &[u8]) -> (Vec<u64>, Result<(), WalError>) {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
    let (mut reader, mut found) = (reader(), Vec::new());
    for page in bytes.chunks(PAGE) {
        if let Err(error) = reader.page(page, &mut |record| found.push(record.lsn.0)) {
            return (found, Err(error));
        }
    }
    (found, Ok(()))
}

#[test]
fn records_go_over_pages_and_segments() {
    let mut log = Log::new();
    let mut begun = Vec::new();
    for data in [10, 0, 8000, 30_000, 300, 1_200_000, 8, 8120, 8128, 8136, 5] {
        begun.push(log.record(10, 0, data));
    }
    let end = log.at().next_multiple_of(8);
    let (found, ended) = read(&log.bytes);
    assert_eq!(found, begun);
    assert_eq!(ended, Err(WalError::NoRecord { at: Lsn(end) }));
}

#[test]
fn a_record_that_was_never_finished_is_left_out_where_the_page_says_so() {
    let mut log = Log::new();
    let first = log.record(10, 0, 100);
    let never = log.record(10, 0, 20_000);
    log.last = first;
    // Its first page stays; the next one begins with the record that says so.
    log.bytes.truncate(PAGE);
    log.flags = 8;
    let after = log.record(0, 0xD0, 16);
    let more = log.record(10, 0, 40);
    assert!(never < after);
    assert_eq!(read(&log.bytes).0, [first, after, more]);

    // Without the page's word it is damage.
    log.bytes[PAGE + 2] = 0;
    let (found, ended) = read(&log.bytes);
    assert_eq!(found, [first]);
    assert!(matches!(ended, Err(WalError::Record { at, .. }) if at.0 == never));
}

#[test]
fn the_rest_of_a_segment_behind_a_switch_is_not_looked_at() {
    let mut log = Log::new();
    let first = log.record(10, 0, 100);
    let switch = log.record(0, SWITCH, 0);
    log.end_segment();
    let next = log.record(10, 0, 100);
    log.bytes[2 * PAGE..2 * PAGE + 100].fill(0xAA);
    assert_eq!(read(&log.bytes).0, [first, switch, next]);
}

#[test]
fn what_the_first_page_continues_is_left_out() {
    let mut log = Log::new();
    log.record(10, 0, 1_100_000);
    let next = log.record(10, 0, 100);
    let behind = usize::try_from(SEGMENT).unwrap();
    let mut reader = reader();
    reader.next_page = Lsn(SEGMENT * 4);
    let mut bytes = log.bytes[behind..].to_vec();
    bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
    let mut found = Vec::new();
    for page in bytes.chunks(PAGE) {
        let read = reader.page(page, &mut |record| found.push(record.lsn.0));
        if read.is_err() {
            break;
        }
    }
    assert_eq!(found, [next]);
}

#[test]
fn pages_of_something_else_are_refused() {
    let mut log = Log::new();
    log.record(10, 0, 20_000);
    // The last two changes make the page one of an earlier and of a later place.
    for (offset, what) in [
        (0, "version"),
        (1, "no page"),
        (10, "no page"),
        (11, "says that it is"),
    ] {
        let mut bytes = log.bytes.clone();
        bytes[PAGE + offset] ^= 0x30;
        let (_, ended) = read(&bytes);
        let said = ended.unwrap_err().to_string();
        assert!(said.contains(what), "{said}");
    }
    let mut short = reader();
    let refused = short.page(&log.bytes[..100], &mut |_| {});
    assert!(matches!(refused, Err(WalError::Page { .. })));
}

#[test]
fn no_bytes_make_it_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut log = Log::new();
    for data in [10, 0, 8000, 300, 20_000, 77] {
        log.record(10, 0, data);
    }
    for _ in 0..20_000 {
        let mut bytes = log.bytes.clone();
        for _ in 0..1 + random() % 4 {
            let place = usize::try_from(random()).unwrap() % bytes.len();
            bytes[place] = random().to_le_bytes()[0];
        }
        let _ = read(&bytes);
    }
    // Behind a right checksum anything may stand.
    for round in 0..200_000u32 {
        let length = 24 + usize::try_from(random() % 60).unwrap();
        let mut bytes: Vec<u8> = (0..length).map(|_| random().to_le_bytes()[0]).collect();
        // Often a list that begins well.
        bytes[24..].iter_mut().take(2).for_each(|byte| *byte %= 40);
        let major = 14 + round % 5;
        if let Ok(parts) = record::parts(&bytes, major) {
            let record = Record {
                lsn: Lsn(1),
                end: Lsn(2),
                previous: Lsn(0),
                length: 24,
                xid: 1,
                info: bytes[16],
                manager: Manager(bytes[17] % 24),
                blocks: parts.blocks,
                held: parts.held,
                data: parts.data,
            };
            let _ = crate::Summary::default().add(&record, major);
            let _ = crate::Running::of(&record);
            let layout = crate::Layout::new([(4, 4), (-1, 4), (8, 8)]);
            let _ = crate::row_changes(&record, &mut |_, change| {
                if let Some(tuple) = change.written().and_then(|written| written.tuple(8192)) {
                    let _ = layout.value(&tuple, 2);
                }
            });
        }
    }
}
