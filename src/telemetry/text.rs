//! Writes numbers, times and text of clients into a byte buffer, for both logs.
//!
//! A busy site writes an access log line for each request. So there is no allocation, and no `fmt`
//! where it showed in a profile. All text of a client goes through [`json_text`] or [`quoted`].
//! These never write a byte that could end the string or the line: otherwise a client could forge
//! log lines, for example with a line feed in its `User-Agent`.

use std::{io::Write as _, net::IpAddr, time::Duration};

/// Appends `number` in decimal.
pub(crate) fn number(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0_u8; 20];
    let mut rest = number;
    let mut length = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        length += 1;
        if rest == 0 {
            break;
        }
    }
    let shown = digits.get(digits.len() - length..);
    debug_assert!(shown.is_some(), "a u64 has at most 20 digits");
    out.extend_from_slice(shown.unwrap_or_default());
}

/// Appends the last `width` decimal digits of `number`, with leading zeros.
fn padded(out: &mut Vec<u8>, number: u64, width: u32) {
    let mut scale = 10_u64.pow(width.saturating_sub(1));
    while scale > 0 {
        out.push(b'0' + (number / scale % 10) as u8);
        scale /= 10;
    }
}

/// Appends `time` in seconds with six decimals.
pub(super) fn seconds(out: &mut Vec<u8>, time: Duration) {
    number(out, time.as_secs());
    out.push(b'.');
    padded(out, u64::from(time.subsec_micros()), 6);
}

/// Converts days since 1970-01-01 to year, month and day of the Gregorian calendar.
///
/// The algorithm is `civil_from_days` of Howard Hinnant. It counts in cycles of 400 years, and each
/// of its years begins in March. So a leap day is the last day of its year, and the length of all
/// other months does not depend on the year.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (cycle, day_of_cycle) = (shifted / 146_097, shifted % 146_097);
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524
        - day_of_cycle / 146_096)
        / 365;
    let day_of_year =
        day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = cycle * 400 + year_of_cycle + u64::from(month <= 2);
    (year, month, day)
}

/// Appends the time of day as `12:00:00`.
fn clock_of_day(out: &mut Vec<u8>, unix: Duration) {
    let second = unix.as_secs() % 86_400;
    padded(out, second / 3_600, 2);
    out.push(b':');
    padded(out, second / 60 % 60, 2);
    out.push(b':');
    padded(out, second % 60, 2);
}

/// Appends a time since the Unix epoch as RFC 3339 in UTC with microseconds:
/// `2026-03-01T12:00:00.000250Z`.
pub(super) fn timestamp(out: &mut Vec<u8>, unix: Duration) {
    let (year, month, day) = civil_date(unix.as_secs() / 86_400);
    padded(out, year, 4);
    out.push(b'-');
    padded(out, month, 2);
    out.push(b'-');
    padded(out, day, 2);
    out.push(b'T');
    clock_of_day(out, unix);
    out.push(b'.');
    padded(out, u64::from(unix.subsec_micros()), 6);
    out.push(b'Z');
}

/// Appends a time since the Unix epoch in the form of the combined format: `01/Mar/2026:12:00:00
/// +0000`.
pub(super) fn common_log_time(out: &mut Vec<u8>, unix: Duration) {
    const MONTH_NAMES: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (year, month, day) = civil_date(unix.as_secs() / 86_400);
    padded(out, day, 2);
    out.push(b'/');
    debug_assert!((1..=12).contains(&month), "{month}");
    let month = MONTH_NAMES.get(month as usize - 1).unwrap_or(&"Jan");
    out.extend_from_slice(month.as_bytes());
    out.push(b'/');
    padded(out, year, 4);
    out.push(b':');
    clock_of_day(out, unix);
    out.extend_from_slice(b" +0000");
}

/// Appends an address. An IPv4 client of an IPv6 socket (`::ffff:192.0.2.7`) is written as IPv4.
pub(super) fn address(out: &mut Vec<u8>, address: IpAddr) {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            for (position, byte) in v4.octets().into_iter().enumerate() {
                if position > 0 {
                    out.push(b'.');
                }
                number(out, u64::from(byte));
            }
        }
        // Writing to a vector cannot fail.
        IpAddr::V6(v6) => drop(write!(out, "{v6}")),
    }
}

/// Mark at the end of a text that was cut.
const TRUNCATION_MARK: &str = "…";

/// Bytes that a JSON string may contain unescaped: printable ASCII without quote and backslash.
///
/// A table, because this test runs for each byte of each logged text.
#[expect(
    clippy::indexing_slicing,
    reason = "evaluated at compile time: a wrong index would not compile"
)]
const PLAIN_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = b' ';
    while byte < 0x7f {
        table[byte as usize] = byte != b'"' && byte != b'\\';
        byte += 1;
    }
    table
};

#[expect(
    clippy::indexing_slicing,
    reason = "the table has an entry for each byte"
)]
#[inline]
fn is_plain(byte: u8) -> bool {
    PLAIN_BYTES[byte as usize]
}

fn hex_digit(nibble: u8) -> u8 {
    match nibble & 15 {
        low @ 0..=9 => b'0' + low,
        high => b'a' + high - 10,
    }
}

/// Appends `\uHHHH`.
fn unicode_escape(out: &mut Vec<u8>, code: u32) {
    out.extend_from_slice(b"\\u");
    for shift in [12, 8, 4, 0] {
        out.push(hex_digit((code >> shift) as u8));
    }
}

