//! `balancer backend`: drain, maintenance, ready and weight of one backend of the running daemon.
//!
//! The daemon carries it out (`admin/backends.rs`). With `--wait` this command asks for the backend
//! again and again until nothing is in flight on it.

use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    arguments::{AdminOptions, BackendCommand, BackendName, WaitLimit},
    client::{self, AdminEndpoint, ApiResponse, CallError},
    output::{print, print_error},
};
use crate::base::{clock, percent};

/// Time for a change. The control thread may be reading the files of a reload before, for up to
/// 10 s, and writes to the state directory afterwards.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the object of one backend.
const SHOW_TIMEOUT: Duration = Duration::from_secs(15);
/// Interval of the questions whether anything is in flight.
const WAIT_INTERVAL: Duration = Duration::from_millis(100);

/// A command for one backend.
#[derive(Debug)]
pub(super) struct BackendOrder {
    name: BackendName,
    /// Last part of the path.
    action: &'static str,
    /// JSON body of the request.
    body: Value,
    /// `None` does not wait.
    wait: Option<WaitLimit>,
    json: bool,
    /// The daemon.
    pub(super) admin: AdminOptions,
}

impl BackendOrder {
    /// The order of a command line.
    pub(super) fn new(action: BackendCommand) -> Self {
        let (word, name, weight, wait, common) = match action {
            BackendCommand::Drain(one) => ("drain", one.backend, None, one.wait, one.common),
            BackendCommand::Maintenance(one) => {
                ("maintenance", one.backend, None, one.wait, one.common)
            }
            BackendCommand::Weight(one) => {
                ("weight", one.backend, Some(one.weight), None, one.common)
            }
            BackendCommand::Ready(one) => {
                return Self {
                    name: one.backend,
                    action: "ready",
                    body: json!({"note": one.note}),
                    wait: None,
                    json: one.output.json,
                    admin: one.output.admin,
                };
            }
        };
        Self {
            name,
            action: word,
            body: json!({"for": common.duration, "note": common.note, "weight": weight}),
            wait,
            json: common.output.json,
            admin: common.output.admin,
        }
    }

    /// Path of the backend in the API.
    fn path(&self) -> String {
        let BackendName { pool, backend } = &self.name;
        format!("/v1/backends/{}/{}", encoded(pool), encoded(backend))
    }
}

/// Encodes a part of a path: a `/` in it is not one of the path.
fn encoded(part: &str) -> String {
    percent::encode(part).replace('/', "%2F")
}

/// The part of the daemon's document that people are shown.
#[derive(Debug, Deserialize)]
struct BackendReport {
    pool: Option<String>,
    #[serde(default)]
    pool_available: u64,
    backend: Option<BackendSummary>,
    persistence_error: Option<String>,
}

#[derive(Debug, Deserialize)]
struct BackendSummary {
    name: String,
    state: String,
    weight: u16,
    configured_weight: u16,
    in_flight: u64,
    #[serde(rename = "override")]
    overridden: Option<SummaryOverrides>,
}

#[derive(Debug, Deserialize)]
struct SummaryOverrides {
    state: Option<SummaryOverride>,
    weight: Option<SummaryOverride>,
}

#[derive(Debug, Deserialize)]
struct SummaryOverride {
    until: Option<String>,
}

/// Exits with 0 when the change is in force, and with `--wait` when nothing is in flight any more.
/// Exits with 1 if there is no such backend, or the time to wait is over.
pub(super) fn run(admin: &AdminEndpoint, order: &BackendOrder) -> Result<ExitCode, CallError> {
    let path = order.path();
    let target = format!("{path}/{}", order.action);
    let response = client::post(admin, &target, &order.body, CHANGE_TIMEOUT)?;
    let began = clock::now();
    if response.status != 200 {
        print_error(&client::error_text(&response));
        return Ok(ExitCode::FAILURE);
    }
    let report = parse(admin, &response)?;
    if let Some(error) = &report.persistence_error {
        print_error(&format!(
            "warning: a restart of the daemon will forget this: {error}"
        ));
    }
    let (Some(pool), Some(backend)) = (&report.pool, &report.backend) else {
        return Ok(show_absent(order, &response));
    };
    if report.pool_available == 0 {
        print_error(&format!("warning: pool `{pool}` has no available backend"));
    }
    if !order.json {
        print(&text(pool, backend, order.action));
    }
    let Some(limit) = order.wait else {
        if order.json {
            print(&String::from_utf8_lossy(&response.body));
        }
        return Ok(ExitCode::SUCCESS);
    };
    let end = match limit {
        WaitLimit::Unlimited => None,
        WaitLimit::AtMost(limit) => began.checked_add(limit),
    };
    // Not that of the response: another operator may have been faster.
    let wanted = match order.action {
        "drain" => "draining",
        other => other,
    };
    let waited = wait(admin, &path, wanted, end)?;
    if order.json {
        print(&waited.document(&response.body).to_string());
    } else if waited.failure.is_none() {
        print("nothing is in flight any more");
    }
    Ok(match waited.failure {
        None => ExitCode::SUCCESS,
        Some(error) => {
            print_error(&error);
            ExitCode::FAILURE
        }
    })
}

