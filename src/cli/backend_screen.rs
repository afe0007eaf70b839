//! `balancer status POOL/BACKEND`: one backend with its last checks, from the document of
//! `GET /v1/status?backend=POOL/BACKEND`.

use std::fmt::Write as _;

use serde::Deserialize;

use super::{
    override_text::OverrideStatus,
    table::{age, table},
};

/// The parts of a backend in that document that the screen shows.
#[derive(Debug, Deserialize)]
pub(super) struct BackendDetails {
    name: String,
    address: String,
    weight: u16,
    /// Of the file; older daemons do not send it.
    configured_weight: Option<u16>,
    /// Set by an operator.
    #[serde(rename = "override")]
    overridden: Option<OverrideStatus>,
    state: String,
    cause: Option<String>,
    since_seconds: f64,
    needed: Option<String>,
    check: Option<String>,
    ejected_for_seconds: Option<f64>,
    in_flight: u64,
    #[serde(default)]
    checks: Vec<CheckDetails>,
}

/// One of its checks, with seconds from its start to the end of each phase.
#[derive(Debug, Deserialize)]
struct CheckDetails {
    at: Option<String>,
    ok: bool,
    error: Option<String>,
    took_seconds: f64,
    connected_seconds: Option<f64>,
    secured_seconds: Option<f64>,
    first_byte_seconds: Option<f64>,
}

/// Formats the screen of a backend of `pool`. Writing to a `String` cannot fail, so the results are
/// ignored.
pub(super) fn screen(pool: &str, backend: &BackendDetails) -> String {
    let mut text = String::new();
    let _ = write!(text, "backend {pool}/{}", backend.name);
    if backend.name != backend.address {
        let _ = write!(text, " ({})", backend.address);
    }
    let _ = writeln!(
        text,
        ", weight {}, {} in flight",
        backend.weight, backend.in_flight
    );
    let _ = write!(text, "{} for {}", backend.state, age(backend.since_seconds));
    if let Some(cause) = &backend.cause {
        let _ = write!(text, ": {cause}");
    }
    text.push('\n');
    if let Some(overridden) = &backend.overridden {
        for note in overridden.notes(backend.configured_weight.unwrap_or(backend.weight)) {
            let _ = writeln!(text, "{note}");
        }
    }
    if let Some(left) = backend.ejected_for_seconds {
        let _ = writeln!(text, "the ejection ends in {}", age(left));
    }
    if let Some(needed) = &backend.needed {
        let _ = writeln!(text, "it comes back after {needed}");
    }
    let Some(check) = &backend.check else {
        text.push_str("\nthe pool has no health check\n");
        return text;
    };
    let _ = writeln!(text, "\ncheck: {check}");
    let rows = backend.checks.iter().map(check_row);
    table(&mut text, "  ", &rows.collect::<Vec<_>>());
    text
}

/// Cells of a check: time, result, duration, phases, cause.
fn check_row(check: &CheckDetails) -> Vec<String> {
    let phases = [
        ("connected", check.connected_seconds),
        ("tls", check.secured_seconds),
        ("first byte", check.first_byte_seconds),
    ];
    let phases = phases
        .iter()
        .filter_map(|(name, seconds)| Some(format!("{name} {}", milliseconds((*seconds)?))));
    vec![
        check.at.clone().unwrap_or_else(|| "-".to_owned()),
        if check.ok { "passed" } else { "failed" }.to_owned(),
        milliseconds(check.took_seconds),
        phases.collect::<Vec<_>>().join(", "),
        check.error.clone().unwrap_or_default(),
    ]
}

/// A short time in milliseconds.
pub(super) fn milliseconds(seconds: f64) -> String {
    format!("{:.1}ms", seconds * 1e3)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_screen_shows_why_it_is_down_what_it_needs_and_each_check() {
        let backend = json!({
            "name": "one", "address": "10.0.0.1:80", "weight": 2, "configured_weight": 1,
            "override": {"state": null, "weight": {"value": 2, "by": "lea", "ends_in_seconds": null, "note": null}},
            "state": "down",
            "cause": "3 checks in a row failed: status 500", "since_seconds": 75.0,
            "needed": "1 more good check", "check": "1 of 2 passed",
            "ejected_for_seconds": null, "in_flight": 2,
            "checks": [
                {"at": "2026-01-01T00:00:02Z", "ok": true, "error": null, "took_seconds": 0.0012,
                    "connected_seconds": 0.0002, "secured_seconds": 0.0007,
                    "first_byte_seconds": 0.0011},
                {"at": "2026-01-01T00:00:00Z", "ok": false, "error": "status 500",
                    "took_seconds": 0.02, "connected_seconds": null, "secured_seconds": null,
                    "first_byte_seconds": null},
            ],
        });
        let text = screen("app", &serde_json::from_value(backend).unwrap());
        let expected = "\
backend app/one (10.0.0.1:80), weight 2, 2 in flight
down for 1m 15s: 3 checks in a row failed: status 500
weight set by lea (file: 1)
it comes back after 1 more good check

check: 1 of 2 passed
  2026-01-01T00:00:02Z  passed  1.2ms   connected 0.2ms, tls 0.7ms, first byte 1.1ms
  2026-01-01T00:00:00Z  failed  20.0ms                                                status 500
";
        assert_eq!(text, expected);
    }
}
