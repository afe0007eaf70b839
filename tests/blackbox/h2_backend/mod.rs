//! HTTP/2 to backends: requests of both protocols, responses, shared connections, and violations by
//! backends.
//!
//! Well-behaved backends are the h2 crate (`harness/h2.rs`); the others write frames by hand
//! (`harness/frames.rs`).

mod conformance;
mod failures;
mod honest;
mod hostile;
mod limits;
mod messages;
mod sharing;
mod trailers;

use std::net::SocketAddr;

use crate::harness::daemon::TestDaemon;

/// The configuration of a listener, `@web`, in front of backends that speak h2c. `pool` is added to
/// the pool.
pub fn config(backends: &[SocketAddr], pool: &str) -> String {
    let backends: Vec<_> = backends.iter().map(SocketAddr::to_string).collect();
    let backends = backends.join(", ");
    format!(
        "workers: 1\naccess_log: {{when: {{min_status: 100}}}}\nlisteners: {{web: {{bind: \"@web\", pool: app}}}}\npools: {{app: {{backends: [{backends}], protocol: h2c, health_check: none, {pool}}}}}\n"
    )
}

/// A daemon with that.
pub fn front(backend: SocketAddr, pool: &str) -> TestDaemon {
    TestDaemon::start(&config(&[backend], pool))
}
