//! Whatever a network does between us and the store: every operation ends right or says that it did
//! not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::time::Duration;

use bytes::Bytes;
use dr_store::{
    Backend, BackendError, LockMode, Patience, PutOptions, PutOutcome, S3Backend, S3Location,
};
use dr_testkit::{ACCESS_KEY, FaultyProxy, ProxyFault, ProxyRule, S3Server, SECRET_KEY};

const BUCKET: &str = "acme-dr";
/// A body that is cut, flipped and shortened somewhere in the middle.
const SIZE: usize = 300_000;

struct Stage {
    server: S3Server,
    proxy: FaultyProxy,
    backend: S3Backend,
}

fn location(endpoint: String) -> S3Location {
    S3Location {
        bucket: BUCKET.to_owned(),
        prefix: "erp".to_owned(),
        region: "us-east-1".to_owned(),
        endpoint: Some(endpoint),
        parts_above: Some(5 << 20),
        ..S3Location::default()
    }
}

fn quick() -> Patience {
    Patience {
        attempt: Duration::from_millis(1500),
        bytes_per_second_min: 16 << 20,
        pause: Duration::from_millis(5),
        ..Patience::default()
    }
}

impl Stage {
    fn new() -> Self {
        let server = S3Server::start(BUCKET).unwrap();
        let proxy = FaultyProxy::start(&server.endpoint()).unwrap();
        let place = location(proxy.endpoint());
        let backend =
            S3Backend::connect_patiently(&place, ACCESS_KEY, SECRET_KEY, quick()).unwrap();
        let capabilities = backend.prepare().unwrap();
        assert!(
            capabilities.etag_is_md5 && capabilities.checksum_md5,
            "{capabilities:?}"
        );
        assert!(capabilities.checksum_sha256, "{capabilities:?}");
        proxy.reset();
        Self {
            server,
            proxy,
            backend,
        }
    }

    /// What is really stored, past the proxy.
    fn stored(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.server.bucket_folder(BUCKET).join("erp").join(name)).ok()
    }

    fn will(&self, method: &'static str, target: &'static str, fault: ProxyFault, times: u32) {
        self.proxy.add(ProxyRule {
            method,
            target,
            fault,
            times,
        });
    }
}

fn body() -> Vec<u8> {
    let mut body = vec![0; SIZE];
    dr_model::random::fill(&mut body);
    body
}

/// What passes: each of these once and then three times in a row.
const PASSING: [ProxyFault; 12] = [
    ProxyFault::Status(503),
    ProxyFault::Status(500),
    ProxyFault::Status(429),
    ProxyFault::Status(502),
    ProxyFault::Slow(Duration::from_secs(3)),
    ProxyFault::CutAnswer(0),
    ProxyFault::CutAnswer(SIZE / 2),
    ProxyFault::CutRequest(0),
    ProxyFault::CutRequest(SIZE / 2),
    ProxyFault::LoseAnswer,
    ProxyFault::HideAnswer,
    ProxyFault::FlipRequest,
];

#[test]
fn a_write_ends_right_whatever_happens_on_the_way() {
    let stage = Stage::new();
    let mut done = 0;
    for (number, fault) in PASSING.iter().chain([&ProxyFault::WrongEtag]).enumerate() {
        // A held answer arrives after we gave up: the others are repeated more often.
        let times: &[u32] = if matches!(fault, ProxyFault::Slow(_)) {
            &[1]
        } else {
            &[1, 3]
        };
        for times in times {
            stage.proxy.reset();
            stage.will("PUT", "data/", *fault, *times);
            let name = format!("data/{number}/{times}");
            let body = body();
            let outcome = stage.backend.put_new(&name, &body).unwrap();
            assert_eq!(outcome, PutOutcome::Stored, "{fault:?} {times} times");
            assert_eq!(stage.stored(&name), Some(body), "{fault:?} {times} times");
            assert!(stage.proxy.faults() > 0, "{fault:?} did not happen");
            done += 1;
        }
    }
    assert_eq!(done, 25);
}

#[test]
fn a_read_ends_right_whatever_happens_on_the_way() {
    let stage = Stage::new();
    let body = body();
    stage.backend.put_new("data/x", &body).unwrap();
    let answers = [
        ProxyFault::WrongEtag,
        ProxyFault::FlipAnswer,
        ProxyFault::ShortAnswer,
    ];
    for fault in PASSING.iter().chain(&answers) {
        for times in [1, 3] {
            stage.proxy.reset();
            stage.will("GET", "data/x", *fault, times);
            let read = stage.backend.get("data/x").unwrap().unwrap();
            assert!(read == body, "{fault:?} {times} times");
        }
        // A part has no sum of its own to be compared with: what is flipped is found by its seal.
        if matches!(fault, ProxyFault::FlipAnswer) {
            continue;
        }
        stage.proxy.reset();
        stage.will("GET", "data/x", *fault, 2);
        let part = stage.backend.get_range("data/x", 100, 200_000).unwrap();
        assert!(part.unwrap() == body[100..200_100], "a part with {fault:?}");
    }
}

