//! Gathers all counters and states into the page that Prometheus reads: one collector in one registry. docs/metrics.md is
//! the page's reference.
//!
//! Reads atomics and short locks only, so it may run on any thread. Label values come from the configuration or from
//! fixed lists: nothing a client sends ever becomes a label. The registry leaves out a family without series. Read next:
//! `series.rs`.

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
    series::{MetricFamilies, describe},
};
use crate::{
    config::model::{ListenerProtocol, PerBackend},
    pool::{Backend, HealthState, Pool},
    reason::Reason,
    snapshot::{Daemon, Listener, Snapshot},
    telemetry::{
        handshakes::HandshakeFailure,
        metrics::{METHOD_NAMES, MetricCell, PerThread, PoolSlot, ReasonCounts},
        sink::LogName,
    },
};

/// What stands for the pool where a request never reached one.
const NO_POOL: &str = "-";

/// The classes of status, by `metrics::class_index`.
const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The registry with the one collector of the daemon, and the encoder of its page.
pub(super) struct MetricsExporter {
    registry: Registry,
}

impl MetricsExporter {
    pub(super) fn new(daemon: Arc<Daemon>) -> Self {
        let registry = Registry::new();
        #[expect(
            clippy::expect_used,
            reason = "names and labels are the literals of one table, whose constants no caller can change"
        )]
        DaemonCollector::new(daemon)
            .and_then(|collector| registry.register(Box::new(collector)))
            .expect("the table of families has valid names, each once");
        Self { registry }
    }

    /// The whole page. 10,000 busy backends make 430,000 lines: half a second on one core, and more than 100 MB until the
    /// page is done, as the registry wants all series at once to sort them.
    ///
    /// # Errors
    /// When the encoder refuses a family; half a page is never given.
    pub(super) fn page(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// Reads the daemon's counters and states when asked.
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
        let snapshot = self.daemon.snapshot.load_full();
        let mut tree = MetricFamilies::default();
        daemon_families(&mut tree, &self.daemon, &snapshot);
        listener_families(&mut tree, &snapshot);
        request_families(&mut tree, &snapshot);
        pool_families(&mut tree, &snapshot);
        session_families(&mut tree, &snapshot);
        let per_backend = snapshot.config.metrics.per_backend;
        if per_backend != PerBackend::None {
            let all = backends(&snapshot, |_| true);
            state_families(&mut tree, &all);
            if per_backend == PerBackend::Full {
                traffic_families(&mut tree, &all);
                let checked = |pool: &Pool| pool.config.health_check.is_some();
                check_families(&mut tree, &backends(&snapshot, checked));
            }
        }
        process_families(&mut tree);
        tree.families
    }
}

/// The sum of one reason over all threads.
fn reason_sum<T: Default>(
    slots: &PerThread<T>,
    reason: Reason,
    field: impl Fn(&T) -> &ReasonCounts,
) -> u64 {
    slots.each().map(|slot| field(slot).get(reason)).sum()
}

/// The sum of a gauge whose threads may each be below 0 while the whole is not.
fn gauge<T: Default>(slots: &PerThread<T>, field: impl Fn(&T) -> &MetricCell) -> f64 {
    // A scrape between two threads' updates may see less than 0.
    (slots.sum(field).cast_signed().max(0)) as f64
}

