//! Gathers all counters and states into the text that Prometheus reads. docs/metrics.md is its reference.
//!
//! Reads atomics and short locks only, so it may run on any thread. Label values come from the configuration or from
//! fixed lists: nothing a client sends ever becomes a label. A family without series is left out of the page.

use std::sync::{PoisonError, atomic::Ordering::Relaxed};

use super::{
    families::{self as f, Family, Kind},
    process,
};
use crate::{
    config::model::{ListenerProtocol, PerBackend},
    pool::{Backend, Pool, State},
    reason::Reason,
    snapshot::{Daemon, Snapshot},
    telemetry::{
        metrics::{self, BUCKETS_MICROS, ByReason, Count, METHODS, PerThread, PoolSlot},
        sink::LogName,
        text,
    },
};

/// What stands for the pool where a request never reached one.
pub const NO_POOL: &str = "-";

/// The classes of status, by `metrics::class_index`.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// `BUCKETS_MICROS` in seconds as the page shows them, and the bucket above all.
const BOUNDS: [&str; BUCKETS_MICROS.len() + 1] = [
    "0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1",
    "2.5", "5", "10", "30", "60", "+Inf",
];

/// The whole page.
pub fn page(daemon: &Daemon) -> String {
    let snapshot = daemon.snapshot.load_full();
    let mut page = Page::default();
    daemon_families(&mut page, daemon, &snapshot);
    listener_families(&mut page, &snapshot);
    request_families(&mut page, &snapshot);
    pool_families(&mut page, &snapshot);
    session_families(&mut page, &snapshot);
    match snapshot.config.metrics.per_backend {
        PerBackend::Full => {
            state_families(&mut page, &snapshot);
            traffic_families(&mut page, &snapshot);
            check_families(&mut page, &snapshot);
        }
        PerBackend::State => state_families(&mut page, &snapshot),
        PerBackend::None => {}
    }
    process_families(&mut page);
    String::from_utf8(page.text).unwrap_or_default()
}

/// The text so far.
#[derive(Default)]
struct Page {
    text: Vec<u8>,
}

/// The series of one family, written as they come: with 10,000 backends a tree of them would cost more than the counting.
struct Series<'a> {
    family: Family,
    text: &'a mut Vec<u8>,
    begun: bool,
}

impl Page {
    fn family(&mut self, family: Family, fill: impl FnOnce(&mut Series<'_>)) {
        fill(&mut Series {
            family,
            text: &mut self.text,
            begun: false,
        });
    }
}

impl Series<'_> {
    /// `name{label="value",…} `, after the head of the family if this is its first series.
    fn begin(&mut self, suffix: &str, values: &[&str], bound: Option<&str>) {
        if !self.begun {
            self.begun = true;
            self.head();
        }
        self.put(self.family.name);
        self.put(suffix);
        let bound = bound.map(|bound| ("le", bound));
        let labels = self.family.labels.iter().copied();
        let mut before = b'{';
        for (label, value) in labels.zip(values.iter().copied()).chain(bound) {
            self.text.push(before);
            self.put(label);
            self.put("=\"");
            self.escaped(value);
            self.text.push(b'"');
            before = b',';
        }
        if before == b',' {
            self.text.push(b'}');
        }
        self.text.push(b' ');
    }

