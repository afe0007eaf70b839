//! Counters of the hot path: each thread has its own slot, and a scrape adds them up.
//!
//! A counter that all workers share would move its cache line between cores at each request. So
//! each thread writes only its own slot, and needs no atomic read-modify-write. The slot is found
//! by a thread-local index: 0 is the control thread, 1.. are the workers. A slot is created when it
//! is first used, so that 10,000 idle backends cost almost no memory.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use super::handshakes::HandshakeCounts;
use crate::reason::Reason;

thread_local! {
    static SLOT_INDEX: Cell<usize> = const { Cell::new(0) };
}

static SLOT_COUNT: AtomicUsize = AtomicUsize::new(1);

/// Sets the number of slots: one for the control thread and one for each worker.
///
/// Called once, before the first snapshot: existing counters do not get more slots.
pub fn set_threads(workers: usize) {
    SLOT_COUNT.store(workers + 1, Relaxed);
}

/// Sets the slot of the calling thread: 0 for the control thread, 1.. for the workers.
pub fn set_slot(slot: usize) {
    SLOT_INDEX.set(slot);
}

/// Number with one writer and any number of readers.
///
/// Because only one thread writes, an addition is a plain load and store.
#[derive(Debug, Default)]
pub struct MetricCell(AtomicU64);

impl MetricCell {
    /// Adds `n`. Only the thread of the slot may call this: concurrent additions would be lost.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Subtracts `n`. For gauges: one slot may become negative, but not the sum of all slots.
    #[inline]
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    /// Replaces the number. For gauges that only one thread writes.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// Current number.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Value on its own cache lines. 128 bytes, because x86 prefetches cache lines in pairs.
#[repr(align(128))]
#[derive(Debug, Default)]
struct CacheAligned<T>(T);

/// One `T` for each thread.
#[derive(Debug)]
pub struct PerThread<T> {
    slots: Box<[OnceLock<Box<CacheAligned<T>>>]>,
}

impl<T: Default> Default for PerThread<T> {
    fn default() -> Self {
        Self {
            slots: (0..SLOT_COUNT.load(Relaxed))
                .map(|_| OnceLock::new())
                .collect(),
        }
    }
}

impl<T: Default> PerThread<T> {
    /// Slot of the calling thread.
    #[inline]
    pub fn mine(&self) -> &T {
        debug_assert!(
            SLOT_INDEX.get() < self.slots.len(),
            "`set_threads` comes before the first counter"
        );
        let slot = self
            .slots
            .get(SLOT_INDEX.get())
            .or_else(|| self.slots.first());
        #[expect(
            clippy::expect_used,
            reason = "`Default` makes at least one slot and there is no other constructor"
        )]
        let slot = slot.expect("there is a slot because SLOT_COUNT is at least 1");
        &slot.get_or_init(Box::default).0
    }

    /// Slots that were used so far.
    pub fn each(&self) -> impl Iterator<Item = &T> {
        self.slots
            .iter()
            .filter_map(|slot| slot.get().map(|padded| &padded.0))
    }

    /// Sum over all threads of the number that `field` selects.
    pub fn sum(&self, field: impl Fn(&T) -> &MetricCell) -> u64 {
        self.each()
            .fold(0, |sum, slot| sum.wrapping_add(field(slot).get()))
    }
}

/// Upper bounds of the histogram buckets in microseconds: 0.5 ms to 60 s. The last bucket is +Inf
/// and has no bound here.
pub const BUCKETS_MICROS: [u64; 16] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// Distribution of times. The buckets are not cumulative: `admin/series.rs` adds them up.
#[derive(Debug, Default)]
pub struct TimeHistogram {
    /// Number of times in each bucket; the last bucket is +Inf.
    pub buckets: [MetricCell; BUCKETS_MICROS.len() + 1],
    /// Sum of all times in microseconds.
    pub sum_micros: MetricCell,
}

