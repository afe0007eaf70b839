//! Numbers and addresses as text on the stack: they are written for each request, where formatting
//! into a `String` would be felt.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
};

/// Bytes of the longest text, an IPv6 address that ends like an IPv4 address.
const MAX_BYTES: usize = 45;

/// Decimal number or IP address as text.
#[derive(Debug, Clone, Copy)]
pub struct ShortText {
    bytes: [u8; MAX_BYTES],
    start: usize,
    end: usize,
}

impl ShortText {
    /// Writes a decimal number.
    pub fn number(mut value: u64) -> Self {
        let mut text = Self {
            bytes: [0; MAX_BYTES],
            start: MAX_BYTES,
            end: MAX_BYTES,
        };
        for digit in text.bytes.iter_mut().rev() {
            *digit = b'0' + (value % 10) as u8;
            value /= 10;
            text.start -= 1;
            if value == 0 {
                break;
            }
        }
        text
    }

    /// Writes an address, IPv4 by hand, which is cheaper than formatting.
    pub fn address(address: IpAddr) -> Self {
        let mut text = Self {
            bytes: [0; MAX_BYTES],
            start: 0,
            end: 0,
        };
        match address {
            IpAddr::V4(address) => {
                for (place, octet) in address.octets().into_iter().enumerate() {
                    if place > 0 {
                        text.push(b'.');
                    }
                    if octet >= 100 {
                        text.push(b'0' + octet / 100);
                    }
                    if octet >= 10 {
                        text.push(b'0' + octet / 10 % 10);
                    }
                    text.push(b'0' + octet % 10);
                }
            }
            IpAddr::V6(address) => {
                let written = write!(text, "{address}");
                debug_assert!(written.is_ok(), "writing into memory does not fail");
            }
        }
        text
    }

    /// Bytes of the text.
    pub fn as_bytes(&self) -> &[u8] {
        debug_assert!(self.start <= self.end, "a part of the bytes");
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    #[inline]
    fn push(&mut self, byte: u8) {
        let place = self.bytes.get_mut(self.end);
        debug_assert!(place.is_some(), "the longest text fits");
        if let Some(place) = place {
            *place = byte;
            self.end += 1;
        }
    }
}

impl fmt::Write for ShortText {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        part.bytes().for_each(|byte| self.push(byte));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal() {
        for value in [0, 7, 10, 200, 65_536, u64::MAX] {
            let text = ShortText::number(value);
            assert_eq!(text.as_bytes(), value.to_string().as_bytes());
        }
    }

    #[test]
    fn addresses_are_those_of_the_library() {
        for text in [
            "0.0.0.0",
            "192.0.2.7",
            "10.99.100.109",
            "255.255.255.255",
            "::",
            "2001:db8::7",
            "::ffff:192.0.2.7",
            "1111:2222:3333:4444:5555:6666:7777:8888",
        ] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(ShortText::address(address).as_bytes(), text.as_bytes());
        }
    }
}
