//! The JSON API on `admin.bind`: `GET /v1/status`, `POST /v1/reload`, and `/v1/backends/` for one
//! backend (`backends.rs`).
//!
//! Access: on a unix socket the file mode decides, on TCP the bearer token. A web page in a browser
//! on the same machine must not reach the API through that browser. So a request over TCP needs a
//! loopback `Host` (against DNS rebinding), and a request that changes something must not have an
//! `Origin` (against cross-site requests). Read next: `status.rs`, the document that most clients
//! ask for.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use hyper::{HeaderMap, Method, Request, StatusCode, body::Incoming, header};
use serde_json::json;
use tokio::{
    net::UnixListener,
    select,
    sync::oneshot,
    time::{MissedTickBehavior, interval},
};

use super::{
    backends,
    control::{ControlHandle, ControlRequest, ReloadError, ReloadReport},
    http,
    listener::{AdminListener, AdminSocket, SocketFile},
    peer::RequestPeer,
    status,
    token::{TokenFile, bearer_token, is_equal},
};
use crate::{base::percent, net::limits::control_connections, snapshot::Daemon};

/// Interval of the checks whether the socket file still exists.
const SOCKET_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// State that every request needs.
#[derive(Clone)]
struct ApiContext {
    daemon: Arc<Daemon>,
    control: ControlHandle,
    /// Bearer token; `None` on a unix socket, where the file mode decides.
    token: Option<Arc<TokenFile>>,
    /// The operator who has opened the connection.
    peer: RequestPeer,
}

/// Serves the API until it is dropped. A socket file that was removed is created again.
pub async fn serve_admin(listener: AdminListener, daemon: Arc<Daemon>, control: ControlHandle) {
    let mut slots = http::ConnectionSlots::new(control_connections());
    let mut context = ApiContext {
        daemon,
        control,
        token: None,
        peer: RequestPeer::Token,
    };
    match listener.0 {
        AdminSocket::Tcp(tcp, token) => {
            context.token = Some(token);
            loop {
                // The only await of this loop is the accept: each connection has its own task.
                let accepted = tcp.accept().await;
                if let Some(stream) = slots.accepted(accepted).await {
                    let context = context.clone();
                    let service = move |request| respond(request, context.clone());
                    slots.serve(stream, service).await;
                }
            }
        }
        AdminSocket::Unix(unix, file) => serve_unix(unix, file, slots, context).await,
    }
}

/// Serves the unix socket, and creates it again if its file was removed.
///
/// Cleanup jobs remove old files from `/tmp`, and then no client could reach the daemon any more.
async fn serve_unix(
    mut unix: UnixListener,
    mut file: SocketFile,
    mut slots: http::ConnectionSlots,
    context: ApiContext,
) {
    let mut socket_check = interval(SOCKET_CHECK_INTERVAL);
    // After a suspend of the machine one check is enough.
    socket_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        select! {
            accepted = unix.accept() => {
                if let Some(stream) = slots.accepted(accepted).await {
                    let peer = RequestPeer::of(&stream);
                    let context = ApiContext { peer, ..context.clone() };
                    let service = move |request| respond(request, context.clone());
                    slots.serve(stream, service).await;
                }
            }
            _ = socket_check.tick() => if let Some(again) = file.bind_again() {
                (unix, file) = again;
            },
        }
    }
}

/// Routes one request. Permissions come first, so that a stranger does not learn the paths.
async fn respond(request: Request<Incoming>, context: ApiContext) -> http::AdminResponse {
    if let Some(token) = &context.token
        && let Some(refusal) = check_permission(request.headers(), token).await
    {
        return refusal;
    }
    if let Some(path) = request.uri().path().strip_prefix(backends::PATH_PREFIX) {
        let path = path.to_owned();
        return backends::respond(
            &path,
            request,
            &context.daemon,
            &context.control,
            context.peer,
        )
        .await;
    }
    match (request.uri().path(), request.method()) {
        ("/v1/status", &Method::GET | &Method::HEAD) => {
            status_page(&context.daemon, request.uri().query())
        }
        ("/v1/status", _) => http::method_not_allowed("GET, HEAD"),
        ("/v1/reload", &Method::POST) => match http::refuse_web_page(request.headers()) {
            Some(refusal) => refusal,
            None => reload(&context.control).await,
        },
        ("/v1/reload", _) => http::method_not_allowed("POST"),
        _ => http::error(
            StatusCode::NOT_FOUND,
            "The paths are /v1/status, /v1/reload and /v1/backends/POOL/BACKEND.",
        ),
    }
}

