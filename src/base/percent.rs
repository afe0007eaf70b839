//! Percent-encoding of one value of a query or path (RFC 3986 section 2.1), between the commands
//! and the admin API.

use std::fmt::Write as _;

/// Encodes all but letters, digits and `-._~:/`, which a query may hold as they are.
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Decodes `text`. `None`: an escape is cut or no number, or the result is not UTF-8.
pub fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => u8::try_from(digit(rest.next())? * 16 + digit(rest.next())?).ok()?,
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_comes_back_and_broken_escapes_do_not() {
        for text in ["", "app/10.0.0.1:80", "a/[::1]:80", "p/unix:/a b%&ü?"] {
            let encoded = encode(text);
            assert!(!encoded.contains(['&', ' ', '?', '[']), "{encoded}");
            assert_eq!(decode(&encoded).as_deref(), Some(text));
        }
        for broken in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(decode(broken), None, "{broken}");
        }
    }
}
