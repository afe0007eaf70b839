//! Returns memory to the system after many connections have closed.
//!
//! malloc keeps freed memory, in fragments between what is still in use. Later connections would be
//! spread over these, and touch far more pages than those of a fresh process. So it is trimmed.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use crate::{net::sys, snapshot::Daemon};

/// Interval at which connections are counted.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Below this peak a trim is not worthwhile.
const MIN_PEAK: usize = 1_000;

/// Peak of open connections since the last trim.
#[derive(Debug, Default)]
struct ConnectionPeak(usize);

impl ConnectionPeak {
    /// True if at least half of the connections of the peak have closed. `now` is the current
    /// number.
    fn has_halved(&mut self, now: usize) -> bool {
        self.0 = self.0.max(now);
        let halved = self.0 >= MIN_PEAK && now <= self.0 / 2;
        if halved {
            self.0 = now;
        }
        halved
    }
}

/// Watches the number of connections and trims memory. Never ends.
pub(super) async fn watch(daemon: Arc<Daemon>) {
    let mut peak = ConnectionPeak::default();
    let mut tick = interval(CHECK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if peak.has_halved(daemon.connections.load(Relaxed)) {
            sys::trim_heap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_trimmed_when_half_of_many_connections_have_closed_and_again_at_the_next_half() {
        let mut peak = ConnectionPeak::default();
        for (now, halved) in [
            (0, false),
            (MIN_PEAK - 1, false),
            (1, false),
            (4 * MIN_PEAK, false),
            (2 * MIN_PEAK + 1, false),
            (2 * MIN_PEAK, true),
            (2 * MIN_PEAK, false),
            (3 * MIN_PEAK, false),
            (MIN_PEAK, true),
            (0, true),
            (0, false),
        ] {
            assert_eq!(peak.has_halved(now), halved, "{now}");
        }
    }
}
