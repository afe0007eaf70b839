//! Collects all counters and states into the page for Prometheus: one collector in one registry.
//! docs/metrics.md describes the page for users.
//!
//! Reads only atomics and holds locks only for short, so it may run on any thread. Label values
//! come from the configuration or from fixed lists. A client cannot create a label, because each
//! new label value costs memory here and in Prometheus for ever. The registry omits a family
//! without series. Read next: `families.rs`, the table of metrics, then `series.rs`.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
};

use prometheus::{
    Registry, TextEncoder,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use super::{
    families as f, process,
    series::{MetricFamilies, SeriesBuilder, describe},
};
use crate::{
    base::clock,
    config::model::PerBackend,
    pool::{Backend, HealthState, Pool},
    reason::Reason,
    snapshot::{Daemon, Listener, Snapshot},
    telemetry::{
        handshakes::HandshakeFailure,
        metrics::{
            BackendSlot, ListenerSlot, METHOD_NAMES, MetricCell, PerThread, PoolSlot, ReasonCounts,
            STATUS_CLASSES,
        },
        sink::LogName,
    },
};

/// Value of the label `pool` for requests that never reached a pool.
const NO_POOL: &str = "-";

/// Registry with the collector of the daemon.
pub(super) struct MetricsExporter {
    registry: Registry,
}

impl MetricsExporter {
    pub(super) fn new(daemon: Arc<Daemon>) -> Self {
        let registry = Registry::new();
        #[expect(
            clippy::expect_used,
            reason = "names and labels are literals of one table"
        )]
        DaemonCollector::new(daemon)
            .and_then(|collector| registry.register(Box::new(collector)))
            .expect("the table of metrics has valid and unique names");
        Self { registry }
    }

    /// Encodes the whole page.
    ///
    /// 10,000 busy backends make 430,000 lines. That takes half a second on one core and more than
    /// 100 MB of memory, because the registry needs all series at once to sort them.
    ///
    /// # Errors
    /// When the encoder refuses a family. There is never half a page.
    pub(super) fn page(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// Collector that reads the daemon's counters and states at each scrape.
struct DaemonCollector {
    daemon: Arc<Daemon>,
    descriptions: Vec<Desc>,
}

impl DaemonCollector {
    fn new(daemon: Arc<Daemon>) -> prometheus::Result<Self> {
        let descriptions = f::ALL_METRICS
            .iter()
            .map(describe)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            daemon,
            descriptions,
        })
    }
}

impl Collector for DaemonCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // One snapshot for the whole page, so that a reload in between does not mix two
        // configurations.
        let snapshot = self.daemon.snapshot.load_full();
        let mut families = MetricFamilies::default();
        daemon_families(&mut families, &self.daemon, &snapshot);
        listener_families(&mut families, &snapshot);
        request_families(&mut families, &snapshot);
        source_families(&mut families, &self.daemon);
        pool_families(&mut families, &snapshot);
        session_families(&mut families, &snapshot);
        // With thousands of backends these series are most of the page.
        let per_backend = snapshot.config.metrics.per_backend;
        if per_backend != PerBackend::None {
            let all = backends(&snapshot, |_| true);
            state_families(&mut families, &all);
            slow_start_family(&mut families, &snapshot);
            if per_backend == PerBackend::Full {
                traffic_families(&mut families, &all);
                let checked = |pool: &Pool| pool.config.health_check.is_some();
                check_families(&mut families, &backends(&snapshot, checked));
            }
        }
        process_families(&mut families);
        families.families
    }
}

/// Sum of one reason over all threads.
fn reason_sum<T: Default>(
    slots: &PerThread<T>,
    reason: Reason,
    field: impl Fn(&T) -> &ReasonCounts,
) -> u64 {
    slots.each().map(|slot| field(slot).get(reason)).sum()
}

/// Sum of a gauge over all threads.
///
/// One thread may add a connection and another one remove it, so a single slot can be negative. The
/// sum is not, unless this reads one of the two slots before the change and the other one after it.
fn gauge_sum<T: Default>(slots: &PerThread<T>, field: impl Fn(&T) -> &MetricCell) -> f64 {
    (slots.sum(field).cast_signed().max(0)) as f64
}

