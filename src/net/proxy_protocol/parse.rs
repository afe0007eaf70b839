//! Parses a PROXY header. Strict and bounded; garbage is refused at the first byte that cannot be
//! part of a header.
//!
//! The header decides which client an exchange belongs to, and with it `allow`, limits and the log.
//! So bytes that two programs could read in two ways are refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::header::{ConnectionEnds, ProxyHeader};
use crate::config::model::ProxyVersion;

/// First bytes of version 1.
pub(super) const TEXT_START: &[u8] = b"PROXY ";
/// First bytes of version 2.
pub(super) const BINARY_START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Longest header of version 1, with its line end: the specification's own limit (section 2.1).
const MAX_TEXT_BYTES: usize = 107;
/// Length of the fixed part of version 2, before the addresses.
const FIXED_BYTES: usize = 16;
/// Most bytes of addresses and TLVs. The format allows 64 KiB; 4 KiB hold every TLV that is in use,
/// with the names of a client certificate.
const MAX_BLOCK_BYTES: usize = 4096;
/// Longest header that is accepted.
pub const MAX_HEADER_BYTES: usize = FIXED_BYTES + MAX_BLOCK_BYTES;

/// Type of the TLV with a CRC-32C of the whole header.
const TLV_CRC32C: u8 = 0x03;

/// Fault of bytes that do not begin a valid header; the text is fixed and repeats nothing of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ProxyHeaderError(pub &'static str);

/// Returns the header at the beginning of `bytes` and its length; `None` while bytes are missing.
/// Without `version` both versions are allowed.
pub fn parse(
    bytes: &[u8],
    version: Option<ProxyVersion>,
) -> Result<Option<(ProxyHeader, usize)>, ProxyHeaderError> {
    let is_allowed = |one| version.is_none_or(|only| only == one);
    if is_allowed(ProxyVersion::V1) && may_begin(bytes, TEXT_START) {
        text(bytes)
    } else if is_allowed(ProxyVersion::V2) && may_begin(bytes, BINARY_START) {
        binary(bytes)
    } else {
        Err(ProxyHeaderError(
            "not a PROXY header of a version that is allowed",
        ))
    }
}

/// Returns the length of the whole header as soon as `bytes` contain it. Only version 2 has one.
pub(super) fn whole_length(bytes: &[u8]) -> Option<usize> {
    let [.., high, low] = bytes.get(..FIXED_BYTES)? else {
        return None;
    };
    bytes
        .starts_with(BINARY_START)
        .then(|| FIXED_BYTES + usize::from(u16::from_be_bytes([*high, *low])))
}

/// True if `bytes` agree with `start` as far as both go.
fn may_begin(bytes: &[u8], start: &[u8]) -> bool {
    bytes.iter().zip(start).all(|(one, other)| one == other)
}

/// Version 1: `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443` and a line end.
fn text(bytes: &[u8]) -> Result<Option<(ProxyHeader, usize)>, ProxyHeaderError> {
    let line = bytes.get(..MAX_TEXT_BYTES).unwrap_or(bytes);
    if let Some(end) = memchr::memchr2(b'\r', b'\n', line) {
        return match line.get(end..) {
            Some([b'\r']) if line.len() < MAX_TEXT_BYTES => Ok(None),
            Some([b'\r', b'\n', ..]) => {
                debug_assert!(end >= TEXT_START.len(), "the start holds no line end");
                let words = line.get(TEXT_START.len()..end).unwrap_or_default();
                Ok(Some((text_words(words)?, end + 2)))
            }
            _ => Err(ProxyHeaderError(
                "the line of version 1 does not end with CR LF",
            )),
        };
    }
    if line.len() + 2 > MAX_TEXT_BYTES {
        return Err(ProxyHeaderError("the line of version 1 is too long"));
    }
    Ok(None)
}

/// Parses the text between `PROXY ` and the line end.
fn text_words(line: &[u8]) -> Result<ProxyHeader, ProxyHeaderError> {
    // The receiver must ignore everything behind UNKNOWN (section 2.1).
    if line == b"UNKNOWN" || line.starts_with(b"UNKNOWN ") {
        return Ok(ProxyHeader::Own);
    }
    let invalid = ProxyHeaderError("the line of version 1 is malformed");
    let line = str::from_utf8(line).map_err(|_| invalid)?;
    let mut words = line.split(' ');
    let mut word = || words.next().ok_or(invalid);
    let parse: fn(&str) -> Option<IpAddr> = match word()? {
        "TCP4" => |word| word.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "TCP6" => |word| word.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => return Err(invalid),
    };
    let mut address = || parse(word()?).ok_or(invalid);
    let (source, destination) = (address()?, address()?);
    let mut port = || port(word()?).ok_or(invalid);
    let (source_port, destination_port) = (port()?, port()?);
    if words.next().is_some() {
        return Err(invalid);
    }
    Ok(ProxyHeader::Proxied(ConnectionEnds::new(
        SocketAddr::new(source, source_port),
        SocketAddr::new(destination, destination_port),
    )))
}

