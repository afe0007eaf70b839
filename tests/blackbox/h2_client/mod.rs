//! HTTP/2 from clients: requests, responses, and violations by clients.
//!
//! Well-behaved clients are the h2 crate; the others write frames by hand (`harness/frames.rs`).

mod bodies;
mod conformance;
mod floods;
mod heads;
mod honest;
mod malformed;
mod messages;
mod rules;
mod stalled;
mod streams;

use std::net::SocketAddr;

use crate::harness::daemon::TestDaemon;

/// A daemon with one listener, `@web`, in front of one backend. `more` is added to the listener.
pub fn front(backend: SocketAddr, more: &str) -> TestDaemon {
    front_of(backend, more, "")
}

/// The same; `pool` is added to the pool.
fn front_of(backend: SocketAddr, more: &str, pool: &str) -> TestDaemon {
    TestDaemon::start(&format!(
        "workers: 1\naccess_log: {{when: {{min_status: 100}}}}\nlisteners: {{web: {{bind: \"@web\", pool: app, {more}}}}}\npools: {{app: {{backends: [{backend}], health_check: none, {pool}}}}}\n"
    ))
}
