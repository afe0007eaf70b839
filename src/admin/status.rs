//! The document of `GET /v1/status`: the source of `balancer status`.
//!
//! Users write scripts against this document. So its fields are only added, not renamed or removed.
//! `cli/status.rs` reads it.

use std::{
    collections::HashSet,
    fmt::Write as _,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    base::clock,
    config::model::{Config, HealthCheckConfig, PoolConfig, PoolTlsConfig},
    discovery::{SourceKey, SourceState},
    pool::{
        Backend, BackendOverrides, CheckRecord, CheckTiming, HealthState, HealthView,
        OperatorOverride, Pool, TrialPhase,
    },
    snapshot::{Daemon, Listener, Snapshot},
    telemetry::rfc3339,
};

/// Most backends of a document in which each has its last checks. More would take the control
/// thread too long; they are asked for one by one.
const MAX_DETAILED_BACKENDS: usize = 1_000;

/// Describes the current state of the daemon.
pub(super) fn status(daemon: &Daemon) -> Value {
    let snapshot = daemon.snapshot.load_full();
    let backends: usize = snapshot.pools.iter().map(|pool| pool.backends.len()).sum();
    let with_checks = backends <= MAX_DETAILED_BACKENDS;
    let now = clock::now();
    let pools = snapshot.pools.iter();
    let pools = pools.map(|one| pool(one, &one.backends, with_checks, now));
    document(daemon, &snapshot, &pools.collect::<Vec<_>>())
}

/// The same with one backend of one pool alone.
pub(super) fn backend_status(
    daemon: &Daemon,
    snapshot: &Snapshot,
    of_pool: &Pool,
    backend: &Arc<Backend>,
) -> Value {
    let only = std::slice::from_ref(backend);
    let only = pool(of_pool, only, true, clock::now());
    document(daemon, snapshot, &[only])
}

/// The document with `pools`, of one snapshot, so that a reload in between does not mix two
/// configurations.
fn document(daemon: &Daemon, snapshot: &Snapshot, pools: &[Value]) -> Value {
    let now = clock::now();
    let reload = daemon.reload_status();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "uptime_seconds": age(daemon.started, now),
        "generation": snapshot.generation,
        "ready": daemon.is_ready(),
        "draining": daemon.draining.load(Relaxed),
        "workers": daemon.workers.len(),
        "connections": {
            "active": daemon.connections.load(Relaxed),
            "limit": daemon.connection_limit.load(Relaxed),
        },
        "reload": {
            "ok": reload.ok,
            "at": time(reload.last_unix),
            "last_success": time(reload.success_unix),
            "succeeded": reload.succeeded,
            "failed": reload.failed,
            "message": reload.message,
        },
        "listeners": snapshot.listeners.iter().map(|one| listener(one)).collect::<Vec<_>>(),
        "pools": pools,
        "absent_overrides": absent_overrides(daemon, snapshot, now),
        "sources": daemon.sources.all().iter().map(|(key, state)| source(key, state, now)).collect::<Vec<_>>(),
        "certificates": certificates(&snapshot.config),
    })
}

/// Object of one source of members.
fn source((kind, name): &SourceKey, source: &SourceState, now: Instant) -> Value {
    let view = source.view();
    json!({
        "source": kind.name(),
        "name": &**name,
        "detail": source.detail,
        "ok": view.error.is_none() && !view.answered_unix.is_zero(),
        "members": view.answer.len(),
        "answer": view.answer,
        "answered": time(view.answered_unix),
        "expires_in_seconds": view.expires.map(|at| age(now, at)),
        "error": view.error,
        "failing_seconds": view.failing_since.map(|since| age(since, now)),
        "lookups_ok": source.succeeded.load(Relaxed),
        "lookups_failed": source.failed.load(Relaxed),
    })
}

/// Certificates of listeners and pools: each file once, in the order of the configuration.
fn certificates(config: &Config) -> Vec<Value> {
    let listeners = config.listeners.iter().filter_map(|one| one.tls.as_ref());
    let servers = listeners.flat_map(|tls| &tls.certificates);
    let clients = config.pools.iter().flat_map(pool_tls);
    let clients = clients.filter_map(|tls| tls.client_cert.as_ref());
    let now = clock::unix_now();
    let mut seen = HashSet::new();
    let first = servers.chain(clients).filter(|one| seen.insert(&*one.file));
    let documents = first.map(|certificate| {
        let state = if now > certificate.not_after {
            "expired"
        } else if now < certificate.not_before {
            "not_yet_valid"
        } else {
            "valid"
        };
        json!({
            "file": certificate.file,
            "names": certificate.names,
            "state": state,
            "not_before": time(certificate.not_before),
            "not_after": time(certificate.not_after),
            "expires_in_seconds": seconds(certificate.not_after.saturating_sub(now)),
            "expired_seconds_ago": seconds(now.saturating_sub(certificate.not_after)),
        })
    });
    documents.collect()
}

