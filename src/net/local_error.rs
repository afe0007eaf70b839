//! Errors that say nothing of the peer: this machine or this process has no descriptor, port, buffer or memory left.
//!
//! They change no verdict on a backend. The one line in the log for them is written here, at most every 10 seconds.

use std::io;

use crate::base::{clock, log_limit::LogLimit};

/// True for EMFILE, ENFILE, ENOBUFS, ENOMEM and EADDRNOTAVAIL (no port left for the destination, or no address of its
/// family).
pub fn is_local(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL)
    )
}

/// Logs that a connection to a backend could not be made or used for a lack of our own.
pub fn log(error: &io::Error) {
    static LIMIT: LogLimit = LogLimit::new();
    if let Some(suppressed) = LIMIT.admit(clock::now()) {
        tracing::error!(target: "net", %error, suppressed,
            "no connection to a backend: a limit of this process or machine, no fault of the backend");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_our_own_is_told_from_a_fault_of_the_peer() {
        for local in [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOBUFS,
            libc::ENOMEM,
            libc::EADDRNOTAVAIL,
        ] {
            assert!(is_local(&io::Error::from_raw_os_error(local)), "{local}");
        }
        for peers in [
            libc::ECONNREFUSED,
            libc::ECONNRESET,
            libc::EHOSTUNREACH,
            libc::ENETUNREACH,
            libc::ETIMEDOUT,
            libc::EPIPE,
            libc::ENOENT,
        ] {
            assert!(!is_local(&io::Error::from_raw_os_error(peers)), "{peers}");
        }
        assert!(!is_local(&io::Error::other("no number")));
    }
}