/// Version, readiness, reloads, logs and workers.
fn daemon_families(families: &mut MetricFamilies, daemon: &Daemon, snapshot: &Snapshot) {
    let reload = daemon.reload_status();
    families.family(f::BUILD_INFO, |s| s.add(&[env!("CARGO_PKG_VERSION")], 1.0));
    families.family(f::READY, |s| {
        s.add(&[], f64::from(u8::from(daemon.is_ready())));
    });
    families.family(f::RELOAD_OK, |s| s.add(&[], f64::from(u8::from(reload.ok))));
    families.family(f::RELOAD_TIME, |s| {
        s.add(&[], reload.success_unix.as_secs_f64());
    });
    families.family(f::GENERATION, |s| s.count(&[], snapshot.generation));
    families.family(f::RELOADS, |s| {
        s.count(&["success"], reload.succeeded);
        s.count(&["failure"], reload.failed);
    });
    families.family(f::LOG_DROPPED, |s| {
        for log in LogName::ALL {
            s.count(&[log.name()], log.lines_dropped());
        }
    });
    families.family(f::WORKER_BUSY, |s| {
        for (index, worker) in daemon.workers.iter().enumerate() {
            let busy = worker.busy_micros.load(Relaxed) as f64 / 1e6;
            s.add(&[&index.to_string()], busy);
        }
    });
    families.family(f::CONNECTIONS_LIMIT, |s| {
        s.count(&[], daemon.connection_limit.load(Relaxed) as u64);
    });
}

/// Connections and bytes of the listeners.
fn listener_families(families: &mut MetricFamilies, snapshot: &Snapshot) {
    let mut counter = |spec, field: fn(&ListenerSlot) -> &MetricCell| {
        families.family(spec, |s| {
            for one in snapshot.listeners.iter() {
                s.count(&[&one.config.name], one.state.metrics.sum(field));
            }
        });
    };
    counter(f::LISTENER_CONNECTIONS, |m| &m.connections);
    counter(f::LISTENER_RECEIVED, |m| &m.received);
    counter(f::LISTENER_SENT, |m| &m.sent);
    families.family(f::LISTENER_ACTIVE, |s| {
        for one in snapshot.listeners.iter() {
            s.add(
                &[&one.config.name],
                gauge_sum(&one.state.metrics, |m| &m.active),
            );
        }
    });
    families.family(f::LISTENER_REJECTED, |s| {
        for one in snapshot.listeners.iter() {
            s.reasons(&[&one.config.name], |reason| {
                reason_sum(&one.state.metrics, reason, |m| &m.rejected)
            });
        }
    });
    tls_families(families, snapshot);
}

/// Handshakes and certificates of listeners with `tls`, and failures of those with `sni`.
fn tls_families(families: &mut MetricFamilies, snapshot: &Snapshot) {
    // Whether the handshake is TLS 1.3, and whether it resumed a session.
    const HANDSHAKE_KINDS: [(bool, bool); 4] =
        [(false, false), (false, true), (true, false), (true, true)];
    let secure = || snapshot.listeners.iter().filter(|one| one.tls.is_some());
    families.family(f::TLS_HANDSHAKES, |s| {
        for one in secure() {
            for (is_tls13, resumed) in HANDSHAKE_KINDS {
                let version = if is_tls13 { "1.3" } else { "1.2" };
                let labels: &[&str] = &[&one.config.name, version, &resumed.to_string()];
                let slots = &one.state.metrics;
                s.count(
                    labels,
                    slots.sum(|m| m.handshakes.completed(is_tls13, resumed)),
                );
            }
        }
    });
    let reads_hellos = |one: &&Arc<Listener>| one.reads_client_hellos();
    families.family(f::TLS_FAILURES, |s| {
        for one in snapshot.listeners.iter().filter(reads_hellos) {
            for failure in HandshakeFailure::ALL {
                let count = one.state.metrics.sum(|m| m.handshakes.failed(*failure));
                s.count(&[&one.config.name, failure.name()], count);
            }
        }
    });
    families.family(f::TLS_EXPIRY, |s| {
        // Several listeners may use the same file, and a series must occur only once.
        let mut seen = BTreeMap::new();
        for tls in secure().filter_map(|one| one.config.tls.as_ref()) {
            for certificate in &tls.certificates {
                seen.insert(&*certificate.file, certificate.not_after);
            }
        }
        for (file, not_after) in seen {
            s.add(&[file], not_after.as_secs_f64());
        }
    });
}

