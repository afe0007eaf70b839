//! HTTP/2 to backends: what they get of a request, whoever sent it, the way back, how connections are shared, and what
//! backends may not do.
//!
//! Well-behaved backends are the h2 crate (`support/h2.rs`); the others write frames by hand (`support/frames.rs`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::float_cmp,
    reason = "a broken expectation is a failed test"
)]

#[path = "h2_backends/calls.rs"]
mod calls;
#[path = "h2_backends/failures.rs"]
mod failures;
#[path = "h2_backends/honest.rs"]
mod honest;
#[path = "h2_backends/hostile.rs"]
mod hostile;
#[path = "h2_backends/limits.rs"]
mod limits;
#[path = "h2_backends/messages.rs"]
mod messages;
#[path = "h2_backends/sharing.rs"]
mod sharing;
#[path = "h2_backends/sockets.rs"]
mod sockets;
#[path = "h2_backends/trailers.rs"]
mod trailers;

mod support;

use std::net::SocketAddr;

use support::daemon::Daemon;

/// The configuration of a listener, `@web`, in front of backends that speak h2c. `pool` is added to the pool.
fn config(backends: &[SocketAddr], pool: &str) -> String {
    let backends: Vec<_> = backends.iter().map(SocketAddr::to_string).collect();
    let backends = backends.join(", ");
    format!(
        "workers: 1\naccess_log: {{when: {{min_status: 100}}}}\nlisteners: {{web: {{bind: \"@web\", pool: app}}}}\npools: {{app: {{backends: [{backends}], protocol: h2c, health_check: none, {pool}}}}}\n"
    )
}

/// A daemon with that.
fn front(backend: SocketAddr, pool: &str) -> Daemon {
    Daemon::start(&config(&[backend], pool))
}
