//! The power cut at every instant of a run. The journal of file operations says what was durable then;
//! whatever was not is taken away, and once more left there, because both may be found.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dr_store::RepositoryKey;
use dr_testkit::TempRepository;

use crate::story::{Done, erp, goes_on, holds, open, run};

const FOLDER: &str = "DR_STORE_POWER_FOLDER";
const KEY: &str = "DR_STORE_POWER_KEY";
const JOURNAL: &str = "DR_TEST_FS_JOURNAL";

/// Not a test by itself: the others start this program again with this name.
#[test]
fn child_that_runs_the_story() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let key = RepositoryKey::parse(&std::env::var(KEY).unwrap()).unwrap();
    let repository = open(Path::new(&folder), &key);
    run(&repository, &mut |done| {
        let text = match done {
            Done::Point(id, number) => format!("point {id} {number}"),
            Done::Wal(number) => format!("wal {number}"),
            Done::Record(number) => format!("record {number}"),
        };
        dr_store::testing::note("acknowledged", &[Path::new(&text)]);
    })
    .unwrap();
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    Made(PathBuf),
    Renamed(PathBuf, PathBuf),
    Deleted(PathBuf),
    FileSynced(PathBuf),
    FolderSynced(PathBuf),
    Acknowledged(Done),
}

fn parse(text: &str) -> Vec<Line> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let path = PathBuf::from(fields[1]);
        match fields[0] {
            "create" | "mkdir" => Line::Made(path),
            "rename" => Line::Renamed(path, PathBuf::from(fields[2])),
            "delete" => Line::Deleted(path),
            "fsync-file" => Line::FileSynced(path),
            "fsync-folder" => Line::FolderSynced(path),
            "acknowledged" => {
                let words: Vec<&str> = fields[1].split(' ').collect();
                let number = words.last().unwrap().parse().unwrap();
                Line::Acknowledged(match words[0] {
                    "point" => Done::Point(words[1].parse().unwrap(), number),
                    "wal" => Done::Wal(number),
                    _ => Done::Record(number),
                })
            }
            other => panic!("unknown operation {other}"),
        }
    };
    text.lines().map(line).collect()
}

/// The journal of a whole run on a new repository, and the folder as it is after it.
fn recorded() -> (TempRepository, Vec<Line>) {
    let place = TempRepository::new();
    let journal = place.path().with_extension("journal");
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "power::child_that_runs_the_story"])
        .env(FOLDER, place.path())
        .env(KEY, place.key.to_text().unwrap().as_str())
        .env(JOURNAL, &journal)
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let text = fs::read_to_string(journal).unwrap();
    (place, parse(&text))
}

/// What an object's folder entry is worth at an instant.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    content_durable: bool,
    entry_durable: bool,
}

/// The objects that are there after the first `count` lines, and what was acknowledged by then.
fn at_instant(lines: &[Line], count: usize) -> (BTreeMap<PathBuf, Entry>, Vec<Done>) {
    let mut entries: BTreeMap<PathBuf, Entry> = BTreeMap::new();
    let mut done = Vec::new();
    for line in &lines[..count] {
        match line {
            Line::Made(path) => {
                entries.entry(path.clone()).or_default();
            }
            Line::Renamed(from, to) => {
                let moved = entries.remove(from).unwrap_or_default();
                let entry = Entry {
                    entry_durable: false,
                    ..moved
                };
                entries.entry(to.clone()).or_insert(entry);
            }
            Line::Deleted(path) => {
                entries.remove(path);
            }
            Line::FileSynced(path) => {
                if let Some(entry) = entries.get_mut(path) {
                    entry.content_durable = true;
                }
            }
            Line::FolderSynced(folder) => {
                for (_, entry) in entries
                    .iter_mut()
                    .filter(|(p, _)| p.parent() == Some(folder))
                {
                    entry.entry_durable = true;
                }
            }
            Line::Acknowledged(step) => done.push(step.clone()),
        }
    }
    (entries, done)
}

/// Builds the folder as it may be found after the power went at an instant.
fn after_power_cut(
    whole: &TempRepository,
    base: &[PathBuf],
    entries: &BTreeMap<PathBuf, Entry>,
    keep_unsynced: bool,
    into: &Path,
) {
    let root = whole.path();
    let copy = |path: &Path, empty: bool| {
        let relative = path.strip_prefix(&root).unwrap();
        let hidden =
            |part: std::path::Component<'_>| part.as_os_str().to_string_lossy().starts_with('.');
        // A session is gone at the end of the run; that it was there is all that counts of it.
        if relative.starts_with("sessions") && !path.exists() {
            let to = into.join(relative);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            if relative.components().count() == 3 && !relative.components().any(hidden) {
                fs::write(to, b"a session").unwrap();
            }
            return;
        }
        if relative.components().any(hidden) || !path.is_file() {
            return;
        }
        let to = into.join(relative);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        match empty {
            true => fs::write(to, b"").unwrap(),
            false => fs::copy(path, to).map(drop).unwrap(),
        }
    };
    for path in base {
        copy(path, false);
    }
    for (path, entry) in entries {
        if entry.entry_durable || keep_unsynced {
            copy(path, !entry.content_durable);
        }
    }
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files_below(&path, found),
            false => found.push(path),
        }
    }
}

