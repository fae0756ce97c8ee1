//! Progress: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use dr_model::Progress;
use indicatif::{ProgressBar, ProgressStyle};

use crate::output;

/// Draws the progress of one job.
struct Display {
    bar: Option<ProgressBar>,
    current: Mutex<Option<String>>,
}

const BYTES: &str = "{msg:32} {bar:30} {bytes:>10}/{total_bytes} {bytes_per_sec} {eta} left";
const SPINNER: &str = "{spinner} {msg} {elapsed}";

/// A display for one job: a bar where people watch, lines where they read later.
pub(crate) fn display() -> Arc<dyn Progress> {
    let bar = std::io::stderr().is_terminal().then(|| {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(std::time::Duration::from_millis(100));
        bar
    });
    Arc::new(Display {
        bar,
        current: Mutex::new(None),
    })
}

impl Progress for Display {
    fn phase(&self, name: &str, bytes_total: Option<u64>) {
        match &self.bar {
            Some(bar) => {
                let (template, length) = match bytes_total {
                    Some(total) => (BYTES, total),
                    None => (SPINNER, 0),
                };
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
                bar.set_length(length);
                bar.set_position(0);
                bar.set_message(name.to_owned());
            }
            None => {
                let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
                if current.as_deref() != Some(name) {
                    output::talk(&format!("  {name}"));
                    *current = Some(name.to_owned());
                }
            }
        }
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::talk(&format!("  {text}"))),
            None => output::talk(&format!("  {text}")),
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
