//! Encodes a PROXY header, without TLVs. Nothing needs escaping: the text is made of numbers.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{
    header::ConnectionEnds,
    parse::{BINARY_START, TEXT_START},
};
use crate::config::model::ProxyVersion;

/// Version 2 and its command `LOCAL`: a connection of our own.
const COMMAND_LOCAL: u8 = 0x20;
/// Version 2 and its command `PROXY`: a connection on behalf of a client.
const COMMAND_PROXY: u8 = 0x21;
/// No addresses.
const FAMILY_UNSPECIFIED: u8 = 0x00;
/// TCP over IPv4.
const FAMILY_TCP4: u8 = 0x11;
/// TCP over IPv6.
const FAMILY_TCP6: u8 = 0x21;

/// Encodes the header of a connection on behalf of a client. Without `ends`, as for a client on a
/// unix socket, the address is given as unknown.
///
/// Both addresses of a header are of one family: an IPv4 address beside an IPv6 one is mapped to
/// `::ffff:a.b.c.d`.
pub fn encode(version: ProxyVersion, ends: Option<ConnectionEnds>) -> Box<[u8]> {
    match (version, ends) {
        (ProxyVersion::V1, None) => text("UNKNOWN"),
        (ProxyVersion::V1, Some(ends)) => text(&text_words(ends)),
        (ProxyVersion::V2, None) => binary(COMMAND_PROXY, FAMILY_UNSPECIFIED, &[]),
        (ProxyVersion::V2, Some(ends)) => {
            let (family, block) = block(ends);
            binary(COMMAND_PROXY, family, &block)
        }
    }
}

/// Encodes the header of a connection of our own, such as a check: `UNKNOWN` in version 1, `LOCAL`
/// in version 2.
pub fn encode_local(version: ProxyVersion) -> Box<[u8]> {
    match version {
        ProxyVersion::V1 => text("UNKNOWN"),
        ProxyVersion::V2 => binary(COMMAND_LOCAL, FAMILY_UNSPECIFIED, &[]),
    }
}

fn text(words: &str) -> Box<[u8]> {
    let mut header = TEXT_START.to_vec();
    header.extend_from_slice(words.as_bytes());
    header.extend_from_slice(b"\r\n");
    header.into()
}

fn text_words(
    ConnectionEnds {
        source,
        destination,
    }: ConnectionEnds,
) -> String {
    let ports = format!("{} {}", source.port(), destination.port());
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => format!("TCP4 {from} {to} {ports}"),
        (from, to) => format!("TCP6 {} {} {ports}", v6_text(from), v6_text(to)),
    }
}

/// Writes an IPv6 address in groups of hexadecimal digits only: version 1 has no dotted notation in
/// IPv6 addresses, and `Display` would use it for mapped ones.
fn v6_text(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            format!("::ffff:{high:x}:{low:x}")
        }
        IpAddr::V6(address) => address.to_string(),
    }
}

fn v6(address: SocketAddr) -> Ipv6Addr {
    match address.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// Returns the family of the addresses, and their bytes.
fn block(
    ConnectionEnds {
        source,
        destination,
    }: ConnectionEnds,
) -> (u8, Vec<u8>) {
    let mut block = Vec::with_capacity(36);
    let family = if let (IpAddr::V4(from), IpAddr::V4(to)) = (source.ip(), destination.ip()) {
        block.extend_from_slice(&from.octets());
        block.extend_from_slice(&to.octets());
        FAMILY_TCP4
    } else {
        block.extend_from_slice(&v6(source).octets());
        block.extend_from_slice(&v6(destination).octets());
        FAMILY_TCP6
    };
    block.extend_from_slice(&source.port().to_be_bytes());
    block.extend_from_slice(&destination.port().to_be_bytes());
    (family, block)
}

fn binary(command: u8, family: u8, block: &[u8]) -> Box<[u8]> {
    let length = block.len() as u16;
    let mut header = BINARY_START.to_vec();
    header.extend_from_slice(&[command, family]);
    header.extend_from_slice(&length.to_be_bytes());
    header.extend_from_slice(block);
    header.into()
}
