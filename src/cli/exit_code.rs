//! Exit codes other than 0 (success), 1 (failure) and 2 (wrong usage, set by clap).
//!
//! Scripts and service managers depend on these numbers, so they never change.

/// A pool has no available backend, or the daemon is not ready.
pub(super) const EXIT_DEGRADED: u8 = 3;
/// The daemon is not reachable.
pub(super) const EXIT_UNREACHABLE: u8 = 4;
/// Bad configuration at start: `EX_CONFIG` of sysexits.h. The systemd unit does not restart after
/// it.
pub(super) const EXIT_BAD_CONFIG: u8 = 78;
