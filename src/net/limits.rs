//! The process's limit of open files: every connection is one, every proxied connection two.
//!
//! A part of it is kept from the workers, so that checks, admin, metrics and reloads go on when clients have taken the rest.
//! Nothing is counted for that: the system gives the lowest free number, so a number in the reserve says that all others are
//! in use.

use std::{
    cell::Cell,
    fs, io,
    os::fd::{AsFd, AsRawFd as _},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that the control thread may want for anything but checks: connections to admin and metrics, and files.
const CONTROL_FILES: u64 = 160;
/// Most connections to the admin server, and to the metrics server.
const MAX_CONTROL_CONNECTIONS: u64 = 64;
/// Share of the limit that the reserve may take.
const RESERVE_SHARE: u64 = 4;

/// First descriptor number that workers leave alone.
static RESERVE_BEGINS: AtomicU64 = AtomicU64::new(u64::MAX);
/// Descriptors from there to the limit.
static RESERVE: AtomicU64 = AtomicU64::new(CONTROL_FILES);

thread_local! {
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// Raises the soft limit to the hard limit, and gives the limit that holds now; `u64::MAX` is unlimited.
pub fn raise_open_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current.unwrap_or(u64::MAX);
    }
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // A refusal (a sandbox may forbid it) leaves the soft limit, with which we live.
    let now = setrlimit(Resource::Nofile, raised).map_or(limit.current, |()| limit.maximum);
    now.unwrap_or(u64::MAX)
}

/// Sets the reserve for a process that may open `files` and makes up to `checks` checks at a time; gives its size.
pub fn set_reserve(files: u64, checks: u64) -> u64 {
    let reserve = (CONTROL_FILES + checks).min(files / RESERVE_SHARE);
    RESERVE.store(reserve, Relaxed);
    RESERVE_BEGINS.store(files - reserve, Relaxed);
    reserve
}

/// Most connections at a time to the admin server, and to the metrics server: both fit into the reserve.
pub fn control_connections() -> usize {
    let third = RESERVE.load(Relaxed) / 3;
    third.clamp(4, MAX_CONTROL_CONNECTIONS) as usize
}

/// Keeps the calling thread out of the reserve.
pub fn leave_reserve() {
    IS_WORKER.set(true);
}

/// Whether the calling thread is to leave `descriptor` to others: all below the reserve are in use.
pub fn is_reserved(descriptor: impl AsFd) -> bool {
    IS_WORKER.get()
        && u64::from(descriptor.as_fd().as_raw_fd().unsigned_abs()) >= RESERVE_BEGINS.load(Relaxed)
}

/// The error of a new `descriptor` that the calling thread is to leave to others, as if the limit were reached.
pub fn check_reserve(descriptor: impl AsFd) -> io::Result<()> {
    if is_reserved(descriptor) {
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    Ok(())
}

/// Whether the calling thread may open another descriptor; `any` is one that is open.
pub fn has_room(any: impl AsFd) -> bool {
    rustix::io::fcntl_dupfd_cloexec(any, 0).is_ok_and(|copy| !is_reserved(&copy))
}

/// How many descriptors are open; `None` where the system does not say.
pub fn open_files() -> Option<u64> {
    // The listing has a descriptor of its own.
    let entries = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(entries.saturating_sub(1) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_returned_is_the_one_that_holds() {
        let told = raise_open_file_limit();
        assert_eq!(
            told,
            getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
        );
        assert_eq!(told, raise_open_file_limit());
    }
}
