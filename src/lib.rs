//! balancer: a layer-4 and layer-7 load balancer daemon. ARCHITECTURE.md is the map: layers,
//! threads, paths.

pub mod admin;
pub mod base;
pub mod cli;
pub mod config;
pub mod discovery;
pub mod h2;
pub mod health;
pub mod http;
pub mod http1;
pub mod http2;
pub mod net;
pub mod pool;
pub mod proxy;
pub mod reason;
pub mod route;
pub mod runtime;
pub mod snapshot;
pub mod telemetry;
