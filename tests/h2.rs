//! HTTP/2 from clients: what a backend gets of it, the way back, and what clients may not do.
//!
//! Well-behaved clients are the h2 crate; the others write frames by hand (`support/frames.rs`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken expectation is a failed test"
)]

#[path = "h2/calls.rs"]
mod calls;
#[path = "h2/conformance.rs"]
mod conformance;
#[path = "h2/floods.rs"]
mod floods;
#[path = "h2/heads.rs"]
mod heads;
#[path = "h2/honest.rs"]
mod honest;
#[path = "h2/messages.rs"]
mod messages;
#[path = "h2/rules.rs"]
mod rules;
#[path = "h2/secured.rs"]
mod secured;
#[path = "h2/stalled.rs"]
mod stalled;
#[path = "h2/streams.rs"]
mod streams;

mod support;

use std::net::SocketAddr;

use support::daemon::Daemon;

/// A daemon with one listener, `@web`, in front of one backend. `more` is added to the listener.
fn front(backend: SocketAddr, more: &str) -> Daemon {
    front_of(backend, more, "")
}

/// The same; `pool` is added to the pool.
fn front_of(backend: SocketAddr, more: &str, pool: &str) -> Daemon {
    Daemon::start(&format!(
        "workers: 1\naccess_log: {{when: {{min_status: 100}}}}\nlisteners: {{web: {{bind: \"@web\", pool: app, {more}}}}}\npools: {{app: {{backends: [{backend}], health_check: none, {pool}}}}}\n"
    ))
}
