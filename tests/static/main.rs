//! What is checked without a running program: that the code, the configuration's messages and the docs say the same.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a broken expectation is a failed test"
)]

mod config_docs;
mod config_golden;
mod metrics_docs;
