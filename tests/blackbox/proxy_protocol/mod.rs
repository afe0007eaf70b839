//! The PROXY protocol: trusted senders, refused ones, the client's address, and headers to
//! backends.

mod haproxy;
mod incoming;
mod outgoing;

use std::net::{IpAddr, SocketAddr};

use crate::harness::{
    daemon::TestDaemon,
    peer::{PeerConnection, ScriptedPeer},
};
use balancer::{
    config::model::ProxyVersion,
    net::proxy_protocol::{ConnectionEnds, MAX_HEADER_BYTES, ProxyHeader, encode, parse},
};

const V1: ProxyVersion = ProxyVersion::V1;
const V2: ProxyVersion = ProxyVersion::V2;

/// Destination address in the PROXY headers of most tests.
const FRONT_ADDRESS: &str = "198.51.100.2:443";

/// A header for a client that connected to [`FRONT_ADDRESS`].
fn header(version: ProxyVersion, source: &str) -> Vec<u8> {
    let ends = ConnectionEnds::new(source.parse().unwrap(), FRONT_ADDRESS.parse().unwrap());
    encode(version, Some(ends)).into()
}

/// A daemon with one http listener, `@web`; every request is logged.
fn web(listener: &str, pool: &str, more: &str) -> TestDaemon {
    TestDaemon::start(&format!(
        "workers: 1\naccess_log: {{when: {{min_status: 100}}}}\n{more}listeners:\n  \
         web: {{bind: \"@web\", pool: app{listener}}}\npools:\n  app: {{{pool}}}\n"
    ))
}

/// A daemon with one tcp listener, `@db`; every session is logged.
fn db(listener: &str, pool: &str) -> TestDaemon {
    TestDaemon::start(&format!(
        "workers: 1\naccess_log: {{when: {{sample: 100%}}}}\nlisteners:\n  \
         db: {{bind: \"@db\", protocol: tcp, pool: db{listener}}}\npools:\n  db: {{{pool}}}\n"
    ))
}

/// The keys of a pool with one backend and no check.
fn to(backend: SocketAddr) -> String {
    format!("backends: [\"{backend}\"], health_check: none")
}

/// Answers every request with the head that it got.
fn echo() -> ScriptedPeer {
    ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            if !connection.answer(&request.head) {
                return;
            }
        }
    })
}

/// Reads a header from the beginning of a connection, and not a byte more.
fn read_header(connection: &mut PeerConnection) -> Option<ProxyHeader> {
    let mut bytes = Vec::new();
    while bytes.len() < MAX_HEADER_BYTES {
        bytes.extend(connection.exactly(1)?);
        if let Some((header, length)) = parse(&bytes, None).unwrap() {
            assert_eq!(length, bytes.len());
            return Some(header);
        }
    }
    panic!("too long for a header: {bytes:?}");
}

/// The ends that a header names.
fn ends(header: ProxyHeader) -> ConnectionEnds {
    let ProxyHeader::Proxied(ends) = header else {
        panic!("no addresses: {header:?}");
    };
    ends
}

/// Client address in an echoed request; `None` for `unknown`.
fn forwarded_for(body: &str) -> Option<IpAddr> {
    let line = body
        .lines()
        .find_map(|line| line.strip_prefix("X-Forwarded-For: "));
    let address = line.unwrap_or_else(|| panic!("{body}"));
    (address != "unknown").then(|| address.parse().unwrap_or_else(|_| panic!("{address}")))
}
