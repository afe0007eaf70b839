//! Records without a socket: pieces of any size, and changed bytes.

use std::sync::Arc;

use rustls::{Error, unbuffered::ConnectionState};
use tokio::io::ReadBuf;

use super::{VERSIONS, pattern};
use crate::{
    base::rng::Random,
    config::model::TlsVersion::{self, Tls13},
    net::tls::{
        ServerTls,
        fixture::{client, name, server},
        records::{self, PlaintextBuf, RustlsConnection},
    },
};

/// One end without a socket.
pub(super) struct SocketlessPeer {
    connection: RustlsConnection,
    incoming: Vec<u8>,
    plaintext: Vec<u8>,
    ended: bool,
}

impl SocketlessPeer {
    fn new(connection: RustlsConnection) -> Self {
        Self {
            connection,
            incoming: Vec::new(),
            plaintext: Vec::new(),
            ended: false,
        }
    }

    fn server(tls: &ServerTls) -> Self {
        let connection = rustls::server::UnbufferedServerConnection::new(Arc::clone(tls.config()));
        Self::new(RustlsConnection::Server(connection.unwrap()))
    }

    pub(super) fn client(version: TlsVersion) -> Self {
        let config = Arc::new(client(version));
        let connection =
            rustls::client::UnbufferedClientConnection::new(config, name("a.test")).unwrap();
        Self::new(RustlsConnection::Client(connection))
    }

    /// Processes `bytes` in pieces of `size`; returns what is to be sent for them.
    pub(super) fn feed(&mut self, bytes: &[u8], size: usize) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        // The first piece is empty: it makes a client send its hello.
        let pieces = std::iter::once(&[][..]).chain(bytes.chunks(size));
        for piece in pieces {
            self.incoming.extend_from_slice(piece);
            let mut few = [0; 3];
            let mut target = ReadBuf::new(&mut few);
            let mut rest = Vec::new();
            let mut plaintext = PlaintextBuf {
                target: &mut target,
                overflow: &mut rest,
            };
            let processed = records::process(
                &mut self.connection,
                &mut self.incoming,
                &mut plaintext,
                &mut out,
            );
            self.plaintext.extend_from_slice(target.filled());
            self.plaintext.extend_from_slice(&rest);
            let processed = processed?;
            self.incoming.drain(..processed.used);
            self.ended |= processed.ended;
        }
        Ok(out)
    }

    fn encrypt(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        records::encrypt(&mut self.connection, &mut self.incoming, bytes, &mut out).unwrap();
        out
    }

    /// Requests new keys in both directions (TLS 1.3).
    fn update_keys(&mut self) -> Vec<u8> {
        let traffic = |state| match state {
            Ok(ConnectionState::WriteTraffic(traffic)) => traffic.refresh_traffic_keys().unwrap(),
            _ => panic!("the handshake is over"),
        };
        match &mut self.connection {
            RustlsConnection::Client(connection) => {
                let state = connection.process_tls_records(&mut self.incoming).state;
                match state {
                    Ok(ConnectionState::WriteTraffic(traffic)) => {
                        traffic.refresh_traffic_keys().unwrap();
                    }
                    _ => panic!("the handshake is over"),
                }
            }
            RustlsConnection::Server(connection) => {
                traffic(connection.process_tls_records(&mut self.incoming).state);
            }
        }
        self.feed(&[], 1).unwrap()
    }
}

/// Connects a pair, all bytes in pieces of `size`.
fn sides(version: TlsVersion, size: usize) -> (SocketlessPeer, SocketlessPeer) {
    let (mut client, mut server) = (
        SocketlessPeer::client(version),
        SocketlessPeer::server(&server()),
    );
    let mut to_server = client.feed(&[], size).unwrap();
    while !to_server.is_empty() {
        let to_client = server.feed(&to_server, size).unwrap();
        to_server = client.feed(&to_client, size).unwrap();
    }
    assert!(!client.connection.is_handshaking() && !server.connection.is_handshaking());
    (client, server)
}

