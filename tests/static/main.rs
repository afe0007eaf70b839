//! Checks without a running program: code, messages of the configuration and docs agree.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a broken expectation is a failed test"
)]

mod config_docs;
mod config_golden;
mod config_schema;
mod config_table;
mod fixture_files;
mod metrics_docs;
mod one_key;
