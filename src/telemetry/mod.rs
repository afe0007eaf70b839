//! What balancer tells about itself: counters, the access log, the daemon's log. Floor 1: knows configuration and
//! reasons, not pools or connections; those hold the counters and fill the records.

pub mod access_log;
pub mod log;
pub mod metrics;
pub mod record;
pub mod sink;
mod text;
