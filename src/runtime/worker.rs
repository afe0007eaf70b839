//! The worker threads: each with its own runtime, its own listening sockets and its own connections.

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
    base::address::BindAddress,
    net::{
        limits,
        listen::{Acceptor, ListeningSocket},
    },
    proxy::{accept, worker::Worker},
    snapshot::Daemon,
    telemetry::metrics,
};

/// How often a worker shows that it lives and closes what is over its time.
const TICK_INTERVAL: Duration = Duration::from_millis(250);

/// What the control thread tells a worker.
pub(super) enum WorkerCommand {
    /// Accept on a socket.
    Listen(BindAddress, ListeningSocket),
    /// Stop accepting on an address, and close its idle connections.
    Unlisten(BindAddress),
    /// Close the idle connections of an address that speaks another protocol from now on.
    CloseIdle(BindAddress),
    /// Stop accepting, and close connections as they become idle.
    Drain,
    /// Cut what is left, and end.
    Stop,
}

/// One worker thread.
pub(super) struct WorkerHandle {
    commands: mpsc::UnboundedSender<WorkerCommand>,
    thread: JoinHandle<()>,
}

/// All worker threads.
pub(super) struct WorkerThreads(Vec<WorkerHandle>);

/// What workers tell the control thread: why one of them cannot go on.
pub(super) type WorkerFaults = mpsc::UnboundedReceiver<String>;

impl WorkerThreads {
    /// Starts one worker for each [`Daemon::workers`], and returns when all of them run.
    ///
    /// # Errors
    /// Names the worker that cannot start.
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

    /// Tells every worker something of its own.
    pub(super) fn broadcast(&self, mut command: impl FnMut(usize) -> Option<WorkerCommand>) {
        for (index, worker) in self.0.iter().enumerate() {
            if let Some(command) = command(index) {
                // A worker that is gone has left its connections already; the watchdog sees it.
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
        // The receiver is gone once the daemon ends.
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
    let (cut, cut_seen) = watch::channel(false);
    let worker = Rc::new(Worker::new(daemon, cut_seen));
    let mut listening: HashMap<BindAddress, watch::Sender<bool>> = HashMap::new();
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
            Some(WorkerCommand::Listen(bind, socket)) => match Acceptor::new(socket) {
                Ok(acceptor) => {
                    let (stop, stopped) = watch::channel(false);
                    let address = Rc::new(bind.clone());
                    drop(spawn_local(accept::run(
                        Rc::clone(&worker),
                        acceptor,
                        address,
                        stopped,
                    )));
                    listening.insert(bind, stop);
                }
                Err(error) => faults.send(&format!("cannot accept on {bind}: {error}")),
            },
            Some(WorkerCommand::Unlisten(bind)) => {
                listening.remove(&bind).iter().for_each(stop);
                worker.connections.drain_bind(&bind);
            }
            Some(WorkerCommand::CloseIdle(bind)) => worker.connections.drain_bind(&bind),
            Some(WorkerCommand::Drain) => {
                listening.values().for_each(stop);
                // The accept loops take what is queued before idle connections are told to close.
                yield_now().await;
                worker.connections.drain();
            }
            Some(WorkerCommand::Stop) | None => break,
        }
    }
    // Sessions end and record themselves; exchanges are dropped with the runtime and record that.
    cut.send_replace(true);
    for _ in 0..8 {
        yield_now().await;
    }
    worker.idle.borrow_mut().clear();
    worker.h2_connections.borrow_mut().clear();
}

fn stop(sender: &watch::Sender<bool>) {
    sender.send_replace(true);
}

fn heartbeat(index: usize, worker: &Worker) {
    worker.tick();
    if let Some(status) = worker.daemon.workers.get(index) {
        status.heartbeat.fetch_add(1, Relaxed);
        let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ThreadCPUTime);
        let micros = tv_sec.unsigned_abs() * 1_000_000 + tv_nsec.unsigned_abs() / 1_000;
        status.busy_micros.store(micros, Relaxed);
    }
}
