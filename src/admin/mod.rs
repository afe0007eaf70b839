//! Servers for operators and monitoring: `/metrics`, `/livez` and `/readyz` on `metrics.bind`, and
//! the JSON API on `admin.bind`.
//!
//! They run on the control thread only, so a slow client never delays traffic. They read the
//! counters and states of the data plane and change nothing themselves: a reload, or the drain of
//! a backend, is requested with a [`ControlRequest`]. Read next: `api.rs` and `scrape.rs`.

mod api;
mod backends;
mod control;
pub mod families;
mod http;
mod listener;
mod metrics;
mod peer;
mod process;
mod scrape;
mod series;
mod status;
#[cfg(test)]
mod testing;
mod token;

pub use self::{
    api::serve_admin,
    backends::find_backend,
    control::{
        ControlHandle, ControlRequest, OverrideChange, OverrideReport, OverrideRequest,
        ReloadError, ReloadOutcome, ReloadReport, UnknownBackendError,
    },
    listener::AdminListener,
    metrics::serve_metrics,
};
