//! A hook that is a program.
//!
//! It gets a process group of its own, and one that takes too long is ended with all that it started and left in
//! that group: a shell that is killed alone leaves the command it waited for. A group is signalled only while its
//! first process has not been waited for. Until then that number is nobody else's.

use std::io;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};

use super::{Changed, Rows, SAID_MAX};

/// Bytes kept of each of a program's outputs: a character has four at most.
const KEPT_MAX: u64 = 4 * SAID_MAX as u64;

/// The process group of a program, ended unless it is let go of.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let number = child.id().and_then(|id| i32::try_from(id).ok());
        Self(number.and_then(Pid::from_raw))
    }

    /// Its first process has been waited for.
    fn let_go(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0
            && let Err(error) = kill_process_group(group, Signal::KILL)
        {
            tracing::warn!(%error, "what a hook had started could not be ended");
        }
    }
}

/// Runs it to its end; dropped before that, it is ended.
pub(super) async fn run(
    words: &[String],
    environment: [(&'static str, &str); 5],
    rows: Option<Rows<'_>>,
) -> Result<String, String> {
    let (program, arguments) = words.split_first().ok_or("it names no program")?;
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{program} cannot be run: {error}"))?;
    // Dropped before the child: while that is not waited for.
    let group = Group::of(&child);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let tell = async move {
        let (Some(mut stdin), Some(rows)) = (stdin, rows) else {
            return Ok(0);
        };
        tell(&mut stdin, rows).await
    };
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let (heard, heard_errors) = (hear(stdout, &mut output), hear(stderr, &mut errors));
    // Side by side: a program may write before it has read everything. Not with its end: that is waited for last,
    // when nobody has its output open any more.
    let (told, heard, heard_errors) = tokio::join!(tell, heard, heard_errors);
    let ended = child.wait().await;
    group.let_go();
    let failed = |error: io::Error| format!("{program}: {error}");
    heard.and(heard_errors).map_err(failed)?;
    let status = ended.map_err(failed)?;
    output.extend_from_slice(&errors);
    let said = String::from_utf8_lossy(&output);
    let said: String = said.trim().chars().take(SAID_MAX).collect();
    if !status.success() {
        return Err(format!("{program} ended with {status}: {said}"));
    }
    let told = told.map_err(|error| format!("telling {program} the rows: {error}"))?;
    Ok(match (rows.is_some(), said.is_empty()) {
        (true, _) => format!("{told} rows told; it said: {said}"),
        (false, true) => "done".to_owned(),
        (false, false) => format!("it said: {said}"),
    })
}

/// Keeps as much as may be shown. The rest is read all the same: a program whose output nobody reads would wait.
async fn hear(from: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) -> io::Result<()> {
    let Some(mut from) = from else {
        return Ok(());
    };
    (&mut from).take(KEPT_MAX).read_to_end(kept).await?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok(())
}

/// A program that does not want to read everything may close its end: that is no failure.
async fn tell(stdin: &mut ChildStdin, rows: Rows<'_>) -> io::Result<u64> {
    let mut told = 0;
    for changed in Changed::of(rows) {
        let changed = changed.map_err(io::Error::other)?;
        let line = format!("{changed}\n");
        match stdin.write_all(line.as_bytes()).await {
            Ok(()) => told += 1,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(told),
            Err(error) => return Err(error),
        }
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_shown_is_read_and_not_kept() {
        let (mut program, output) = tokio::io::duplex(64);
        let length = 10 * usize::try_from(KEPT_MAX).unwrap();
        let said = tokio::spawn(async move { program.write_all(&vec![b'x'; length]).await });
        let mut kept = Vec::new();
        hear(Some(output), &mut kept).await.unwrap();
        said.await.unwrap().expect("nobody read to its end");
        assert_eq!(kept.len() as u64, KEPT_MAX);
    }
}
