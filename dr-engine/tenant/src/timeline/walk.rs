//! From records of the WAL to what transactions did to one tenant's rows. No server is asked here.
//!
//! A row is followed by its place. What a transaction did counts when it commits, in the order of the log:
//! nobody else can have touched a row in between. A place that is in no list holds a row that is not the
//! tenant's, as long as every row of its file is known: from the look at the beginning, or because it was
//! seen being inserted. Whose an inserted row is, its content tells: by the tenant column, or by the key of
//! the row that it belongs to. Where the content is not told or not understood the row is numbered and
//! followed, and asked for at the end. A row stays whose it is until the log says otherwise.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;

use chrono::{DateTime, Utc};
use dr_model::Lsn;
use dr_wal::{
    Ended, Fork, Manager, Outcome, Record, Relation, RowChange, RowPlace, Running, row_changes,
};

use super::content::{Key, Space, Tells, Told};
use super::ground::{
    Counts, Done, Fate, File, Ground, Held, How, Lost, OURS, Question, RowNumber, Transaction,
};

/// `XLOG_FPI` of resource manager XLOG: a page that no row's record made.
const WHOLE_PAGE: u8 = 0xB0;
const INFO_MASK: u8 = 0xF0;
/// `XLOG_SMGR_CREATE` of resource manager Storage.
const FILE_MADE: u8 = 0x10;

/// The version of a row at a place.
#[derive(Debug, Clone, Copy)]
struct Version {
    row: RowNumber,
    /// Who wrote it.
    writer: u32,
}

#[derive(Debug)]
struct FileState {
    file: File,
    rows: HashMap<u64, Version>,
    /// Of a file that is wholly the tenant's, how many there are.
    count: u64,
    /// Whether every row in it is known that is not another's.
    is_known: bool,
    /// Whether it was seen being made.
    is_made: bool,
    /// Whether something was put into it since.
    is_filled: bool,
}

impl FileState {
    /// Whether its rows say themselves whose they are, and do not belong to others.
    fn tells_itself(&self) -> bool {
        match &self.file.how {
            How::Whole => true,
            How::Placed(content) => matches!(content.tells, Tells::Tenant { .. }),
        }
    }

    fn held(&self) -> Held {
        let rows = self.rows.values().map(|version| version.row);
        let (ours, open): (Vec<RowNumber>, Vec<RowNumber>) = rows.partition(|row| *row == OURS);
        Held {
            rows: self.count + ours.len() as u64,
            open,
        }
    }
}

/// Whose a row is by what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// As this one.
    Row(RowNumber),
    Others,
    /// Not whose it was.
    Changed,
    Nothing,
}

/// Something that a transaction did to a row and that counts if it commits.
#[derive(Debug)]
struct Event {
    lsn: Lsn,
    xid: u32,
    file: u32,
    done: Done,
    from: u64,
    to: u64,
    told: Told,
    keys: Vec<(Space, Option<Key>)>,
}

/// Which rows are referred to by a key.
#[derive(Debug)]
struct Keys {
    rows: HashMap<Key, RowNumber>,
    /// Whether every row is known that is not another's.
    is_whole: bool,
}

/// What was found so far.
#[derive(Debug)]
pub(super) struct Walk {
    files: Vec<FileState>,
    by_relation: HashMap<Relation, u32>,
    /// Of the beginning, by table or partition.
    by_oid: HashMap<u32, u32>,
    others: HashSet<Relation>,
    database: u32,
    begin: Lsn,
    until: DateTime<Utc>,
    open: HashMap<u32, Vec<Event>>,
    /// Of files that are wholly the tenant's, and rows in files that are not known.
    counted: HashMap<u32, Counted>,
    /// Places that transactions which have not ended put rows at.
    fresh: HashMap<(u32, u64), u32>,
    running: Option<HashSet<u32>>,
    spaces: Vec<Keys>,
    /// Whether numbered rows are the tenant's, as far as it is known.
    rows: Vec<Option<bool>>,
    pub(super) transactions: Vec<Transaction>,
    /// Where the last commit that was told ended.
    pub(super) end: Option<Lsn>,
}

#[derive(Debug, Default)]
struct Counted {
    files: BTreeMap<u32, Counts>,
    elsewhere: u64,
}

fn packed(place: RowPlace) -> u64 {
    u64::from(place.block) << 16 | u64::from(place.line)
}

fn unpacked(place: u64) -> RowPlace {
    RowPlace {
        block: u32::try_from(place >> 16).unwrap_or(u32::MAX),
        line: u16::try_from(place & 0xFFFF).unwrap_or(u16::MAX),
    }
}

