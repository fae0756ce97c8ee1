//! Measures what opening an index costs: `index_figures FOLDER CHUNKS` makes a repository in FOLDER whose
//! index names so many chunks, and opens it as a backup does, in a process of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a measuring program that ends at the first mistake"
)]

use std::path::Path;
use std::sync::Arc;

use dr_model::WorkloadName;
use dr_store::{LocalBackend, Repository, RepositoryKey};

fn peak_memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line
        .and_then(|line| line.split_whitespace().nth(1))
        .unwrap();
    kib.parse::<u64>().unwrap() / 1024
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let folder = Path::new(arguments.get(1).expect("a folder"));
    let chunks = arguments.get(2).expect("a number of chunks");
    let key_file = folder.join("key");
    let place = Arc::new(LocalBackend::new(&folder.join("repository")));
    let workload: WorkloadName = "figures".parse().unwrap();
    if chunks == "open" {
        let key = RepositoryKey::parse(&std::fs::read_to_string(key_file).unwrap()).unwrap();
        let repository = Repository::open(place, &key).unwrap();
        let before = peak_memory_mib();
        let opened = dr_store::testing::open_index(&repository, &workload).unwrap();
        println!(
            "{} chunks: opened in {:.2} s, peak memory {} MiB ({before} MiB before), {} ns a look-up",
            opened.chunks,
            opened.open.as_secs_f64(),
            peak_memory_mib(),
            opened.look_up.as_nanos()
        );
        return;
    }
    let key = RepositoryKey::generate();
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(&key_file, key.to_text().expect("a text").as_bytes()).unwrap();
    let repository = Repository::create(place, &key).unwrap();
    dr_store::testing::fill_index(&repository, &workload, chunks.parse().unwrap()).unwrap();
    let opened = std::process::Command::new(std::env::current_exe().unwrap())
        .arg(folder)
        .arg("open")
        .status()
        .unwrap();
    assert!(opened.success());
}
