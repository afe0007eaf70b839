//! balancer: a layer-4 and layer-7 load balancer daemon. ARCHITECTURE.md is the map: floors, threads, paths.

pub mod base;
pub mod cli;
pub mod config;
pub mod pool;
pub mod reason;
pub mod runtime;
pub mod telemetry;
