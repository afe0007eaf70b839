//! `/v1/backends/POOL/BACKEND`: one backend, and what operators do with it.
//!
//! `GET` returns its object of the status document. `POST …/drain`, `/maintenance`, `/ready` and
//! `/weight` ask the control thread for a change, and return when it is in force and written down.
//! Names are percent-encoded, so that an address with `/` is one. Read next: `control.rs`, the
//! requests; `runtime/overrides.rs`, which carries them out.

use std::{sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::{Method, Request, StatusCode, body::Incoming};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::oneshot, time::timeout};

use super::{
    control::{
        ControlHandle, ControlRequest, OverrideChange, OverrideReport, OverrideRequest,
        UnknownBackendError,
    },
    http::{self, AdminResponse},
    peer::RequestPeer,
    status,
};
use crate::{
    base::{clock, percent, units},
    config::nearest,
    pool::{Backend, OperatorState, Pool},
    snapshot::{Daemon, Snapshot},
};

/// Beginning of the paths of this file.
pub(super) const PATH_PREFIX: &str = "/v1/backends/";

/// Maximum size of a request body.
const MAX_BODY_BYTES: usize = 16 << 10;
/// Time for a client to send a request body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the state directory to take a change. The change is in force anyway.
const SAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time after which an override ends by itself.
const MAX_DURATION: Duration = Duration::from_hours(365 * 24);
/// Highest weight, as in the file.
const MAX_WEIGHT: u16 = 256;
/// Highest number of characters in a note.
const MAX_NOTE_CHARS: usize = 200;
/// Names that a message lists.
const MAX_LISTED: usize = 5;

/// Last part of the path of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BackendAction {
    Drain,
    Maintenance,
    Ready,
    Weight,
}

/// The parts of a path behind [`PATH_PREFIX`].
#[derive(Debug, PartialEq, Eq)]
struct BackendPath {
    pool: String,
    backend: String,
    /// `None`: the backend itself.
    action: Option<BackendAction>,
}

impl BackendPath {
    fn parse(path: &str) -> Option<Self> {
        let mut parts = path.split('/');
        let (pool, backend) = (
            percent::decode(parts.next()?)?,
            percent::decode(parts.next()?)?,
        );
        let action = match parts.next() {
            None => None,
            Some("drain") => Some(BackendAction::Drain),
            Some("maintenance") => Some(BackendAction::Maintenance),
            Some("ready") => Some(BackendAction::Ready),
            Some("weight") => Some(BackendAction::Weight),
            Some(_) => return None,
        };
        let this = Self {
            pool,
            backend,
            action,
        };
        parts.next().is_none().then_some(this)
    }
}

/// JSON body of a change.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ChangeBody {
    #[serde(rename = "for")]
    duration: Option<String>,
    note: Option<String>,
    weight: Option<u16>,
}

/// A change as its body says it.
#[derive(Debug, PartialEq, Eq)]
struct RequestedChange {
    change: OverrideChange,
    note: Option<String>,
    duration: Option<Duration>,
}

