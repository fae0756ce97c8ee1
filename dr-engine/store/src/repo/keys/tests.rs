use super::*;
use crate::backend::Backend;
use crate::{LocalBackend, RepositoryKey};

struct Place {
    _folder: tempfile::TempDir,
    backend: Arc<LocalBackend>,
    key: RepositoryKey,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let backend = Arc::new(LocalBackend::new(&folder.path().join("repository")));
        let key = RepositoryKey::generate();
        Repository::create(Arc::<LocalBackend>::clone(&backend), &key).unwrap();
        Self {
            _folder: folder,
            backend,
            key,
        }
    }

    /// As another process sees it: nothing is known yet.
    fn open(&self) -> Repository {
        Repository::open(Arc::<LocalBackend>::clone(&self.backend), &self.key).unwrap()
    }
}

fn workload() -> WorkloadName {
    "files".parse().unwrap()
}

fn tenant(name: &str) -> Domain {
    Domain::Tenant(name.to_owned())
}

fn void(repository: &Repository, name: &str) -> Shredding {
    let repo = repository.inner();
    let object = repo.data_key_object(&workload(), &tenant(name)).unwrap();
    let keys = repo.data_keys(&workload(), &tenant(name)).unwrap();
    let record = Shredding {
        workload: workload(),
        tenant: name.to_owned(),
        key_ids: keys.iter().map(|keys| hex::encode(keys.id())).collect(),
        object: object.clone(),
        at: DateTime::UNIX_EPOCH,
        by: "test".to_owned(),
    };
    let code = object
        .strip_prefix(&tenant_key_prefix(&workload()))
        .unwrap();
    repository
        .put_record(
            SHRED,
            &format!("{}/{code}", workload()),
            &serde_json::to_vec(&record).unwrap(),
        )
        .unwrap();
    record
}

#[test]
fn every_domain_has_a_key_of_its_own_that_every_process_finds() {
    let place = Place::new();
    let repository = place.open();
    let repo = repository.inner();
    let domains = [Domain::Workload, tenant("acme"), tenant("Größe & Söhne")];
    for domain in &domains {
        assert!(repo.data_keys(&workload(), domain).unwrap().is_none());
    }
    let ids: Vec<KeyId> = domains
        .iter()
        .map(|domain| repo.data_keys_or_new(&workload(), domain).unwrap().id())
        .collect();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), domains.len());
    let other = place.open();
    for (domain, id) in domains.iter().zip(&ids) {
        let keys = other.inner().data_keys(&workload(), domain).unwrap();
        assert_eq!(keys.unwrap().id(), *id);
        let (found, _) = other.inner().data_keys_by_id(&workload(), id).unwrap();
        assert_eq!(found, *domain);
    }
    assert_eq!(other.inner().all_data_keys(&workload()).unwrap().len(), 3);
    let elsewhere = "files-2".parse().unwrap();
    assert!(other.inner().all_data_keys(&elsewhere).unwrap().is_empty());
}

#[test]
fn of_two_processes_that_make_a_key_at_once_both_use_the_same() {
    let place = Place::new();
    let ids: HashSet<KeyId> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    let repository = place.open();
                    let keys = repository
                        .inner()
                        .data_keys_or_new(&workload(), &tenant("acme"));
                    keys.unwrap().id()
                })
            })
            .collect();
        running.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(ids.len(), 1);
}

#[test]
fn the_place_does_not_learn_the_names_of_tenants() {
    let place = Place::new();
    let repository = place.open();
    let repo = repository.inner();
    repo.data_keys_or_new(&workload(), &tenant("acme")).unwrap();
    void(&repository, "acme");
    for entry in place.backend.list("").unwrap() {
        let body = place.backend.get(&entry.name).unwrap().unwrap();
        assert!(!entry.name.contains("acme"), "{}", entry.name);
        assert!(
            !body.windows(4).any(|part| part == b"acme"),
            "{}",
            entry.name
        );
    }
}

#[test]
fn a_void_key_opens_nothing_even_when_it_is_brought_back() {
    let place = Place::new();
    let before = place.open();
    let old = before
        .inner()
        .data_keys_or_new(&workload(), &tenant("acme"))
        .unwrap();
    let other = before
        .inner()
        .data_keys_or_new(&workload(), &tenant("bolt"))
        .unwrap();
    let record = void(&before, "acme");
    let after = place.open();
    let repo = after.inner();
    // The object is still there, as if a copy had brought it back.
    assert!(repo.get(&record.object).unwrap().is_some());
    assert!(
        repo.data_keys(&workload(), &tenant("acme"))
            .unwrap()
            .is_none()
    );
    assert!(matches!(
        repo.data_keys_by_id(&workload(), &old.id()).unwrap_err(),
        StoreError::Shredded { tenant, at } if tenant == "acme" && at == DateTime::UNIX_EPOCH
    ));
    assert!(repo.data_keys_by_id(&workload(), &other.id()).is_ok());
    assert_eq!(after.shreddings(&workload()).unwrap(), [record]);
    let new = repo.data_keys_or_new(&workload(), &tenant("acme")).unwrap();
    assert_ne!(new.id(), old.id());
    let listed = after.tenant_keys(&workload()).unwrap();
    assert_eq!(
        listed
            .iter()
            .map(|key| key.tenant.as_str())
            .collect::<Vec<_>>(),
        ["acme", "bolt"]
    );
}