/// 0 to 65535 in decimal, without a sign and without leading zeros.
fn port(word: &str) -> Option<u16> {
    let is_plain = word.bytes().all(|byte| byte.is_ascii_digit());
    let has_zero = word.len() > 1 && word.starts_with('0');
    word.parse().ok().filter(|_| is_plain && !has_zero)
}

/// Version 2: the start, version and command, kind of address, length; then addresses and TLVs.
fn binary(bytes: &[u8]) -> Result<Option<(ProxyHeader, usize)>, ProxyHeaderError> {
    // Check each byte that is there: garbage is refused before the header is whole.
    let (command, family) = (
        bytes.get(BINARY_START.len()),
        bytes.get(BINARY_START.len() + 1),
    );
    if command.is_some_and(|command| !matches!(command, 0x20 | 0x21)) {
        return Err(ProxyHeaderError("neither LOCAL nor PROXY of version 2"));
    }
    let is_local = command == Some(&0x20);
    if !is_local && family.is_some_and(|family| address_bytes(*family).is_none()) {
        return Err(ProxyHeaderError("an unknown kind of address"));
    }
    let Some(length) = whole_length(bytes) else {
        return Ok(None);
    };
    if length > MAX_HEADER_BYTES {
        return Err(ProxyHeaderError("the addresses and TLVs are too long"));
    }
    let (Some(family), Some(header)) = (family, bytes.get(..length)) else {
        return Ok(None);
    };
    // LOCAL, or an unspecified family: the receiver must skip addresses and TLVs (section 2.2).
    if is_local || *family == 0 {
        return Ok(Some((ProxyHeader::Own, length)));
    }
    // The family was checked above, and the header is at least its fixed part.
    debug_assert!(header.len() >= FIXED_BYTES);
    let addresses = address_bytes(*family).unwrap_or_default();
    let block = header.get(FIXED_BYTES..).unwrap_or_default();
    let Some((block, _)) = block.split_at_checked(addresses) else {
        return Err(ProxyHeaderError("shorter than its addresses"));
    };
    check_tlvs(header, FIXED_BYTES + addresses)?;
    let found = match *family {
        0x11 => ends::<4>(block),
        0x21 => ends::<16>(block),
        0x31 => Some(ProxyHeader::Unix),
        // A datagram, which cannot have led to a connection with us.
        _ => Some(ProxyHeader::Own),
    };
    match found {
        Some(found) => Ok(Some((found, length))),
        None => Err(ProxyHeaderError("shorter than its addresses")),
    }
}

/// Length of the addresses of a family and transport: none, IPv4, IPv6 or unix, each for streams
/// and datagrams. `None` for any other.
fn address_bytes(family: u8) -> Option<usize> {
    match family {
        0x00 => Some(0),
        0x11 | 0x12 => Some(12),
        0x21 | 0x22 => Some(36),
        0x31 | 0x32 => Some(216),
        _ => None,
    }
}

/// Parses two addresses of `N` bytes and two ports.
fn ends<const N: usize>(block: &[u8]) -> Option<ProxyHeader>
where
    IpAddr: From<[u8; N]>,
{
    let (source, block) = block.split_first_chunk::<N>()?;
    let (destination, block) = block.split_first_chunk::<N>()?;
    let (source_port, block) = block.split_first_chunk::<2>()?;
    let (destination_port, _) = block.split_first_chunk::<2>()?;
    let end = |address: &[u8; N], port: &[u8; 2]| {
        SocketAddr::new(IpAddr::from(*address), u16::from_be_bytes(*port))
    };
    Some(ProxyHeader::Proxied(ConnectionEnds::new(
        end(source, source_port),
        end(destination, destination_port),
    )))
}

/// Checks that TLVs fill the header to its very end, and that a checksum is right. Nothing else of
/// them is used.
fn check_tlvs(header: &[u8], from: usize) -> Result<(), ProxyHeaderError> {
    let mut at = from;
    while let Some([kind, high, low, value @ ..]) = header.get(at..).filter(|tlv| !tlv.is_empty()) {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some(value) = value.get(..length) else {
            return Err(ProxyHeaderError("a TLV is longer than the header"));
        };
        if *kind == TLV_CRC32C {
            let checksum_sent = <[u8; 4]>::try_from(value)
                .map_err(|_| ProxyHeaderError("a checksum that is not of 4 bytes"))?;
            if u32::from_be_bytes(checksum_sent) != checksum(header, at + 3) {
                return Err(ProxyHeaderError("the checksum is wrong"));
            }
        }
        at += 3 + length;
    }
    if at == header.len() {
        Ok(())
    } else {
        Err(ProxyHeaderError("a TLV is cut short"))
    }
}

/// Returns the CRC-32C of `header`, with the four bytes of the checksum itself, at `own`, as zeros.
/// Bit by bit: few senders add one, and the header is short.
pub(super) fn checksum(header: &[u8], own: usize) -> u32 {
    let mut crc = u32::MAX;
    for (at, byte) in header.iter().enumerate() {
        let is_own = (own..own + 4).contains(&at);
        crc ^= if is_own { 0 } else { u32::from(*byte) };
        for _ in 0..8 {
            let carry = crc & 1;
            crc = (crc >> 1) ^ (0x82f6_3b78 * carry);
        }
    }
    !crc
}