    fn head(&mut self) {
        let kind = match self.family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let Family { name, help, .. } = self.family;
        self.put(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn put(&mut self, text: &str) {
        self.text.extend_from_slice(text.as_bytes());
    }

    /// The text format escapes three characters in label values.
    fn escaped(&mut self, value: &str) {
        if memchr::memchr3(b'\\', b'"', b'\n', value.as_bytes()).is_none() {
            return self.put(value);
        }
        for byte in value.bytes() {
            match byte {
                b'\n' => self.put("\\n"),
                b'\\' | b'"' => self.text.extend([b'\\', byte]),
                _ => self.text.push(byte),
            }
        }
    }

    fn add(&mut self, labels: &[&str], value: f64) {
        self.begin("", labels, None);
        self.put(&format!("{value}\n"));
    }

    fn count(&mut self, labels: &[&str], value: u64) {
        self.sample("", labels, None, value);
    }

    fn sample(&mut self, suffix: &str, labels: &[&str], bound: Option<&str>, value: u64) {
        self.begin(suffix, labels, bound);
        text::number(self.text, value);
        self.text.push(b'\n');
    }

    /// One series per reason that occurred; `head` are the labels before the reason.
    fn reasons(&mut self, head: &[&str], count: impl Fn(Reason) -> u64) {
        for reason in Reason::ALL {
            let value = count(*reason);
            if value > 0 {
                let labels: Vec<&str> = head.iter().copied().chain([reason.name()]).collect();
                self.count(&labels, value);
            }
        }
    }

    /// A distribution; left out while it is empty.
    fn distribution<'a>(
        &mut self,
        labels: &[&str],
        parts: impl Iterator<Item = &'a metrics::Histogram>,
    ) {
        let mut counts = [0_u64; BUCKETS_MICROS.len() + 1];
        let mut sum_micros = 0_u64;
        for part in parts {
            for (sum, count) in counts.iter_mut().zip(&part.buckets) {
                *sum += count.get();
            }
            sum_micros = sum_micros.wrapping_add(part.sum_micros.get());
        }
        let mut below = 0;
        if counts.iter().all(|count| *count == 0) {
            return;
        }
        for (count, bound) in counts.iter().zip(BOUNDS) {
            below += count;
            self.sample("_bucket", labels, Some(bound), below);
        }
        self.begin("_sum", labels, None);
        self.put(&format!("{}\n", sum_micros as f64 / 1e6));
        self.sample("_count", labels, None, below);
    }
}

/// The sum of one reason over all threads.
fn reason_sum<T: Default>(
    slots: &PerThread<T>,
    reason: Reason,
    field: impl Fn(&T) -> &ByReason,
) -> u64 {
    slots.each().map(|slot| field(slot).get(reason)).sum()
}

/// The sum of a gauge whose threads may each be below 0 while the whole is not.
fn gauge<T: Default>(slots: &PerThread<T>, field: impl Fn(&T) -> &Count) -> f64 {
    // A scrape between two threads' updates may see less than 0.
    (slots.sum(field).cast_signed().max(0)) as f64
}

fn daemon_families(page: &mut Page, daemon: &Daemon, snapshot: &Snapshot) {
    let reload = daemon.reload_status();
    page.family(f::BUILD_INFO, |s| s.add(&[env!("CARGO_PKG_VERSION")], 1.0));
    page.family(f::READY, |s| {
        s.add(&[], f64::from(u8::from(daemon.is_ready())));
    });
    page.family(f::RELOAD_OK, |s| s.add(&[], f64::from(u8::from(reload.ok))));
    page.family(f::RELOAD_TIME, |s| {
        s.add(&[], reload.success_unix.as_secs_f64());
    });
    page.family(f::GENERATION, |s| s.count(&[], snapshot.generation));
    page.family(f::RELOADS, |s| {
        s.count(&["success"], reload.succeeded);
        s.count(&["failure"], reload.failed);
    });
    page.family(f::LOG_DROPPED, |s| {
        for log in LogName::ALL {
            s.count(&[log.name()], log.lines_dropped());
        }
    });
    page.family(f::WORKER_BUSY, |s| {
        for (index, worker) in daemon.workers.iter().enumerate() {
            let busy = worker.busy_micros.load(Relaxed) as f64 / 1e6;
            s.add(&[&index.to_string()], busy);
        }
    });
    page.family(f::CONNECTIONS_LIMIT, |s| {
        s.count(&[], daemon.connection_limit.load(Relaxed) as u64);
    });
}

fn listener_families(page: &mut Page, snapshot: &Snapshot) {
    let listeners = &snapshot.listeners;
    page.family(f::LISTENER_CONNECTIONS, |s| {
        for one in listeners {
            s.count(
                &[&one.config.name],
                one.state.metrics.sum(|m| &m.connections),
            );
        }
    });
    page.family(f::LISTENER_ACTIVE, |s| {
        for one in listeners {
            s.add(
                &[&one.config.name],
                gauge(&one.state.metrics, |m| &m.active),
            );
        }
    });
    page.family(f::LISTENER_RECEIVED, |s| {
        for one in listeners {
            s.count(&[&one.config.name], one.state.metrics.sum(|m| &m.received));
        }
    });
    page.family(f::LISTENER_SENT, |s| {
        for one in listeners {
            s.count(&[&one.config.name], one.state.metrics.sum(|m| &m.sent));
        }
    });
    page.family(f::LISTENER_REJECTED, |s| {
        for one in listeners {
            s.reasons(&[&one.config.name], |reason| {
                reason_sum(&one.state.metrics, reason, |m| &m.rejected)
            });
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

fn request_families(page: &mut Page, snapshot: &Snapshot) {
    page.family(f::REQUESTS, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            let mut sums = std::collections::BTreeMap::new();
            for (method, code, count) in slots.each().flat_map(|slot| slot.requests.each()) {
                *sums.entry((method, code)).or_insert(0) += count;
            }
            for ((method, code), count) in sums {
                let method = METHODS.get(method).unwrap_or(&"other");
                s.count(&[pool, method, &code.to_string()], count);
            }
        }
    });
    page.family(f::REQUESTS_ACTIVE, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            s.add(&[pool], gauge(slots, |m| &m.requests_active));
        }
    });
    page.family(f::REQUEST_DURATION, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            for (index, class) in CLASSES.iter().enumerate() {
                let parts = slots.each().filter_map(|slot| slot.duration.get(index));
                s.distribution(&[pool, class], parts);
            }
        }
    });
    page.family(f::REQUEST_BODY, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            s.count(&[pool], slots.sum(|m| &m.request_body));
        }
    });
    page.family(f::RESPONSE_BODY, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            s.count(&[pool], slots.sum(|m| &m.response_body));
        }
    });
}

