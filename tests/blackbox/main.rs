//! The built program, tested from outside: one module per promise. README.md says which is where
//! and how to run one.

#![allow(
    unreachable_pub,
    clippy::expect_used,
    clippy::float_cmp,
    clippy::format_collect,
    clippy::format_push_string,
    clippy::indexing_slicing,
    clippy::large_stack_arrays,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a broken expectation is a failed test, and counters are whole numbers"
)]

mod harness;

mod backend_failures;
mod client_errors;
mod commands;
mod connection_close;
mod daemon_commands;
mod differential;
mod discovery;
mod drain;
mod grpc;
mod h2_backend;
mod h2_client;
mod h2_tls;
mod health;
mod http;
mod interop;
mod limits;
mod operator;
mod proxy_protocol;
mod queue;
mod rate_limit;
mod reasons;
mod reload;
mod retries;
mod service;
mod slow_clients;
mod sni;
mod sticky;
mod tcp;
mod timeouts;
mod tls;
mod upgrades;
mod websockets;
