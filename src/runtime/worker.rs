//! The worker threads: each with its own runtime, its own listening sockets and its own
//! connections.

use std::{
    collections::HashMap,
    io,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::{
    thread::ClockId,
    time::{Timespec, clock_gettime},
};
use tokio::{
    runtime::{Builder, LocalOptions, LocalRuntime},
    select,
    sync::{mpsc, watch},
    task::{spawn_local, yield_now},
    time::{MissedTickBehavior, interval},
};

use crate::{
    base::socket_key::SocketKey,
    net::{
        limits,
        listen::{Acceptor, ListeningSocket},
    },
    proxy::{accept, worker::Worker},
    snapshot::Daemon,
    telemetry::metrics,
};

/// Interval of heartbeats, and of the search for idle connections whose time is over.
const TICK_INTERVAL: Duration = Duration::from_millis(250);
/// Rounds of the runtime in which sessions end at a cut: each needs one to notice, and one per
/// wrapper to return.
const CUT_ROUNDS: usize = 8;

/// A command of the control thread to a worker.
pub(super) enum WorkerCommand {
    /// Accept on a socket.
    Listen(SocketKey, ListeningSocket),
    /// Stop accepting on a socket, and close its idle connections.
    Unlisten(SocketKey),
    /// Close the idle connections of a socket that speaks another protocol from now on.
    CloseIdle(SocketKey),
    /// Stop accepting, and close connections as they become idle.
    Drain,
    /// Close all remaining connections, and end.
    Stop,
}

/// One worker thread.
pub(super) struct WorkerHandle {
    commands: mpsc::UnboundedSender<WorkerCommand>,
    thread: JoinHandle<()>,
}

/// All worker threads.
pub(super) struct WorkerThreads(Vec<WorkerHandle>);

/// Messages of workers that failed to the control thread: one text each.
pub(super) type WorkerFaults = mpsc::UnboundedReceiver<String>;

impl WorkerThreads {
    /// Starts one worker for each of [`Daemon::workers`], and returns when all of them run.
    ///
    /// # Errors
    /// A text that names the worker that cannot start.
    pub(super) fn start(daemon: &Arc<Daemon>) -> Result<(Self, WorkerFaults), String> {
        let (fault, faults) = mpsc::unbounded_channel();
        let (report, reports) = std::sync::mpsc::channel();
        let mut workers = Vec::with_capacity(daemon.workers.len());
        for index in 0..daemon.workers.len() {
            let (commands, receiver) = mpsc::unbounded_channel();
            let (daemon, report) = (Arc::clone(daemon), report.clone());
            let faults = FaultSender {
                index,
                sender: fault.clone(),
            };
            let thread = thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || {
                    let faults = faults;
                    main(index, daemon, receiver, report, &faults);
                })
                .map_err(|error| format!("cannot start worker {index}: {error}"))?;
            workers.push(WorkerHandle { commands, thread });
        }
        drop(report);
        for _ in 0..workers.len() {
            // Closed only if one of them panicked.
            reports
                .recv()
                .unwrap_or_else(|_| Err("a worker panicked at its start".to_owned()))?;
        }
        Ok((Self(workers), faults))
    }

    /// Sends every worker the command that `command` makes for its index, if any.
    pub(super) fn broadcast(&self, mut command: impl FnMut(usize) -> Option<WorkerCommand>) {
        for (index, worker) in self.0.iter().enumerate() {
            if let Some(command) = command(index) {
                // Fails if the worker has ended, which the control thread hears from its
                // `FaultSender`.
                let _ = worker.commands.send(command);
            }
        }
    }

    /// Waits until every worker has ended.
    pub(super) fn join(self) {
        for worker in self.0 {
            drop(worker.commands);
            if worker.thread.join().is_err() {
                tracing::error!(target: "daemon", "worker thread panicked");
            }
        }
    }
}

/// Reports an unexpected end of a worker, a panic included.
struct FaultSender {
    index: usize,
    sender: mpsc::UnboundedSender<String>,
}

