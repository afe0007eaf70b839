//! What balancer tells about itself: counters, the access log, the daemon's log. Knows configuration and
//! reasons, not pools or connections; those hold the counters and fill the records.

pub mod access_log;
pub mod handshakes;
pub mod log;
pub mod metrics;
pub mod record;
pub mod sink;
pub(crate) mod text;

/// A time since the Unix epoch as RFC 3339 in UTC with microseconds: `2026-03-01T12:00:00.000250Z`.
pub fn rfc3339(unix: std::time::Duration) -> String {
    let mut out = Vec::with_capacity(27);
    text::timestamp(&mut out, unix);
    String::from_utf8(out).unwrap_or_default()
}
