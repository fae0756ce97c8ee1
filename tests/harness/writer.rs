//! A client that writes all the time and remembers what was acknowledged.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::cluster::Cluster;

/// Writes of one writer, by key: the row as the server returned it.
pub(crate) type Acknowledged = BTreeMap<String, String>;

/// One `psql` session in a thread. Each statement is one transaction; it counts as acknowledged when
/// the server's answer has been read.
#[derive(Debug)]
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Acknowledged>>,
    child: u32,
}

impl Writer {
    /// `statement(n)` gives the n-th statement; it must return exactly one row.
    pub(crate) fn start(
        cluster: &Cluster,
        log: &Path,
        pause: Duration,
        statement: impl Fn(u64) -> String + Send + 'static,
    ) -> Self {
        let mut child = cluster.psql_program().talk(log);
        let mut input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let id = child.id();
        let thread = std::thread::spawn(move || {
            let mut acknowledged = Acknowledged::new();
            for number in 0.. {
                if asked.load(Ordering::SeqCst) {
                    break;
                }
                if writeln!(input, "{};", statement(number))
                    .and_then(|()| input.flush())
                    .is_err()
                {
                    break;
                }
                let mut line = String::new();
                if output.read_line(&mut line).unwrap_or(0) == 0 {
                    break;
                }
                acknowledged.insert(format!("{number:08}"), line.trim_end().to_owned());
                std::thread::sleep(pause);
            }
            drop(input);
            drop(child.wait());
            acknowledged
        });
        Self {
            stop,
            thread: Some(thread),
            child: id,
        }
    }

    /// Lets it finish its present statement.
    pub(crate) fn stop(mut self) -> Acknowledged {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