/// What was there before the run: everything the journal does not speak of.
fn base_of(place: &TempRepository, lines: &[Line]) -> Vec<PathBuf> {
    let mut all = Vec::new();
    files_below(&place.path(), &mut all);
    let made = |path: &PathBuf| {
        lines
            .iter()
            .any(|line| matches!(line, Line::Renamed(_, to) if to == path))
    };
    all.retain(|path| !made(path));
    all
}

/// Cuts the power after every line; the first case in which something does not hold is the error.
fn cut_everywhere(place: &TempRepository, lines: &[Line]) -> Result<u32, String> {
    let base = base_of(place, lines);
    let mut cases = 0;
    let mut last = None;
    for count in 0..=lines.len() {
        let (entries, done) = at_instant(lines, count);
        for keep_unsynced in [false, true] {
            // Only what differs from the instant before is worth a look.
            let state: Vec<_> = entries
                .iter()
                .filter(|(_, entry)| entry.entry_durable || keep_unsynced)
                .map(|(path, entry)| (path.clone(), entry.content_durable))
                .collect();
            let state = (state, done.len(), keep_unsynced);
            if last.as_ref() == Some(&state) {
                continue;
            }
            let case = format!("power cut after line {count}, unsynced kept: {keep_unsynced}");
            let folder = tempfile::tempdir().unwrap();
            after_power_cut(place, &base, &entries, keep_unsynced, folder.path());
            let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let repository = open(folder.path(), &place.key);
                holds(&repository, &done, &case);
                if count % 7 == 0 {
                    goes_on(&repository, &done, &case);
                }
            }));
            if let Err(panic) = looked {
                let text = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .unwrap_or_else(|| "something else".to_owned());
                return Err(text);
            }
            cases += 1;
            last = Some(state);
        }
    }
    Ok(cases)
}

#[test]
fn the_power_may_go_at_any_instant() {
    let (place, lines) = recorded();
    let cases = cut_everywhere(&place, &lines).unwrap_or_else(|case| panic!("{case}"));
    println!("{} file operations, {cases} cases", lines.len());
    assert!(cases > 100, "only {cases} cases were generated");
    assert_eq!(place.repository.points(Some(&erp())).unwrap().len(), 2);
}

#[test]
fn a_missing_fsync_of_any_kind_of_folder_is_noticed() {
    let (place, lines) = recorded();
    for kind in ["data", "index", "points", "chain", "wal", "records"] {
        let below = place.path().join(kind);
        let is_one =
            |line: &&Line| matches!(line, Line::FolderSynced(path) if path.starts_with(&below));
        let without: Vec<Line> = lines.iter().filter(|line| !is_one(line)).cloned().collect();
        assert!(
            without.len() < lines.len(),
            "no folder of {kind} was synced"
        );
        let noticed = cut_everywhere(&place, &without);
        assert!(noticed.is_err(), "{kind}: a missing fsync goes unnoticed");
    }
}

#[test]
fn a_missing_fsync_of_a_file_is_noticed() {
    let (place, lines) = recorded();
    let mut without = lines.clone();
    without.retain(|line| !matches!(line, Line::FileSynced(_)));
    assert!(cut_everywhere(&place, &without).is_err());
}

#[test]
fn an_index_or_a_list_written_in_the_wrong_order_is_noticed() {
    let (place, lines) = recorded();
    // What is written later comes first, with the sync of its folder.
    for (early, late) in [("index", "chain"), ("points", "chain"), ("data", "chain")] {
        let is_of = |line: &Line, kind: &str| {
            let below = place.path().join(kind);
            match line {
                Line::Renamed(_, to) => to.starts_with(&below),
                _ => false,
            }
        };
        let first = lines.iter().position(|line| is_of(line, early)).unwrap();
        let second = lines.iter().position(|line| is_of(line, late)).unwrap();
        let Line::Renamed(from, to) = lines[second].clone() else {
            unreachable!()
        };
        let mut swapped = lines.clone();
        let folder = to.parent().unwrap().to_owned();
        swapped.remove(second);
        let moved = [
            Line::Made(from.clone()),
            Line::FileSynced(from.clone()),
            Line::Renamed(from, to),
            Line::FolderSynced(folder),
        ];
        for (place, line) in moved.into_iter().enumerate() {
            swapped.insert(first + place, line);
        }
        let noticed = cut_everywhere(&place, &swapped);
        assert!(noticed.is_err(), "{late} before {early} goes unnoticed");
    }
}
