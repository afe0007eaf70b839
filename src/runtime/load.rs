//! Reads the configuration on a thread of its own. A read from a network file system that hangs
//! cannot be interrupted: it must block one reader only, and not checks, metrics, the watchdog or
//! the end of the daemon.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    thread,
    time::Duration,
};

use tokio::{select, sync::oneshot, time::timeout};

use super::{
    signals::{Signal, Signals},
    sticky_key::StickyKeys,
};
use crate::{
    config::{self, LoadedConfig, Problems, files::RealFiles},
    telemetry::sink::LogSinks,
};

/// Time to read all files of a configuration.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Readers that may hang at a time: each keeps a thread until its file system responds.
const MAX_READERS: usize = 4;
/// Stack of a reader: as large as that of the main thread, for which the depth of a YAML file is
/// limited.
const STACK_BYTES: usize = 8 << 20;

/// Number of readers that have not ended.
static ACTIVE_READERS: AtomicUsize = AtomicUsize::new(0);

/// A reader's place in [`ACTIVE_READERS`], until dropped.
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

/// Reads and checks `file` within [`READ_TIMEOUT`]. `None` if a signal asks for the end meanwhile.
/// That signal, and those that can wait, are put back for [`Signals::next`].
pub(super) async fn load(
    file: &Path,
    sticky_keys: &StickyKeys,
    signals: &mut Signals,
    sinks: &LogSinks,
) -> Option<Result<LoadedConfig, Problems>> {
    let mut reading = std::pin::pin!(read(file.to_path_buf(), sticky_keys.clone()));
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

async fn read(file: PathBuf, sticky_keys: StickyKeys) -> Result<LoadedConfig, Problems> {
    let files = RealFiles::default();
    let (path, through) = (file.clone(), files.clone());
    let load = move || {
        let mut loaded = config::load_through(&path, &through)?;
        sticky_keys.complete(&mut loaded, &path);
        Ok(loaded)
    };
    read_by(&file, load, || files.last()).await
}

/// Runs `load` on a thread of its own. `last` returns the file that it opened last, which is the
/// one that hangs if it does not end.
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
            // Fails after the timeout, and at the end of the daemon.
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
    async fn readers_that_hang_time_out_and_are_limited_in_number_until_they_end() {
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
