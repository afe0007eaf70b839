//! Reads the configuration on a thread of its own: a file system that does not answer holds up one reader, and neither
//! checks, metrics, the watchdog nor the end of the daemon.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    thread,
    time::Duration,
};

use tokio::{select, sync::oneshot, time::timeout};

use super::signals::{Signal, Signals};
use crate::{
    config::{self, LoadedConfig, Problems, files::RealFiles},
    telemetry::sink::LogSinks,
};

/// Longest time to read all files of a configuration.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Most readers that hang: each holds a thread until its file system answers.
const MAX_READERS: usize = 4;
/// As large as that of the main thread: the depth of a file is bounded for it.
const STACK_BYTES: usize = 8 << 20;

/// Readers under way.
static ACTIVE_READERS: AtomicUsize = AtomicUsize::new(0);

/// One of the readers; counted until it is dropped.
struct ReaderGuard;

impl ReaderGuard {
    fn begin() -> Option<Self> {
        let reader = Self;
        (ACTIVE_READERS.fetch_add(1, SeqCst) < MAX_READERS).then_some(reader)
    }
}

impl Drop for ReaderGuard {
    fn drop(&mut self) {
        ACTIVE_READERS.fetch_sub(1, SeqCst);
    }
}

/// Reads and checks `file` within [`READ_TIMEOUT`]. `None` when a signal asks for the end meanwhile. That signal and those
/// that can wait are kept for [`Signals::next`].
pub(super) async fn load(
    file: &Path,
    signals: &mut Signals,
    sinks: &LogSinks,
) -> Option<Result<LoadedConfig, Problems>> {
    let mut reading = std::pin::pin!(read(file.to_path_buf()));
    let mut kept = Vec::new();
    let loaded = loop {
        select! {
            loaded = &mut reading => break Some(loaded),
            signal = signals.next() => match signal {
                Signal::ReopenLogs => sinks.reopen_all(),
                Signal::Reload | Signal::Stop | Signal::Drain | Signal::Unused => {
                    kept.push(signal);
                    if signal.is_end() {
                        break None;
                    }
                }
            },
        }
    };
    signals.put_back(kept);
    loaded
}

async fn read(file: PathBuf) -> Result<LoadedConfig, Problems> {
    let files = RealFiles::default();
    let (path, through) = (file.clone(), files.clone());
    let load = move || config::load_through(&path, &through);
    read_by(&file, load, || files.last()).await
}

/// Runs `load` on a thread of its own; `last` is the file that it touched last.
async fn read_by(
    file: &Path,
    load: impl FnOnce() -> Result<LoadedConfig, Problems> + Send + 'static,
    last: impl Fn() -> PathBuf,
) -> Result<LoadedConfig, Problems> {
    let failed = |message: String, hint: &str| Err(Problems::of_file(file, message, hint));
    let Some(reader) = ReaderGuard::begin() else {
        let message = format!("{MAX_READERS} earlier attempts to read it have not ended");
        return failed(message, "a file system does not answer: look at its mounts");
    };
    let (tell, told) = oneshot::channel();
    let thread = thread::Builder::new()
        .name("config-reader".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let loaded = load();
            drop(reader);
            // The receiver is gone after the timeout and at the end.
            drop(tell.send(loaded));
        });
    if let Err(error) = thread {
        let message = format!("cannot start a thread to read it: {error}");
        return failed(message, "raise the limit of threads");
    }
    match timeout(READ_TIMEOUT, told).await {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(_)) => failed("the reader panicked".to_owned(), "the log has the cause"),
        Err(_) => {
            let message = format!(
                "reading `{}` has not ended after {} s",
                last().display(),
                READ_TIMEOUT.as_secs()
            );
            failed(message, "a file system does not answer: look at its mounts")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One at a time: the readers are counted for the process.
    #[tokio::test(start_paused = true)]
    async fn readers_that_hang_time_out_are_bounded_and_make_way_when_they_end() {
        let path = Path::new("a.yaml");
        let hang = || {
            let (release, released) = std::sync::mpsc::channel::<()>();
            let load = move || {
                let _ = released.recv();
                config::load(Path::new("/nonexistent"))
            };
            (release, load)
        };
        let last = || PathBuf::from("/mnt/key.pem");
        let mut hanging = Vec::new();
        for _ in 0..MAX_READERS {
            let (release, load) = hang();
            let text = read_by(path, load, last).await.unwrap_err().render();
            let wanted = "reading `/mnt/key.pem` has not ended after 10 s";
            assert!(text.contains(wanted), "{text}");
            hanging.push(release);
        }
        let (_release, load) = hang();
        let text = read_by(path, load, last).await.unwrap_err().render();
        assert!(text.contains("4 earlier attempts"), "{text}");
        drop(hanging);
        while ACTIVE_READERS.load(SeqCst) > 0 {
            thread::yield_now();
        }
        // Virtual time may pass before this one has read the file.
        let load = || config::load(Path::new("/nonexistent"));
        let text = read_by(path, load, last).await.unwrap_err().render();
        assert!(!text.contains("earlier attempts"), "{text}");
    }
}
