//! The process's limit of open files: a connection takes one, a proxied connection two.
//!
//! Workers leave a reserve, so that checks, admin, metrics and reloads still work when clients have
//! used up everything else. Nothing is counted for that: the kernel gives the lowest free number
//! (POSIX, open(2)), so a number within the reserve means that all numbers below it are in use.

use std::{
    cell::Cell,
    fs, io,
    os::fd::{AsFd, AsRawFd as _},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for the control thread without checks: admin and metrics connections, and files.
const CONTROL_FILES: u64 = 160;
/// Most connections to the admin server, and to the metrics server.
const MAX_CONTROL_CONNECTIONS: u64 = 64;
/// Divisor of the limit: the reserve is at most this part of it.
const RESERVE_DIVISOR: u64 = 4;

/// First descriptor number of the reserve.
static RESERVE_START: AtomicU64 = AtomicU64::new(u64::MAX);
/// Size of the reserve.
static RESERVE_FILES: AtomicU64 = AtomicU64::new(CONTROL_FILES);

thread_local! {
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// Raises the soft limit to the hard limit and returns the limit in force; `u64::MAX` is unlimited.
pub fn raise_open_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current.unwrap_or(u64::MAX);
    }
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // If that is refused, as in a sandbox, the soft limit stays in force.
    let now = setrlimit(Resource::Nofile, raised).map_or(limit.current, |()| limit.maximum);
    now.unwrap_or(u64::MAX)
}

/// Sets the reserve of a process that may open `files` and runs up to `checks` checks at a time.
/// Returns its size.
pub fn set_reserve(files: u64, checks: u64) -> u64 {
    let reserve = (CONTROL_FILES + checks).min(files / RESERVE_DIVISOR);
    RESERVE_FILES.store(reserve, Relaxed);
    RESERVE_START.store(files - reserve, Relaxed);
    reserve
}

/// Returns the most connections at a time to the admin server, and to the metrics server. Both fit
/// into the reserve, with a third of it for files.
pub fn control_connections() -> usize {
    let third = RESERVE_FILES.load(Relaxed) / 3;
    third.clamp(4, MAX_CONTROL_CONNECTIONS) as usize
}

/// Makes the calling thread a worker, which leaves the reserve to others.
pub fn leave_reserve() {
    IS_WORKER.set(true);
}

/// True if `descriptor` is in the reserve and the calling thread is a worker, which must close it.
pub fn is_reserved(descriptor: impl AsFd) -> bool {
    IS_WORKER.get()
        && u64::from(descriptor.as_fd().as_raw_fd().unsigned_abs()) >= RESERVE_START.load(Relaxed)
}

/// Fails like the kernel at the limit (EMFILE) if [`is_reserved`].
pub fn check_reserve(descriptor: impl AsFd) -> io::Result<()> {
    if is_reserved(descriptor) {
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    Ok(())
}

/// True if the calling thread may open another descriptor; `any` is one that is open.
pub fn can_open_descriptor(any: impl AsFd) -> bool {
    rustix::io::fcntl_dupfd_cloexec(any, 0).is_ok_and(|copy| !is_reserved(&copy))
}

/// Number of open descriptors; `None` where the system does not tell.
pub fn open_files() -> Option<u64> {
    // Without the descriptor of the listing itself.
    let entries = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(entries.saturating_sub(1) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_returned_is_the_one_in_force() {
        let returned = raise_open_file_limit();
        assert_eq!(
            returned,
            getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
        );
        assert_eq!(returned, raise_open_file_limit());
    }
}
