//! Every object of a repository: cut, changed, gone, replaced by another. `check` names it, and no
//! restore gives other bytes than were stored.

use std::fs;
use std::path::{Path, PathBuf};

use dr_store::{Backend, LocalBackend, Repository, RepositoryKey, StoreError};
use dr_testkit::TempRepository;

use crate::story::{check, erp, files, noise, read_point, run, segment, step_of};

fn objects(folder: &Path) -> Vec<(String, PathBuf)> {
    let listed = LocalBackend::new(folder).list("").unwrap();
    listed
        .into_iter()
        .map(|entry| (entry.name.clone(), folder.join(entry.name)))
        .collect()
}

fn filled() -> TempRepository {
    let place = TempRepository::new();
    run(&place.repository, &mut |_| {}).unwrap();
    place
}

/// Every kind of damage to one object, as the bytes to put in its place (none: it is gone).
fn damages(whole: &[u8], others: &[(String, Vec<u8>)]) -> Vec<(String, Option<Vec<u8>>)> {
    let mut found: Vec<(String, Option<Vec<u8>>)> = vec![("deleted".to_owned(), None)];
    for length in [0, 1, 63, 64, whole.len() / 2, whole.len() - 1] {
        if length < whole.len() {
            found.push((format!("cut at {length}"), Some(whole[..length].to_vec())));
        }
    }
    let step = (whole.len() / 12).max(1);
    let positions = (0..whole.len()).step_by(step).chain([whole.len() - 1]);
    for (number, position) in positions.enumerate() {
        let mut changed = whole.to_vec();
        changed[position] ^= 1 << (number % 8);
        found.push((format!("byte {position} changed"), Some(changed)));
    }
    let mut longer = whole.to_vec();
    longer.push(0);
    found.push(("longer by a byte".to_owned(), Some(longer)));
    found.push(("zeroes".to_owned(), Some(vec![0; whole.len()])));
    for (name, body) in others {
        found.push((format!("replaced by {name}"), Some(body.clone())));
    }
    found
}

/// What stands in an object's place may be another of its kind, from here or from elsewhere.
fn others_of(
    name: &str,
    all: &[(String, Vec<u8>)],
    foreign: &[(String, Vec<u8>)],
) -> Vec<(String, Vec<u8>)> {
    let kind = name.split('/').next().unwrap_or_default();
    let same =
        |(other, _): &&(String, Vec<u8>)| other.split('/').next() == Some(kind) && other != name;
    let here = all.iter().filter(same).take(3).cloned();
    let there = foreign
        .iter()
        .filter(|(other, _)| other.split('/').next() == Some(kind))
        .take(2)
        .map(|(other, body)| (format!("{other} of another repository"), body.clone()));
    here.chain(there).collect()
}

fn read_all(folder: &Path) -> Vec<(String, Vec<u8>)> {
    objects(folder)
        .into_iter()
        .map(|(name, path)| (name, fs::read(path).unwrap()))
        .collect()
}

/// Whatever can be read is what was stored; how many things could not be read.
fn nothing_wrong_is_returned(place: &TempRepository, case: &str) -> u32 {
    let key = RepositoryKey::parse(&place.key.to_text().unwrap()).unwrap();
    let backend = std::sync::Arc::new(LocalBackend::new(&place.path()));
    let repository = match Repository::open(backend, &key) {
        Ok(repository) => repository,
        Err(_) => return 1,
    };
    let mut refused = 0;
    let points = repository.points(Some(&erp())).unwrap_or_default();
    refused += u32::from(points.len() < 2);
    for point in points {
        match read_point(&repository, &point.id) {
            Ok(found) => {
                let expected = files(step_of(&repository, &point.id));
                assert!(found == expected, "{case}: wrong bytes of {}", point.id);
            }
            Err(_) => refused += 1,
        }
    }
    for number in 1..=2u64 {
        match repository.get_wal(&erp(), &segment(number)) {
            Ok(Some(found)) => {
                assert!(
                    found == noise(50 + number, 9_000),
                    "{case}: wrong WAL {number}"
                );
            }
            Ok(None) | Err(_) => refused += 1,
        }
        match repository.get_record("evidence", &format!("run-{number}")) {
            Ok(Some(found)) => assert_eq!(found, b"{}", "{case}: wrong record {number}"),
            Ok(None) | Err(_) => refused += 1,
        }
    }
    refused
}

/// Whether the absence of an object can be noticed. Nobody but the recovery window (which shows the hole)
/// knows which WAL there should be, nobody which records; one slot is as good as another; an old list is
/// not needed, a newer one says what was in it.
fn is_missed(name: &str) -> bool {
    let is_old_list = name.ends_with("/0000000000000001");
    !(name.starts_with("records/")
        || name.starts_with("keys/slot/")
        || name.starts_with("wal/")
        || is_old_list)
}

#[test]
fn every_damage_to_every_object_is_named_by_check_and_never_restored() {
    let place = filled();
    let foreign = filled();
    let all = read_all(&place.path());
    let foreign = read_all(&foreign.path());
    assert!(check(&place.repository).problems.is_empty());
    let mut cases = 0u32;
    let mut silent = Vec::new();
    for (name, path) in objects(&place.path()) {
        let whole = fs::read(&path).unwrap();
        for (what, body) in damages(&whole, &others_of(&name, &all, &foreign)) {
            if body.as_deref() == Some(whole.as_slice()) {
                continue;
            }
            let case = format!("{name} {what}");
            match &body {
                Some(body) => fs::write(&path, body).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            nothing_wrong_is_returned(&place, &case);
            // The repository that is open already: a damaged slot or `repository` opens nothing anew.
            let named = match place.repository.check(
                dr_store::CheckOptions {
                    read_data: true,
                    ..dr_store::CheckOptions::default()
                },
                &dr_model::Silent,
            ) {
                // What is gone is named by what needs it, where nothing else tells its name.
                Ok(report) => report.problems.iter().any(|problem| {
                    problem.object == name || body.is_none() && !problem.affects.is_empty()
                }),
                // Without `repository` the folder is no repository any more.
                Err(StoreError::Backend { .. }) => name == "repository",
                Err(error) => panic!("{case}: {error}"),
            };
            let must = body.is_some() || is_missed(&name);
            if must && !named {
                silent.push(case);
            }
            fs::write(&path, &whole).unwrap();
            cases += 1;
        }
    }
    assert!(silent.is_empty(), "check does not name: {silent:#?}");
    assert!(check(&place.repository).problems.is_empty());
    println!("{} objects, {cases} cases", all.len());
    assert!(cases > 300, "only {cases} cases were generated");
}
