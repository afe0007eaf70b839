//! `balancer status`: shows the document of `GET /v1/status` on one screen.
//!
//! The structs here have the fields of that document that the screen needs. `admin/status.rs`
//! writes it.

use std::{fmt::Write as _, process::ExitCode, time::Duration};

use serde::Deserialize;

use super::{
    backend_screen::{self, BackendDetails},
    client::{self, AdminEndpoint, CallError},
    exit_code::EXIT_DEGRADED,
    output::{print, print_error},
    override_text::OverrideStatus,
    table::{age, table},
};
use crate::base::percent;

/// Time for a status. The control thread does other work in between; if it takes longer, it hangs.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// Output format of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StatusFormat {
    /// Screen for people.
    Screen,
    /// JSON document of the daemon, unchanged.
    Json,
    /// No output. The exit code depends only on readiness.
    Silent,
}

#[derive(Debug, Deserialize)]
struct StatusDocument {
    version: String,
    pid: u32,
    uptime_seconds: f64,
    generation: u64,
    ready: bool,
    draining: bool,
    connections: ConnectionsStatus,
    reload: ReloadSummary,
    listeners: Vec<ListenerStatus>,
    pools: Vec<PoolStatus>,
    /// Empty for older daemons, which do not send them.
    #[serde(default)]
    sources: Vec<SourceStatus>,
    /// Empty for older daemons, which do not send them.
    #[serde(default)]
    absent_overrides: Vec<AbsentOverride>,
    /// Empty for older daemons, which do not send them.
    #[serde(default)]
    certificates: Vec<CertificateStatus>,
}

/// A source of members.
#[derive(Debug, Deserialize)]
struct SourceStatus {
    source: String,
    name: String,
    detail: String,
    members: usize,
    expires_in_seconds: Option<f64>,
    error: Option<String>,
    failing_seconds: Option<f64>,
    lookups_ok: u64,
}

/// Certificate of a listener or pool.
#[derive(Debug, Deserialize)]
struct CertificateStatus {
    file: String,
    names: Vec<String>,
    state: String,
    not_before: Option<String>,
    not_after: Option<String>,
    expires_in_seconds: f64,
    expired_seconds_ago: f64,
}

/// Overrides of a backend that is in no configuration.
#[derive(Debug, Deserialize)]
struct AbsentOverride {
    pool: String,
    address: String,
    #[serde(rename = "override")]
    overridden: OverrideStatus,
}

#[derive(Debug, Deserialize)]
struct ConnectionsStatus {
    active: u64,
    limit: u64,
}

/// Result of the last load and numbers of reloads.
#[derive(Debug, Deserialize)]
struct ReloadSummary {
    ok: bool,
    at: Option<String>,
    succeeded: u64,
    failed: u64,
    message: String,
}

#[derive(Debug, Deserialize)]
struct ListenerStatus {
    name: String,
    protocol: String,
    binds: Vec<String>,
    active: u64,
    accepted: u64,
}

#[derive(Debug, Deserialize)]
struct PoolStatus {
    name: String,
    policy: String,
    /// Empty for older daemons, which do not send it.
    #[serde(default)]
    queue: PoolQueueStatus,
    backends: Vec<BackendStatus>,
}

/// Requests and sessions that wait for a backend.
#[derive(Debug, Default, Deserialize)]
struct PoolQueueStatus {
    length: u64,
    longest_wait_seconds: f64,
    timed_out: u64,
}

#[derive(Debug, Deserialize)]
struct BackendStatus {
    name: String,
    address: String,
    weight: u16,
    /// Percent of the weight, during slow start.
    slow_start_percent: Option<u8>,
    /// Of the file; older daemons do not send it.
    configured_weight: Option<u16>,
    /// Set by an operator.
    #[serde(rename = "override")]
    overridden: Option<OverrideStatus>,
    tier: u8,
    state: String,
    cause: Option<String>,
    since_seconds: f64,
    /// Result of the last check; `None` without a health check.
    check: Option<String>,
    checked_seconds: Option<f64>,
    ejected_for_seconds: Option<f64>,
    /// `next` or `running` while a trial request decides about an ejected backend.
    trial: Option<String>,
    in_flight: u64,
}

impl BackendStatus {
    /// True if the backend can get new work.
    fn is_available(&self) -> bool {
        self.weight > 0 && matches!(self.state.as_str(), "up" | "checking")
    }
}

impl PoolStatus {
    fn available(&self) -> usize {
        self.backends
            .iter()
            .filter(|backend| backend.is_available())
            .count()
    }
}