#[test]
fn listing_deleting_and_the_clock_end_right_whatever_happens_on_the_way() {
    let stage = Stage::new();
    let names: Vec<String> = (0..20).map(|n| format!("points/rp-{n:02}")).collect();
    for name in &names {
        stage.backend.put_new(name, b"x").unwrap();
    }
    for fault in &PASSING {
        stage.proxy.reset();
        stage.will("GET", "list-type=2", *fault, 2);
        let found = stage.backend.list("points/").unwrap();
        assert_eq!(found.len(), names.len(), "{fault:?}");
        stage.will("DELETE", "doomed", *fault, 2);
        stage.backend.put_new("records/doomed", b"x").unwrap();
        stage.backend.delete("records/doomed").unwrap();
        assert_eq!(stage.stored("records/doomed"), None, "{fault:?}");
        stage.will("", "trial-", *fault, 1);
        stage.backend.now().unwrap();
    }
}

#[test]
fn another_writers_object_is_told_from_ones_own_success() {
    let stage = Stage::new();
    for fault in [
        ProxyFault::LoseAnswer,
        ProxyFault::HideAnswer,
        ProxyFault::Status(503),
    ] {
        stage.proxy.reset();
        let name = format!("chain/erp/{}", dr_model::random::hex(4));
        let direct =
            S3Backend::connect_as(&location(stage.server.endpoint()), ACCESS_KEY, SECRET_KEY)
                .unwrap();
        direct.put_new(&name, b"theirs").unwrap();
        stage.will("PUT", "chain/", fault, 1);
        let outcome = stage
            .backend
            .put_new(&name, b"ours, of another length")
            .unwrap();
        assert_eq!(outcome, PutOutcome::Exists, "{fault:?}");
        stage.will("PUT", "chain/", fault, 1);
        assert_eq!(
            stage.backend.put_new(&name, b"their!").unwrap(),
            PutOutcome::Exists
        );
        assert_eq!(stage.stored(&name).unwrap(), b"theirs");
    }
}

#[test]
fn an_object_in_parts_ends_right_whatever_happens_to_each_request() {
    let stage = Stage::new();
    let mut body = vec![0; (15 << 20) + 1000];
    dr_model::random::fill(&mut body[..1 << 20]);
    let steps: [(&str, &str); 3] = [
        ("POST", "uploads"),
        ("PUT", "partNumber=3"),
        ("POST", "uploadId="),
    ];
    let faults = [
        ProxyFault::Status(503),
        ProxyFault::CutAnswer(0),
        ProxyFault::LoseAnswer,
        ProxyFault::CutRequest(10),
    ];
    for (step, (method, target)) in steps.iter().enumerate() {
        for (number, fault) in faults.iter().enumerate() {
            stage.proxy.reset();
            stage.will(method, target, *fault, 1);
            let name = format!("wal/erp/{step}{number}");
            let outcome = stage.backend.put_new(&name, &body);
            assert!(
                matches!(outcome, Ok(PutOutcome::Stored)),
                "{fault:?} at {target}: {outcome:?}"
            );
            assert!(
                stage.stored(&name).unwrap() == body,
                "{fault:?} at {target}"
            );
            assert_eq!(
                stage.proxy.faults(),
                1,
                "{fault:?} at {target} did not happen"
            );
            stage.backend.delete(&name).unwrap();
        }
    }
}

#[test]
fn a_failed_upload_in_parts_leaves_nothing_behind() {
    let stage = Stage::new();
    let body = vec![7; (15 << 20) + 1000];
    stage.will("PUT", "partNumber=4", ProxyFault::Status(503), 100);
    let failed = stage.backend.put_new("wal/erp/x", &body).unwrap_err();
    assert!(
        matches!(failed, BackendError::Unreachable { .. }),
        "{failed:?}"
    );
    assert_eq!(stage.stored("wal/erp/x"), None);
    let aborted = stage.proxy.seen();
    let aborted = aborted
        .iter()
        .filter(|request| request.method == "DELETE")
        .count();
    assert_eq!(aborted, 1, "the parts were not given up");
}