fn daemon_families(tree: &mut MetricFamilies, daemon: &Daemon, snapshot: &Snapshot) {
    let reload = daemon.reload_status();
    tree.family(f::BUILD_INFO, |s| s.add(&[env!("CARGO_PKG_VERSION")], 1.0));
    tree.family(f::READY, |s| {
        s.add(&[], f64::from(u8::from(daemon.is_ready())));
    });
    tree.family(f::RELOAD_OK, |s| s.add(&[], f64::from(u8::from(reload.ok))));
    tree.family(f::RELOAD_TIME, |s| {
        s.add(&[], reload.success_unix.as_secs_f64());
    });
    tree.family(f::GENERATION, |s| s.count(&[], snapshot.generation));
    tree.family(f::RELOADS, |s| {
        s.count(&["success"], reload.succeeded);
        s.count(&["failure"], reload.failed);
    });
    tree.family(f::LOG_DROPPED, |s| {
        for log in LogName::ALL {
            s.count(&[log.name()], log.lines_dropped());
        }
    });
    tree.family(f::WORKER_BUSY, |s| {
        for (index, worker) in daemon.workers.iter().enumerate() {
            let busy = worker.busy_micros.load(Relaxed) as f64 / 1e6;
            s.add(&[&index.to_string()], busy);
        }
    });
    tree.family(f::CONNECTIONS_LIMIT, |s| {
        s.count(&[], daemon.connection_limit.load(Relaxed) as u64);
    });
}

fn listener_families(tree: &mut MetricFamilies, snapshot: &Snapshot) {
    let listeners = &snapshot.listeners;
    tree.family(f::LISTENER_CONNECTIONS, |s| {
        for one in listeners {
            s.count(
                &[&one.config.name],
                one.state.metrics.sum(|m| &m.connections),
            );
        }
    });
    tree.family(f::LISTENER_ACTIVE, |s| {
        for one in listeners {
            s.add(
                &[&one.config.name],
                gauge(&one.state.metrics, |m| &m.active),
            );
        }
    });
    tree.family(f::LISTENER_RECEIVED, |s| {
        for one in listeners {
            s.count(&[&one.config.name], one.state.metrics.sum(|m| &m.received));
        }
    });
    tree.family(f::LISTENER_SENT, |s| {
        for one in listeners {
            s.count(&[&one.config.name], one.state.metrics.sum(|m| &m.sent));
        }
    });
    tree.family(f::LISTENER_REJECTED, |s| {
        for one in listeners {
            s.reasons(&[&one.config.name], |reason| {
                reason_sum(&one.state.metrics, reason, |m| &m.rejected)
            });
        }
    });
    tls_families(tree, snapshot);
}

/// Handshakes and certificates of the listeners that speak TLS, or look into it.
fn tls_families(tree: &mut MetricFamilies, snapshot: &Snapshot) {
    const KINDS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];
    let secure = || snapshot.listeners.iter().filter(|one| one.tls.is_some());
    tree.family(f::TLS_HANDSHAKES, |s| {
        for one in secure() {
            for (is_tls13, resumed) in KINDS {
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
    let by_name = |one: &&Arc<Listener>| one.tls.is_some() || one.names.is_some();
    tree.family(f::TLS_FAILURES, |s| {
        for one in snapshot.listeners.iter().filter(by_name) {
            for failure in HandshakeFailure::ALL {
                let count = one.state.metrics.sum(|m| m.handshakes.failed(*failure));
                s.count(&[&one.config.name, failure.name()], count);
            }
        }
    });
    tree.family(f::TLS_EXPIRY, |s| {
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

/// Every pool's counters, and those of requests that never reached a pool.
fn pool_slots(snapshot: &Snapshot) -> impl Iterator<Item = (&str, &PerThread<PoolSlot>)> {
    let pools = snapshot.pools.iter();
    pools
        .map(|pool| (&*pool.name, &pool.state.metrics))
        .chain([(NO_POOL, &*snapshot.unrouted)])
}

fn request_families(tree: &mut MetricFamilies, snapshot: &Snapshot) {
    tree.family(f::REQUESTS, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            let mut sums = std::collections::BTreeMap::new();
            for (method, code, count) in slots.each().flat_map(|slot| slot.requests.each()) {
                *sums.entry((method, code)).or_insert(0) += count;
            }
            for ((method, code), count) in sums {
                let method = METHOD_NAMES.get(method).unwrap_or(&"other");
                s.count(&[pool, method, &code.to_string()], count);
            }
        }
    });
    tree.family(f::REQUESTS_ACTIVE, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            s.add(&[pool], gauge(slots, |m| &m.requests_active));
        }
    });
    tree.family(f::REQUEST_DURATION, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            for (index, class) in STATUS_CLASSES.iter().enumerate() {
                let parts = slots.each().filter_map(|slot| slot.duration.get(index));
                s.distribution(&[pool, class], parts);
            }
        }
    });
    tree.family(f::REQUEST_BODY, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            s.count(&[pool], slots.sum(|m| &m.request_body));
        }
    });
    tree.family(f::RESPONSE_BODY, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            s.count(&[pool], slots.sum(|m| &m.response_body));
        }
    });
}

