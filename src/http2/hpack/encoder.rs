//! Encoder of field blocks, RFC 7541 section 6: static table and literals only.

use super::{huffman, static_table};

/// Longest name that is converted to lower case without an allocation.
const TYPICAL_NAME_BYTES: usize = 64;

/// Sets the dynamic table to size 0 at the start of the first block of a connection, for any size
/// that the peer allows (RFC 7541 section 4.2).
pub fn disable_dynamic_table(out: &mut Vec<u8>) {
    number(out, 0, 5, 0x20);
}

/// Appends `:status`.
pub fn status(out: &mut Vec<u8>, status: u16) {
    let digit = |value: u16| b'0' + (value % 10) as u8;
    let digits = [digit(status / 100), digit(status / 10), digit(status)];
    field(out, b":status", &digits);
}

/// Appends a field, with its name in lower case (RFC 9113 section 8.2.1).
pub fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let mut buffer = [0; TYPICAL_NAME_BYTES];
    let long;
    let name: &[u8] = if !name.iter().any(u8::is_ascii_uppercase) {
        name
    } else if let Some(lower) = buffer.get_mut(..name.len()) {
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        lower
    } else {
        long = name.to_ascii_lowercase();
        &long
    };
    if let Some(place) = static_table::find(name, value) {
        return number(out, place, 7, 0x80);
    }
    // Section 7.1.3: secrets must not enter the table of any later hop either, where they could be
    // guessed by compressed size (CRIME).
    let kind = if is_secret(name) { 0x10 } else { 0 };
    if let Some(place) = static_table::find_name(name) {
        number(out, place, 4, kind);
    } else {
        number(out, 0, 4, kind);
        string(out, name);
    }
    string(out, value);
}

fn is_secret(name: &[u8]) -> bool {
    matches!(
        name,
        b"authorization" | b"cookie" | b"set-cookie" | b"proxy-authorization"
    )
}

/// Appends an integer after `first`, whose low `prefix` bits are free; section 5.1.
fn number(out: &mut Vec<u8>, value: usize, prefix: u32, first: u8) {
    let most = (1_usize << prefix) - 1;
    if value < most {
        out.push(first | value as u8);
        return;
    }
    out.push(first | most as u8);
    let mut rest = value - most;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Appends a string, Huffman-coded if that is shorter; section 5.2.
fn string(out: &mut Vec<u8>, text: &[u8]) {
    let coded = huffman::encoded_len(text);
    if coded < text.len() {
        number(out, coded, 7, 0x80);
        huffman::encode(text, out);
    } else {
        number(out, text.len(), 7, 0);
        out.extend_from_slice(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_rfc() {
        // RFC 7541 appendix C.1.
        for (value, prefix, expected) in [
            (10, 5, &[10][..]),
            (1_337, 5, &[31, 154, 10]),
            (42, 8, &[42]),
            (30, 5, &[30]),
            (31, 5, &[31, 0]),
            (127, 7, &[127, 0]),
        ] {
            let mut out = Vec::new();
            number(&mut out, value, prefix, 0);
            assert_eq!(out, expected, "{value}");
        }
    }

    #[test]
    fn what_the_static_table_has_is_not_spelled_out() {
        let block = |name: &str, value: &str| {
            let mut out = Vec::new();
            field(&mut out, name.as_bytes(), value.as_bytes());
            out
        };
        assert_eq!(block(":method", "GET"), [0x82]);
        assert_eq!(block(":path", "/"), [0x84]);
        assert_eq!(block("Content-Length", "7"), [0x0f, 13, 1, b'7']);
        assert_eq!(block("x", "!"), [0, 1, b'x', 1, b'!']);
        assert_eq!(block("Cookie", "\t")[0], 0x1f, "never indexed");
        let long = "X".repeat(100);
        assert_eq!(block(&long, "").len(), 2 + 100_usize * 7 / 8 + 1 + 1);
        for (code, first) in [(200, 0x88), (304, 0x8b), (500, 0x8e), (201, 0x08)] {
            let mut out = Vec::new();
            status(&mut out, code);
            assert_eq!(out[0], first, "{code}");
        }
    }
}