#[test]
fn what_does_not_pass_is_an_error_and_never_absence() {
    let stage = Stage::new();
    stage.backend.put_new("data/x", b"x").unwrap();
    for fault in [
        ProxyFault::Status(503),
        ProxyFault::Status(500),
        ProxyFault::LoseAnswer,
        ProxyFault::CutAnswer(0),
    ] {
        stage.proxy.reset();
        stage.will("", "", fault, 1000);
        for error in [
            stage.backend.get("data/x").map(drop),
            stage.backend.get("data/not-there").map(drop),
            stage.backend.get_range("data/x", 0, 1).map(drop),
            stage.backend.list("data/").map(drop),
            stage.backend.put_new("data/y", b"y").map(drop),
        ] {
            let error = error.unwrap_err();
            assert!(
                matches!(error, BackendError::Unreachable { .. }),
                "{fault:?}: {error:?}"
            );
        }
    }
    // A refusal is not asked again.
    stage.proxy.reset();
    stage.will("", "", ProxyFault::Status(403), 1000);
    assert!(matches!(
        stage.backend.get("data/x"),
        Err(BackendError::Refused { .. })
    ));
    assert_eq!(stage.proxy.seen().len(), 1);
    // A 404 that says nothing of the key is a proxy's, not the store's.
    stage.proxy.reset();
    stage.will("", "", ProxyFault::Status(404), 1000);
    assert!(matches!(
        stage.backend.get("data/x"),
        Err(BackendError::Store { .. })
    ));
}

#[test]
fn a_write_says_what_it_is_and_what_it_wants() {
    let stage = Stage::new();
    stage.backend.put_new("data/x", b"x").unwrap();
    let seen = stage.proxy.seen();
    let put = seen.iter().find(|request| request.method == "PUT").unwrap();
    let headers = put.headers.to_lowercase();
    for line in [
        "if-none-match: *",
        "content-md5: ndtigoldlrxkwrqz+6ml5g==",
        "x-amz-checksum-sha256: ltcxq4+kyxrpfoxmkm6fxsnwvqftnmiv94ds/fgbd+4=",
    ] {
        let (name, _) = line.split_once(':').unwrap();
        assert!(
            headers.contains(&format!("{name}:")),
            "no {name}: {headers}"
        );
    }
    assert!(headers.contains("if-none-match: *"), "{headers}");
    let path_style = put.target.starts_with(&format!("/{BUCKET}/erp/data/x"));
    assert!(path_style, "{}", put.target);
}

#[test]
fn storage_class_and_lock_are_really_asked_for() {
    let server = S3Server::start(BUCKET).unwrap();
    let proxy = FaultyProxy::start(&server.endpoint()).unwrap();
    let place = S3Location {
        storage_class: Some("REDUCED_REDUNDANCY".to_owned()),
        lock_mode: LockMode::Compliance,
        ..location(proxy.endpoint())
    };
    // One that was told nothing of the store asks for everything.
    let backend = S3Backend::connect_patiently(&place, ACCESS_KEY, SECRET_KEY, quick()).unwrap();
    let options = PutOptions {
        retain_until: chrono::DateTime::from_timestamp(4_000_000_000, 0),
        ..PutOptions::default()
    };
    backend
        .put_new_with("data/x", Bytes::from_static(b"x"), &options)
        .unwrap();
    backend
        .put_new_with("data/large", vec![0; 6 << 20].into(), &options)
        .unwrap();
    backend.put_new("data/y", b"y").unwrap();
    let headers = |method: &str, target: &str| {
        let seen = proxy.seen();
        let asked = seen
            .iter()
            .find(|request| request.method == method && request.target.contains(target));
        asked.unwrap().headers.to_lowercase()
    };
    for asked in [
        headers("PUT", "data/x"),
        headers("POST", "data/large?uploads"),
    ] {
        for line in [
            "x-amz-storage-class: reduced_redundancy",
            "x-amz-object-lock-mode: compliance",
            "x-amz-object-lock-retain-until-date: 2096-10-02t07:06:40z",
        ] {
            assert!(asked.contains(line), "no {line}: {asked}");
        }
    }
    let unlocked = headers("PUT", "data/y");
    assert!(unlocked.contains("x-amz-storage-class") && !unlocked.contains("object-lock"));
}

#[test]
fn the_bucket_is_in_the_host_name_when_asked_for() {
    let server = S3Server::start(BUCKET).unwrap();
    let proxy = FaultyProxy::start(&server.endpoint()).unwrap();
    let port = proxy.endpoint().rsplit(':').next().unwrap().to_owned();
    let place = S3Location {
        path_style: Some(false),
        // Resolves to loopback with anything before it, by RFC 6761.
        ..location(format!("http://localhost:{port}"))
    };
    proxy.add(ProxyRule {
        method: "",
        target: "",
        fault: ProxyFault::Status(403),
        times: 10,
    });
    let backend = S3Backend::connect_patiently(&place, ACCESS_KEY, SECRET_KEY, quick()).unwrap();
    let answer = backend.get("data/x");
    let seen = proxy.seen();
    if let Some(request) = seen.first() {
        assert_eq!(request.target.split('?').next(), Some("/erp/data/x"));
        assert!(
            request
                .headers
                .to_lowercase()
                .contains("host: acme-dr.localhost")
        );
    } else {
        // No resolver here knows the name: then that was asked for.
        assert!(
            matches!(answer, Err(BackendError::Unreachable { .. })),
            "{answer:?}"
        );
    }
}
