//! What systemd is told (sd_notify(3)); without systemd nothing happens.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

use crate::snapshot::Daemon;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(target: "daemon", %error, "systemd not told");
    }
}

/// In service.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload has begun; [`ready`] ends it.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The drain has begun.
pub(super) fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Keeps the watchdog quiet as long as every worker's heartbeat moves. Never ends; pends if no watchdog is set.
pub(super) async fn watch(daemon: Arc<Daemon>) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    let mut tick = interval((limit / 2).max(Duration::from_millis(1)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = vec![None; daemon.workers.len()];
    loop {
        tick.tick().await;
        let now: Vec<_> = daemon
            .workers
            .iter()
            .map(|worker| Some(worker.heartbeat.load(Relaxed)))
            .collect();
        let stuck = now.iter().zip(&last).position(|(now, last)| now == last);
        match stuck {
            None => tell(&[NotifyState::Watchdog]),
            Some(worker) => tracing::error!(target: "daemon", worker, "a worker does not move"),
        }
        last = now;
    }
}
