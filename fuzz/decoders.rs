//! Runs one decoder of stored bytes under libFuzzer: the one that `DR_FUZZ_TARGET` names. With
//! `DR_FUZZ_LIST` set, prints their names instead; with `DR_FUZZ_SEEDS=<folder>`, writes bytes that the
//! decoder accepts there, to begin with. `scripts/fuzz.sh` does all of it.

#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use dr_store::fuzzing::{TARGETS, Target, target};

static CHOSEN: OnceLock<&'static Target> = OnceLock::new();

fn choose() {
    if std::env::var_os("DR_FUZZ_LIST").is_some() {
        for target in TARGETS {
            println!("{}", target.name);
        }
        std::process::exit(0);
    }
    let name = std::env::var("DR_FUZZ_TARGET").expect("DR_FUZZ_TARGET names a decoder");
    let chosen = target(&name).expect("DR_FUZZ_TARGET names a decoder that there is");
    if let Some(folder) = std::env::var_os("DR_FUZZ_SEEDS").map(PathBuf::from) {
        for (number, seed) in (chosen.seeds)().iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}")), seed).expect("a seed is written");
        }
    }
    let _ = CHOSEN.set(chosen);
}

libfuzzer_sys::fuzz_target!(
    init: choose(),
    |data: &[u8]| {
        if let Some(chosen) = CHOSEN.get() {
            (chosen.run)(data);
        }
    }
);