#[test]
fn bytes_in_pieces_of_any_size_make_the_same_connection() {
    let bytes = pattern(40_000);
    for version in VERSIONS {
        for size in [1, 2, 3, 7, 100, 5000] {
            let (mut client, mut server) = sides(version, size);
            let answer = server.feed(&client.encrypt(&bytes), size).unwrap();
            assert!(answer.is_empty());
            assert!(server.plaintext == bytes, "{version:?} {size}");
            let echo = server.encrypt(&server.plaintext.clone());
            client.feed(&echo, size).unwrap();
            assert!(client.plaintext == bytes, "{version:?} {size}");
            let mut end = Vec::new();
            records::encode_close_notify(&mut client.connection, &mut client.incoming, &mut end)
                .unwrap();
            assert!(!server.ended);
            server.feed(&end, size).unwrap();
            assert!(server.ended && server.incoming.is_empty());
            // The other direction goes on.
            let last = server.encrypt(b"last");
            client.feed(&last, size).unwrap();
            assert!(client.plaintext.ends_with(b"last"));
        }
    }
}

#[test]
fn a_key_update_changes_nothing_for_the_reader() {
    for size in [1, 5000] {
        let (mut client, mut server) = sides(Tls13, size);
        for round in 0..20_u8 {
            let (updater, other) = if round % 2 == 0 {
                (&mut client, &mut server)
            } else {
                (&mut server, &mut client)
            };
            let update = updater.update_keys();
            assert!(!update.is_empty());
            let mut bytes = other.feed(&update, size).unwrap();
            bytes.extend(other.encrypt(&[round; 100]));
            updater.plaintext.clear();
            updater.feed(&bytes, size).unwrap();
            assert_eq!(updater.plaintext, [round; 100]);
            let back = updater.encrypt(b"back");
            other.plaintext.clear();
            other.feed(&back, size).unwrap();
            assert_eq!(other.plaintext, b"back");
        }
    }
}

/// Changes `bytes` in one to four places: replaced, removed or repeated.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let place = random.below(bytes.len());
        match random.below(8) {
            0 => bytes.truncate(place.max(1)),
            1 => drop(bytes.remove(place)),
            2 => {
                let end = (place + 40).min(bytes.len());
                bytes.extend_from_within(place..end);
            }
            3 => bytes.insert(place, random.below(256) as u8),
            _ => bytes[place] ^= 1 << random.below(8),
        }
        if bytes.is_empty() {
            bytes.push(0);
        }
    }
}

#[test]
fn a_changed_client_hello_neither_panics_nor_yields_a_byte() {
    let tls = server();
    let mut random = Random::seeded(4711);
    for version in VERSIONS {
        for round in 0..2_000 {
            let mut hello = SocketlessPeer::client(version).feed(&[], 1).unwrap();
            mutate(&mut hello, &mut random);
            let mut server = SocketlessPeer::server(&tls);
            let size = [1, 60, 5000][round % 3];
            let _ = server.feed(&hello, size);
            assert!(
                server.plaintext.is_empty() && server.connection.is_handshaking(),
                "round {round}"
            );
        }
    }
}

#[test]
fn a_changed_flight_of_the_handshake_neither_panics_nor_yields_a_byte() {
    let tls = server();
    let mut random = Random::seeded(815);
    for version in VERSIONS {
        for round in 0..500 {
            let (mut client, mut server) = (
                SocketlessPeer::client(version),
                SocketlessPeer::server(&tls),
            );
            let mut flight = client.feed(&[], 1).unwrap();
            let to_server = random.below(2) == 0;
            if to_server {
                let answer = server.feed(&flight, 5000).unwrap();
                flight = client.feed(&answer, 5000).unwrap();
                mutate(&mut flight, &mut random);
                let _ = server.feed(&flight, 7);
            } else {
                flight = server.feed(&flight, 5000).unwrap();
                mutate(&mut flight, &mut random);
                let _ = client.feed(&flight, 7);
            }
            assert!(
                server.plaintext.is_empty() && client.plaintext.is_empty(),
                "round {round}"
            );
        }
    }
}

#[test]
fn of_changed_records_only_the_bytes_before_the_change_are_passed_on() {
    let secret = pattern(3_000);
    let mut random = Random::seeded(99);
    for version in VERSIONS {
        for round in 0..300 {
            let (mut client, mut server) = sides(version, 5000);
            let mut records = Vec::new();
            for part in secret.chunks(500) {
                records.extend(client.encrypt(part));
            }
            let whole = records.clone();
            mutate(&mut records, &mut random);
            let result = server.feed(&records, [1, 90, 5000][round % 3]);
            assert!(secret.starts_with(&server.plaintext), "round {round}");
            if result.is_ok() {
                // Cut short, or doubled at the end in a way that looks like the beginning of more.
                assert!(records != whole || server.plaintext == secret);
            }
        }
    }
}
