//! HTTP/1.1 codec: bytes in, heads and bodies out, and back. Sans-I/O: it never sees a socket, a
//! clock or a pool.
//!
//! As strict as RFC 9112: input that a second parser could read differently is refused, never
//! repaired, as request smuggling lives on such differences. Output is always encoded from the
//! decoded message; no byte of a peer's framing is passed through. Start at [`request`], then
//! [`response`], [`body`], [`encode`].

pub mod body;
pub mod encode;
pub mod fields;
pub mod request;
pub mod response;

/// Protocol versions, RFC 9112 section 2.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HttpVersion {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
}

impl HttpVersion {
    /// Returns the version as written in a message.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
        }
    }
}

/// Returns the possible end of a head: the position after an empty line, searching `bytes[from..]`
/// only.
///
/// Also finds `LF LF`, so that a head with bare line feeds reaches the parser and is refused at
/// once.
pub fn head_end(bytes: &[u8], from: usize) -> Option<usize> {
    let from = from.saturating_sub(3);
    memchr::memchr_iter(b'\n', bytes.get(from..)?)
        .map(|at| from + at)
        .find_map(|at| match bytes.get(at + 1..) {
            Some([b'\n', ..]) => Some(at + 2),
            Some([b'\r', b'\n', ..]) => Some(at + 3),
            _ => None,
        })
}

/// True if every line feed of `head` follows a carriage return. RFC 9112 section 2.2 allows a
/// recipient to accept a bare one, but two parsers that differ in it see different heads.
fn has_only_crlf(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).all(|at| at > 0 && head.get(at - 1) == Some(&b'\r'))
}

/// Parses a plain decimal length of 1 to 18 digits, RFC 9110 section 8.6. More digits would come
/// near 2^64; signs, blanks and hexadecimal are read differently by other parsers.
pub fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, digit| {
        digit
            .is_ascii_digit()
            .then(|| sum * 10 + u64::from(digit - b'0'))
    })
}

/// Tokens of a comma-separated list, trimmed, without empty ones, RFC 9110 section 5.6.1.
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_head_is_found_wherever_the_search_begins() {
        let bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody";
        for from in 0..=27 {
            assert_eq!(head_end(bytes, from), Some(27), "{from}");
        }
        assert_eq!(head_end(&bytes[..26], 0), None);
        assert_eq!(head_end(b"GET / HTTP/1.1\n\n", 0), Some(16));
        assert_eq!(head_end(b"", 0), None);
    }

    #[test]
    fn lengths_are_plain_digits() {
        assert_eq!(content_length(b"0"), Some(0));
        assert_eq!(
            content_length(b"999999999999999999"),
            Some(999_999_999_999_999_999)
        );
        for bad in [
            "",
            "+1",
            "-1",
            " 1",
            "1 ",
            "0x1",
            "1,1",
            "1000000000000000000",
            "18446744073709551616",
        ] {
            assert_eq!(content_length(bad.as_bytes()), None, "{bad}");
        }
    }
}
