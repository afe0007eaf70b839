//! HTTP/1.1 codec: bytes in, heads and bodies out, and back. Sans-I/O: it never sees a socket, a
//! clock or a pool.
//!
//! As strict as RFC 9112: input that a second parser could read differently is refused, never
//! repaired, as request smuggling lives on such differences. Output is always encoded from the
//! decoded message; no byte of a peer's framing is passed through. Start at [`request`], then
//! [`response`], [`body`], [`encode`].

pub mod body;
pub mod encode;
pub mod request;
pub mod response;

use crate::http::{
    fields::{HeadFields, KnownField, Span},
    message::HttpVersion,
    rules::{HeadError, declare_length},
};

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

/// The bytes that a head of at most `limit` bytes can have. Those behind them must not change how
/// the head is judged, as they may come later.
fn up_to(bytes: &[u8], limit: usize) -> &[u8] {
    bytes.get(..limit).unwrap_or(bytes)
}

/// True if every line feed of `head` follows a carriage return. RFC 9112 section 2.2 allows a
/// recipient to accept a bare one, but two parsers that differ in it see different heads.
fn has_only_crlf(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).all(|at| at > 0 && head.get(at - 1) == Some(&b'\r'))
}

/// Appends the fields that the tokenizer found in `whole`.
fn take_fields(fields: &mut HeadFields, found: &[httparse::Header<'_>], whole: &[u8]) {
    for header in found {
        let name = Span::of(header.name.as_bytes(), whole);
        fields.push(name, Span::of(header.value, whole), whole);
    }
}

/// Returns the declared length and the transfer coding, at most one of each.
fn length_and_coding<'b>(
    fields: &HeadFields,
    bytes: &'b [u8],
) -> Result<(Option<u64>, Option<&'b [u8]>), HeadError> {
    let (mut length, mut coding) = (None, None);
    for field in fields.iter() {
        let value = field.value.get(bytes);
        match field.known {
            KnownField::ContentLength => declare_length(&mut length, value)?,
            KnownField::TransferEncoding if coding.replace(value).is_some() => {
                return Err(HeadError::malformed("several Transfer-Encoding"));
            }
            _ => {}
        }
    }
    Ok((length, coding))
}

/// The version whose minor number the tokenizer gives.
const fn version_of(minor: u8) -> HttpVersion {
    if minor == 0 {
        HttpVersion::Http10
    } else {
        HttpVersion::Http11
    }
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
}