/// Prints that an override is gone whose backend is in no configuration.
fn show_absent(order: &BackendOrder, response: &ApiResponse) -> ExitCode {
    if order.json {
        print(&String::from_utf8_lossy(&response.body));
    } else {
        print("the override is gone; no pool of the configuration has this backend");
    }
    ExitCode::SUCCESS
}

/// One line for people.
fn text(pool: &str, backend: &BackendSummary, action: &str) -> String {
    let BackendSummary {
        name,
        state,
        weight,
        configured_weight,
        in_flight,
        overridden,
    } = backend;
    let until = |one: Option<&SummaryOverride>| {
        let until = one.and_then(|one| one.until.as_deref());
        until.map_or_else(String::new, |until| format!(" until {until}"))
    };
    let state_until = until(overridden.as_ref().and_then(|one| one.state.as_ref()));
    let weight_until = until(overridden.as_ref().and_then(|one| one.weight.as_ref()));
    match action {
        "weight" => format!(
            "backend {name} of pool {pool} has weight {weight}{weight_until} (file: {configured_weight}); it is {state}"
        ),
        "ready" => format!("backend {name} of pool {pool} is {state}, weight {weight}"),
        _ => {
            format!("backend {name} of pool {pool} is {state}{state_until}, {in_flight} in flight")
        }
    }
}

/// End of a wait.
struct WaitOutcome {
    /// Last response of the daemon.
    body: Vec<u8>,
    /// `None`: nothing is in flight.
    failure: Option<String>,
}

impl WaitOutcome {
    /// The last document of the backend, with what the one of the change says beside it.
    fn document(&self, of_change: &[u8]) -> Value {
        let parse = |bytes| serde_json::from_slice::<Value>(bytes).unwrap_or_default();
        let (mut document, last) = (parse(of_change), parse(&self.body));
        if let (Value::Object(document), Value::Object(last)) = (&mut document, last) {
            document.extend(last);
        }
        document
    }
}

/// Waits until nothing is in flight on the backend while its state is `wanted`.
fn wait(
    admin: &AdminEndpoint,
    path: &str,
    wanted: &str,
    end: Option<Instant>,
) -> Result<WaitOutcome, CallError> {
    loop {
        let response = client::call(admin, "GET", path, SHOW_TIMEOUT)?;
        if response.status != 200 {
            // It has left the configuration meanwhile.
            return Ok(WaitOutcome {
                failure: Some(client::error_text(&response)),
                body: Vec::new(),
            });
        }
        let report = parse(admin, &response)?;
        let broken = || CallError::Broken(admin.address.clone(), "no backend".to_owned());
        let backend = report.backend.ok_or_else(broken)?;
        let failure = if backend.state != wanted {
            let state = &backend.state;
            Some(format!("error: it is no longer {wanted}, but {state}"))
        } else if backend.in_flight == 0 {
            None
        } else if end.is_some_and(|end| clock::now() >= end) {
            let left = backend.in_flight;
            Some(format!(
                "error: {left} still in flight when the time to wait was over"
            ))
        } else {
            thread::sleep(WAIT_INTERVAL);
            continue;
        };
        return Ok(WaitOutcome {
            body: response.body,
            failure,
        });
    }
}

fn parse(admin: &AdminEndpoint, response: &ApiResponse) -> Result<BackendReport, CallError> {
    serde_json::from_slice(&response.body)
        .map_err(|error| CallError::Broken(admin.address.clone(), error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_for_the_path() {
        assert_eq!(encoded("app-1.b_2~"), "app-1.b_2~");
        assert_eq!(encoded("unix:/a b"), "unix:%2Fa%20b");
    }

    #[test]
    fn a_line_tells_state_weight_and_end() {
        let backend = |state: &str, overridden: Value| -> BackendSummary {
            let document = json!({"name": "b1", "state": state, "weight": 5, "configured_weight": 1,
                "in_flight": 3, "override": overridden});
            serde_json::from_value(document).unwrap()
        };
        let drained = backend("draining", json!({"state": {"until": "T"}, "weight": null}));
        let expected = "backend b1 of pool app is draining until T, 3 in flight";
        assert_eq!(text("app", &drained, "drain"), expected);
        let weighted = backend("up", json!({"state": null, "weight": {"until": null}}));
        let expected = "backend b1 of pool app has weight 5 (file: 1); it is up";
        assert_eq!(text("app", &weighted, "weight"), expected);
        let ready = backend("up", Value::Null);
        let expected = "backend b1 of pool app is up, weight 5";
        assert_eq!(text("app", &ready, "ready"), expected);
    }
}
