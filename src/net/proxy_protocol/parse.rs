//! What the bytes of a PROXY header mean: one thing, or nothing. Strict, bounded, and sure of garbage at the first byte that
//! cannot be part of a header.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{ConnectionEnds, ProxyHeader};
use crate::config::model::ProxyVersion;

/// How a header of version 1 begins.
pub(super) const TEXT_START: &[u8] = b"PROXY ";
/// How a header of version 2 begins.
pub(super) const BINARY_START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Longest header of version 1, with its line end: what the longest addresses and ports need.
const TEXT_LONGEST: usize = 107;
/// Bytes of version 2 before the addresses.
const FIXED: usize = 16;
/// Most bytes of addresses and TLVs: a sixteenth of what the format could say, and room for any certificate's names.
const BLOCK_LONGEST: usize = 4096;
/// Longest header that is taken, in bytes.
pub const MAX_HEADER_BYTES: usize = FIXED + BLOCK_LONGEST;

/// The TLV with a CRC-32C of the whole header.
const TLV_CRC32C: u8 = 0x03;

/// Why bytes are not the beginning of a valid header. A fixed text without anything from the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ProxyHeaderError(pub &'static str);

/// The header at the beginning of `bytes` and its length; `None` while bytes are missing. Without `version` both are taken.
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

/// The length of the whole header, as soon as `bytes` tell it: that is version 2.
pub(super) fn whole_length(bytes: &[u8]) -> Option<usize> {
    let [.., high, low] = bytes.get(..FIXED)? else {
        return None;
    };
    bytes
        .starts_with(BINARY_START)
        .then(|| FIXED + usize::from(u16::from_be_bytes([*high, *low])))
}

/// As far as it goes, `bytes` are `start`.
fn may_begin(bytes: &[u8], start: &[u8]) -> bool {
    bytes.iter().zip(start).all(|(one, other)| one == other)
}

/// Version 1: `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443` and a line end.
fn text(bytes: &[u8]) -> Result<Option<(ProxyHeader, usize)>, ProxyHeaderError> {
    let line = bytes.get(..TEXT_LONGEST).unwrap_or(bytes);
    if let Some(end) = memchr::memchr2(b'\r', b'\n', line) {
        return match line.get(end..) {
            Some([b'\r']) if line.len() < TEXT_LONGEST => Ok(None),
            Some([b'\r', b'\n', ..]) => {
                let words = line.get(TEXT_START.len()..end).unwrap_or_default();
                Ok(Some((text_words(words)?, end + 2)))
            }
            _ => Err(ProxyHeaderError(
                "the line of version 1 does not end with CR LF",
            )),
        };
    }
    if line.len() + 2 > TEXT_LONGEST {
        return Err(ProxyHeaderError("the line of version 1 is too long"));
    }
    Ok(None)
}

/// What stands between `PROXY ` and the line end.
fn text_words(line: &[u8]) -> Result<ProxyHeader, ProxyHeaderError> {
    // Whatever follows is to be ignored.
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
    // Whatever is there is looked at, not only what is whole.
    let (command, kind) = (bytes.get(BINARY_START.len()), bytes.get(FIXED - 3));
    if command.is_some_and(|command| !matches!(command, 0x20 | 0x21)) {
        return Err(ProxyHeaderError("neither LOCAL nor PROXY of version 2"));
    }
    let is_local = command == Some(&0x20);
    if !is_local && kind.is_some_and(|kind| address_bytes(*kind).is_none()) {
        return Err(ProxyHeaderError("an unknown kind of address"));
    }
    let Some(length) = whole_length(bytes) else {
        return Ok(None);
    };
    if length > MAX_HEADER_BYTES {
        return Err(ProxyHeaderError("the addresses and TLVs are too long"));
    }
    let (Some(kind), Some(header)) = (kind, bytes.get(..length)) else {
        return Ok(None);
    };
    // LOCAL: the rest is to be skipped, the kind included. So it is where no kind is said.
    if is_local || *kind == 0 {
        return Ok(Some((ProxyHeader::Own, length)));
    }
    let addresses = address_bytes(*kind).unwrap_or_default();
    let block = header.get(FIXED..).unwrap_or_default();
    let Some((block, _)) = block.split_at_checked(addresses) else {
        return Err(ProxyHeaderError("shorter than its addresses"));
    };
    check_tlvs(header, FIXED + addresses)?;
    let found = match *kind {
        0x11 => ends::<4>(block),
        0x21 => ends::<16>(block),
        0x31 => Some(ProxyHeader::Unix),
        // A datagram cannot have led here.
        _ => Some(ProxyHeader::Own),
    };
    match found {
        Some(found) => Ok(Some((found, length))),
        None => Err(ProxyHeaderError("shorter than its addresses")),
    }
}

/// How many bytes the addresses of a kind take: none, IPv4, IPv6, unix; streams and datagrams. `None` for any other kind.
fn address_bytes(kind: u8) -> Option<usize> {
    match kind {
        0x00 => Some(0),
        0x11 | 0x12 => Some(12),
        0x21 | 0x22 => Some(36),
        0x31 | 0x32 => Some(216),
        _ => None,
    }
}

/// Two addresses of `N` bytes and two ports.
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

/// Type, length and value, one after another to the very end; a checksum must be right. Nothing else of them is used.
fn check_tlvs(header: &[u8], from: usize) -> Result<(), ProxyHeaderError> {
    let mut at = from;
    while let Some([kind, high, low, rest @ ..]) = header.get(at..).filter(|rest| !rest.is_empty())
    {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some(value) = rest.get(..length) else {
            return Err(ProxyHeaderError("a TLV is longer than the header"));
        };
        if *kind == TLV_CRC32C {
            let told = <[u8; 4]>::try_from(value)
                .map_err(|_| ProxyHeaderError("a checksum that is not of 4 bytes"))?;
            if u32::from_be_bytes(told) != checksum(header, at + 3) {
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

/// The CRC-32C of `header`, with the four bytes of the checksum itself, at `own`, as zeros. Bit by bit: few senders add one,
/// and the header is short.
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
