//! Numbers of this process from /proc: the source of the `process_*` metrics.

use std::{fs, time::Duration};

use rustix::process::{Resource, getrlimit};

use crate::net::limits::open_files;

/// Numbers of the process. A number that cannot be read is `None`, so that its metric is missing
/// instead of wrong.
#[derive(Debug, Default)]
pub(super) struct ProcessStats {
    pub(super) cpu: Option<Duration>,
    /// Start of the process in seconds since the Unix epoch.
    pub(super) started_unix: Option<f64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) threads: Option<u64>,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
}

/// Clock ticks per second in /proc (`USER_HZ`): 100 on every architecture that we build for, also
/// if the kernel's own clock is faster.
const TICKS_PER_SECOND: u64 = 100;

/// Reads /proc.
pub(super) fn read_stats() -> ProcessStats {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let number = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    ProcessStats {
        cpu: cpu_ticks(&stat).map(|ticks| Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND)),
        started_unix: started(&stat),
        resident_bytes: number("VmRSS:").map(|kib| kib << 10),
        virtual_bytes: number("VmSize:").map(|kib| kib << 10),
        threads: number("Threads:"),
        open_fds: open_files(),
        max_fds: getrlimit(Resource::Nofile).current,
    }
}

/// Field `number` of /proc/self/stat, counted from 1 as in proc_pid_stat(5).
///
/// The second field, the name in parentheses, may contain blanks and parentheses. So fields are
/// counted from the last `)`.
fn field(stat: &str, number: usize) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name
        .split_whitespace()
        .nth(number.checked_sub(3)?)?
        .parse()
        .ok()
}

/// CPU time in user space and in the kernel.
fn cpu_ticks(stat: &str) -> Option<u64> {
    Some(field(stat, 14)? + field(stat, 15)?)
}

/// Start time: the boot time of the machine plus the ticks from boot to the start.
fn started(stat: &str) -> Option<f64> {
    let boot: u64 = fs::read_to_string("/proc/stat")
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    Some(boot as f64 + field(stat, 22)? as f64 / TICKS_PER_SECOND as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    #[test]
    fn every_number_is_there_and_plausible() {
        let process = read_stats();
        assert!(process.cpu.is_some());
        assert!(process.resident_bytes.unwrap() > 1 << 20);
        assert!(process.virtual_bytes >= process.resident_bytes);
        assert!(process.threads.unwrap() >= 1);
        assert!(process.open_fds.unwrap() >= 3);
        assert!(process.max_fds >= process.open_fds);
        let age = clock::unix_now().as_secs_f64() - process.started_unix.unwrap();
        assert!((-2.0..86_400.0).contains(&age), "{age}");
    }

    #[test]
    fn a_process_name_with_spaces_and_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b) (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22";
        assert_eq!(cpu_ticks(stat), Some(11 + 12));
        assert_eq!(field("garbage", 14), None);
    }
}