/// True for characters outside ASCII that break lines, are invisible, or change the reading
/// direction. A viewer could show such a line as something else (CVE-2021-42574).
fn is_misleading(char: char) -> bool {
    matches!(char, '\u{80}'..='\u{9f}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202f}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Appends one character of a JSON string.
fn json_char(out: &mut Vec<u8>, char: char) {
    match char {
        '"' => out.extend_from_slice(b"\\\""),
        '\\' => out.extend_from_slice(b"\\\\"),
        '\n' => out.extend_from_slice(b"\\n"),
        '\r' => out.extend_from_slice(b"\\r"),
        '\t' => out.extend_from_slice(b"\\t"),
        _ if char.is_ascii_control() || is_misleading(char) => {
            unicode_escape(out, u32::from(char));
        }
        _ => {
            let mut buffer = [0_u8; 4];
            out.extend_from_slice(char.encode_utf8(&mut buffer).as_bytes());
        }
    }
}

/// Appends the content of a JSON string: at most about `limit` bytes, with a mark if it is cut.
///
/// Bytes that are not UTF-8 are read as ISO-8859-1, the former encoding of field values (RFC 9110
/// §5.5), and escaped.
pub(super) fn json_text(out: &mut Vec<u8>, text: &[u8], limit: usize) {
    let run = text.iter().take_while(|byte| is_plain(**byte)).count();
    let (plain, rest) = text.split_at(run);
    if plain.len() > limit {
        out.extend(plain.iter().take(limit));
        out.extend_from_slice(TRUNCATION_MARK.as_bytes());
        return;
    }
    out.extend_from_slice(plain);
    if !rest.is_empty() {
        escaped(out, rest, limit - plain.len());
    }
}

/// Slow path of [`json_text`], for text with bytes that need an escape.
fn escaped(out: &mut Vec<u8>, text: &[u8], limit: usize) {
    let end = out.len() + limit;
    for chunk in text.utf8_chunks() {
        for char in chunk.valid().chars() {
            if out.len() >= end {
                out.extend_from_slice(TRUNCATION_MARK.as_bytes());
                return;
            }
            json_char(out, char);
        }
        for byte in chunk.invalid() {
            if out.len() >= end {
                out.extend_from_slice(TRUNCATION_MARK.as_bytes());
                return;
            }
            unicode_escape(out, u32::from(*byte));
        }
    }
}

/// Appends text of the combined format. Quotes, backslashes and everything but printable ASCII
/// become `\xHH`, as with Apache and nginx.
pub(super) fn quoted(out: &mut Vec<u8>, text: &[u8], limit: usize) {
    let end = out.len() + limit;
    for byte in text {
        if out.len() >= end {
            out.extend_from_slice(b"...");
            return;
        }
        if is_plain(*byte) {
            out.push(*byte);
        } else {
            out.extend_from_slice(b"\\x");
            out.push(hex_digit(byte >> 4).to_ascii_uppercase());
            out.push(hex_digit(*byte).to_ascii_uppercase());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_and_seconds_are_exact() {
        for value in [0, 7, 10, 4_096, u64::MAX] {
            assert_eq!(written(|out| number(out, value)), value.to_string());
        }
        assert_eq!(
            written(|out| seconds(out, Duration::from_micros(1_000_042))),
            "1.000042"
        );
        assert_eq!(
            written(|out| seconds(out, Duration::from_nanos(999))),
            "0.000000"
        );
    }

    #[test]
    fn dates_are_right_around_leap_days_and_turns_of_the_year() {
        for (unix, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(
                written(|out| timestamp(out, Duration::from_secs(unix))),
                expected
            );
        }
        let later = Duration::new(1_772_366_400, 250_999);
        assert_eq!(
            written(|out| timestamp(out, later)),
            "2026-03-01T12:00:00.000250Z"
        );
        assert_eq!(
            written(|out| common_log_time(out, later)),
            "01/Mar/2026:12:00:00 +0000"
        );
    }

    #[test]
    fn every_single_byte_and_pair_gives_a_json_string_that_reads_back_and_stays_on_its_line() {
        for first in 0..=255_u8 {
            for second in [b'a', b'"', b'\\', b'\n', 0xc3, 0xa9, 0x80, first] {
                let mut line = b"\"".to_vec();
                json_text(&mut line, &[first, second], 100);
                line.push(b'"');
                assert!(!line.iter().any(|byte| *byte < b' ' || *byte == 0x7f));
                let read: String = serde_json::from_slice(&line).unwrap();
                if let Ok(text) = std::str::from_utf8(&[first, second]) {
                    assert_eq!(read, text);
                }
            }
        }
    }

    #[test]
    fn misleading_unicode_is_escaped_and_other_text_is_kept() {
        let shown = |text: &str| written(|out| json_text(out, text.as_bytes(), 100));
        assert_eq!(shown("grün 日本"), "grün 日本");
        assert_eq!(shown("a\u{2028}b\u{202e}c\u{85}"), r"a\u2028b\u202ec\u0085");
        assert_eq!(written(|out| json_text(out, b"caf\xe9", 100)), r"caf\u00e9");
    }

    #[test]
    fn long_text_of_any_bytes_is_cut() {
        for byte in [b'a', b'"', 0, 0xff] {
            let text = [byte; 10_000];
            assert!(
                written(|out| json_text(out, &text, 100)).len() <= 100 + 6 + TRUNCATION_MARK.len()
            );
            assert!(written(|out| quoted(out, &text, 100)).len() <= 100 + 4 + 3);
        }
        assert_eq!(written(|out| json_text(out, b"abcd", 3)), "abc…");
        assert_eq!(written(|out| json_text(out, b"abc", 3)), "abc");
        assert_eq!(written(|out| json_text(out, b"a\nc", 3)), r"a\n…");
    }

    #[test]
    fn the_combined_format_quotes_as_its_readers_expect() {
        assert_eq!(
            written(|out| quoted(out, b"a\" \"b\r\n\\\xff", 100)),
            r"a\x22 \x22b\x0D\x0A\x5C\xFF"
        );
    }
}