fn pool_families(tree: &mut MetricFamilies, snapshot: &Snapshot) {
    tree.family(f::ERRORS, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            let mut sums = std::collections::BTreeMap::new();
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
    tree.family(f::RETRIES, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            s.reasons(&[pool], |reason| reason_sum(slots, reason, |m| &m.retries));
        }
    });
    tree.family(f::BUDGET_EXHAUSTED, |s| {
        for pool in &snapshot.pools {
            s.count(
                &[&pool.name],
                pool.state.metrics.sum(|m| &m.budget_exhausted),
            );
        }
    });
    tree.family(f::RATE_LIMITED, |s| {
        let is_http = |one: &&Arc<Listener>| one.config.protocol == ListenerProtocol::Http;
        for one in snapshot.listeners.iter().filter(is_http) {
            let refused = one.state.metrics.sum(|m| &m.rate_limited);
            s.count(&[&one.config.name], refused);
        }
    });
    tree.family(f::POOL_BACKENDS, |s| {
        for pool in &snapshot.pools {
            for (state, count) in HealthState::ALL.iter().zip(pool.counts()) {
                s.count(&[&pool.name, state.name()], count as u64);
            }
        }
    });
}

/// Pools that a TCP listener uses, or did while this state lived.
fn tcp_pools(snapshot: &Snapshot) -> Vec<&Pool> {
    let is_tcp = |index: usize| {
        snapshot.config.listeners.iter().any(|listener| {
            listener.protocol == ListenerProtocol::Tcp && listener.pools().any(|pool| pool == index)
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
        .filter(|(index, pool)| is_tcp(*index) || had_sessions(pool))
        .map(|(_, pool)| &**pool)
        .collect()
}

fn session_families(tree: &mut MetricFamilies, snapshot: &Snapshot) {
    let pools = tcp_pools(snapshot);
    tree.family(f::SESSIONS, |s| {
        for pool in &pools {
            let slots = &pool.state.metrics;
            s.count(&[&pool.name, "ok"], slots.sum(|m| &m.sessions_ok));
            s.reasons(&[&pool.name], |reason| {
                reason_sum(slots, reason, |m| &m.sessions_failed)
            });
        }
    });
    tree.family(f::SESSIONS_ACTIVE, |s| {
        for pool in &pools {
            s.add(
                &[&pool.name],
                gauge(&pool.state.metrics, |m| &m.sessions_active),
            );
        }
    });
    tree.family(f::SESSION_DURATION, |s| {
        for pool in &pools {
            let parts = pool.state.metrics.each().map(|slot| &slot.session_duration);
            s.distribution(&[&pool.name], parts);
        }
    });
}

/// A backend with the two labels of its series.
type LabelledBackend<'a> = ([&'a str; 2], &'a Backend);

/// The backends of the pools that `of` selects, in the order of their labels: the registry sorts every family, and what is
/// in order already costs it one comparison a series.
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

fn state_families(tree: &mut MetricFamilies, backends: &[LabelledBackend<'_>]) {
    tree.family(f::BACKEND_UP, |s| {
        for (labels, backend) in backends {
            let up = backend.state.state() == HealthState::Up;
            s.count(labels, u64::from(up));
        }
    });
    tree.family(f::BACKEND_WEIGHT, |s| {
        for (labels, backend) in backends {
            s.count(labels, u64::from(backend.config.weight));
        }
    });
    tree.family(f::BACKEND_CHANGED, |s| {
        for (labels, backend) in backends {
            s.add(labels, backend.state.view().since_unix.as_secs_f64());
        }
    });
    let mut states = HealthState::ALL;
    states.sort_unstable_by_key(|state| state.name());
    tree.family(f::BACKEND_STATE, |s| {
        for ([pool, name], backend) in backends {
            let now = backend.state.state();
            for state in &states {
                s.count(&[pool, name, state.name()], u64::from(*state == now));
            }
        }
    });
}

fn traffic_families(tree: &mut MetricFamilies, backends: &[LabelledBackend<'_>]) {
    tree.family(f::BACKEND_REQUESTS, |s| {
        for ([pool, name], backend) in backends {
            for (index, class) in STATUS_CLASSES.iter().enumerate() {
                let counts = backend.state.metrics.each();
                let sum: u64 = counts
                    .filter_map(|slot| slot.requests.get(index).map(MetricCell::get))
                    .sum();
                if sum > 0 {
                    s.count(&[pool, name, class], sum);
                }
            }
        }
    });
    tree.family(f::BACKEND_RESPONSE, |s| {
        for (labels, backend) in backends {
            let parts = backend.state.metrics.each().map(|slot| &slot.response);
            s.distribution(labels, parts);
        }
    });
    tree.family(f::BACKEND_ACTIVE, |s| {
        for (labels, backend) in backends {
            s.add(
                labels,
                gauge(&backend.state.metrics, |m| &m.connections_active),
            );
        }
    });
    tree.family(f::BACKEND_IDLE, |s| {
        for (labels, backend) in backends {
            s.add(
                labels,
                gauge(&backend.state.metrics, |m| &m.connections_idle),
            );
        }
    });
    tree.family(f::BACKEND_CONNECTIONS, |s| {
        for ([pool, name], backend) in backends {
            let slots = &backend.state.metrics;
            s.count(
                &[pool, name, "failed"],
                slots.sum(|m| &m.connections_failed),
            );
            s.count(
                &[pool, name, "local_error"],
                slots.sum(|m| &m.connections_local_error),
            );
            s.count(&[pool, name, "ok"], slots.sum(|m| &m.connections_ok));
        }
    });
    tree.family(f::BACKEND_FAILURES, |s| {
        for (labels, backend) in backends {
            s.reasons(labels, |reason| {
                reason_sum(&backend.state.metrics, reason, |m| &m.failures)
            });
        }
    });
    tree.family(f::BACKEND_EJECTIONS, |s| {
        for (labels, backend) in backends {
            s.reasons(labels, |reason| {
                reason_sum(&backend.state.metrics, reason, |m| &m.ejections)
            });
        }
    });
}

fn check_families(tree: &mut MetricFamilies, checked: &[LabelledBackend<'_>]) {
    tree.family(f::BACKEND_CHECKS, |s| {
        for ([pool, name], backend) in checked {
            let slots = &backend.state.metrics;
            s.count(&[pool, name, "failed"], slots.sum(|m| &m.checks_failed));
            s.count(
                &[pool, name, "local_error"],
                slots.sum(|m| &m.checks_local_error),
            );
            s.count(&[pool, name, "ok"], slots.sum(|m| &m.checks_ok));
        }
    });
    tree.family(f::BACKEND_CHECK_DURATION, |s| {
        for (labels, backend) in checked {
            let micros = backend.state.metrics.sum(|m| &m.check_duration_micros);
            s.add(labels, micros as f64 / 1e6);
        }
    });
}

fn process_families(tree: &mut MetricFamilies) {
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
        tree.family(family, |s| {
            if let Some(value) = value {
                s.add(&[], value);
            }
        });
    }
}

#[cfg(test)]
#[path = "scrape_tests.rs"]
mod tests;
