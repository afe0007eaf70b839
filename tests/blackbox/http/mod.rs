//! HTTP/1.1 through the daemon, in both directions.
//!
//! Backends are scripts that record what reaches them; clients send raw bytes. Each part of the
//! promise is a module.

mod clients;
mod fields;
mod keepalive;
mod messages;
mod refused;
mod replies;
mod rewrites;
mod routes;
mod streams;

use std::net::SocketAddr;

use crate::harness::{daemon::TestDaemon, peer::ScriptedPeer};

/// A daemon with one listener, `@web`, in front of one backend. `more` is added to the file.
pub fn front(backend: SocketAddr, more: &str) -> TestDaemon {
    pool(&format!("backends: [{backend}], health_check: none"), more)
}

/// The same with a pool of one's own.
pub fn pool(pool: &str, more: &str) -> TestDaemon {
    TestDaemon::start(&format!(
        "workers: 1\naccess_log: {{when: {{min_status: 100}}}}\nlisteners: {{web: {{bind: \"@web\", pool: app}}}}\npools: {{app: {{{pool}}}}}\n{more}"
    ))
}

/// A backend that answers every request with its own head and body.
pub fn echo() -> ScriptedPeer {
    ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            let body = String::from_utf8_lossy(&request.body).into_owned();
            if !connection.answer(&(request.head + &body)) {
                break;
            }
        }
    })
}
