//! Counters of the hot path: one slot per thread, one writer each, summed at scrape.
//!
//! A slot is a plain struct of [`MetricCell`]s on cache lines of its own. The writer is found by a thread-local index:
//! 0 is the control thread, 1.. are the workers. Slots are made when first used, so that 10,000 idle backends are cheap.

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

/// Says how many threads write counters: the control thread and the workers. Called once, before the first snapshot.
pub fn set_threads(workers: usize) {
    SLOT_COUNT.store(workers + 1, Relaxed);
}

/// Gives the calling thread its slot: 0 for the control thread, 1.. for the workers.
pub fn set_slot(slot: usize) {
    SLOT_INDEX.set(slot);
}

/// One number with one writer: adding is a plain load and store, reading is allowed to everyone.
#[derive(Debug, Default)]
pub struct MetricCell(AtomicU64);

impl MetricCell {
    /// Adds `n`; only the slot's own thread may call this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Takes `n` away, for gauges whose sum over all slots stays at 0 or more.
    #[inline]
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    /// Replaces the number, for gauges of one thread.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The number now.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[repr(align(128))]
#[derive(Debug, Default)]
struct CacheAligned<T>(T);

/// A `T` for each thread.
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
    /// The calling thread's own slot.
    #[inline]
    pub fn mine(&self) -> &T {
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

    /// Every slot that was ever used.
    pub fn each(&self) -> impl Iterator<Item = &T> {
        self.slots
            .iter()
            .filter_map(|slot| slot.get().map(|padded| &padded.0))
    }

    /// The sum over all threads of the count that `field` selects.
    pub fn sum(&self, field: impl Fn(&T) -> &MetricCell) -> u64 {
        self.each()
            .fold(0, |sum, slot| sum.wrapping_add(field(slot).get()))
    }
}

/// Upper bounds of the histogram buckets in microseconds: 0.5 ms to 60 s. The last bucket, +Inf, has no bound here.
pub const BUCKETS_MICROS: [u64; 16] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// A distribution of times; the buckets are not cumulative here, the collector adds them up.
#[derive(Debug, Default)]
pub struct TimeHistogram {
    /// How many fell into each bucket; the last is +Inf.
    pub buckets: [MetricCell; BUCKETS_MICROS.len() + 1],
    /// Sum of all times.
    pub sum_micros: MetricCell,
}

impl TimeHistogram {
    /// Counts one time.
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

/// The known methods, RFC 9110 section 9 and RFC 5789; [`method_index`] maps all others to `other`.
pub const METHOD_NAMES: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "PATCH", "other",
];

/// Position of `method` in [`METHOD_NAMES`].
#[inline]
pub fn method_index(method: &[u8]) -> usize {
    METHOD_NAMES
        .iter()
        .position(|known| known.as_bytes() == method)
        .unwrap_or(METHOD_NAMES.len() - 1)
}

/// Position of a status in the five classes `1xx`..`5xx`.
#[inline]
pub fn class_index(status: u16) -> usize {
    usize::from(status / 100).clamp(1, 5) - 1
}

/// Requests by method and status; a table of one hundred codes is made when its class is first seen.
#[derive(Debug, Default)]
pub struct StatusTable {
    classes: [[OnceLock<Box<[MetricCell; 100]>>; 5]; METHOD_NAMES.len()],
}

impl StatusTable {
    /// Counts one answer of 100..=599.
    #[inline]
    pub fn add(&self, method: usize, status: u16) {
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

    /// Every pair of method and status that was seen, with its count.
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

/// A count for each [`Reason`].
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

    /// How often `reason` was counted.
    pub fn get(&self, reason: Reason) -> u64 {
        self.0.get(reason.index()).map_or(0, MetricCell::get)
    }
}

/// What a listener counts.
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
    /// Connections closed at once, by reason.
    pub rejected: ReasonCounts,
    /// TLS handshakes, completed and failed.
    pub handshakes: HandshakeCounts<MetricCell>,
    /// Requests over a `rate_limit`.
    pub rate_limited: MetricCell,
}

/// What a pool counts; one more of these counts what never reached a pool.
#[derive(Debug, Default)]
pub struct PoolSlot {
    /// Finished requests by method and status; a request whose client left before an answer counts as 499 in the log only.
    pub requests: StatusTable,
    /// Requests under way.
    pub requests_active: MetricCell,
    /// From the first byte of the request to the last of the answer, by class of status.
    pub duration: [TimeHistogram; 5],
    /// Bytes of request bodies.
    pub request_body: MetricCell,
    /// Bytes of response bodies.
    pub response_body: MetricCell,
    /// Errors by reason and status sent (0 where the connection was cut); rare, so a mutex that only the scrape contends for.
    pub errors: Mutex<BTreeMap<(Reason, u16), u64>>,
    /// Further tries by the reason of the try before.
    pub retries: ReasonCounts,
    /// Tries that the budget forbade.
    pub budget_exhausted: MetricCell,
    /// TCP sessions that ended well.
    pub sessions_ok: MetricCell,
    /// TCP sessions that ended with a reason.
    pub sessions_failed: ReasonCounts,
    /// TCP sessions under way.
    pub sessions_active: MetricCell,
    /// How long TCP sessions took.
    pub session_duration: TimeHistogram,
}

impl PoolSlot {
    /// Counts one error answered with `status`, or cut (0).
    pub fn error(&self, reason: Reason, status: u16) {
        let mut errors = self
            .errors
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *errors.entry((reason, status)).or_default() += 1;
    }
}

/// What a backend counts.
#[derive(Debug, Default)]
pub struct BackendSlot {
    /// Answers by class of status.
    pub requests: [MetricCell; 5],
    /// From the sent request to the first byte of the answer.
    pub response: TimeHistogram,
    /// Connections made for traffic.
    pub connections_ok: MetricCell,
    /// Connections that could not be made.
    pub connections_failed: MetricCell,
    /// Attempts to connect that failed for a lack of our own: descriptors, ports, memory.
    pub connections_local_error: MetricCell,
    /// Open connections in use.
    pub connections_active: MetricCell,
    /// Idle keepalive connections.
    pub connections_idle: MetricCell,
    /// Failed tries by reason.
    pub failures: ReasonCounts,
    /// Ejections by the reason of the last failure.
    pub ejections: ReasonCounts,
    /// Good checks (control thread only).
    pub checks_ok: MetricCell,
    /// Bad checks (control thread only).
    pub checks_failed: MetricCell,
    /// Health checks that could not be made for a lack of our own.
    pub checks_local_error: MetricCell,
    /// How long checks took: microseconds of the last one (control thread only).
    pub check_duration_micros: MetricCell,
}
