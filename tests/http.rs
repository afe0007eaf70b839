//! HTTP/1.1 through the daemon: what a client sends, what a backend gets, and the way back.
//!
//! Backends are scripts that record what reaches them; clients send raw bytes. Each part of the promise is a module.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::format_push_string,
    clippy::format_collect,
    clippy::large_stack_arrays,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken expectation is a failed test"
)]

#[path = "http/clients.rs"]
mod clients;
#[path = "http/fields.rs"]
mod fields;
#[path = "http/keepalive.rs"]
mod keepalive;
#[path = "http/messages.rs"]
mod messages;
#[path = "http/refused.rs"]
mod refused;
#[path = "http/replies.rs"]
mod replies;
#[path = "http/rewrites.rs"]
mod rewrites;
#[path = "http/routes.rs"]
mod routes;
#[path = "http/streams.rs"]
mod streams;
#[path = "http/switches.rs"]
mod switches;

mod support;

use std::net::SocketAddr;

use support::{daemon::Daemon, peer::Peer};

/// A daemon with one listener, `@web`, in front of one backend. `more` is added to the file.
fn front(backend: SocketAddr, more: &str) -> Daemon {
    pool(&format!("backends: [{backend}], health_check: none"), more)
}

/// The same with a pool of one's own.
fn pool(pool: &str, more: &str) -> Daemon {
    Daemon::start(&format!(
        "workers: 1\naccess_log: {{when: {{min_status: 100}}}}\nlisteners: {{web: {{bind: \"@web\", pool: app}}}}\npools: {{app: {{{pool}}}}}\n{more}"
    ))
}

/// A backend that answers every request with its own head and body.
fn echo() -> Peer {
    Peer::start(|mut connection| {
        while let Some(request) = connection.request() {
            let body = String::from_utf8_lossy(&request.body).into_owned();
            if !connection.answer(&(request.head + &body)) {
                break;
            }
        }
    })
}