/// Counters of all pools, and of requests that never reached a pool.
fn pool_slots(snapshot: &Snapshot) -> impl Iterator<Item = (&str, &PerThread<PoolSlot>)> {
    let pools = snapshot.pools.iter();
    pools
        .map(|pool| (&*pool.name, &pool.state.metrics))
        .chain([(NO_POOL, &*snapshot.unrouted)])
}

/// HTTP requests, by pool.
fn request_families(families: &mut MetricFamilies, snapshot: &Snapshot) {
    families.family(f::REQUESTS, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            // Each thread has its own table. A sorted map, because the registry sorts the series.
            let mut sums = BTreeMap::new();
            for (method, code, count) in slots.each().flat_map(|slot| slot.requests.each()) {
                *sums.entry((method, code)).or_insert(0) += count;
            }
            for ((method, code), count) in sums {
                debug_assert!(method < METHOD_NAMES.len(), "{method}");
                let method = METHOD_NAMES.get(method).unwrap_or(&"other");
                s.count(&[pool, method, &code.to_string()], count);
            }
        }
    });
    families.family(f::REQUESTS_ACTIVE, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            s.add(&[pool], gauge_sum(slots, |m| &m.requests_active));
        }
    });
    families.family(f::REQUEST_DURATION, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            for (index, class) in STATUS_CLASSES.iter().enumerate() {
                let parts = slots.each().filter_map(|slot| slot.duration.get(index));
                s.distribution(&[pool, class], parts);
            }
        }
    });
    families.family(f::REQUEST_BODY, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            s.count(&[pool], slots.sum(|m| &m.request_body));
        }
    });
    families.family(f::RESPONSE_BODY, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            s.count(&[pool], slots.sum(|m| &m.response_body));
        }
    });
}

/// Errors, retries, refused requests and states of backends, by pool.
fn pool_families(families: &mut MetricFamilies, snapshot: &Snapshot) {
    families.family(f::ERRORS, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            let mut sums = BTreeMap::new();
            for slot in slots.each() {
                let errors = slot.errors.lock().unwrap_or_else(PoisonError::into_inner);
                for (key, count) in errors.iter() {
                    *sums.entry(*key).or_insert(0) += count;
                }
            }
            for ((reason, code), count) in sums {
                s.count(&[pool, reason.name(), &code.to_string()], count);
            }
        }
    });
    families.family(f::RETRIES, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            s.reasons(&[pool], |reason| reason_sum(slots, reason, |m| &m.retries));
        }
    });
    families.family(f::BUDGET_EXHAUSTED, |s| {
        for pool in &snapshot.pools {
            s.count(
                &[&pool.name],
                pool.state.metrics.sum(|m| &m.budget_exhausted),
            );
        }
    });
    families.family(f::QUEUE_LENGTH, |s| {
        for pool in &snapshot.pools {
            s.count(&[&pool.name], pool.queue_length() as u64);
        }
    });
    families.family(f::QUEUE_WAIT, |s| {
        for pool in &snapshot.pools {
            let waits = pool.state.metrics.each().map(|slot| &slot.queue_wait);
            s.distribution(&[&pool.name], waits);
        }
    });
    families.family(f::STICKY, |s| {
        for pool in snapshot.pools.iter().filter(|pool| pool.sticky.is_some()) {
            let slots = &pool.state.metrics;
            s.count(&[&pool.name, "hit"], slots.sum(|m| &m.sticky.hit));
            s.count(&[&pool.name, "miss"], slots.sum(|m| &m.sticky.miss));
            s.count(&[&pool.name, "fallback"], slots.sum(|m| &m.sticky.fallback));
        }
    });
    families.family(f::TRIALS, |s| {
        for pool in &snapshot.pools {
            let metrics = &pool.state.metrics;
            s.count(&[&pool.name, "passed"], metrics.sum(|m| &m.trials_passed));
            s.count(&[&pool.name, "failed"], metrics.sum(|m| &m.trials_failed));
        }
    });
    families.family(f::RATE_LIMITED, |s| {
        let has_requests = |one: &&Arc<Listener>| one.service.has_requests();
        for one in snapshot.listeners.iter().filter(has_requests) {
            let refused = one.state.metrics.sum(|m| &m.rate_limited);
            s.count(&[&one.config.name], refused);
        }
    });
    families.family(f::POOL_BACKENDS, |s| {
        for pool in &snapshot.pools {
            for (state, count) in HealthState::ALL.iter().zip(pool.counts()) {
                s.count(&[&pool.name, state.name()], count as u64);
            }
        }
    });
}

