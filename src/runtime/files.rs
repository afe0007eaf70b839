//! The budget of file descriptors: a limit of the process, of which listeners, logs and checks take
//! a part, and the number of connections that the others are enough for.

use std::sync::atomic::Ordering::Relaxed;

use crate::{
    config::model::{Config, PoolConfig},
    health::MAX_CHECKS,
    net::limits::{open_files, set_reserve},
    snapshot::Daemon,
};

/// Descriptors of a client connection: its own, and that of the connection to the backend.
const FILES_PER_CONNECTION: u64 = 2;
/// Fewest connections of `max_connections: auto` without a warning: a limit that gives fewer was
/// hardly set on purpose.
const LOW_CONNECTIONS: u64 = 1_000;
/// Open descriptors beside listeners that are assumed where /proc does not tell.
const ASSUMED_BASE_FILES: u64 = 32;

/// The limit, and the part of it that is used under any configuration.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileBudget {
    /// The open-file limit; `u64::MAX` is unlimited.
    limit: u64,
    /// Standard streams, logs, runtimes, admin and metrics.
    base: u64,
    workers: u64,
}

impl FileBudget {
    /// Counts the open descriptors. To be called when all sockets are bound and no connection is
    /// accepted yet.
    pub(super) fn measure(limit: u64, workers: usize, config: &Config) -> Self {
        let mut files = Self {
            limit,
            base: 0,
            workers: workers as u64,
        };
        let open = open_files().unwrap_or(ASSUMED_BASE_FILES + files.listening(config));
        files.base = open.saturating_sub(files.listening(config));
        files
    }

    /// Descriptors of listening sockets: one of each worker, and ours of the same socket.
    fn listening(&self, config: &Config) -> u64 {
        let listeners = config.listeners.iter();
        let addresses: usize = listeners.map(|listener| listener.binds.len()).sum();
        2 * self.workers * addresses as u64
    }

    /// Sets the reserve that `config` needs, and the limit of connections: as configured, or as
    /// many as the remaining descriptors are enough for. Returns a warning if the limit is too low
    /// for it.
    pub(super) fn limit_connections(&self, config: &Config, daemon: &Daemon) -> Option<String> {
        let pools = config.pools.iter();
        let checked = pools.filter(|pool| pool.health_check.is_some());
        let count = |pool: &PoolConfig| {
            if pool.is_dynamic() {
                MAX_CHECKS
            } else {
                pool.backends.len()
            }
        };
        let checked: usize = checked.map(count).sum();
        let reserve = set_reserve(self.limit, checked.min(MAX_CHECKS) as u64);
        let held = self.base + self.listening(config);
        let (connections, warning) = self.connections(config.max_connections, held, reserve);
        daemon.connection_limit.store(connections, Relaxed);
        warning
    }

    /// The limit of connections, with a warning. `held` descriptors are used by listeners and the
    /// daemon itself, `reserve` are kept free.
    fn connections(
        &self,
        wanted: Option<usize>,
        held: u64,
        reserve: u64,
    ) -> (usize, Option<String>) {
        let limit = self.limit;
        let raise = "raise it: `LimitNOFILE` of the service, `ulimit -Hn` of a shell";
        let capacity = limit.saturating_sub(held + reserve) / FILES_PER_CONNECTION;
        if let Some(wanted) = wanted {
            let needed = held + reserve + FILES_PER_CONNECTION * wanted as u64;
            let warning = format!(
                "max_connections: {wanted} may need {needed} open files, and the limit of this process is {limit}, \
                 enough for {capacity}; {raise}"
            );
            return (wanted.max(1), (needed > limit).then_some(warning));
        }
        let warning = format!(
            "the limit of {limit} open files is enough for {capacity} connections: {held} are held by listeners and the \
             daemon itself, and {reserve} are kept for checks, admin and metrics; {raise}"
        );
        let auto = usize::try_from(capacity).unwrap_or(usize::MAX / 2).max(1);
        (auto, (capacity < LOW_CONNECTIONS).then_some(warning))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_get_what_listeners_and_the_reserve_leave_and_too_few_are_a_warning() {
        let files = |limit| FileBudget {
            limit,
            base: 20,
            workers: 2,
        };
        let (connections, warning) = files(200).connections(None, 24, 50);
        assert_eq!(connections, 63);
        let warning = warning.unwrap();
        assert!(
            warning.contains("the limit of 200 open files is enough for 63"),
            "{warning}"
        );
        assert_eq!(
            files(1_000_000).connections(None, 100, 300),
            (499_800, None)
        );
        assert_eq!(files(30).connections(None, 24, 7).0, 1);
        let (connections, warning) = files(200).connections(Some(64), 24, 50);
        assert_eq!(connections, 64, "as configured");
        let warning = warning.unwrap();
        let wanted =
            "max_connections: 64 may need 202 open files, and the limit of this process is 200";
        assert!(warning.starts_with(wanted), "{warning}");
        assert_eq!(files(200).connections(Some(63), 24, 50), (63, None));
        assert!(files(u64::MAX).connections(None, 24, 300).1.is_none());
    }
}
