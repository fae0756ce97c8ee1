//! The whole way over S3: backups, WAL, restores and checks against a server that speaks the protocol.

use dr_testkit::{ACCESS_KEY, S3Server, SECRET_KEY};

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

fn repository_in_bucket(world: &World, server: &S3Server) {
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
        "s3: {{ bucket: {BUCKET}, prefix: erp, region: us-east-1, endpoint: \"{}\" }}",
        server.endpoint()
    );
    world.edit_configuration(&local, &bucket);
}

#[test]
fn a_bucket_holds_a_whole_installation() {
    let server = S3Server::start(BUCKET).unwrap();
    let world = World::new(&Options::new("s3", &ERP));
    repository_in_bucket(&world, &server);
    dr(&world, &["init"]).ok();
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
