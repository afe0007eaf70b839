//! Commands of operators for a backend: drain, maintenance, ready and weight, each with one line in
//! the log.
//!
//! A change is in force at once. The table of the daemon holds it for the next generation, and the
//! file for the next process. Read next: `pool/overrides.rs`, `override_file.rs`.

use std::sync::Arc;

use super::control::ControlThread;
use crate::{
    admin::{OverrideChange, OverrideReport, OverrideRequest, UnknownBackendError, find_backend},
    base::clock,
    pool::{
        Backend, BackendOverrides, OperatorOverride, OverrideEnd, OverrideKey, OverrideTable, Pool,
    },
    snapshot::Snapshot,
};

/// Carries out a request, and sends its outcome.
pub(super) fn change(control: &ControlThread, request: OverrideRequest) {
    let outcome = apply(control, &request);
    // Fails if the client has left: the change stays.
    let _ = request.outcome.send(outcome);
}

fn apply(
    control: &ControlThread,
    request: &OverrideRequest,
) -> Result<OverrideReport, UnknownBackendError> {
    let daemon = &control.daemon;
    let snapshot = daemon.snapshot.load_full();
    let found = find_backend(&snapshot, &request.pool, &request.backend);
    let key = match &found {
        Ok((pool, backend)) => OverrideKey::new(&pool.name, &backend.config.address),
        Err(_) => OverrideKey {
            pool: request.pool.clone(),
            address: request.backend.clone(),
        },
    };
    let mut table = daemon.overrides();
    let before = table.get(&key);
    // A backend that has left may still have an override, which can be ended.
    let is_known = request.change == OverrideChange::Ready && !before.is_empty();
    let backend = match found {
        Ok(found) => Some(found),
        Err(_) if is_known => None,
        Err(error) => return Err(error),
    };
    let overrides = changed(before, request);
    table.set(key.clone(), overrides.clone());
    for forgotten in table.forget_absent(|| snapshot.override_keys()) {
        let OverrideKey { pool, address } = forgotten;
        tracing::warn!(target: "operator", pool, address, "forgot the override of a backend that is in no configuration: there are too many");
    }
    log_request(request, &key);
    if let Some((pool, backend)) = &backend {
        put_in_force(
            pool,
            backend,
            overrides,
            &format!("made ready by {}", request.by),
        );
    }
    let saved = control.overrides.save(&table);
    Ok(OverrideReport { backend, saved })
}

/// The overrides after a request. Each new one replaces the old one of its kind.
fn changed(mut overrides: BackendOverrides, request: &OverrideRequest) -> BackendOverrides {
    let since_unix = clock::unix_now();
    let end = request.duration.map(|duration| OverrideEnd {
        at: clock::now() + duration,
        unix: since_unix + duration,
    });
    let (by, note) = (request.by.clone(), request.note.clone());
    match request.change {
        OverrideChange::State(value) => {
            overrides.state = Some(OperatorOverride {
                value,
                by,
                since_unix,
                end,
                note,
            });
        }
        OverrideChange::Weight(value) => {
            overrides.weight = Some(OperatorOverride {
                value,
                by,
                since_unix,
                end,
                note,
            });
        }
        OverrideChange::Ready => overrides = BackendOverrides::default(),
    }
    overrides
}

fn put_in_force(pool: &Pool, backend: &Arc<Backend>, overrides: BackendOverrides, cause: &str) {
    if let Some(transition) = pool.set_overrides(backend, overrides, cause, clock::now()) {
        transition.log();
    }
}

/// Ends the overrides whose time is over.
pub(super) fn expire(control: &ControlThread) {
    let daemon = &control.daemon;
    let snapshot = daemon.snapshot.load_full();
    let mut table = daemon.overrides();
    let ended = table.expire(clock::now());
    if ended.is_empty() {
        return;
    }
    for one in ended {
        let OverrideKey { pool, address } = &one.key;
        tracing::info!(target: "operator", pool, address, by = one.by, "the time of an override is over");
        if let Some((pool, backend)) = find_by_key(&snapshot, &one.key) {
            let cause = format!("the override by {} is over", one.by);
            put_in_force(&pool, &backend, one.remaining, &cause);
        }
    }
    // Errors are in the log.
    drop(control.overrides.save(&table));
}

fn find_by_key(snapshot: &Snapshot, key: &OverrideKey) -> Option<(Arc<Pool>, Arc<Backend>)> {
    let pool = snapshot.find_pool(&key.pool)?;
    let mut backends = pool.backends.iter();
    let backend = backends.find(|one| one.config.address.to_string() == key.address)?;
    Some((Arc::clone(pool), Arc::clone(backend)))
}

/// Writes the log line of a request: who did it, to which backend, for how long and why.
fn log_request(request: &OverrideRequest, key: &OverrideKey) {
    let OverrideRequest { by, backend, .. } = request;
    let OverrideKey { pool, address } = key;
    let duration = request.duration.map(|one| format!("{one:?}"));
    let duration = duration.as_deref().unwrap_or("no limit");
    let note = request.note.as_deref().unwrap_or_default();
    match request.change {
        OverrideChange::State(state) => {
            let state = state.name();
            tracing::info!(target: "operator", pool, backend, address, by, state, duration, note, "state set by an operator");
        }
        OverrideChange::Weight(weight) => {
            tracing::info!(target: "operator", pool, backend, address, by, weight, duration, note, "weight set by an operator");
        }
        OverrideChange::Ready => {
            tracing::info!(target: "operator", pool, backend, address, by, note, "overrides ended by an operator");
        }
    }
}

/// Writes a log line for each override that is in force from the start, or waits for its backend.
pub(super) fn log_at_start(table: &OverrideTable, snapshot: &Snapshot) {
    let present = snapshot.override_keys();
    for (key, overrides) in table.iter() {
        let OverrideKey { pool, address } = key;
        let state = overrides
            .state
            .as_ref()
            .map(|one| (one.value.name(), one.cause()));
        let weight = overrides
            .weight
            .as_ref()
            .map(|one| (one.value, one.cause()));
        let (state, weight) = (described(state), described(weight));
        if present.contains(key) {
            tracing::info!(target: "operator", pool, address, state, weight, "an override from before the start is in force");
        } else {
            tracing::warn!(target: "operator", pool, address, state, weight, "an override from before the start is for a backend that is in no configuration");
        }
    }
}

/// `draining (set by root)`, or `-`.
fn described(one: Option<(impl std::fmt::Display, String)>) -> String {
    one.map_or_else(
        || "-".to_owned(),
        |(value, cause)| format!("{value} ({cause})"),
    )
}
