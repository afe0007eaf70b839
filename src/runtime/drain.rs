//! The way out: not ready → delay → stop accepting → finish → close idle → deadline → cut.

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
use crate::{config::model, snapshot::Daemon, telemetry::sink::LogSinks};

/// How often it is looked whether connections are left.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Drains. Returns when nothing is left, when the time is over, or when a second TERM or INT comes.
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
        sleep(rules.delay).await;
        // Our own descriptors first: the workers' are then the last ones, and close after their queues are empty.
        sockets.close_all(workers);
        workers.broadcast(|_| Some(WorkerCommand::Drain));
        finish(daemon, &rules).await;
    };
    select! {
        () = finish => {}
        () = second_stop(signals, sinks) => tracing::warn!(target: "daemon", "second stop signal: exiting now"),
    }
    // Still open if nobody waited for the end of the delay.
    sockets.close_all(workers);
    let left = daemon.connections.load(Relaxed);
    if left > 0 {
        tracing::warn!(target: "daemon", connections = left, "closed remaining connections");
    }
}

async fn finish(daemon: &Daemon, rules: &model::DrainConfig) {
    let mut look = interval(POLL_INTERVAL);
    let end = sleep(rules.timeout);
    tokio::pin!(end);
    while daemon.connections.load(Relaxed) > 0 {
        select! {
            _ = look.tick() => {}
            () = &mut end => return,
        }
    }
}

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