/// The TLS settings of a pool, of its backends and of its checks.
fn pool_tls(pool: &PoolConfig) -> impl Iterator<Item = &PoolTlsConfig> {
    let check = pool.health_check.iter().map(|check| &check.tls);
    let own = pool
        .backends
        .iter()
        .map(|backend| &backend.tls)
        .chain(check);
    let own = own.filter_map(|tls| tls.resolve(None));
    pool.tls.iter().chain(own)
}

/// Seconds with three decimals: more digits would only be noise.
fn seconds(time: Duration) -> f64 {
    time.as_millis() as f64 / 1e3
}

/// Seconds since a point in time.
fn age(since: Instant, now: Instant) -> f64 {
    seconds(now.saturating_duration_since(since))
}

/// RFC 3339 time, or null if it is zero: the event has not happened.
fn time(unix: Duration) -> Value {
    if unix.is_zero() {
        Value::Null
    } else {
        Value::String(rfc3339(unix))
    }
}

/// Object of one listener.
fn listener(listener: &Listener) -> Value {
    let metrics = &listener.state.metrics;
    json!({
        "name": &*listener.config.name,
        "protocol": listener.config.protocol.name(),
        "binds": listener.config.binds.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "active": listener.state.active.load(Relaxed),
        "accepted": metrics.sum(|slot| &slot.connections),
    })
}

/// Object of one pool with `backends` of it.
fn pool(pool: &Pool, backends: &[Arc<Backend>], with_checks: bool, now: Instant) -> Value {
    let counts = pool.counts();
    let states = HealthState::ALL
        .iter()
        .zip(counts)
        .filter(|(_, count)| *count > 0);
    let queue = pool.queue_status(now);
    json!({
        "name": &*pool.name,
        "policy": pool.config.policy.name(),
        "sticky": pool.sticky.as_ref().map(|sticky| json!({"cookie": sticky.cookie})),
        "health_check": pool.config.health_check.is_some(),
        "states": states.map(|(state, count)| (state.name().to_owned(), json!(count))).collect::<serde_json::Map<_, _>>(),
        "queue": {
            "length": queue.length,
            "longest_wait_seconds": seconds(queue.longest_wait),
            "timed_out": pool.state.metrics.sum(|slot| &slot.queue_timed_out),
        },
        "backends": backends.iter().map(|one| backend(pool, one, with_checks, now)).collect::<Vec<_>>(),
    })
}

/// Result of the last check, and the number of results that change the state.
///
/// For example `2 of 3 failed: status 500`.
fn check_text(health: &HealthView, check: &HealthCheckConfig) -> String {
    let HealthView {
        good_in_a_row: good,
        bad_in_a_row: bad,
        ..
    } = health;
    let HealthCheckConfig { rise, fall, .. } = check;
    let last = health.last_check.as_ref().map(|check| &check.result);
    let mut text = match last {
        None => "not checked yet".to_owned(),
        Some(Ok(())) if health.failed_checks => format!("{good} of {rise} passed"),
        Some(Ok(())) if health.state == HealthState::Ejected => {
            let passed = health.good_since_ejection;
            format!("{passed} of {rise} passed since the ejection")
        }
        Some(Ok(())) => "passed".to_owned(),
        Some(Err(error)) if health.failed_checks => format!("0 of {rise} passed: {error}"),
        Some(Err(error)) => format!("{bad} of {fall} failed: {error}"),
    };
    if let Some(error) = &health.check_not_made {
        let _ = write!(text, "; the next check could not run: {error}");
    }
    text
}

/// Overrides of one backend: where the daemon differs from the file by the wish of an operator.
/// Null without any.
fn override_documents(overrides: &BackendOverrides, now: Instant) -> Value {
    if overrides.is_empty() {
        return Value::Null;
    }
    let state = overrides.state.as_ref();
    let weight = overrides.weight.as_ref();
    json!({
        "state": state.map(|one| override_document(one, &one.value.name().into(), now)),
        "weight": weight.map(|one| override_document(one, &one.value.into(), now)),
    })
}

fn override_document<T>(one: &OperatorOverride<T>, value: &Value, now: Instant) -> Value {
    json!({
        "value": value,
        "by": one.by,
        "since": time(one.since_unix),
        "until": one.end.map(|end| time(end.unix)),
        "ends_in_seconds": one.end.map(|end| age(now, end.at)),
        "note": one.note,
    })
}