impl FaultSender {
    fn send(&self, fault: &str) {
        // Fails once the control thread has stopped listening, at the end of the daemon.
        drop(self.sender.send(format!("worker {}: {fault}", self.index)));
    }
}

impl Drop for FaultSender {
    fn drop(&mut self) {
        self.send("it ended");
    }
}

fn main(
    index: usize,
    daemon: Arc<Daemon>,
    commands: mpsc::UnboundedReceiver<WorkerCommand>,
    report: std::sync::mpsc::Sender<Result<(), String>>,
    faults: &FaultSender,
) {
    metrics::set_slot(index + 1);
    limits::leave_reserve();
    let runtime: io::Result<LocalRuntime> = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default());
    match runtime {
        Ok(runtime) => {
            drop(report.send(Ok(())));
            drop(report);
            runtime.block_on(serve(index, daemon, commands, faults));
        }
        Err(error) => drop(report.send(Err(format!("cannot start worker {index}: {error}")))),
    }
}

async fn serve(
    index: usize,
    daemon: Arc<Daemon>,
    mut commands: mpsc::UnboundedReceiver<WorkerCommand>,
    faults: &FaultSender,
) {
    let worker = Rc::new(Worker::new(daemon));
    let mut accept_loops = AcceptLoops::default();
    let mut tick = interval(TICK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let command = select! {
            command = commands.recv() => command,
            _ = tick.tick() => {
                heartbeat(index, &worker);
                continue;
            }
        };
        match command {
            Some(WorkerCommand::Listen(key, socket)) => {
                if let Err(error) = accept_loops.start(&worker, &key, socket) {
                    faults.send(&format!("cannot accept on {key}: {error}"));
                }
            }
            Some(WorkerCommand::Unlisten(key)) => {
                accept_loops.stop(&key);
                // The accept loop takes what is queued, and closes the socket.
                yield_now().await;
                worker.connections.drain_socket(&key);
            }
            Some(WorkerCommand::CloseIdle(key)) => worker.connections.drain_socket(&key),
            Some(WorkerCommand::Drain) => {
                accept_loops.stop_all();
                // As above.
                yield_now().await;
                worker.connections.drain();
            }
            Some(WorkerCommand::Stop) | None => break,
        }
    }
    // Sessions end and record themselves, in a few rounds of the runtime. Exchanges are dropped
    // with the runtime, and record that.
    worker.cut();
    for _ in 0..CUT_ROUNDS {
        yield_now().await;
    }
    worker.close_backend_connections();
}

/// The accept loops of a worker, by socket, each with the switch that stops it.
#[derive(Default)]
struct AcceptLoops(HashMap<SocketKey, watch::Sender<bool>>);

impl AcceptLoops {
    fn start(
        &mut self,
        worker: &Rc<Worker>,
        key: &SocketKey,
        socket: ListeningSocket,
    ) -> io::Result<()> {
        let acceptor = Acceptor::new(socket)?;
        let (stop, stopped) = watch::channel(false);
        let (worker, socket) = (Rc::clone(worker), Rc::new(key.clone()));
        drop(spawn_local(accept::run(worker, acceptor, socket, stopped)));
        let before = self.0.insert(key.clone(), stop);
        debug_assert!(before.is_none(), "one loop per socket");
        Ok(())
    }

    fn stop(&mut self, key: &SocketKey) {
        if let Some(stop) = self.0.remove(key) {
            stop.send_replace(true);
        }
    }

    fn stop_all(&self) {
        for stop in self.0.values() {
            stop.send_replace(true);
        }
    }
}

/// Shows that the worker lives, and does its housekeeping.
fn heartbeat(index: usize, worker: &Worker) {
    worker.tick();
    let status = worker.daemon.workers.get(index);
    debug_assert!(status.is_some(), "a status for each worker");
    if let Some(status) = status {
        status.heartbeat.fetch_add(1, Relaxed);
        let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ThreadCPUTime);
        let micros = tv_sec.unsigned_abs() * 1_000_000 + tv_nsec.unsigned_abs() / 1_000;
        status.busy_micros.store(micros, Relaxed);
    }
}