impl RequestedChange {
    /// Reads the body of `action`; an empty one is one without keys. The error is for the client.
    fn parse(action: BackendAction, body: &[u8]) -> Result<Self, String> {
        let body = if body.trim_ascii().is_empty() {
            ChangeBody::default()
        } else {
            serde_json::from_slice(body).map_err(|error| format!("The body is wrong: {error}."))?
        };
        let change = match (action, body.weight) {
            (BackendAction::Weight, Some(weight)) if weight <= MAX_WEIGHT => {
                OverrideChange::Weight(weight)
            }
            (BackendAction::Weight, _) => {
                return Err(format!("`weight` must be a number of 0 to {MAX_WEIGHT}."));
            }
            (_, Some(_)) => return Err("`weight` belongs to the path /weight.".to_owned()),
            (BackendAction::Drain, None) => OverrideChange::State(OperatorState::Draining),
            (BackendAction::Maintenance, None) => OverrideChange::State(OperatorState::Maintenance),
            (BackendAction::Ready, None) => OverrideChange::Ready,
        };
        if action == BackendAction::Ready && body.duration.is_some() {
            return Err("`for` cannot be used with /ready, which ends overrides.".to_owned());
        }
        Ok(Self {
            change,
            note: body.note.map(checked_note).transpose()?,
            duration: body.duration.as_deref().map(duration).transpose()?,
        })
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let range = || "`for` must be a duration of 1s to 8760h, such as 10m".to_owned();
    let duration = units::duration(text).map_err(|error| format!("{}: {error}.", range()))?;
    if (Duration::from_secs(1)..=MAX_DURATION).contains(&duration) {
        Ok(duration)
    } else {
        Err(range() + ".")
    }
}

/// True for control characters, and for marks that reverse the direction of a line of a terminal
/// (Unicode annex 9).
fn is_unprintable(character: char) -> bool {
    let is_direction_mark = matches!(
        character,
        '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    character.is_control() || is_direction_mark
}

/// A note stands in the log and on screens: one line without control characters.
fn checked_note(note: String) -> Result<String, String> {
    if note.chars().any(is_unprintable) || note.chars().count() > MAX_NOTE_CHARS {
        return Err(format!(
            "`note` must be one line of at most {MAX_NOTE_CHARS} characters."
        ));
    }
    Ok(note)
}

/// Responds to a request for `path`, which is behind [`PATH_PREFIX`].
pub(super) async fn respond(
    path: &str,
    request: Request<Incoming>,
    daemon: &Daemon,
    control: &ControlHandle,
    peer: RequestPeer,
) -> AdminResponse {
    let Some(path) = BackendPath::parse(path) else {
        return http::error(
            StatusCode::NOT_FOUND,
            "The paths are /v1/backends/POOL/BACKEND, and below it drain, maintenance, ready and weight.",
        );
    };
    let Some(action) = path.action else {
        return match *request.method() {
            Method::GET | Method::HEAD => show(&path, daemon),
            _ => http::method_not_allowed("GET, HEAD"),
        };
    };
    if request.method() != Method::POST {
        return http::method_not_allowed("POST");
    }
    if let Some(refusal) = http::refuse_web_page(request.headers()) {
        return refusal;
    }
    if request.uri().query().is_some() {
        return http::error(
            StatusCode::BAD_REQUEST,
            "Settings belong into the JSON body, not into the query.",
        );
    }
    let body = match read_body(request.into_body()).await {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    match RequestedChange::parse(action, &body) {
        Ok(requested) => change(path, requested, control, peer).await,
        Err(details) => http::error(StatusCode::BAD_REQUEST, &details),
    }
}

async fn read_body(body: Incoming) -> Result<Vec<u8>, AdminResponse> {
    let limited = Limited::new(body, MAX_BODY_BYTES);
    match timeout(BODY_TIMEOUT, limited.collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes().to_vec()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(http::error(
            StatusCode::PAYLOAD_TOO_LARGE,
            "The body is too large.",
        )),
        Ok(Err(_)) => Err(http::error(
            StatusCode::BAD_REQUEST,
            "The body is incomplete.",
        )),
        Err(_) => Err(http::error(
            StatusCode::REQUEST_TIMEOUT,
            "The body did not come in time.",
        )),
    }
}

/// The document of one backend.
fn show(path: &BackendPath, daemon: &Daemon) -> AdminResponse {
    match find_backend(&daemon.snapshot.load(), &path.pool, &path.backend) {
        Ok((pool, backend)) => http::document(StatusCode::OK, &document(&pool, &backend)),
        Err(error) => http::error(StatusCode::NOT_FOUND, &error.to_string()),
    }
}

/// Has the control thread change the backend, and waits until the change is written down.
async fn change(
    path: BackendPath,
    requested: RequestedChange,
    control: &ControlHandle,
    peer: RequestPeer,
) -> AdminResponse {
    let (sender, outcome) = oneshot::channel();
    let request = OverrideRequest {
        pool: path.pool,
        backend: path.backend,
        change: requested.change,
        by: peer.name(),
        note: requested.note,
        duration: requested.duration,
        outcome: sender,
    };
    // Both ends fail only when the control thread has stopped serving.
    if control
        .send(ControlRequest::Override(request))
        .await
        .is_err()
    {
        return http::shutting_down();
    }
    let OverrideReport { backend, saved } = match outcome.await {
        Ok(Ok(report)) => report,
        Ok(Err(error)) => return http::error(StatusCode::NOT_FOUND, &error.to_string()),
        Err(_) => return http::shutting_down(),
    };
    // Before the write, during which another operator may change it again.
    let mut document = backend.map_or_else(
        || json!({"pool": null, "backend": null}),
        |(pool, backend)| document(&pool, &backend),
    );
    let failure = match timeout(SAVE_TIMEOUT, saved).await {
        Ok(Ok(Ok(()))) => None,
        Ok(Ok(Err(error))) => Some(error),
        Ok(Err(_)) => Some("the daemon is shutting down".to_owned()),
        Err(_) => Some(format!("no result after {} s", SAVE_TIMEOUT.as_secs())),
    };
    debug_assert!(document.is_object(), "{document}");
    if let Some(object) = document.as_object_mut() {
        object.insert("persistent".to_owned(), failure.is_none().into());
        object.insert("persistence_error".to_owned(), failure.into());
    }
    http::document(StatusCode::OK, &document)
}

/// Object of a backend beside the name of its pool and the number of backends there that may get
/// new work.
fn document(pool: &Pool, backend: &Backend) -> Value {
    let is_available =
        |one: &&Arc<Backend>| one.weight() > 0 && one.state.state().may_take_traffic();
    json!({
        "pool": &*pool.name,
        "pool_available": pool.backends.iter().filter(is_available).count(),
        "backend": status::backend(pool, backend, false, clock::now()),
    })
}

/// Finds a backend by the name of its pool, and by its own name or address.
///
/// # Errors
/// The error has a hint: a near name, or the names that there are.
pub fn find_backend(
    snapshot: &Snapshot,
    pool: &str,
    backend: &str,
) -> Result<(Arc<Pool>, Arc<Backend>), UnknownBackendError> {
    let Some(found) = snapshot.find_pool(pool) else {
        let names: Vec<&str> = snapshot.pools.iter().map(|pool| &*pool.name).collect();
        let hint = name_hint(pool, &names, "the pools are", "the configuration has none.");
        let message = format!("There is no pool `{}`; {hint}", printable(pool));
        return Err(UnknownBackendError(message));
    };
    if let Some(member) = found.find_backend(backend) {
        return Ok((Arc::clone(found), Arc::clone(member)));
    }
    let members = found.backends.iter();
    let names: Vec<&str> = members.map(|one| &*one.config.name).collect();
    let hint = name_hint(backend, &names, "its backends are", "it has none.");
    Err(UnknownBackendError(format!(
        "Pool `{pool}` has no backend `{}`; {hint}",
        printable(backend)
    )))
}

/// The near name, or the first names of all.
fn name_hint(word: &str, names: &[&str], list: &str, none: &str) -> String {
    if let Some(near) = nearest(word, names.iter().copied()) {
        return format!("did you mean `{near}`?");
    }
    if names.is_empty() {
        return none.to_owned();
    }
    let shown: Vec<String> = names
        .iter()
        .take(MAX_LISTED)
        .map(|name| format!("`{name}`"))
        .collect();
    let more = names.len().saturating_sub(MAX_LISTED);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("{list} {}{more}.", shown.join(", "))
}

/// A word of the client for a message: short, and without control characters.
fn printable(word: &str) -> String {
    let plain = word.chars().filter(|c| !c.is_control());
    plain.take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_a_pool_a_backend_and_an_action() {
        let parse = |path| {
            let BackendPath {
                pool,
                backend,
                action,
            } = BackendPath::parse(path)?;
            Some((pool, backend, action))
        };
        let expected =
            |pool: &str, backend: &str, action| Some((pool.to_owned(), backend.to_owned(), action));
        let drain = Some(BackendAction::Drain);
        assert_eq!(parse("app/b1"), expected("app", "b1", None));
        assert_eq!(parse("app/b1/drain"), expected("app", "b1", drain));
        let unix = parse("app/unix:%2frun%2Fa.sock/drain");
        assert_eq!(unix, expected("app", "unix:/run/a.sock", drain));
        for wrong in [
            "",
            "app",
            "app/b/up",
            "app/b/drain/",
            "app/%2/drain",
            "app/%zz",
            "a/%ff",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_body_is_read_strictly() {
        let parse = |action, body: &str| RequestedChange::parse(action, body.as_bytes());
        let weight = parse(
            BackendAction::Weight,
            r#"{"weight":256,"for":"10m","note":"x"}"#,
        );
        let expected = RequestedChange {
            change: OverrideChange::Weight(256),
            note: Some("x".to_owned()),
            duration: Some(Duration::from_mins(10)),
        };
        assert_eq!(weight, Ok(expected));
        let drain = parse(BackendAction::Drain, " ").unwrap().change;
        assert_eq!(drain, OverrideChange::State(OperatorState::Draining));
        let ready = parse(BackendAction::Ready, r#"{"note":"back"}"#).unwrap();
        assert_eq!(ready.change, OverrideChange::Ready);
        let long = format!(r#"{{"note":"{}"}}"#, "x".repeat(MAX_NOTE_CHARS + 1));
        for (action, body, part) in [
            (BackendAction::Weight, "", "0 to 256"),
            (BackendAction::Weight, r#"{"weight":257}"#, "0 to 256"),
            (
                BackendAction::Weight,
                r#"{"weight":-1}"#,
                "The body is wrong",
            ),
            (BackendAction::Drain, r#"{"weight":1}"#, "belongs to"),
            (BackendAction::Ready, r#"{"for":"1m"}"#, "/ready"),
            (BackendAction::Drain, r#"{"for":"10"}"#, "a unit is missing"),
            (BackendAction::Drain, r#"{"for":"0s"}"#, "1s to 8760h"),
            (BackendAction::Drain, r#"{"for":"9000h"}"#, "1s to 8760h"),
            (BackendAction::Drain, r#"{"force":true}"#, "unknown field"),
            (BackendAction::Drain, r#"{"note":"a\nb"}"#, "one line"),
            (BackendAction::Drain, &long, "one line"),
            (BackendAction::Drain, "[1", "The body is wrong"),
        ] {
            let error = parse(action, body).unwrap_err();
            assert!(error.contains(part), "{body}: {error}");
        }
    }

    #[test]
    fn a_hint_names_the_near_one_or_those_that_there_are() {
        let hint = |word, names: &[&str]| name_hint(word, names, "they are", "none");
        assert_eq!(hint("ap", &["app", "sql"]), "did you mean `app`?");
        assert_eq!(hint("zzz", &["app", "sql"]), "they are `app`, `sql`.");
        let many = ["a1", "b2", "c3", "d4", "e5", "f6", "g7"];
        let shown = "they are `a1`, `b2`, `c3`, `d4`, `e5` and 2 more.";
        assert_eq!(hint("postgres", &many), shown);
        assert_eq!(hint("x", &[]), "none");
    }
}
