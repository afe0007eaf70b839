//! The black-box harness: the built program, raw clients, and scripted backends, all on this
//! machine.
//!
//! Nothing here sleeps to be in time: readiness comes by `NOTIFY_SOCKET`, lines and requests by
//! condition variables, scripted backends wait at a [`Gate`]. Every wait ends after [`PATIENCE`]
//! with all that is known.

pub mod answers;
pub mod client;
pub mod daemon;
pub mod dns;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod frames;
pub mod h2;
pub mod peer;
pub mod program;
mod self_test;
pub mod tls;
pub mod tools;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

/// The longest any wait takes before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Receive buffer of a slow reader in bytes. Without a size of its own, the kernel enlarges it to
/// megabytes: it takes all that comes, and nothing moves while the reader is slow.
pub const SMALL_BUFFER: usize = 64 << 10;

/// A private directory that goes away with the value. Its path is short, so that sockets fit into
/// it.
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes the directory.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "balancer-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("a fresh directory for the test");
        Self(path)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Asks `probe` again and again until it gives something; `None` after [`PATIENCE`].
///
/// For things without an event, such as a number on the metrics page or the end of a process.
pub fn poll<T>(probe: impl FnMut() -> Option<T>) -> Option<T> {
    poll_for(PATIENCE, probe)
}

/// Like [`poll`], with another patience.
pub fn poll_for<T>(patience: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = balancer::base::clock::now() + patience;
    loop {
        let found = probe();
        if found.is_some() || balancer::base::clock::now() >= deadline {
            return found;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