/// Pools that a TCP listener uses now, or has used before a reload.
///
/// Without this filter every HTTP pool would have series of sessions that are always 0.
fn tcp_pools(snapshot: &Snapshot) -> Vec<&Pool> {
    let has_sessions = |index: usize| {
        snapshot.listeners.iter().any(|listener| {
            !listener.service.has_requests() && listener.config.pools().any(|pool| pool == index)
        })
    };
    let had_sessions = |pool: &Pool| {
        pool.state.metrics.each().any(|slot| {
            slot.sessions_ok.get() > 0
                || slot.sessions_active.get() > 0
                || Reason::ALL
                    .iter()
                    .any(|reason| slot.sessions_failed.get(*reason) > 0)
        })
    };
    let pools = snapshot.pools.iter().enumerate();
    pools
        .filter(|(index, pool)| has_sessions(*index) || had_sessions(pool))
        .map(|(_, pool)| &**pool)
        .collect()
}

/// TCP sessions, by pool.
fn session_families(families: &mut MetricFamilies, snapshot: &Snapshot) {
    let pools = tcp_pools(snapshot);
    families.family(f::SESSIONS, |s| {
        for pool in &pools {
            let slots = &pool.state.metrics;
            s.count(&[&pool.name, "ok"], slots.sum(|m| &m.sessions_ok));
            s.reasons(&[&pool.name], |reason| {
                reason_sum(slots, reason, |m| &m.sessions_failed)
            });
        }
    });
    families.family(f::SESSIONS_ACTIVE, |s| {
        for pool in &pools {
            s.add(
                &[&pool.name],
                gauge_sum(&pool.state.metrics, |m| &m.sessions_active),
            );
        }
    });
    families.family(f::SESSION_DURATION, |s| {
        for pool in &pools {
            let parts = pool.state.metrics.each().map(|slot| &slot.session_duration);
            s.distribution(&[&pool.name], parts);
        }
    });
}

/// Sources of members. Their names are those of the configuration, or of a list of members.
fn source_families(families: &mut MetricFamilies, daemon: &Daemon) {
    let sources = daemon.sources.all();
    families.family(f::DISCOVERY_LOOKUPS, |s| {
        for ((kind, name), source) in &sources {
            let results = [("error", &source.failed), ("ok", &source.succeeded)];
            for (result, count) in results {
                s.count(&[kind.name(), name, result], count.load(Relaxed));
            }
        }
    });
    families.family(f::DISCOVERY_MEMBERS, |s| {
        for ((kind, name), source) in &sources {
            s.count(&[kind.name(), name], source.answer_len() as u64);
        }
    });
    families.family(f::DISCOVERY_FAILING, |s| {
        for ((kind, name), source) in &sources {
            s.count(&[kind.name(), name], u64::from(source.is_failing()));
        }
    });
}

