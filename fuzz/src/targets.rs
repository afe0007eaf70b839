//! What is done with an input, one module per target.

pub mod chunked_body;
pub mod config;