/// The status, or with the query `backend=POOL/BACKEND` that of one backend.
fn status_page(daemon: &Daemon, query: Option<&str>) -> http::AdminResponse {
    let Some(wanted) = query.and_then(|query| query.strip_prefix("backend=")) else {
        return http::document(StatusCode::OK, &status::status(daemon));
    };
    let wanted = percent::decode(wanted).unwrap_or_default();
    let (pool, backend) = wanted.split_once('/').unwrap_or((&wanted, ""));
    let snapshot = daemon.snapshot.load_full();
    match backends::find_backend(&snapshot, pool, backend) {
        Ok((pool, backend)) => {
            let document = status::backend_status(daemon, &snapshot, &pool, &backend);
            http::document(StatusCode::OK, &document)
        }
        Err(error) => http::error(StatusCode::NOT_FOUND, &error.to_string()),
    }
}

/// Checks `Host` and token of a request over TCP; returns the refusal if one of them is wrong.
async fn check_permission(
    headers: &HeaderMap,
    token: &Arc<TokenFile>,
) -> Option<http::AdminResponse> {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    if !host.is_some_and(is_loopback) {
        return Some(http::error(
            StatusCode::FORBIDDEN,
            "The Host header must name a loopback address.",
        ));
    }
    let credentials = headers
        .get(header::AUTHORIZATION)
        .map(header::HeaderValue::as_bytes);
    if let Some(given) = credentials.and_then(bearer_token)
        && is_equal(given, token.current().await.as_bytes())
    {
        return None;
    }
    let mut refusal = http::error(
        StatusCode::UNAUTHORIZED,
        "The bearer token of admin.token_file is required.",
    );
    // RFC 9110 §15.5.2: a 401 must have a challenge.
    let challenge = header::HeaderValue::from_static("Bearer");
    refusal
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, challenge);
    Some(refusal)
}

/// True for a `Host` such as `localhost`, `127.0.0.1:9901` or `[::1]`.
fn is_loopback(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let address = rest
            .split_once(']')
            .map(|(address, _)| address.parse::<Ipv6Addr>());
        return matches!(address, Some(Ok(address)) if IpAddr::from(address).to_canonical().is_loopback());
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Requests a reload and waits for its outcome. There is no timeout here: the client has one.
async fn reload(control: &ControlHandle) -> http::AdminResponse {
    let (sender, outcome) = oneshot::channel();
    // Both ends fail only when the control thread has stopped serving.
    if control.send(ControlRequest::Reload(sender)).await.is_err() {
        return http::shutting_down();
    }
    match outcome.await {
        Ok(Ok(report)) => {
            let ReloadReport {
                changes,
                rendered,
                warnings,
            } = report;
            let document = json!({"changes": changes, "warnings": warnings, "rendered": rendered});
            http::document(StatusCode::OK, &document)
        }
        Ok(Err(error)) => http::document(StatusCode::UNPROCESSABLE_ENTITY, &error_document(&error)),
        Err(_) => http::shutting_down(),
    }
}

/// Error envelope with the problems of the configuration.
fn error_document(error: &ReloadError) -> serde_json::Value {
    let mut document = http::envelope(
        StatusCode::UNPROCESSABLE_ENTITY,
        "The configuration has errors. The running configuration stays in service.",
    );
    debug_assert!(document.is_object(), "the envelope is an object");
    if let Some(object) = document.as_object_mut() {
        object.insert("problems".to_owned(), error.json.clone());
        object.insert("rendered".to_owned(), error.rendered.clone().into());
    }
    document
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
