//! How long work tells that it goes on. The command line draws it; the daemon logs it; tests ignore it.

/// Receives the progress of one job. Calls are cheap and come from several threads.
pub trait Progress: Send + Sync {
    /// A new phase begins ("reading the data directory"), with its size in bytes if known.
    fn phase(&self, name: &str, bytes_total: Option<u64>);
    /// This many more bytes of the phase are done.
    fn advance(&self, bytes: u64);
    /// Something worth a line of its own.
    fn note(&self, text: &str);
}

/// Ignores everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn phase(&self, _name: &str, _bytes_total: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn note(&self, _text: &str) {}
}