fn pool_families(page: &mut Page, snapshot: &Snapshot) {
    page.family(f::ERRORS, |s| {
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
    page.family(f::RETRIES, |s| {
        for (pool, slots) in pool_slots(snapshot) {
            s.reasons(&[pool], |reason| reason_sum(slots, reason, |m| &m.retries));
        }
    });
    page.family(f::BUDGET_EXHAUSTED, |s| {
        for pool in &snapshot.pools {
            s.count(
                &[&pool.name],
                pool.state.metrics.sum(|m| &m.budget_exhausted),
            );
        }
    });
    page.family(f::POOL_BACKENDS, |s| {
        for pool in &snapshot.pools {
            for (state, count) in State::ALL.iter().zip(pool.counts()) {
                s.count(&[&pool.name, state.name()], count as u64);
            }
        }
    });
}

/// Pools that a TCP listener uses, or did while this state lived.
fn tcp_pools(snapshot: &Snapshot) -> Vec<&Pool> {
    let is_tcp = |index: usize| {
        snapshot.config.listeners.iter().any(|listener| {
            listener.protocol == ListenerProtocol::Tcp && listener.pool == Some(index)
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

fn session_families(page: &mut Page, snapshot: &Snapshot) {
    let pools = tcp_pools(snapshot);
    page.family(f::SESSIONS, |s| {
        for pool in &pools {
            let slots = &pool.state.metrics;
            s.count(&[&pool.name, "ok"], slots.sum(|m| &m.sessions_ok));
            s.reasons(&[&pool.name], |reason| {
                reason_sum(slots, reason, |m| &m.sessions_failed)
            });
        }
    });
    page.family(f::SESSIONS_ACTIVE, |s| {
        for pool in &pools {
            s.add(
                &[&pool.name],
                gauge(&pool.state.metrics, |m| &m.sessions_active),
            );
        }
    });
    page.family(f::SESSION_DURATION, |s| {
        for pool in &pools {
            let parts = pool.state.metrics.each().map(|slot| &slot.session_duration);
            s.distribution(&[&pool.name], parts);
        }
    });
}

/// Every backend with the two labels of its series.
fn backends(snapshot: &Snapshot) -> impl Iterator<Item = ([&str; 2], &Backend)> {
    snapshot.pools.iter().flat_map(|pool| {
        let name: &str = &pool.name;
        let members = pool.backends.iter();
        members.map(move |backend| ([name, &*backend.config.name], &**backend))
    })
}

fn state_families(page: &mut Page, snapshot: &Snapshot) {
    page.family(f::BACKEND_UP, |s| {
        for (labels, backend) in backends(snapshot) {
            let up = backend.state.state() == State::Up;
            s.count(&labels, u64::from(up));
        }
    });
    page.family(f::BACKEND_WEIGHT, |s| {
        for (labels, backend) in backends(snapshot) {
            s.count(&labels, u64::from(backend.config.weight));
        }
    });
    page.family(f::BACKEND_CHANGED, |s| {
        for (labels, backend) in backends(snapshot) {
            s.add(&labels, backend.state.view().since_unix.as_secs_f64());
        }
    });
    page.family(f::BACKEND_STATE, |s| {
        for ([pool, name], backend) in backends(snapshot) {
            let now = backend.state.state();
            for state in State::ALL {
                s.count(&[pool, name, state.name()], u64::from(state == now));
            }
        }
    });
}

fn traffic_families(page: &mut Page, snapshot: &Snapshot) {
    page.family(f::BACKEND_REQUESTS, |s| {
        for ([pool, name], backend) in backends(snapshot) {
            for (index, class) in CLASSES.iter().enumerate() {
                let counts = backend.state.metrics.each();
                let sum: u64 = counts
                    .filter_map(|slot| slot.requests.get(index).map(Count::get))
                    .sum();
                if sum > 0 {
                    s.count(&[pool, name, class], sum);
                }
            }
        }
    });
    page.family(f::BACKEND_RESPONSE, |s| {
        for (labels, backend) in backends(snapshot) {
            let parts = backend.state.metrics.each().map(|slot| &slot.response);
            s.distribution(&labels, parts);
        }
    });
    page.family(f::BACKEND_ACTIVE, |s| {
        for (labels, backend) in backends(snapshot) {
            s.add(
                &labels,
                gauge(&backend.state.metrics, |m| &m.connections_active),
            );
        }
    });
    page.family(f::BACKEND_IDLE, |s| {
        for (labels, backend) in backends(snapshot) {
            s.add(
                &labels,
                gauge(&backend.state.metrics, |m| &m.connections_idle),
            );
        }
    });
    page.family(f::BACKEND_CONNECTIONS, |s| {
        for ([pool, name], backend) in backends(snapshot) {
            let slots = &backend.state.metrics;
            s.count(&[pool, name, "ok"], slots.sum(|m| &m.connections_ok));
            s.count(
                &[pool, name, "failed"],
                slots.sum(|m| &m.connections_failed),
            );
        }
    });
    page.family(f::BACKEND_FAILURES, |s| {
        for (labels, backend) in backends(snapshot) {
            s.reasons(&labels, |reason| {
                reason_sum(&backend.state.metrics, reason, |m| &m.failures)
            });
        }
    });
    page.family(f::BACKEND_EJECTIONS, |s| {
        for (labels, backend) in backends(snapshot) {
            s.reasons(&labels, |reason| {
                reason_sum(&backend.state.metrics, reason, |m| &m.ejections)
            });
        }
    });
}

fn check_families(page: &mut Page, snapshot: &Snapshot) {
    let checked = || {
        let pools = snapshot.pools.iter();
        pools
            .filter(|pool| pool.config.health_check.is_some())
            .flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend)))
    };
    page.family(f::BACKEND_CHECKS, |s| {
        for (pool, backend) in checked() {
            let (slots, name) = (&backend.state.metrics, &backend.config.name);
            s.count(&[&pool.name, name, "ok"], slots.sum(|m| &m.checks_ok));
            s.count(
                &[&pool.name, name, "failed"],
                slots.sum(|m| &m.checks_failed),
            );
        }
    });
    page.family(f::BACKEND_CHECK_DURATION, |s| {
        for (pool, backend) in checked() {
            let micros = backend.state.metrics.sum(|m| &m.check_duration_micros);
            s.add(&[&pool.name, &backend.config.name], micros as f64 / 1e6);
        }
    });
}

fn process_families(page: &mut Page) {
    let process = process::look();
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
        page.family(family, |s| {
            if let Some(value) = value {
                s.add(&[], value);
            }
        });
    }
}

#[cfg(test)]
#[path = "scrape_tests.rs"]
mod tests;