#[test]
fn a_writer_learns_that_a_key_it_uses_was_destroyed() {
    let place = Place::new();
    let writer = place.open();
    let acme = writer
        .inner()
        .data_keys_or_new(&workload(), &tenant("acme"))
        .unwrap();
    let used = || [(tenant("acme"), acme.id())];
    writer
        .inner()
        .data_keys_are_there(&workload(), used())
        .unwrap();
    void(&place.open(), "acme");
    assert!(matches!(
        writer.inner().data_keys_are_there(&workload(), used()),
        Err(StoreError::Shredded { .. })
    ));
    let new = writer
        .inner()
        .data_keys_or_new(&workload(), &tenant("acme"))
        .unwrap();
    assert_ne!(new.id(), acme.id());
}

#[test]
fn a_key_that_lies_in_another_tenants_place_is_damage() {
    let place = Place::new();
    let repository = place.open();
    let repo = repository.inner();
    for name in ["acme", "bolt"] {
        repo.data_keys_or_new(&workload(), &tenant(name)).unwrap();
    }
    let object = |name| repo.data_key_object(&workload(), &tenant(name)).unwrap();
    let acme = repo.get(&object("acme")).unwrap().unwrap();
    place.backend.delete(&object("bolt")).unwrap();
    place.backend.put_new(&object("bolt"), &acme).unwrap();
    let fresh = place.open();
    assert!(matches!(
        fresh.inner().data_keys(&workload(), &tenant("bolt")),
        Err(StoreError::Damaged { .. })
    ));
    assert!(fresh.inner().all_data_keys(&workload()).is_err());
}

#[test]
fn shredding_takes_one_tenants_key_and_nobody_elses() {
    let place = Place::new();
    let repository = place.open();
    let repo = repository.inner();
    let acme = repo.data_keys_or_new(&workload(), &tenant("acme")).unwrap();
    let bolt = repo.data_keys_or_new(&workload(), &tenant("bolt")).unwrap();
    let object = repo.data_key_object(&workload(), &tenant("acme")).unwrap();
    let outcome = repository
        .shred_tenant(&workload(), "acme", DateTime::UNIX_EPOCH, "operator")
        .unwrap();
    assert_eq!((outcome.deleted, outcome.shreddings.len()), (1, 1));
    assert_eq!(outcome.shreddings[0].key_ids, [hex::encode(acme.id())]);
    assert!(place.backend.get(&object).unwrap().is_none());
    for repository in [&repository, &place.open()] {
        let repo = repository.inner();
        assert!(matches!(
            repo.data_keys_by_id(&workload(), &acme.id()),
            Err(StoreError::Shredded { .. })
        ));
        assert!(repo.data_keys_by_id(&workload(), &bolt.id()).is_ok());
        assert_eq!(repository.tenant_keys(&workload()).unwrap().len(), 1);
    }
    // Nothing to do, and nothing done.
    let again = repository
        .shred_tenant(&workload(), "acme", DateTime::UNIX_EPOCH, "operator")
        .unwrap();
    assert_eq!((again.deleted, again.shreddings.len()), (0, 1));
    let nobody = repository
        .shred_tenant(&workload(), "nobody", DateTime::UNIX_EPOCH, "operator")
        .unwrap();
    assert_eq!(nobody, ShredOutcome::default());
}

#[test]
fn a_key_that_a_crash_or_a_copy_left_goes_the_next_time() {
    let place = Place::new();
    let repository = place.open();
    let repo = repository.inner();
    repo.data_keys_or_new(&workload(), &tenant("acme")).unwrap();
    let record = void(&repository, "acme");
    let key = place.backend.get(&record.object).unwrap().unwrap();
    assert!(repository.is_void_key(&record.object).unwrap());
    let outcome = place
        .open()
        .shred_tenant(&workload(), "acme", DateTime::UNIX_EPOCH, "operator")
        .unwrap();
    assert_eq!(outcome.deleted, 1);
    assert!(place.backend.get(&record.object).unwrap().is_none());
    place.backend.put_new(&record.object, &key).unwrap();
    let outcome = place.open().delete_void_keys(&workload(), None).unwrap();
    assert_eq!(outcome.deleted, 1);
    assert!(place.backend.get(&record.object).unwrap().is_none());
}

#[test]
fn a_copy_takes_the_record_over_byte_for_byte_and_loses_the_key() {
    let place = Place::new();
    let folder = tempfile::tempdir().unwrap();
    let backend = Arc::new(LocalBackend::new(&folder.path().join("copy")));
    let repository = place.open();
    let repo = repository.inner();
    repo.data_keys_or_new(&workload(), &tenant("acme")).unwrap();
    backend.prepare().unwrap();
    for entry in place.backend.list("").unwrap() {
        let body = place.backend.get(&entry.name).unwrap().unwrap();
        backend.put_new(&entry.name, &body).unwrap();
    }
    let copy = Repository::open(Arc::<LocalBackend>::clone(&backend), &place.key).unwrap();
    let shredded = repository
        .shred_tenant(&workload(), "acme", DateTime::UNIX_EPOCH, "operator")
        .unwrap();
    let there = repository.shred_in_copy(&copy, &workload()).unwrap();
    assert_eq!(there, shredded);
    let all = |backend: &LocalBackend| -> Vec<_> {
        let listed = backend.list("").unwrap();
        listed
            .into_iter()
            .map(|entry| (backend.get(&entry.name).unwrap(), entry.name))
            .collect()
    };
    assert_eq!(all(&place.backend), all(&backend));
}