impl TimeHistogram {
    /// Adds one time.
    #[inline]
    pub fn observe(&self, time: Duration) {
        let micros = time.as_micros() as u64;
        let bucket = BUCKETS_MICROS
            .iter()
            .take_while(|bound| micros > **bound)
            .count();
        if let Some(count) = self.buckets.get(bucket) {
            count.add(1);
        }
        self.sum_micros.add(micros);
    }
}

/// Known methods (RFC 9110 §9, RFC 5789). [`method_index`] maps all others to `other`, because a
/// client must not be able to create label values.
pub const METHOD_NAMES: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "PATCH", "other",
];

/// Index of `method` in [`METHOD_NAMES`].
#[inline]
pub fn method_index(method: &[u8]) -> usize {
    METHOD_NAMES
        .iter()
        .position(|known| known.as_bytes() == method)
        .unwrap_or(METHOD_NAMES.len() - 1)
}

/// Classes of status codes, RFC 9110 section 15.
pub const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Position of the class of `status` in [`STATUS_CLASSES`].
#[inline]
pub fn class_index(status: u16) -> usize {
    usize::from(status / 100).clamp(1, STATUS_CLASSES.len()) - 1
}

/// Requests by method and status.
///
/// A table of one hundred codes is created when its class is first used: the full table would take
/// 36 KB for each pool and thread.
#[derive(Debug, Default)]
pub struct StatusTable {
    classes: [[OnceLock<Box<[MetricCell; 100]>>; STATUS_CLASSES.len()]; METHOD_NAMES.len()],
}

impl StatusTable {
    /// Counts one response with a status of 100 to 599.
    #[inline]
    pub fn add(&self, method: usize, status: u16) {
        debug_assert!(method < METHOD_NAMES.len(), "{method}");
        debug_assert!((100..=599).contains(&status), "{status}");
        let table = self
            .classes
            .get(method)
            .and_then(|classes| classes.get(class_index(status)));
        let table = table.map(|table| {
            table.get_or_init(|| Box::new([const { MetricCell(AtomicU64::new(0)) }; 100]))
        });
        if let Some(count) = table.and_then(|table| table.get(usize::from(status % 100))) {
            count.add(1);
        }
    }

    /// Pairs of method and status that occurred, with their counts.
    pub fn each(&self) -> impl Iterator<Item = (usize, u16, u64)> {
        self.classes
            .iter()
            .enumerate()
            .flat_map(|(method, classes)| {
                classes
                    .iter()
                    .enumerate()
                    .filter_map(|(class, table)| table.get().map(|table| (class, table)))
                    .flat_map(move |(class, table)| {
                        table
                            .iter()
                            .enumerate()
                            .filter(|(_, count)| count.get() > 0)
                            .map(move |(code, count)| {
                                (method, (class as u16 + 1) * 100 + code as u16, count.get())
                            })
                    })
            })
    }
}

/// Number for each [`Reason`].
#[derive(Debug)]
pub struct ReasonCounts([MetricCell; Reason::COUNT]);

impl Default for ReasonCounts {
    fn default() -> Self {
        Self([const { MetricCell(AtomicU64::new(0)) }; Reason::COUNT])
    }
}

impl ReasonCounts {
    /// Counts one `reason`.
    pub fn add(&self, reason: Reason) {
        if let Some(count) = self.0.get(reason.index()) {
            count.add(1);
        }
    }

    /// Number of times that `reason` was counted.
    pub fn get(&self, reason: Reason) -> u64 {
        self.0.get(reason.index()).map_or(0, MetricCell::get)
    }
}

/// Counters of a listener.
#[derive(Debug, Default)]
pub struct ListenerSlot {
    /// Accepted connections.
    pub connections: MetricCell,
    /// Open connections.
    pub active: MetricCell,
    /// Bytes from clients.
    pub received: MetricCell,
    /// Bytes to clients.
    pub sent: MetricCell,
    /// Connections that were refused, by reason.
    pub rejected: ReasonCounts,
    /// TLS handshakes, completed and failed.
    pub handshakes: HandshakeCounts<MetricCell>,
    /// Requests over a `rate_limit`.
    pub rate_limited: MetricCell,
}