impl Walk {
    pub(super) fn new(ground: Ground) -> Self {
        let files: Vec<FileState> = (ground.files.into_iter())
            .map(|file| FileState {
                rows: HashMap::new(),
                count: 0,
                is_known: file.existed,
                is_made: false,
                is_filled: false,
                file,
            })
            .collect();
        let by_relation = (0u32..)
            .zip(&files)
            .map(|(number, state)| (state.file.relation, number));
        let begun = (0u32..).zip(&files).filter(|(_, state)| state.file.existed);
        Self {
            by_relation: by_relation.collect(),
            by_oid: begun
                .map(|(number, state)| (state.file.oid, number))
                .collect(),
            files,
            others: ground.others,
            database: ground.database,
            begin: ground.begin,
            until: ground.until,
            open: HashMap::new(),
            counted: HashMap::new(),
            fresh: HashMap::new(),
            running: None,
            spaces: (ground.spaces.into_iter())
                .map(|is_whole| Keys {
                    rows: HashMap::new(),
                    is_whole,
                })
                .collect(),
            // The number of all that are known to be the tenant's.
            rows: vec![Some(true)],
            transactions: Vec::new(),
            end: None,
        }
    }

    /// A row of the tenant at the beginning, by the table or partition that holds it; whether that has a
    /// file here.
    pub(super) fn own(&mut self, oid: u32, place: RowPlace, keys: Vec<(Space, Key)>) -> bool {
        let Some(state) = (self.by_oid.get(&oid).copied()).and_then(|number| self.state(number))
        else {
            return false;
        };
        let version = Version {
            row: OURS,
            writer: 0,
        };
        match state.file.how {
            How::Whole => state.count += 1,
            How::Placed(_) => drop(state.rows.insert(packed(place), version)),
        }
        for (space, key) in keys {
            if let Some(keys) = self.spaces.get_mut(space) {
                keys.rows.insert(key, OURS);
            }
        }
        true
    }