/// Overrides of backends that are in no pool of the configuration: they hold if one returns.
fn absent_overrides(daemon: &Daemon, snapshot: &Snapshot, now: Instant) -> Vec<Value> {
    let table = daemon.overrides();
    if table.iter().next().is_none() {
        return Vec::new();
    }
    let present = snapshot.override_keys();
    let absent = table.iter().filter(|(key, _)| !present.contains(key));
    let documents = absent.map(|(key, overrides)| {
        json!({
            "pool": key.pool,
            "address": key.address,
            "override": override_documents(overrides, now),
        })
    });
    documents.collect()
}

/// The condition on which a backend comes back that checks keep out: `2 more good checks`.
fn needed(health: &HealthView, check: &HealthCheckConfig) -> Option<String> {
    let (passed, or_time) = match health.state {
        HealthState::Checking => return Some("1 good check".to_owned()),
        HealthState::Down => (health.good_in_a_row, ""),
        HealthState::Ejected => (health.good_since_ejection, ", or a good trial request"),
        _ => return None,
    };
    let more = check.rise.saturating_sub(passed).max(1);
    let plural = if more == 1 { "" } else { "s" };
    Some(format!("{more} more good check{plural}{or_time}"))
}

/// Object of a check that was made. Phases are times from its start.
fn check_record(check: &CheckRecord) -> Value {
    let seconds = |time: Duration| time.as_micros() as f64 / 1e6;
    let CheckTiming { took, phases } = check.timing;
    json!({
        "at": time(check.at),
        "ok": check.result.is_ok(),
        "error": check.result.as_ref().err().map(|cause| &**cause),
        "took_seconds": seconds(took),
        "resolved_seconds": phases.resolved.map(seconds),
        "connected_seconds": phases.connected.map(seconds),
        "secured_seconds": phases.secured.map(seconds),
        "first_byte_seconds": phases.first_byte.map(seconds),
    })
}

/// The last check with the streaks; null before the first.
fn last_check(health: &HealthView, check_config: Option<&HealthCheckConfig>) -> Value {
    let Some(last) = &health.last_check else {
        return Value::Null;
    };
    let mut document = check_record(last);
    let streaks = json!({
        "good_in_a_row": health.good_in_a_row,
        "bad_in_a_row": health.bad_in_a_row,
        "rise": check_config.map(|check| check.rise),
        "fall": check_config.map(|check| check.fall),
    });
    if let (Some(to), Value::Object(from)) = (document.as_object_mut(), streaks) {
        to.extend(from);
    }
    document
}

/// Object of one backend, with its last checks if `with_checks`.
pub(super) fn backend(pool: &Pool, backend: &Backend, with_checks: bool, now: Instant) -> Value {
    let check_config = pool.config.health_check.as_ref();
    let health = backend.state.view();
    let text = check_config.map(|check| check_text(&health, check));
    let checked = health.last_check.as_ref().map(|check| check.at);
    let idle = backend.state.metrics.sum(|slot| &slot.connections_idle);
    let needed = check_config.and_then(|check| needed(&health, check));
    let overridden = override_documents(&health.overrides, now);
    let mut document = json!({
        "name": &*backend.config.name,
        "address": backend.config.address.to_string(),
        "weight": backend.weight(),
        "slow_start_percent": pool.ramp_percent(backend, now),
        "average_response_seconds": backend.state.average_response(now).map(|time| time.as_micros() as f64 / 1e6),
        "configured_weight": backend.config.weight,
        "override": overridden,
        "backup": backend.config.backup > 0,
        "tier": backend.config.backup,
        "state": health.state.name(),
        "cause": health.cause,
        "since": time(health.since_unix),
        "since_seconds": age(health.since, now),
        "ejected_for_seconds": health.ejected_until.map(|until| age(now, until)),
        "trial": match health.trial {
            TrialPhase::None => None,
            TrialPhase::Due => Some("next"),
            TrialPhase::Running | TrialPhase::Responding => Some("running"),
        },
        "in_flight": backend.state.in_flight(),
        "sticky_id": pool.sticky.as_ref().and_then(|sticky| sticky.id(backend.index)),
        "idle_connections": idle.cast_signed().max(0),
        "failures_in_a_row": health.failures_in_a_row,
        "check": text,
        "checked_seconds": checked.map(|at| seconds(clock::unix_now().saturating_sub(at))),
        "needed": needed,
        "last_check": last_check(&health, check_config),
    });
    if let (true, Some(object)) = (with_checks, document.as_object_mut()) {
        let checks = backend.state.checks();
        let checks = checks.iter().map(check_record).collect::<Vec<_>>();
        object.insert("checks".to_owned(), checks.into());
    }
    document
}
