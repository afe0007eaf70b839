//! Reads `pools.NAME.ejection`.

use super::health_check::status_range;
use crate::{
    base::units,
    config::{
        model::{BackendConfig, EjectionConfig, PoolConfig},
        problem::quote,
        reader::{NodeRef, Section, TreeReader, assign},
    },
};

/// Reads the section; `None` is off.
pub(super) fn read(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    pool: &PoolConfig,
) -> Option<EjectionConfig> {
    if at.is_or_word() {
        return None;
    }
    let mut ejection = EjectionConfig::default();
    let Some(keys) = reader.section(at) else {
        return Some(ejection);
    };
    keys.read(reader, "failures", &mut ejection.failures);
    if let Some(at) = keys.get("eject_for") {
        assign(&mut ejection.eject_for, reader.duration(at));
        if keys.get("max_eject_for").is_none() {
            ejection.max_eject_for = ejection.max_eject_for.max(ejection.eject_for);
        }
    }
    if let Some(at) = keys.get("max_eject_for") {
        assign(&mut ejection.max_eject_for, reader.duration(at));
        if ejection.max_eject_for < ejection.eject_for {
            let shortest = units::show_duration(ejection.eject_for);
            reader.error(
                at,
                format!("`max_eject_for` is shorter than `eject_for` ({shortest})"),
                format!("write `{shortest}` or more"),
            );
        }
    }
    if let Some(at) = keys.get("max_ejected") {
        assign(&mut ejection.max_ejected, reader.share(at));
        // How many backends a dynamic pool has is not known.
        if !pool.is_dynamic() {
            warn_of_small_share(reader, at, &ejection, &pool.backends);
        }
    }
    failure_rate(reader, &keys, &mut ejection);
    if let Some(at) = keys.get("status") {
        ejection.status = statuses(reader, at);
    }
    Some(ejection)
}

/// Reads `failure_rate` and `min_requests`.
fn failure_rate(reader: &mut TreeReader<'_>, keys: &Section<'_>, ejection: &mut EjectionConfig) {
    if let Some(at) = keys.get("failure_rate").filter(|at| !at.is_or_word()) {
        ejection.failure_rate = reader.share(at);
        if ejection.failure_rate == Some(0.0) {
            reader.error(
                at,
                "at a `failure_rate` of 0% every backend would be ejected",
                "write `1%` or more, or `none`",
            );
        }
    }
    keys.read(reader, "min_requests", &mut ejection.min_requests);
    if let Some(at) = keys.get("min_requests")
        && !keys.is_meant("failure_rate")
    {
        reader.error_at_key(
            at,
            "`min_requests` belongs to `failure_rate`, which is missing",
            "write `failure_rate: 50%` beside it, or remove it",
        );
    }
}

/// Reads `503`, `500-504`, `5xx`, or a list of these.
fn statuses(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Vec<(u16, u16)> {
    let hint = "write `503`, `500-504`, `5xx` or a list of these";
    let mut ranges = Vec::new();
    for entry in reader.one_or_more(&at, "a status", hint) {
        let Some(text) = reader.text(entry, "a status", hint) else {
            continue;
        };
        match status_range(text).filter(|(low, _)| *low >= 500) {
            Some(range) => ranges.push(range),
            None => reader.error(
                entry,
                format!("expected statuses of 500 to 599, found {}", quote(text)),
                hint,
            ),
        }
    }
    ranges
}

/// Warns of a share that is less than one backend: it would never take one out.
fn warn_of_small_share(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    ejection: &EjectionConfig,
    backends: &[BackendConfig],
) {
    let count = backends.iter().filter(|one| one.weight > 0).count();
    if count >= 2 && ejection.max_ejected > 0.0 && ejection.allowed_out(count) == 0 {
        reader.warn_at_key(
            at,
            format!("this share of {count} backends is less than one: none is ever ejected"),
            format!(
                "write `{}%` or more, or `ejection: none`",
                100_usize.div_ceil(count)
            ),
        );
    }
}
