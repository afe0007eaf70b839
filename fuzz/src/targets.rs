//! What is done with an input, one module per target.

pub mod config;
