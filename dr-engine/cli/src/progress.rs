//! Progress: a bar with rate and time left on a terminal, plain lines elsewhere.
//!
//! A total may be a guess (what the last backup read). A phase that goes beyond it goes on with what is
//! done as its total, rather than with a percentage that is wrong. Where nobody watches, a phase has its
//! line when it begins, and one every [`LINE_EVERY`] while it lasts.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dr_model::{ByteCount, Clock, Progress, SystemClock};
use indicatif::{ProgressBar, ProgressStyle};

use crate::output;

/// Seldom enough for a log, often enough to see that it goes on.
const LINE_EVERY: Duration = Duration::from_secs(30);
/// An estimate from less than this would jump about.
const ESTIMATE_AFTER: Duration = Duration::from_secs(2);
/// How often the bar is drawn.
const TICK: Duration = Duration::from_millis(100);

const BYTES: &str = "{msg:32} {bar:30} {bytes:>10}/{total_bytes} {bytes_per_sec} {eta} left";
const COUNTED: &str = "{spinner} {msg} {bytes} {bytes_per_sec} {elapsed}";
const SPINNER: &str = "{spinner} {msg} {elapsed}";

/// A display for one job: a bar where people watch, lines where they read later.
pub(crate) fn display() -> Arc<dyn Progress> {
    if std::io::stderr().is_terminal() {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(TICK);
        Arc::new(Bar(bar))
    } else {
        Arc::new(Lines::default())
    }
}

/// On a terminal.
struct Bar(ProgressBar);

impl Bar {
    fn style(&self, template: &str) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style);
        }
    }
}

impl Progress for Bar {
    fn phase(&self, name: &str, bytes_total: Option<u64>) {
        self.style(if bytes_total.is_some() {
            BYTES
        } else {
            SPINNER
        });
        match bytes_total {
            Some(total) => self.0.set_length(total),
            None => self.0.unset_length(),
        }
        // The rate of the phase before says nothing about this one.
        self.0.reset();
        self.0.set_message(name.to_owned());
    }

    fn advance(&self, bytes: u64) {
        let first = self.0.position() == 0;
        self.0.inc(bytes);
        match self.0.length() {
            // The first bytes of a phase whose size nobody knows.
            None if first => self.style(COUNTED),
            Some(length) if self.0.position() > length => self.0.set_length(self.0.position()),
            _ => {}
        }
    }

    fn note(&self, text: &str) {
        self.0.suspend(|| output::talk(&format!("  {text}")));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// In a log.
#[derive(Default)]
struct Lines {
    phase: Mutex<Phase>,
    done: AtomicU64,
    /// When the next line is due, on the monotonic clock.
    due_ns: AtomicU64,
}

#[derive(Default, Clone)]
struct Phase {
    name: String,
    total: Option<u64>,
    began_ns: u64,
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Progress for Lines {
    fn phase(&self, name: &str, bytes_total: Option<u64>) {
        let now = SystemClock.monotonic_ns();
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if phase.name != name {
            output::talk(&format!("  {name}"));
        }
        *phase = Phase {
            name: name.to_owned(),
            total: bytes_total,
            began_ns: now,
        };
        self.done.store(0, Ordering::Relaxed);
        let due = now.saturating_add(nanoseconds(LINE_EVERY));
        self.due_ns.store(due, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let due = self.due_ns.load(Ordering::Relaxed);
        let now = SystemClock.monotonic_ns();
        let next = now.saturating_add(nanoseconds(LINE_EVERY));
        // Of several threads that find a line due, one writes it.
        let exchanged = |due| {
            self.due_ns
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
        };
        if now < due || exchanged(due).is_err() {
            return;
        }
        let phase = self
            .phase
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        // Without a phase there is nothing to say what these bytes are.
        if !phase.name.is_empty() {
            let elapsed = Duration::from_nanos(now.saturating_sub(phase.began_ns));
            output::talk(&format!("  {}", line(&phase, done, elapsed)));
        }
    }

    fn note(&self, text: &str) {
        output::talk(&format!("  {text}"));
    }
}

/// How far a phase is: "reading the folder: 1.0 GiB of 4.0 GiB, 100.0 MiB/s, 31 s left".
fn line(phase: &Phase, done: u64, elapsed: Duration) -> String {
    let name = &phase.name;
    let total = phase.total.filter(|total| *total >= done);
    let of = total.map_or_else(String::new, |total| format!(" of {}", ByteCount(total)));
    let mut text = format!("{name}: {}{of}", ByteCount(done));
    let milliseconds = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    if elapsed < ESTIMATE_AFTER || done == 0 {
        return text;
    }
    let per_second = u64::try_from(u128::from(done) * 1000 / u128::from(milliseconds));
    let per_second = per_second.unwrap_or(u64::MAX);
    text.push_str(&format!(", {}/s", ByteCount(per_second)));
    if let Some(left) = total.and_then(|total| (total - done).checked_div(per_second)) {
        text.push_str(&format!(", {} left", time(left)));
    }
    text
}

/// As people say it: "8 s", "5 min 10 s", "2 h 5 min".
fn time(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(total: Option<u64>) -> Phase {
        Phase {
            name: "reading the folder".to_owned(),
            total,
            began_ns: 0,
        }
    }

    #[test]
    fn a_line_tells_amount_rate_and_time_left() {
        let (gib, ten) = (1 << 30, Duration::from_secs(10));
        assert_eq!(
            line(&phase(Some(4 * gib)), gib, ten),
            "reading the folder: 1.0 GiB of 4.0 GiB, 102.4 MiB/s, 30 s left"
        );
        assert_eq!(
            line(&phase(None), gib, ten),
            "reading the folder: 1.0 GiB, 102.4 MiB/s"
        );
        // A guess that was too small is no total.
        assert_eq!(
            line(&phase(Some(gib / 2)), gib, ten),
            "reading the folder: 1.0 GiB, 102.4 MiB/s"
        );
        assert_eq!(
            line(&phase(Some(gib)), 0, ten),
            "reading the folder: 0 B of 1.0 GiB"
        );
    }

    #[test]
    fn an_estimate_waits_until_there_is_something_to_estimate_from() {
        let soon = Duration::from_millis(100);
        assert_eq!(
            line(&phase(Some(2048)), 1024, soon),
            "reading the folder: 1.0 KiB of 2.0 KiB"
        );
    }

    #[test]
    fn time_left_is_said_as_people_say_it() {
        assert_eq!([8, 310, 7500].map(time), ["8 s", "5 min 10 s", "2 h 5 min"]);
    }

    #[test]
    fn a_bar_goes_beyond_a_total_that_was_a_guess() {
        let bar = Bar(ProgressBar::hidden());
        bar.phase("reading the folder", Some(100));
        bar.advance(60);
        assert_eq!(bar.0.length(), Some(100));
        bar.advance(60);
        assert_eq!(bar.0.length(), Some(120));
        bar.phase("listing the restore point", None);
        assert_eq!((bar.0.position(), bar.0.length()), (0, None));
    }
}
