//! The doors to stdout and stderr. Nothing else in the program prints.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the door"
)]

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use serde::Serialize;

use crate::args::Command;
use crate::failure::{FAILED, Failure, USAGE};

/// A line of data.
pub(crate) fn data(text: &str) {
    let mut out = std::io::stdout().lock();
    // A reader that went away (`dr … | head`) is no failure of ours.
    drop(writeln!(out, "{}", text.trim_end_matches('\n')));
}

/// A line of talk.
pub(crate) fn talk(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

/// One value as JSON.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::of("cannot write the answer as JSON", &error))?;
    data(&text);
    Ok(())
}

/// Prints a failure and gives its exit code.
pub(crate) fn failure(failure: &Failure) -> ExitCode {
    let mut text = String::from("error: ");
    for (depth, line) in failure.chain.iter().enumerate() {
        if depth > 0 {
            text.push_str("\n  caused by: ");
        }
        text.push_str(line);
    }
    if let Some(hint) = &failure.hint {
        text.push_str("\n\nhint: ");
        text.push_str(hint);
    }
    talk(&text);
    ExitCode::from(failure.code)
}

/// Prints what the argument parser says.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    drop(error.print());
    if error.use_stderr() {
        ExitCode::from(USAGE)
    } else {
        ExitCode::SUCCESS
    }
}

/// A table with a header: columns as wide as their widest cell, two spaces between.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let header: Vec<String> = header.iter().map(|cell| cell.to_uppercase()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|l| l.get(column))
            .map(|c| c.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let format = |line: &Vec<String>| {
        let cells = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(format).collect::<Vec<_>>().join("\n")
}

/// A moment as people read it: UTC, to the second.
pub(crate) fn time(at: chrono::DateTime<chrono::Utc>) -> String {
    at.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Whether a person can be asked.
pub(crate) fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks, and gives the answer without its line end.
pub(crate) fn ask(question: &str) -> Result<String, Failure> {
    eprint!("{question} ");
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Failure::of("cannot read the answer", &error))?;
    Ok(answer.trim().to_owned())
}

/// The log goes to stderr. A daemon says what it does; a single command only what a person must see.
pub(crate) fn install_logging(command: &Command) {
    let default = if matches!(command, Command::Serve) {
        "info,sqlx=error"
    } else {
        "warn,sqlx=error"
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("DR_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    drop(
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .try_init(),
    );
}

/// The exit code of a command's result.
pub(crate) fn exit(result: Result<u8, Failure>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => failure(&error),
    }
}

/// For callers that must not go on.
pub(crate) const fn failed() -> u8 {
    FAILED
}
