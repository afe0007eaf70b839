//! gRPC as far as a message shows it: its content type and its timeout.

use std::time::Duration;

/// True for the content type of gRPC: `application/grpc`, with or without a suffix.
pub fn is_grpc(content_type: &[u8]) -> bool {
    let (start, rest) = content_type.split_at_checked(16).unwrap_or_default();
    start.eq_ignore_ascii_case(b"application/grpc") && matches!(rest, [] | [b'+' | b';' | b' ', ..])
}

/// Parses `grpc-timeout`: at most eight digits and a unit; `None` if malformed.
pub fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: u64 = str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}
