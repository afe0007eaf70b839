//! The loop of the control thread: signals, reloads, overrides, checks, admin and metrics, until a
//! signal asks for the end; then the drain (`drain.rs`).

use std::{
    future::pending,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::{
    net::TcpListener,
    select,
    sync::{mpsc, oneshot},
    task::spawn_local,
    time::sleep_until,
};

use super::{
    control::ControlThread,
    drain, membership, memory, overrides, reload,
    signals::{Signal, ignore},
    systemd,
    worker::WorkerCommand,
};
use crate::{
    admin::{self, AdminListener, ControlRequest, ReloadOutcome, serve_admin, serve_metrics},
    base::rng::Random,
    discovery::MemberDiscovery,
    health::HealthChecker,
};

/// Requests that may wait; several reloads that wait are one run anyway.
const MAX_WAITING_REQUESTS: usize = 64;
/// Time for the logs to be written at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves until a signal asks for the end, then drains and ends the workers.
///
/// # Errors
/// When a worker fails: connections on its sockets would wait for ever, as the kernel goes
/// on giving it its share. So the daemon drains and stops, and its supervisor starts another.
pub(super) async fn run(
    mut control: ControlThread,
    admin: AdminListener,
    scrape: Option<TcpListener>,
    on_ready: Option<Box<dyn FnOnce() + Send>>,
) -> Result<(), String> {
    let mut checker = HealthChecker::new(Random::from_system());
    checker.apply(&control.daemon.snapshot.load().pools);
    let mut discovery = MemberDiscovery::new(Arc::clone(&control.daemon.sources))?;
    discovery.apply(&control.daemon.snapshot.load().config);
    let (handle, mut requests) = mpsc::channel(MAX_WAITING_REQUESTS);
    start_tasks(&control, admin, scrape, handle);
    announce_ready(&control);
    if let Some(on_ready) = on_ready {
        on_ready();
    }
    let served = serve(&mut control, &mut checker, &mut discovery, &mut requests).await;
    if let Err(error) = &served {
        tracing::error!(target: "daemon", %error, "worker failed: draining and stopping");
    }
    // Closed: a client that asks for a reload from now on is told that the daemon stops.
    drop(requests);
    drain::run(&mut control).await;
    let ControlThread { workers, sinks, .. } = control;
    workers.broadcast(|_| Some(WorkerCommand::Stop));
    workers.join();
    tracing::info!(target: "daemon", "stopped");
    sinks.flush_all(FLUSH_TIMEOUT);
    served
}

/// Starts the servers and the watchers, which run to the very end: a drain may take longer than the
/// watchdog waits.
fn start_tasks(
    control: &ControlThread,
    admin: AdminListener,
    scrape: Option<TcpListener>,
    handle: admin::ControlHandle,
) {
    let daemon = || Arc::clone(&control.daemon);
    drop(spawn_local(serve_admin(admin, daemon(), handle)));
    if let Some(scrape) = scrape {
        drop(spawn_local(serve_metrics(scrape, daemon())));
    }
    let watch = systemd::watch(Rc::clone(&control.manager), daemon());
    drop(spawn_local(watch));
    drop(spawn_local(memory::watch(daemon())));
}

fn announce_ready(control: &ControlThread) {
    let daemon = &control.daemon;
    daemon.ready.store(true, Relaxed);
    let snapshot = daemon.snapshot.load();
    tracing::info!(
        target: "daemon", version = env!("CARGO_PKG_VERSION"), workers = daemon.workers.len(),
        listeners = snapshot.listeners.len(), pools = snapshot.pools.len(), "serving"
    );
    control.manager.ready("serving generation 1");
}

/// Acts on signals and requests; returns at a signal that ends the daemon.
async fn serve(
    control: &mut ControlThread,
    checker: &mut HealthChecker,
    discovery: &mut MemberDiscovery,
    requests: &mut mpsc::Receiver<ControlRequest>,
) -> Result<(), String> {
    loop {
        let mut waiting = Vec::new();
        let next_end = control.daemon.overrides().next_end();
        select! {
            signal = control.signals.next() => match signal {
                Signal::Reload => {}
                Signal::Stop | Signal::Drain => return Ok(()),
                Signal::ReopenLogs => {
                    control.sinks.reopen_all();
                    continue;
                }
                Signal::Unused => {
                    ignore();
                    continue;
                }
            },
            Some(request) = requests.recv() => match request {
                ControlRequest::Reload(client) => waiting.push(client),
                ControlRequest::Override(request) => {
                    overrides::change(control, request);
                    continue;
                }
            },
            () = until(next_end) => {
                overrides::expire(control);
                continue;
            }
            Some(fault) = control.faults.recv() => return Err(fault),
            () = discovery.changed() => {
                membership::run(&control.daemon, checker, discovery);
                continue;
            }
        }
        // All who asked before the file is read get the outcome of this one run.
        while let Ok(request) = requests.try_recv() {
            match request {
                ControlRequest::Reload(client) => waiting.push(client),
                ControlRequest::Override(request) => overrides::change(control, request),
            }
        }
        // `None`: a signal asked for the end meanwhile and comes next. The clients' channels close,
        // which tells them that the daemon stops.
        if let Some(outcome) = reload::run(control, checker, discovery).await {
            report_outcome(waiting, &outcome);
        }
    }
}

/// Waits until `end`; for ever without one.
async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end.into()).await,
        None => pending().await,
    }
}

fn report_outcome(waiting: Vec<oneshot::Sender<ReloadOutcome>>, outcome: &ReloadOutcome) {
    for client in waiting {
        // Fails if the client has left.
        let _ = client.send(outcome.clone());
    }
}