    /// Goes on by a record.
    pub(super) fn record(
        &mut self,
        record: &Record<'_>,
        major: u32,
    ) -> Result<ControlFlow<()>, &'static str> {
        match record.manager {
            Manager::HEAP | Manager::HEAP2 => {
                row_changes(record, &mut |relation, change| {
                    self.change(record, relation, change);
                })?;
            }
            Manager::STORAGE if record.info & INFO_MASK == FILE_MADE => {
                let (relation, fork) = made(record.data).ok_or("a file's record is cut short")?;
                if fork == Fork::Main
                    && let Some(state) = self.state_of(relation)
                {
                    (state.is_made, state.is_known) = (true, true);
                }
            }
            Manager::XLOG if record.info & INFO_MASK == WHOLE_PAGE => self.pages(record),
            Manager::STANDBY if self.running.is_none() => {
                self.running = Running::of(record)?.map(|it| it.xids.into_iter().collect());
            }
            Manager::TRANSACTION => {
                if let Some(ended) = Ended::of(record, major)? {
                    return Ok(self.ended(&ended));
                }
            }
            _ => {}
        }
        Ok(ControlFlow::Continue(()))
    }

    fn state_of(&mut self, relation: Relation) -> Option<&mut FileState> {
        let number = *self.by_relation.get(&relation)?;
        self.state(number)
    }

    fn state(&mut self, number: u32) -> Option<&mut FileState> {
        self.files.get_mut(usize::try_from(number).ok()?)
    }

    /// Pages that came as they are: of a file that was made here, rows that nobody saw being inserted.
    fn pages(&mut self, record: &Record<'_>) {
        for block in record.blocks.iter().filter(|it| it.fork == Fork::Main) {
            if let Some(state) = self.state_of(block.relation)
                && !state.file.existed
            {
                (state.is_filled, state.is_known) = (true, false);
            }
        }
    }

    fn change(&mut self, record: &Record<'_>, relation: Relation, change: RowChange<'_>) {
        let Some(&file) = self.by_relation.get(&relation) else {
            if relation.database == self.database && !self.others.contains(&relation) {
                self.counted.entry(record.xid).or_default().elsewhere += 1;
            }
            return;
        };
        let Some(state) = usize::try_from(file)
            .ok()
            .and_then(|at| self.files.get_mut(at))
        else {
            return;
        };
        state.is_filled = true;
        let content = match &state.file.how {
            How::Whole => {
                let counted = self.counted.entry(record.xid).or_default();
                count_whole(counted.files.entry(file).or_default(), &change);
                return;
            }
            How::Placed(content) => content,
        };
        let is_followed = |place: u64| {
            !state.is_known
                || state.rows.contains_key(&place)
                || self.fresh.contains_key(&(file, place))
        };
        let mut event = Event {
            lsn: record.lsn,
            xid: record.xid,
            file,
            done: Done::Inserted,
            from: 0,
            to: 0,
            told: Told::Nothing,
            keys: Vec::new(),
        };
        let is_kept = match change {
            RowChange::Inserted { at, written } => {
                event.to = packed(at);
                let read = content.read(&written, false);
                (event.told, event.keys) = (read.told, read.keys);
                // A place in no list holds a row of somebody else. So does a key, unless it was the
                // tenant's before.
                event.told != Told::Others || is_taken(&self.spaces, &event.keys)
            }
            RowChange::Updated { from, to, written } => {
                (event.done, event.from, event.to) = (Done::Updated, packed(from), packed(to));
                let former = state.rows.get(&event.from);
                let read = content.read(&written, former.is_some_and(|it| it.row == OURS));
                (event.told, event.keys) = (read.told, read.keys);
                // It may have become the tenant's.
                let moves = matches!(event.told, Told::Ours | Told::Of(..) | Told::Changed);
                moves || is_followed(event.from)
            }
            RowChange::Deleted { at, gives_up: true } => {
                return self.give_up(record.xid, file, packed(at));
            }
            RowChange::Deleted { at, .. } => {
                (event.done, event.from) = (Done::Deleted, packed(at));
                is_followed(event.from)
            }
        };
        if !is_kept {
            return;
        }
        if event.done != Done::Deleted {
            *self.fresh.entry((file, event.to)).or_default() += 1;
        }
        self.open.entry(record.xid).or_default().push(event);
    }

    /// An insert that was given up never was one.
    fn give_up(&mut self, xid: u32, file: u32, place: u64) {
        let Some(events) = self.open.get_mut(&xid) else {
            return;
        };
        let is_it =
            |event: &Event| event.file == file && event.to == place && event.done == Done::Inserted;
        if let Some(at) = events.iter().rposition(is_it) {
            let event = events.remove(at);
            self.settle(&event);
        }
    }

    /// The place of an event is not one of a transaction under way any more.
    fn settle(&mut self, event: &Event) {
        if event.done == Done::Deleted {
            return;
        }
        let key = (event.file, event.to);
        if let Some(count) = self.fresh.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.fresh.remove(&key);
            }
        }
    }

    fn ended(&mut self, ended: &Ended) -> ControlFlow<()> {
        let is_told = ended.outcome == Outcome::Committed && ended.lsn >= self.begin;
        if is_told && ended.at > self.until {
            return ControlFlow::Break(());
        }
        let mut events = Vec::new();
        let mut counted = Vec::new();
        let all = std::iter::once(ended.xid).chain(ended.subtransactions.iter().copied());
        for xid in all {
            events.extend(self.open.remove(&xid).unwrap_or_default());
            counted.extend(self.counted.remove(&xid));
        }
        for event in &events {
            self.settle(event);
        }
        if !is_told {
            return ControlFlow::Continue(());
        }
        self.end = Some(ended.end);
        // Those of subtransactions lie in between. What others belong to comes first: a key may be checked
        // at the end only.
        events.sort_by_key(|event| (self.depth_of(event.file), event.lsn));
        let running = self.running.as_ref();
        let ran = |xid: &u32| running.is_some_and(|running| running.contains(xid));
        let mut transaction = Transaction {
            xid: ended.xid,
            at: ended.at,
            lsn: ended.lsn,
            tables: BTreeMap::new(),
            open: Vec::new(),
            lost: Vec::new(),
            elsewhere: 0,
            began_before: ran(&ended.xid) || ended.subtransactions.iter().any(ran),
        };
        // What is put into a file that comes in the place of another is no new row for certain.
        let copied: HashSet<u32> = (ended.dropped.iter())
            .filter_map(|relation| self.next_of(*relation))
            .collect();
        let (copies, events): (Vec<Event>, Vec<Event>) =
            (events.into_iter()).partition(|event| copied.contains(&event.file));
        for event in events {
            self.apply(event, &mut transaction);
        }
        for counted in &counted {
            self.apply_counted(counted, &copied, &mut transaction);
        }
        for relation in &ended.dropped {
            transaction.lost.extend(self.lose(*relation));
        }
        for event in copies {
            self.follow(event);
        }
        for lost in &mut transaction.lost {
            lost.after = lost.next.and_then(|next| self.held_by(next));
        }
        // Of what held nothing of the tenant, and holds nothing now, nothing is told.
        transaction.lost.retain(|lost| {
            !lost.before.is_nothing() || lost.after.as_ref().is_some_and(|it| !it.is_nothing())
        });
        let touched = !transaction.tables.is_empty() || !transaction.open.is_empty();
        if touched || !transaction.lost.is_empty() || transaction.elsewhere > 0 {
            self.transactions.push(transaction);
        }
        ControlFlow::Continue(())
    }

    fn depth_of(&self, file: u32) -> usize {
        let state = usize::try_from(file).ok().and_then(|at| self.files.get(at));
        state.map_or(0, |state| state.file.depth)
    }

    fn apply(&mut self, event: Event, transaction: &mut Transaction) {
        let done = event.done;
        let Some((table, row)) = self.follow(event) else {
            return;
        };
        match row {
            OURS => transaction.tables.entry(table).or_default().add(done, 1),
            row => transaction.open.push((table, done, row)),
        }
    }

    /// Follows a row from place to place; tells the table, and whose row is touched. `None` where it is not
    /// the tenant's for certain.
    fn follow(&mut self, event: Event) -> Option<(usize, RowNumber)> {
        let Event { file, done, .. } = event;
        let claim = self.claim(&event.told);
        let state = self.state(file)?;
        let (table, is_known) = (state.file.table, state.is_known);
        let tells_itself = state.tells_itself();
        let former = match done {
            Done::Inserted => None,
            Done::Updated | Done::Deleted => state.rows.remove(&event.from).map(|it| it.row),
        };
        if claim == Claim::Others {
            self.forget(&event.keys);
        }
        let (touched, next) = match (former, claim) {
            // A row of its own number: what it says now it said before, for all that is known.
            (Some(former), Claim::Row(_)) if tells_itself => {
                self.say(former, true);
                (former, Some(former))
            }
            (Some(former), Claim::Row(next)) => (former, Some(next)),
            (Some(former), Claim::Others) => {
                if tells_itself {
                    self.say(former, false);
                }
                (former, None)
            }
            (Some(former), Claim::Nothing) => (former, Some(former)),
            (Some(former), Claim::Changed) => (former, Some(self.number()?)),
            (None, Claim::Row(next)) => (next, Some(next)),
            (None, Claim::Others) => return None,
            (None, Claim::Nothing) if is_known && done != Done::Inserted => return None,
            (None, Claim::Nothing | Claim::Changed) => {
                let number = self.number()?;
                (number, Some(number))
            }
        };
        if let (Some(row), true) = (next, done != Done::Deleted) {
            self.learn(event.keys, row, done == Done::Updated && former.is_some());
            let writer = event.xid;
            let rows = &mut self.state(file)?.rows;
            rows.insert(event.to, Version { row, writer });
        }
        Some((table, touched))
    }

    /// A number for a row of which it has to be found out whose it is.
    fn number(&mut self) -> Option<RowNumber> {
        self.rows.push(None);
        RowNumber::try_from(self.rows.len() - 1).ok()
    }

    /// Whose a row is by what it says.
    fn claim(&self, told: &Told) -> Claim {
        match told {
            Told::Ours => Claim::Row(OURS),
            Told::Others => Claim::Others,
            Told::Changed => Claim::Changed,
            Told::Nothing => Claim::Nothing,
            Told::Of(space, key) => match self.spaces.get(*space) {
                None => Claim::Nothing,
                Some(keys) => match keys.rows.get(key) {
                    Some(row) => Claim::Row(*row),
                    None if keys.is_whole => Claim::Others,
                    None => Claim::Nothing,
                },
            },
        }
    }

    /// The keys are this row's. The next version mostly has the same, and does not tell it.
    fn learn(&mut self, keys: Vec<(Space, Option<Key>)>, row: RowNumber, is_next: bool) {
        for (space, key) in keys {
            if let Some(keys) = self.spaces.get_mut(space) {
                match key {
                    Some(key) => drop(keys.rows.insert(key, row)),
                    None => keys.is_whole &= is_next,
                }
            }
        }
    }

    /// The keys are another's now.
    fn forget(&mut self, keys: &[(Space, Option<Key>)]) {
        for (space, key) in keys {
            if let (Some(keys), Some(key)) = (self.spaces.get_mut(*space), key) {
                keys.rows.remove(key);
            }
        }
    }

    /// The content of a numbered row says whose it is.
    fn say(&mut self, row: RowNumber, is_ours: bool) {
        if row != OURS {
            self.answer(row, is_ours);
        }
    }

    fn apply_counted(
        &mut self,
        counted: &Counted,
        copied: &HashSet<u32>,
        transaction: &mut Transaction,
    ) {
        transaction.elsewhere += counted.elsewhere;
        for (number, counts) in &counted.files {
            let Some(state) = self.state(*number) else {
                continue;
            };
            state.count = (state.count + counts.inserted).saturating_sub(counts.deleted);
            if *counts != Counts::default() && !copied.contains(number) {
                let total = transaction.tables.entry(state.file.table).or_default();
                total.add(Done::Inserted, counts.inserted);
                total.add(Done::Updated, counts.updated);
                total.add(Done::Deleted, counts.deleted);
            }
        }
    }

    /// The file that came in the place of another of the same table or partition.
    fn next_of(&self, relation: Relation) -> Option<u32> {
        let number = usize::try_from(*self.by_relation.get(&relation)?).ok()?;
        let lost = &self.files.get(number)?.file;
        let oid = lost.existed.then_some(lost.oid)?;
        let mut files = (0u32..).zip(&self.files);
        let next =
            files.find(|(_, state)| state.file.oid == oid && !state.file.existed && state.is_made);
        next.map(|(number, _)| number)
    }

    /// The file goes.
    fn lose(&mut self, relation: Relation) -> Option<Lost> {
        let next = self.next_of(relation);
        let fate = match next.and_then(|next| self.state(next)) {
            Some(next) if next.is_filled => Fate::Rewritten,
            Some(_) => Fate::Emptied,
            None => Fate::Gone,
        };
        let state = self.state_of(relation)?;
        let before = state.held();
        state.rows = HashMap::new();
        state.count = 0;
        Some(Lost {
            table: state.file.table,
            fate,
            before,
            after: None,
            next,
        })
    }

    /// What is in a file; `None` where not all of it was seen.
    fn held_by(&mut self, file: u32) -> Option<Held> {
        let state = self.state(file)?;
        state.is_known.then(|| state.held())
    }

    /// The rows that are there at the end and of which it is not known whose they are, by file.
    pub(super) fn questions(&self) -> HashMap<Relation, Vec<Question>> {
        let mut found: HashMap<Relation, Vec<Question>> = HashMap::new();
        for state in &self.files {
            for (place, version) in &state.rows {
                if self.is_ours(version.row).is_none() {
                    found
                        .entry(state.file.relation)
                        .or_default()
                        .push(Question {
                            row: version.row,
                            place: unpacked(*place),
                            writer: version.writer,
                        });
                }
            }
        }
        found
    }

    /// Where what is told begins.
    pub(super) fn begin(&self) -> Lsn {
        self.begin
    }

    /// An answer.
    pub(super) fn answer(&mut self, row: RowNumber, is_ours: bool) {
        if let Some(known) = usize::try_from(row)
            .ok()
            .and_then(|at| self.rows.get_mut(at))
        {
            *known = Some(is_ours);
        }
    }

    /// Whether a row is the tenant's, if it was found out.
    pub(super) fn is_ours(&self, row: RowNumber) -> Option<bool> {
        let known = usize::try_from(row).ok().and_then(|at| self.rows.get(at));
        known.copied().flatten()
    }
}

/// Whether one of the keys is known as the tenant's.
fn is_taken(spaces: &[Keys], keys: &[(Space, Option<Key>)]) -> bool {
    keys.iter().any(|(space, key)| {
        let known = spaces.get(*space).zip(key.as_ref());
        known.is_some_and(|(known, key)| known.rows.contains_key(key))
    })
}

fn count_whole(counts: &mut Counts, change: &RowChange<'_>) {
    match change {
        RowChange::Inserted { .. } => counts.inserted += 1,
        RowChange::Updated { .. } => counts.updated += 1,
        // Just now inserted.
        RowChange::Deleted { gives_up: true, .. } => {
            counts.inserted = counts.inserted.saturating_sub(1);
        }
        RowChange::Deleted { .. } => counts.deleted += 1,
    }
}

/// The relation and the fork of a file that is made (`xl_smgr_create`).
fn made(data: &[u8]) -> Option<(Relation, Fork)> {
    let number = |at: usize| {
        let bytes = data.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    };
    let relation = Relation {
        tablespace: number(0)?,
        database: number(4)?,
        file: number(8)?,
    };
    let fork = match number(12)? {
        0 => Fork::Main,
        _ => Fork::Init,
    };
    Some((relation, fork))
}
