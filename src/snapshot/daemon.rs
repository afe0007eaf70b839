//! The few things that all threads share beside the generation in force.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use super::Snapshot;
use crate::{base::clock, discovery::SourceTable, pool::OverrideTable};

/// Result of the last reload, for `balancer status` and the metrics.
#[derive(Debug, Clone, Default)]
pub struct ReloadStatus {
    /// True if the last load of the file succeeded.
    pub ok: bool,
    /// Time of the last successful one, since the Unix epoch.
    pub success_unix: Duration,
    /// Time of the last one, since the Unix epoch.
    pub last_unix: Duration,
    /// Successful ones after the start.
    pub succeeded: u64,
    /// Failed ones.
    pub failed: u64,
    /// One line per change of the last successful one, or the rendered problems of a failed one.
    pub message: String,
}

/// Signs of life of a worker thread.
#[derive(Debug, Default)]
pub struct WorkerStatus {
    /// Counted up by the worker's own timer, so that the watchdog sees a loop that is stuck.
    pub heartbeat: AtomicU64,
    /// CPU time of the worker's thread in microseconds, as of its last heartbeat.
    pub busy_micros: AtomicU64,
}

/// State of the process: the generation in force and a few process-wide numbers.
#[derive(Debug)]
pub struct Daemon {
    /// The generation in force; only a reload swaps it.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// True from the first generation in service until the drain begins.
    pub ready: AtomicBool,
    /// True once the drain has begun.
    pub draining: AtomicBool,
    /// Open client connections of all listeners.
    pub connections: AtomicUsize,
    /// Highest number of client connections: `max_connections`.
    pub connection_limit: AtomicUsize,
    /// One per worker.
    pub workers: Vec<WorkerStatus>,
    /// Sources of members.
    pub sources: Arc<SourceTable>,
    /// The last reload.
    pub reload: Mutex<ReloadStatus>,
    /// Overrides by the operator; only the control thread changes them.
    overrides: Mutex<OverrideTable>,
    /// Start of the process.
    pub started: Instant,
}

impl Daemon {
    /// The state at start, with the first generation.
    pub fn new(snapshot: Snapshot, workers: usize, connection_limit: usize) -> Self {
        let unix = clock::unix_now();
        Self {
            snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
            ready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            connection_limit: AtomicUsize::new(connection_limit),
            workers: (0..workers).map(|_| WorkerStatus::default()).collect(),
            sources: Arc::default(),
            reload: Mutex::new(ReloadStatus {
                ok: true,
                success_unix: unix,
                last_unix: unix,
                ..ReloadStatus::default()
            }),
            overrides: Mutex::default(),
            started: clock::now(),
        }
    }

    /// Locks the overrides.
    pub fn overrides(&self) -> MutexGuard<'_, OverrideTable> {
        self.overrides
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of the last reload's result.
    pub fn reload_status(&self) -> ReloadStatus {
        self.reload
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// `/readyz`: in service and not draining.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Relaxed) && !self.draining.load(Relaxed)
    }
}
