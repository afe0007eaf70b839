//! Errors that say nothing about the peer: this machine or process has no descriptor, port, buffer
//! or memory left.
//!
//! They do not change the health of a backend: otherwise a lack of ports would take down all
//! backends at once. Their one log line is written here, at most every 10 seconds.

use std::io;

use crate::base::{clock, log_limit::LogLimit};

/// True for EMFILE, ENFILE, ENOBUFS, ENOMEM and EADDRNOTAVAIL (no port left for the destination, or
/// no address of its family).
pub fn is_local(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL)
    )
}

/// Logs that a local shortage kept us from making or using a connection to a backend.
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
    fn a_local_shortage_is_told_from_a_fault_of_the_peer() {
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
