//! TLS: what clients and backends see of it, over real connections.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::float_cmp,
    reason = "a test fails by panicking"
)]

#[path = "tls/backends.rs"]
mod backends;
#[path = "tls/clients.rs"]
mod clients;
#[path = "tls/introduced.rs"]
mod introduced;
#[path = "tls/reload.rs"]
mod reload;
mod support;
#[path = "tls/trust.rs"]
mod trust;
