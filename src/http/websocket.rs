//! Keys of the WebSocket handshake over HTTP/1.1 (RFC 6455 section 4), which HTTP/2 does not have.

use std::fmt::Write as _;

/// Appended to the key before it is hashed, RFC 6455 section 1.3.
const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Encodes `nonce` as a key, RFC 6455 section 4.1.
pub fn key(nonce: [u8; 16]) -> String {
    base64(&nonce)
}

/// `Sec-WebSocket-Accept` for `key`, RFC 6455 section 4.2.2.
pub fn accept(key: &[u8]) -> String {
    let mut text = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    text.update(key);
    text.update(WEBSOCKET_GUID.as_bytes());
    base64(text.finish().as_ref())
}

/// Encodes in base64, RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const BASE64_DIGITS: &[u8; 64] =
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group
            .iter()
            .zip([16, 8, 0])
            .fold(0_u32, |bits, (byte, shift)| {
                bits | u32::from(*byte) << shift
            });
        for place in 0..4 {
            let digit = BASE64_DIGITS.get((bits >> (18 - 6 * place) & 63) as usize);
            let digit = digit.filter(|_| place <= group.len()).unwrap_or(&b'=');
            _ = text.write_char(char::from(*digit));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_is_that_of_the_rfc() {
        let accept = accept(b"dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
            ("\u{fff}\u{3ff}", "4L+/z78="),
        ] {
            assert_eq!(base64(text.as_bytes()), encoded, "{text}");
        }
    }
}
