//! Rules for single fields of a block, RFC 9113 section 8.2.

use crate::http::{fields::KnownField, rules::HeadError};

/// Strips blanks from both ends of a field value; `None` if it has control bytes. RFC 9113 section
/// 8.2.1 forbids both, but real senders leave blanks there, and in HTTP/1 they have no meaning (RFC
/// 9112 section 5.1).
pub fn trimmed(value: &[u8]) -> Option<&[u8]> {
    let mut rest = value;
    while let [b' ' | b'\t', inner @ ..] | [inner @ .., b' ' | b'\t'] = rest {
        rest = inner;
    }
    let is_plain = |byte: &u8| matches!(byte, b'\t' | b' '..=0x7e | 0x80..);
    rest.iter().all(is_plain).then_some(rest)
}

/// True for a token, RFC 9110 section 5.6.2.
pub fn is_token(text: &[u8]) -> bool {
    let is_good = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(is_good)
}

/// True for a token in lower case, RFC 9113 section 8.2.1. No pseudo-header field is one.
pub fn is_name(name: &[u8]) -> bool {
    is_token(name) && !name.iter().any(u8::is_ascii_uppercase)
}

/// Checks a field behind the pseudo-header fields; returns its known name, and its value without
/// the blanks around it.
///
/// # Errors
/// The name or the value is malformed, RFC 9113 section 8.2.1.
pub(super) fn checked<'f>(
    name: &[u8],
    value: &'f [u8],
) -> Result<(KnownField, &'f [u8]), HeadError> {
    if !is_name(name) {
        return Err(HeadError::malformed(name_fault(name)));
    }
    let value = trimmed(value).ok_or(HeadError::malformed("a control byte in a field value"))?;
    Ok((KnownField::of(name), value))
}

/// Like [`checked`], for a response or trailers.
///
/// # Errors
/// Also a connection-specific field, RFC 9113 section 8.2.2; `TE` and `HTTP2-Settings` belong to
/// requests.
pub(super) fn checked_end_to_end<'f>(
    name: &[u8],
    value: &'f [u8],
) -> Result<(KnownField, &'f [u8]), HeadError> {
    let (known, value) = checked(name, value)?;
    if known.is_hop_by_hop() {
        return Err(HeadError::malformed("a connection-specific field"));
    }
    Ok((known, value))
}

/// Detail of the fault in `name`.
#[cold]
fn name_fault(name: &[u8]) -> &'static str {
    match name {
        [] => "an empty field name",
        [b':', ..] => "a pseudo-header field that is unknown or not first",
        _ if is_token(name) => "an upper-case letter in a field name",
        _ => "an invalid byte in a field name",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_of_a_field_has_its_own_detail() {
        for (name, value, detail) in [
            ("", "b", "an empty field name"),
            ("A", "b", "an upper-case letter in a field name"),
            ("a b", "b", "an invalid byte in a field name"),
            ("a:", "b", "an invalid byte in a field name"),
            ("ä", "b", "an invalid byte in a field name"),
            (
                ":path",
                "/",
                "a pseudo-header field that is unknown or not first",
            ),
            ("a", "b\rc", "a control byte in a field value"),
            ("a", "b\n", "a control byte in a field value"),
            ("a", "\0", "a control byte in a field value"),
            ("a", "\x7f", "a control byte in a field value"),
            ("te", "trailers", "a connection-specific field"),
            ("connection", "close", "a connection-specific field"),
        ] {
            let found = checked_end_to_end(name.as_bytes(), value.as_bytes());
            let expected = Err(HeadError::malformed(detail));
            assert_eq!(found, expected, "{name:?} {value:?}");
        }
    }

    #[test]
    fn blanks_around_a_value_mean_nothing() {
        for (value, expected) in [
            ("", ""),
            (" \t ", ""),
            (" b", "b"),
            ("b \tc\t", "b \tc"),
            ("\u{e4}", "\u{e4}"),
        ] {
            let found = checked(b"a", value.as_bytes());
            let expected = Ok((KnownField::Other, expected.as_bytes()));
            assert_eq!(found, expected, "{value:?}");
        }
    }
}