/// Responses by what became of the client's sticky session.
#[derive(Debug, Default)]
pub struct StickyCounts {
    /// From the backend that the client's cookie names.
    pub hit: MetricCell,
    /// To clients without a valid cookie.
    pub miss: MetricCell,
    /// From another backend than the one that the client's cookie names.
    pub fallback: MetricCell,
}

impl StickyCounts {
    /// Counts a response of the backend at position `picked` to a client whose cookie names the
    /// one at `named`.
    pub fn count(&self, named: Option<usize>, picked: usize) {
        let count = match named {
            Some(named) if named == picked => &self.hit,
            Some(_) => &self.fallback,
            None => &self.miss,
        };
        count.add(1);
    }
}

/// Counters of a pool. One more slot of this type counts requests that never reached a pool.
#[derive(Debug, Default)]
pub struct PoolSlot {
    /// Finished requests by method and status. A request whose client disconnected before a
    /// response is not counted here; only the access log shows it as 499.
    pub requests: StatusTable,
    /// Requests in progress.
    pub requests_active: MetricCell,
    /// Time from the first byte of the request to the last byte of the response, by class of
    /// status.
    pub duration: [TimeHistogram; STATUS_CLASSES.len()],
    /// Bytes of request bodies.
    pub request_body: MetricCell,
    /// Bytes of response bodies.
    pub response_body: MetricCell,
    /// Errors by reason and status sent (0 if the connection was cut). Errors are rare, and only a
    /// scrape contends for this lock.
    pub errors: Mutex<BTreeMap<(Reason, u16), u64>>,
    /// Retries, by the reason of the failed attempt.
    pub retries: ReasonCounts,
    /// Retries that the budget prevented.
    pub budget_exhausted: MetricCell,
    /// Time in the queue, of those who have waited.
    pub queue_wait: TimeHistogram,
    /// Waits that `queue_timeout` ended.
    pub queue_timed_out: MetricCell,
    /// Responses of backends to requests with and without a sticky session.
    pub sticky: StickyCounts,
    /// Trials of ejected backends that ended the ejection.
    pub trials_passed: MetricCell,
    /// Trials of ejected backends that began the next ejection.
    pub trials_failed: MetricCell,
    /// TCP sessions that ended without an error.
    pub sessions_ok: MetricCell,
    /// TCP sessions that ended with an error, by reason.
    pub sessions_failed: ReasonCounts,
    /// TCP sessions in progress.
    pub sessions_active: MetricCell,
    /// Duration of TCP sessions.
    pub session_duration: TimeHistogram,
}

impl PoolSlot {
    /// Counts one error with the status sent, or 0 if the connection was cut.
    pub fn error(&self, reason: Reason, status: u16) {
        let mut errors = self
            .errors
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *errors.entry((reason, status)).or_default() += 1;
    }
}

/// Counters of a backend.
#[derive(Debug, Default)]
pub struct BackendSlot {
    /// Responses by class of status.
    pub requests: [MetricCell; STATUS_CLASSES.len()],
    /// Time from the sent request head to the first byte of the response.
    pub response: TimeHistogram,
    /// Connections for traffic that were established.
    pub connections_ok: MetricCell,
    /// Connections for traffic that failed.
    pub connections_failed: MetricCell,
    /// Connections that failed because of this machine: no descriptors, ports or memory.
    pub connections_local_error: MetricCell,
    /// Open connections in use.
    pub connections_active: MetricCell,
    /// Idle keepalive connections.
    pub connections_idle: MetricCell,
    /// Failed attempts, by reason.
    pub failures: ReasonCounts,
    /// Ejections, by the reason of the last failure.
    pub ejections: ReasonCounts,
    /// Passed checks (control thread only).
    pub checks_ok: MetricCell,
    /// Failed checks (control thread only).
    pub checks_failed: MetricCell,
    /// Checks that failed because of this machine (control thread only).
    pub checks_local_error: MetricCell,
    /// Duration of the last check in microseconds (control thread only).
    pub check_duration_micros: MetricCell,
}
