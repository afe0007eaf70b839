//! Counters, the access log and the daemon's log.
//!
//! Knows the configuration and the reasons, but not pools and connections: those own the counters
//! and fill the records. Nothing here may delay traffic. Read next: `metrics.rs` for the counters,
//! `sink.rs` for the way of a log line to its output.

pub mod access_log;
pub mod handshakes;
pub mod log;
pub mod metrics;
pub mod record;
pub mod sink;
pub(crate) mod text;

/// Formats a time since the Unix epoch as RFC 3339 in UTC with microseconds:
/// `2026-03-01T12:00:00.000250Z`.
pub fn rfc3339(unix: std::time::Duration) -> String {
    let mut out = Vec::with_capacity(27);
    text::timestamp(&mut out, unix);
    debug_assert!(out.is_ascii(), "digits and punctuation");
    String::from_utf8(out).unwrap_or_default()
}