/// Backend with the two labels of its series.
type LabelledBackend<'a> = ([&'a str; 2], &'a Backend);

/// Backends of the pools that `of` selects, in the order of their labels.
///
/// The registry sorts every family. Series that are already in order cost it only one comparison
/// each, and there are many families.
fn backends(snapshot: &Snapshot, of: impl Fn(&Pool) -> bool) -> Vec<LabelledBackend<'_>> {
    let pools = snapshot.pools.iter().filter(|pool| of(pool));
    let mut found: Vec<LabelledBackend<'_>> = pools
        .flat_map(|pool| {
            let name: &str = &pool.name;
            let members = pool.backends.iter();
            members.map(move |backend| ([name, &*backend.config.name], &**backend))
        })
        .collect();
    found.sort_unstable_by_key(|(labels, _)| *labels);
    found
}

/// Share of the weight of each backend in pools with slow start.
fn slow_start_family(families: &mut MetricFamilies, snapshot: &Snapshot) {
    let now = clock::now();
    let mut shares: Vec<([&str; 2], u8)> = Vec::new();
    for pool in &snapshot.pools {
        if pool.config.slow_start.is_some() {
            shares.extend(pool.backends.iter().map(|backend| {
                let percent = pool.ramp_percent(backend, now).unwrap_or(100);
                ([&*pool.name, &*backend.config.name], percent)
            }));
        }
    }
    shares.sort_unstable();
    families.family(f::BACKEND_SLOW_START, |s| {
        for (labels, percent) in &shares {
            s.add(labels, f64::from(*percent) / 100.0);
        }
    });
}

