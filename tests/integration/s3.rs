//! The whole way over S3: backups, WAL, restores and checks against a server that speaks the protocol.

use std::fs;

use dr_testkit::{ACCESS_KEY, FaultyProxy, S3Server, SECRET_KEY};
use sha2::{Digest, Sha256};

use crate::harness::{Cluster, ERP, Json, Options, Output, World};

const BUCKET: &str = "acme-dr";

fn credentials() -> [(&'static str, String); 2] {
    [
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
    ]
}

fn dr(world: &World, arguments: &[&str]) -> Output {
    world.program(arguments).envs(&credentials()).run()
}

fn repository_in_bucket(world: &World, endpoint: &str) {
    let text = std::fs::read_to_string(world.config()).unwrap();
    let local = text
        .lines()
        .find_map(|line| {
            let from = line.find("path: ")?;
            let line = &line[from..];
            line.contains("key:")
                .then(|| line[..line.find(", key").unwrap()].to_owned())
        })
        .unwrap();
    let bucket = format!(
        "s3: {{ bucket: {BUCKET}, prefix: erp, region: us-east-1, endpoint: \"{endpoint}\" }}"
    );
    world.edit_configuration(&local, &bucket);
}

#[test]
fn a_bucket_holds_a_whole_installation() {
    let server = S3Server::start(BUCKET).unwrap();
    let world = World::new(&Options::new("s3", &ERP));
    repository_in_bucket(&world, &server.endpoint());
    // What the store was seen to do is said where the repository is made.
    dr(&world, &["init"])
        .ok()
        .says(&["the store of `main`: refuses to overwrite", "Object Lock"]);
    world.archive(&format!(
        "AWS_ACCESS_KEY_ID={ACCESS_KEY} AWS_SECRET_ACCESS_KEY={SECRET_KEY}"
    ));
    dr(&world, &["backup", "run", "erp"]).ok();
    dr(&world, &["backup", "run", "config"]).ok();
    world
        .cluster
        .psql("create table after_backup as select 42 as answer");
    world.cluster.switch_and_wait();

    let into = world.path("again").display().to_string();
    dr(&world, &["restore", "erp", "--into", &into, "--start"]).ok();
    let restored = Cluster::running(
        &world.account,
        &world.path("again"),
        &world.cluster.database,
    );
    assert_eq!(restored.value("select answer from after_backup"), "42");
    restored.stop("fast");

    let checked = dr(&world, &["repo", "check", "--read", "--json"]).ok();
    assert_eq!(
        Json::parse(&checked.stdout)
            .list("/0/report/problems")
            .len(),
        0
    );
    let denied = world
        .program(&["backup", "list"])
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", "wrong")
        .run();
    assert_eq!(denied.code, Some(1), "{denied}");
    denied.says(&[BUCKET]);
}

#[test]
fn a_tiers_storage_class_is_asked_for_packs_alone() {
    let server = S3Server::start(BUCKET).unwrap();
    let proxy = FaultyProxy::start(&server.endpoint()).unwrap();
    let world = World::new(&Options::new("s3-class", &ERP));
    repository_in_bucket(&world, &proxy.endpoint());
    let tier = world.path("tier-configs/silver.yaml");
    let text = fs::read_to_string(&tier).unwrap();
    fs::write(&tier, format!("{text}storage_class: REDUCED_REDUNDANCY\n")).unwrap();
    // The other tier's workload stays where it is: a tier asks for its own data alone.
    dr(&world, &["init"]).ok();
    dr(&world, &["backup", "run", "erp"]).ok();
    dr(&world, &["backup", "run", "config"]).ok();
    let mut packs = 0;
    for request in proxy.seen().iter().filter(|seen| seen.method == "PUT") {
        let asked = request
            .headers
            .to_lowercase()
            .contains("x-amz-storage-class: reduced_redundancy");
        let is_pack = request.target.contains("/erp/data/config/");
        assert_eq!(asked, is_pack, "{}", request.target);
        packs += usize::from(is_pack);
    }
    assert!(packs > 0, "no pack was stored");
}

/// A repository that was made where deleted objects can be brought back, and moved to where they cannot.
#[test]
fn a_check_says_what_the_store_no_longer_does() {
    let world = World::new(&Options::new("no-longer", &ERP));
    world.dr(&["init"]).ok();
    world.dr(&["repo", "check"]).ok();
    let marker = world.path("repository/repository");
    let line = fs::read_to_string(&marker).unwrap();
    let line = line.replace("\"versions\":false", "\"versions\":true");
    let (checked, _) = line.rsplit_once(",\"sha256\":").unwrap();
    let sum: String = Sha256::digest(checked)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    fs::remove_file(&marker).unwrap();
    fs::write(&marker, format!("{checked},\"sha256\":\"{sum}\"}}\n")).unwrap();
    world.account.own(&marker);
    let check = world.dr(&["repo", "check"]);
    assert_eq!(check.code, Some(1), "{check}");
    check.says(&["no problem found", "THE STORE no longer keeps versions"]);
}
