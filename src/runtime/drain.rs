//! Graceful shutdown: not ready → delay → stop accepting → finish → close idle → timeout → close
//! all.
//!
//! Must not know how connections end: workers get commands, and the number of open connections
//! tells when they are done.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::{
    select,
    time::{interval, sleep},
};

use super::{
    control::ControlThread,
    signals::{Signal, Signals, ignore},
    worker::WorkerCommand,
};
use crate::{config::model::DrainConfig, snapshot::Daemon, telemetry::sink::LogSinks};

/// Poll interval for remaining connections.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Drains. Returns when no connection is left, at the timeout, or at a second TERM or INT.
pub(super) async fn run(control: &mut ControlThread) {
    let daemon = &control.daemon;
    daemon.draining.store(true, Relaxed);
    let rules = daemon.snapshot.load().config.drain.clone();
    let open = daemon.connections.load(Relaxed);
    tracing::info!(target: "daemon", connections = open, "draining");
    control.manager.stopping("draining");
    let ControlThread {
        daemon,
        sockets,
        workers,
        signals,
        sinks,
        ..
    } = control;
    let finish = async {
        // Accepts go on during the delay: load balancers in front of us need time to see that we
        // are not ready.
        sleep(rules.delay).await;
        // Our own descriptors first: the workers' are then the last ones, and close after their
        // queues are empty.
        sockets.close_all(workers);
        workers.broadcast(|_| Some(WorkerCommand::Drain));
        wait_for_connections(daemon, &rules).await;
    };
    let is_cut_short = select! {
        () = finish => false,
        () = second_stop(signals, sinks) => true,
    };
    // Still open if the second signal came during the delay.
    sockets.close_all(workers);
    if is_cut_short {
        tracing::warn!(target: "daemon", "second stop signal: exiting now");
    }
    let left = daemon.connections.load(Relaxed);
    let cause = if is_cut_short { "" } else { "drain timeout: " };
    if left > 0 {
        tracing::warn!(target: "daemon", connections = left, "{cause}closed remaining connections");
    }
}

/// Waits until no connection is left, for at most the drain timeout.
async fn wait_for_connections(daemon: &Daemon, rules: &DrainConfig) {
    let mut poll = interval(POLL_INTERVAL);
    let end = sleep(rules.timeout);
    tokio::pin!(end);
    while daemon.connections.load(Relaxed) > 0 {
        select! {
            _ = poll.tick() => {}
            () = &mut end => return,
        }
    }
}

/// Waits for another TERM or INT, and acts on the signals that can still be acted on.
async fn second_stop(signals: &mut Signals, sinks: &LogSinks) {
    loop {
        match signals.next().await {
            Signal::Stop => return,
            Signal::ReopenLogs => sinks.reopen_all(),
            Signal::Reload => {
                tracing::warn!(target: "reload", "not reloaded: the daemon is draining");
            }
            Signal::Unused => ignore(),
            Signal::Drain => {}
        }
    }
}