/// State and weight of each backend.
fn state_families(families: &mut MetricFamilies, backends: &[LabelledBackend<'_>]) {
    families.family(f::BACKEND_UP, |s| {
        for (labels, backend) in backends {
            let up = backend.state.state() == HealthState::Up;
            s.count(labels, u64::from(up));
        }
    });
    families.family(f::BACKEND_WEIGHT, |s| {
        for (labels, backend) in backends {
            s.count(labels, u64::from(backend.weight()));
        }
    });
    families.family(f::BACKEND_OVERRIDE, |s| {
        for ([pool, name], backend) in backends {
            let overrides = backend.state.view().overrides;
            let set = [
                ("state", overrides.state.is_some()),
                ("weight", overrides.weight.is_some()),
            ];
            for (what, _) in set.into_iter().filter(|(_, is_set)| *is_set) {
                s.count(&[pool, name, what], 1);
            }
        }
    });
    families.family(f::BACKEND_CHANGED, |s| {
        for (labels, backend) in backends {
            s.add(labels, backend.state.view().since_unix.as_secs_f64());
        }
    });
    // In alphabetical order, as the registry sorts them.
    let mut states = HealthState::ALL;
    states.sort_unstable_by_key(|state| state.name());
    families.family(f::BACKEND_STATE, |s| {
        for ([pool, name], backend) in backends {
            let now = backend.state.state();
            for state in &states {
                s.count(&[pool, name, state.name()], u64::from(*state == now));
            }
        }
    });
}

/// Value of the label `result`, and the field of its counter.
type ResultField = (&'static str, fn(&BackendSlot) -> &MetricCell);

/// Adds a gauge that is read from one field of each backend.
fn backend_gauge(
    families: &mut MetricFamilies,
    spec: f::MetricSpec,
    backends: &[LabelledBackend<'_>],
    field: fn(&BackendSlot) -> &MetricCell,
) {
    families.family(spec, |s| {
        for (labels, backend) in backends {
            s.add(labels, gauge_sum(&backend.state.metrics, field));
        }
    });
}

/// Adds a counter with the label `reason` that is read from one field of each backend.
fn backend_reasons(
    families: &mut MetricFamilies,
    spec: f::MetricSpec,
    backends: &[LabelledBackend<'_>],
    field: fn(&BackendSlot) -> &ReasonCounts,
) {
    families.family(spec, |s| {
        for (labels, backend) in backends {
            s.reasons(labels, |reason| {
                reason_sum(&backend.state.metrics, reason, field)
            });
        }
    });
}

/// Adds a backend's results of connects or checks: the label `result`, in alphabetical order.
fn add_results(
    series: &mut SeriesBuilder,
    ([pool, name], backend): &LabelledBackend<'_>,
    fields: [ResultField; 3],
) {
    for (result, field) in fields {
        series.count(&[pool, name, result], backend.state.metrics.sum(field));
    }
}

/// Traffic of each backend.
fn traffic_families(families: &mut MetricFamilies, backends: &[LabelledBackend<'_>]) {
    families.family(f::BACKEND_REQUESTS, |s| {
        for ([pool, name], backend) in backends {
            for (index, class) in STATUS_CLASSES.iter().enumerate() {
                let counts = backend.state.metrics.each();
                let sum: u64 = counts
                    .filter_map(|slot| slot.requests.get(index).map(MetricCell::get))
                    .sum();
                // Most backends only ever respond with two or three classes.
                if sum > 0 {
                    s.count(&[pool, name, class], sum);
                }
            }
        }
    });
    families.family(f::BACKEND_RESPONSE, |s| {
        for (labels, backend) in backends {
            let parts = backend.state.metrics.each().map(|slot| &slot.response);
            s.distribution(labels, parts);
        }
    });
    backend_gauge(families, f::BACKEND_ACTIVE, backends, |m| {
        &m.connections_active
    });
    backend_gauge(families, f::BACKEND_IDLE, backends, |m| &m.connections_idle);
    families.family(f::BACKEND_CONNECTIONS, |s| {
        for backend in backends {
            let fields: [ResultField; 3] = [
                ("failed", |m| &m.connections_failed),
                ("local_error", |m| &m.connections_local_error),
                ("ok", |m| &m.connections_ok),
            ];
            add_results(s, backend, fields);
        }
    });
    backend_reasons(families, f::BACKEND_FAILURES, backends, |m| &m.failures);
    backend_reasons(families, f::BACKEND_EJECTIONS, backends, |m| &m.ejections);
}

/// Health checks of each backend whose pool has a check.
fn check_families(families: &mut MetricFamilies, checked: &[LabelledBackend<'_>]) {
    families.family(f::BACKEND_CHECKS, |s| {
        for backend in checked {
            let fields: [ResultField; 3] = [
                ("failed", |m| &m.checks_failed),
                ("local_error", |m| &m.checks_local_error),
                ("ok", |m| &m.checks_ok),
            ];
            add_results(s, backend, fields);
        }
    });
    families.family(f::BACKEND_CHECK_DURATION, |s| {
        for (labels, backend) in checked {
            let micros = backend.state.metrics.sum(|m| &m.check_duration_micros);
            s.add(labels, micros as f64 / 1e6);
        }
    });
}

/// Numbers of this process. A number that is unknown has no series.
fn process_families(families: &mut MetricFamilies) {
    let process = process::read_stats();
    let numbers = [
        (f::PROCESS_CPU, process.cpu.map(|cpu| cpu.as_secs_f64())),
        (f::PROCESS_START, process.started_unix),
        (
            f::PROCESS_RESIDENT,
            process.resident_bytes.map(|bytes| bytes as f64),
        ),
        (
            f::PROCESS_VIRTUAL,
            process.virtual_bytes.map(|bytes| bytes as f64),
        ),
        (
            f::PROCESS_THREADS,
            process.threads.map(|count| count as f64),
        ),
        (
            f::PROCESS_OPEN_FDS,
            process.open_fds.map(|count| count as f64),
        ),
        (
            f::PROCESS_MAX_FDS,
            process.max_fds.map(|count| count as f64),
        ),
    ];
    for (family, value) in numbers {
        families.family(family, |s| {
            if let Some(value) = value {
                s.add(&[], value);
            }
        });
    }
}

#[cfg(test)]
#[path = "scrape_tests.rs"]
mod tests;
