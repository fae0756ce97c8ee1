//! A stock Debian cluster: configuration in /etc/postgresql, made by `pg_createcluster`.

use std::path::PathBuf;
use std::process::Command;

use crate::harness::{Cluster, ERP, Options, World, free_port};

/// A cluster that Debian's tools made; dropped by them as well.
struct Stock {
    name: String,
}

impl Stock {
    fn create(world: &World, port: u16) -> Self {
        let name = format!("drtest{}", std::process::id());
        let data = world.path("stock");
        let status = Command::new("pg_createcluster")
            .args(["15", &name, "-p", &port.to_string(), "-d"])
            .arg(&data)
            .args(["-s".as_ref(), world.path("").as_os_str()])
            .args(["--", "--data-checksums", "--auth=trust"])
            .output()
            .unwrap();
        assert!(
            status.status.success(),
            "{}",
            String::from_utf8_lossy(&status.stderr)
        );
        Self { name }
    }

    fn ctl(&self, action: &str) {
        let output = Command::new("pg_ctlcluster")
            .args(["15", &self.name, action])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        drop(
            Command::new("pg_dropcluster")
                .args(["--stop", "15", &self.name])
                .output(),
        );
    }
}

#[test]
fn a_stock_cluster_comes_back_with_its_configuration() {
    if !rustix::process::geteuid().is_root() || !PathBuf::from("/usr/bin/pg_createcluster").exists()
    {
        // Debian's tools need root.
        return;
    }
    let world = World::new(&Options::new("debian", &ERP));
    let port = free_port();
    let stock = Stock::create(&world, port);
    stock.ctl("start");
    let server = Cluster {
        data: world.path("stock"),
        port,
        database: "postgres".to_owned(),
        ..world.cluster.clone()
    };
    server.psql("create database erp");
    let cluster = Cluster {
        database: "erp".to_owned(),
        ..server
    };
    cluster.psql("alter system set work_mem = '7MB'");
    cluster.psql("create table here (n int); insert into here values (42)");
    world.edit_configuration(&world.cluster.url(), &cluster.url());
    world.edit_configuration("data_directory: data ", "data_directory: stock ");
    world.dr(&["init"]).ok();
    // Nothing is archived: the point carries its own WAL and restores to its own end.
    world.dr(&["backup", "run", "erp"]).ok();
    let into = world.path("restored");
    world
        .dr(&[
            "restore",
            "erp",
            "--into",
            &into.display().to_string(),
            "--to",
            "latest",
        ])
        .ok();
    world.pg_verifybackup(&into);
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        assert!(into.join(name).is_file(), "{name} did not come back");
    }
    stock.ctl("stop");
    let restored = world.restore_started("started", "latest");
    assert_eq!(restored.value("select n from here"), "42");
    assert_eq!(restored.value("show work_mem"), "7MB");
    restored.stop("fast");
}
