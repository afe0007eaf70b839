//! Gives memory back to the system when many connections have gone.
//!
//! The C library keeps what is freed. That is written to all over, so connections that come later would cost a good deal more
//! than those of a fresh process.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use crate::{net::sys, snapshot::Daemon};

/// How often the connections are counted.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// What fewer connections leave behind is not worth it.
const MIN_PEAK: usize = 1_000;

/// The most connections since memory was given back.
#[derive(Debug, Default)]
struct ConnectionPeak(usize);

impl ConnectionPeak {
    /// True if half of them have gone. `now` is how many there are.
    fn has_halved(&mut self, now: usize) -> bool {
        self.0 = self.0.max(now);
        let halved = self.0 >= MIN_PEAK && now <= self.0 / 2;
        if halved {
            self.0 = now;
        }
        halved
    }
}

/// Never ends.
pub(super) async fn watch(daemon: Arc<Daemon>) {
    let mut highest = ConnectionPeak::default();
    let mut tick = interval(CHECK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if highest.has_halved(daemon.connections.load(Relaxed)) {
            sys::trim_heap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_when_half_of_many_connections_have_gone_and_not_again_before_the_next_half()
     {
        let mut highest = ConnectionPeak::default();
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
            assert_eq!(highest.has_halved(now), halved, "{now}");
        }
    }
}