impl StatusDocument {
    /// True if the daemon is not ready, or if a pool has no available backend.
    fn degraded(&self) -> bool {
        !self.ready || self.pools.iter().any(|pool| pool.available() == 0)
    }
}

/// Shows one backend, `POOL/BACKEND`, with its last checks. Exits with 1 if there is none of that
/// name.
pub(super) fn run_backend(
    admin: &AdminEndpoint,
    name: &str,
    as_json: bool,
) -> Result<ExitCode, CallError> {
    let path = format!("/v1/status?backend={}", percent::encode(name));
    let response = client::call(admin, "GET", &path, STATUS_TIMEOUT)?;
    if response.status != 200 {
        print_error(&client::error_text(&response));
        return Ok(ExitCode::FAILURE);
    }
    let broken = |what: String| CallError::Broken(admin.address.clone(), what);
    let mut document: serde_json::Value =
        serde_json::from_slice(&response.body).map_err(|error| broken(error.to_string()))?;
    let found = document.pointer_mut("/pools/0/backends/0");
    let backend = found
        .map(serde_json::Value::take)
        .ok_or_else(|| broken("it has no backend".to_owned()))?;
    if as_json {
        print(&backend.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    let details =
        BackendDetails::deserialize(backend).map_err(|error| broken(error.to_string()))?;
    let pool = name.split('/').next().unwrap_or_default();
    print(&backend_screen::screen(pool, &details));
    Ok(ExitCode::SUCCESS)
}

/// Exits with 3 if the daemon is not ready or a pool has no available backend. With
/// [`StatusFormat::Silent`] only readiness counts.
pub(super) fn run(admin: &AdminEndpoint, show: StatusFormat) -> Result<ExitCode, CallError> {
    let response = client::call(admin, "GET", "/v1/status", STATUS_TIMEOUT)?;
    if response.status != 200 {
        print_error(&client::error_text(&response));
        return Ok(ExitCode::FAILURE);
    }
    let status: StatusDocument = serde_json::from_slice(&response.body)
        .map_err(|error| CallError::Broken(admin.address.clone(), error.to_string()))?;
    match show {
        StatusFormat::Screen => print(&screen(&status)),
        StatusFormat::Json => print(&String::from_utf8_lossy(&response.body)),
        StatusFormat::Silent => (),
    }
    // `--ready` is for probes: a pool without backends does not make the daemon not ready.
    let bad = match show {
        StatusFormat::Silent => !status.ready,
        StatusFormat::Screen | StatusFormat::Json => status.degraded(),
    };
    Ok(if bad {
        ExitCode::from(EXIT_DEGRADED)
    } else {
        ExitCode::SUCCESS
    })
}

/// Formats the screen. Writing to a `String` cannot fail, so the results are ignored.
fn screen(status: &StatusDocument) -> String {
    let mut text = String::new();
    add_summary(&mut text, status);
    text.push_str("\nlisteners\n");
    let rows = status.listeners.iter().map(listener_row);
    table(&mut text, "  ", &rows.collect::<Vec<_>>());
    for pool in &status.pools {
        let _ = writeln!(
            text,
            "\npool {}, {}, {} of {} backends available{}",
            pool.name,
            pool.policy,
            pool.available(),
            pool.backends.len(),
            queue_text(&pool.queue),
        );
        let rows = pool.backends.iter().map(backend_row);
        table(&mut text, "  ", &rows.collect::<Vec<_>>());
    }
    if !status.absent_overrides.is_empty() {
        text.push_str("\noverrides of backends that are in no pool\n");
        let rows = status.absent_overrides.iter().map(absent_row);
        table(&mut text, "  ", &rows.collect::<Vec<_>>());
    }
    if !status.sources.is_empty() {
        text.push_str("\nsources\n");
        let rows = status.sources.iter().map(source_row);
        table(&mut text, "  ", &rows.collect::<Vec<_>>());
    }
    if !status.certificates.is_empty() {
        text.push_str("\ncertificates\n");
        let rows = status.certificates.iter().map(certificate_row);
        table(&mut text, "  ", &rows.collect::<Vec<_>>());
    }
    text
}

/// The end of a pool's line: its queue, if anything waits or has waited in vain.
fn queue_text(queue: &PoolQueueStatus) -> String {
    let mut text = String::new();
    if queue.length > 0 {
        let longest = age(queue.longest_wait_seconds);
        let _ = write!(text, ", {} waiting (longest {longest})", queue.length);
    }
    if queue.timed_out > 0 {
        let _ = write!(text, ", {} timed out waiting", queue.timed_out);
    }
    text
}

/// Appends the state of the daemon and the result of the last load, with its errors.
fn add_summary(text: &mut String, status: &StatusDocument) {
    let state = match (status.draining, status.ready) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "not ready",
    };
    let result = if status.reload.ok { "ok" } else { "FAILED" };
    let _ = writeln!(
        text,
        "balancer {}, pid {}, {state}, up {}, generation {}, connections {} of {}",
        status.version,
        status.pid,
        age(status.uptime_seconds),
        status.generation,
        status.connections.active,
        status.connections.limit,
    );
    let _ = writeln!(
        text,
        "last load {result} at {} (reloads: {} ok, {} failed)",
        status.reload.at.as_deref().unwrap_or("-"),
        status.reload.succeeded,
        status.reload.failed,
    );
    if !status.reload.ok {
        for line in status.reload.message.lines() {
            let _ = writeln!(text, "  {line}");
        }
    }
}

/// Cells of a listener: name, protocol, addresses, connections.
fn listener_row(listener: &ListenerStatus) -> Vec<String> {
    vec![
        listener.name.clone(),
        listener.protocol.clone(),
        listener.binds.join(" "),
        format!("{} open", listener.active),
        format!("{} accepted", listener.accepted),
    ]
}

/// Cells of an override without its backend: the backend, and what was set.
fn absent_row(absent: &AbsentOverride) -> Vec<String> {
    vec![
        format!("{}/{}", absent.pool, absent.address),
        absent.overridden.values().join(", "),
    ]
}

/// Cells of a source: kind, name, members, result of the last look-up.
fn source_row(source: &SourceStatus) -> Vec<String> {
    let name = if source.detail == source.name {
        source.name.clone()
    } else {
        format!("{} ({})", source.name, source.detail)
    };
    let result = match (&source.error, source.expires_in_seconds) {
        (Some(error), _) => {
            let since = source.failing_seconds.map(age).unwrap_or_default();
            format!("FAILING for {since}: {error}")
        }
        (None, Some(left)) => format!("ok, next look-up in {}", age(left)),
        (None, None) if source.lookups_ok == 0 => "not looked up yet".to_owned(),
        (None, None) => "ok".to_owned(),
    };
    vec![
        source.source.clone(),
        name,
        match source.members {
            1 => "1 member".to_owned(),
            count => format!("{count} members"),
        },
        result,
    ]
}

/// Cells of a certificate: file, validity, end, names.
fn certificate_row(certificate: &CertificateStatus) -> Vec<String> {
    let time = |time: &Option<String>| time.clone().unwrap_or_else(|| "-".to_owned());
    // Capitals, so that an expired certificate is visible in a long list.
    let validity = match certificate.state.as_str() {
        "expired" => format!("EXPIRED {} ago", age(certificate.expired_seconds_ago)),
        "not_yet_valid" => format!("NOT VALID before {}", time(&certificate.not_before)),
        _ => format!("valid for {}", age(certificate.expires_in_seconds)),
    };
    vec![
        certificate.file.clone(),
        validity,
        format!("until {}", time(&certificate.not_after)),
        certificate.names.join(" "),
    ]
}

/// Cells of a backend: name, state, age of the state, weight, load, notes.
fn backend_row(backend: &BackendStatus) -> Vec<String> {
    // Without a configured name, the name is the address.
    let name = if backend.name == backend.address {
        backend.address.clone()
    } else {
        format!("{} ({})", backend.name, backend.address)
    };
    let mut notes = Vec::new();
    // Tier 1 is the usual case of one group of backups.
    match backend.tier {
        0 => {}
        1 => notes.push("backup".to_owned()),
        tier => notes.push(format!("backup {tier}")),
    }
    if let Some(percent) = backend.slow_start_percent {
        notes.push(format!("slow start at {percent} %"));
    }
    if let Some(left) = backend.ejected_for_seconds {
        notes.push(format!("trial request in {}", age(left)));
    }
    match backend.trial.as_deref() {
        Some("running") => notes.push("trial request under way".to_owned()),
        Some(_) => notes.push("trial request next".to_owned()),
        None => {}
    }
    if let Some(overridden) = &backend.overridden {
        let file = backend.configured_weight.unwrap_or(backend.weight);
        notes.extend(overridden.notes(file));
    }
    // The cause explains why a backend is out of service. For one that is in service, the result of
    // the last check says more; what an operator has set is shown already.
    let state = backend.state.as_str();
    if !matches!(state, "up" | "checking" | "draining" | "maintenance") {
        notes.extend(backend.cause.clone());
    }
    if let Some(check) = &backend.check {
        let when = backend
            .checked_seconds
            .map(|ago| format!(" ({} ago)", age(ago)));
        notes.push(format!("check: {check}{}", when.unwrap_or_default()));
    }
    vec![
        name,
        backend.state.clone(),
        format!("for {}", age(backend.since_seconds)),
        format!("weight {}", backend.weight),
        format!("{} in flight", backend.in_flight),
        notes.join(", "),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(ready: bool, states: [(&str, u16); 2]) -> StatusDocument {
        let backends: Vec<_> = states
            .iter()
            .map(|(state, weight)| {
                json!({"name": "a:1", "address": "a:1", "weight": weight, "backup": false, "tier": 0, "state": state,
                    "cause": if *state == "down" { Some("connection refused") } else { None }, "since": "2026-01-01T00:00:00Z",
                    "check": if *state == "down" { "0 of 2 passed: connection refused" } else { "2 of 3 failed: status 500" },
                    "checked_seconds": 1.2,
                    "since_seconds": 75.0, "ejected_for_seconds": null, "in_flight": 2})
            })
            .collect();
        let document = json!({
            "version": "0.1.0", "pid": 7, "uptime_seconds": 90_061.0, "generation": 3, "ready": ready, "draining": false,
            "workers": 2, "connections": {"active": 5, "limit": 1_000},
            "reload": {"ok": false, "at": "2026-01-01T00:00:00Z", "last_success": null, "succeeded": 2, "failed": 1,
                "message": "error: x\n  --> f:1:2"},
            "listeners": [{"name": "web", "protocol": "http", "binds": ["127.0.0.1:8080"], "active": 5, "accepted": 99}],
            "pools": [{"name": "app", "policy": "round_robin", "health_check": true, "states": {}, "backends": backends,
                "queue": {"length": 3, "longest_wait_seconds": 1.4, "timed_out": 9}}],
            "sources": [
                {"source": "dns", "name": "app.test", "detail": "app.test", "members": 2, "expires_in_seconds": 61.0,
                    "error": null, "failing_seconds": null, "lookups_ok": 9},
                {"source": "file", "name": "app", "detail": "/etc/members.yaml", "members": 3, "expires_in_seconds": null,
                    "error": "line 1: not a list", "failing_seconds": 75.0, "lookups_ok": 9},
                {"source": "etcd", "name": "api", "detail": "/api/", "members": 0, "expires_in_seconds": null,
                    "error": null, "failing_seconds": null, "lookups_ok": 0},
            ],
            "certificates": [
                {"file": "a.pem", "names": ["a.test", "*.a.test"], "state": "valid", "not_before": "2026-01-01T00:00:00Z",
                    "not_after": "2026-03-01T00:00:00Z", "expires_in_seconds": 90_061.0, "expired_seconds_ago": 0.0},
                {"file": "old.pem", "names": [], "state": "expired", "not_before": null,
                    "not_after": "2025-03-01T00:00:00Z", "expires_in_seconds": 0.0, "expired_seconds_ago": 61.0},
            ],
        });
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn a_pool_without_an_available_backend_is_degraded() {
        assert!(!status(true, [("up", 1), ("down", 1)]).degraded());
        assert!(!status(true, [("checking", 1), ("down", 1)]).degraded());
        assert!(status(true, [("ejected", 1), ("down", 1)]).degraded());
        assert!(status(true, [("up", 0), ("draining", 1)]).degraded());
        assert!(status(false, [("up", 1), ("up", 1)]).degraded());
    }

    #[test]
    fn the_screen_shows_who_is_down_why_and_since_when() {
        let text = screen(&status(true, [("up", 1), ("down", 1)]));
        let expected = "\
balancer 0.1.0, pid 7, ready, up 1d 1h, generation 3, connections 5 of 1000
last load FAILED at 2026-01-01T00:00:00Z (reloads: 2 ok, 1 failed)
  error: x
    --> f:1:2

listeners
  web  http  127.0.0.1:8080  5 open  99 accepted

pool app, round_robin, 1 of 2 backends available, 3 waiting (longest 1s), 9 timed out waiting
  a:1  up    for 1m 15s  weight 1  2 in flight  check: 2 of 3 failed: status 500 (1s ago)
  a:1  down  for 1m 15s  weight 1  2 in flight  connection refused, check: 0 of 2 passed: connection refused (1s ago)

sources
  dns   app.test                 2 members  ok, next look-up in 1m 1s
  file  app (/etc/members.yaml)  3 members  FAILING for 1m 15s: line 1: not a list
  etcd  api (/api/)              0 members  not looked up yet

certificates
  a.pem    valid for 1d 1h    until 2026-03-01T00:00:00Z  a.test *.a.test
  old.pem  EXPIRED 1m 1s ago  until 2025-03-01T00:00:00Z
";
        assert_eq!(text, expected);
    }
}
