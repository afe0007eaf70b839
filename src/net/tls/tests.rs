//! Sessions with and without a socket, names, faults: each test is a promise of this folder.

use std::{future::poll_fn, sync::Arc};

use rustls::unbuffered::ConnectionState;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};

use super::{
    fixture::{
        AUTHORITY, Authority, careless_client, client, connected, listener, name, server, shake,
    },
    *,
};
use crate::{
    base::rng::Random,
    config::model::TlsVersion::{self, Tls12, Tls13},
    net::{
        copy::{RelayError, RelayMeter, relay},
        fixture::pair,
    },
    telemetry::metrics::MetricCell,
};

const VERSIONS: [TlsVersion; 2] = [Tls12, Tls13];

/// One end without a socket.
struct Side {
    end: End,
    incoming: Vec<u8>,
    plain: Vec<u8>,
    ended: bool,
}

impl Side {
    fn new(end: End) -> Self {
        Self {
            end,
            incoming: Vec::new(),
            plain: Vec::new(),
            ended: false,
        }
    }

    fn server(tls: &ServerTls) -> Self {
        let connection = rustls::server::UnbufferedServerConnection::new(Arc::clone(tls.config()));
        Self::new(End::Server(connection.unwrap()))
    }

    fn client(version: TlsVersion) -> Self {
        let config = Arc::new(client(version));
        let connection =
            rustls::client::UnbufferedClientConnection::new(config, name("a.test")).unwrap();
        Self::new(End::Client(connection))
    }

    /// Gives `bytes` in pieces of `size`; what is to be sent for them.
    fn feed(&mut self, bytes: &[u8], size: usize) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        // Without a byte at first: that begins a client.
        let pieces = std::iter::once(&[][..]).chain(bytes.chunks(size));
        for piece in pieces {
            self.incoming.extend_from_slice(piece);
            let mut few = [0; 3];
            let mut target = ReadBuf::new(&mut few);
            let mut rest = Vec::new();
            let mut plain = Plain {
                target: &mut target,
                rest: &mut rest,
            };
            let digested = session::digest(&mut self.end, &mut self.incoming, &mut plain, &mut out);
            self.plain.extend_from_slice(target.filled());
            self.plain.extend_from_slice(&rest);
            let digested = digested?;
            self.incoming.drain(..digested.used);
            self.ended |= digested.ended;
        }
        Ok(out)
    }

    fn encrypt(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        session::encrypt(&mut self.end, &mut self.incoming, bytes, &mut out).unwrap();
        out
    }

    /// Asks for new keys, both ways (TLS 1.3).
    fn update_keys(&mut self) -> Vec<u8> {
        let traffic = |state| match state {
            Ok(ConnectionState::WriteTraffic(traffic)) => traffic.refresh_traffic_keys().unwrap(),
            _ => panic!("the handshake is over"),
        };
        match &mut self.end {
            End::Client(connection) => {
                let state = connection.process_tls_records(&mut self.incoming).state;
                match state {
                    Ok(ConnectionState::WriteTraffic(traffic)) => {
                        traffic.refresh_traffic_keys().unwrap();
                    }
                    _ => panic!("the handshake is over"),
                }
            }
            End::Server(connection) => {
                traffic(connection.process_tls_records(&mut self.incoming).state);
            }
        }
        self.feed(&[], 1).unwrap()
    }
}

/// A pair after its handshake, all in pieces of `size`.
fn sides(version: TlsVersion, size: usize) -> (Side, Side) {
    let (mut client, mut server) = (Side::client(version), Side::server(&server()));
    let mut to_server = client.feed(&[], size).unwrap();
    while !to_server.is_empty() {
        let to_client = server.feed(&to_server, size).unwrap();
        to_server = client.feed(&to_client, size).unwrap();
    }
    assert!(!client.end.is_handshaking() && !server.end.is_handshaking());
    (client, server)
}

fn pattern(length: usize) -> Vec<u8> {
    let mut random = Random::seeded(7);
    (0..length).map(|_| random.below(256) as u8).collect()
}

#[test]
fn bytes_in_pieces_of_any_size_make_the_same_connection() {
    let bytes = pattern(40_000);
    for version in VERSIONS {
        for size in [1, 2, 3, 7, 100, 5000] {
            let (mut client, mut server) = sides(version, size);
            let answer = server.feed(&client.encrypt(&bytes), size).unwrap();
            assert!(answer.is_empty());
            assert!(server.plain == bytes, "{version:?} {size}");
            let echo = server.encrypt(&server.plain.clone());
            client.feed(&echo, size).unwrap();
            assert!(client.plain == bytes, "{version:?} {size}");
            let mut end = Vec::new();
            session::close(&mut client.end, &mut client.incoming, &mut end).unwrap();
            assert!(!server.ended);
            server.feed(&end, size).unwrap();
            assert!(server.ended && server.incoming.is_empty());
            // The other direction goes on.
            let last = server.encrypt(b"last");
            client.feed(&last, size).unwrap();
            assert!(client.plain.ends_with(b"last"));
        }
    }
}

#[test]
fn new_keys_change_nothing_for_who_reads() {
    for size in [1, 5000] {
        let (mut client, mut server) = sides(Tls13, size);
        for round in 0..20_u8 {
            let (asks, answers) = if round % 2 == 0 {
                (&mut client, &mut server)
            } else {
                (&mut server, &mut client)
            };
            let update = asks.update_keys();
            assert!(!update.is_empty());
            let mut bytes = answers.feed(&update, size).unwrap();
            bytes.extend(answers.encrypt(&[round; 100]));
            asks.plain.clear();
            asks.feed(&bytes, size).unwrap();
            assert_eq!(asks.plain, [round; 100]);
            let back = asks.encrypt(b"back");
            answers.plain.clear();
            answers.feed(&back, size).unwrap();
            assert_eq!(answers.plain, b"back");
        }
    }
}

/// Changes `bytes` in one to four places: other bytes, cut out, doubled.
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
fn a_changed_client_hello_neither_panics_nor_brings_a_byte() {
    let tls = server();
    let mut random = Random::seeded(4711);
    for version in VERSIONS {
        for round in 0..2_000 {
            let mut hello = Side::client(version).feed(&[], 1).unwrap();
            mutate(&mut hello, &mut random);
            let mut server = Side::server(&tls);
            let size = [1, 60, 5000][round % 3];
            let _ = server.feed(&hello, size);
            assert!(
                server.plain.is_empty() && server.end.is_handshaking(),
                "round {round}"
            );
        }
    }
}

#[test]
fn a_changed_flight_of_the_handshake_neither_panics_nor_brings_a_byte() {
    let tls = server();
    let mut random = Random::seeded(815);
    for version in VERSIONS {
        for round in 0..500 {
            let (mut client, mut server) = (Side::client(version), Side::server(&tls));
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
                server.plain.is_empty() && client.plain.is_empty(),
                "round {round}"
            );
        }
    }
}

#[test]
fn of_changed_records_nothing_is_passed_on_but_what_came_before() {
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
            assert!(secret.starts_with(&server.plain), "round {round}");
            if result.is_ok() {
                // Cut short, or doubled at the end in a way that looks like the beginning of more.
                assert!(records != whole || server.plain == secret);
            }
        }
    }
}

#[tokio::test]
async fn a_session_that_failed_can_be_written_to_and_closed_without_harm() {
    for version in VERSIONS {
        let (client, server) = connected(version).await;
        let socket = client.tls().unwrap().socket();
        // A record that begins well, then one that is none.
        socket.try_write(&[23, 3, 3, 0, 30]).unwrap();
        socket.try_write(&[7; 64]).unwrap();
        readable(&server).await;
        let error = loop {
            match server.try_read(&mut [0; 100]) {
                Ok(count) => panic!("{count} bytes"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => readable(&server).await,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(server.try_read(&mut [0; 100]).is_err(), "it stays failed");
        assert_eq!(
            server.try_write(b"x").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        assert!(!server.is_idle_and_open());
        server.shutdown_write().unwrap();
        // The peer learns of it.
        readable(&client).await;
        assert_eq!(
            client.try_read(&mut [0; 100]).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}

async fn readable(stream: &Stream) {
    poll_fn(|cx| stream.poll_read_ready(cx)).await.unwrap();
}

fn small_buffers(stream: &Stream) {
    let socket = match stream.tls().map(TlsStream::socket) {
        Some(Stream::Tcp(socket)) => socket2::SockRef::from(socket),
        _ => panic!("a stream over TCP"),
    };
    socket.set_send_buffer_size(16 << 10).unwrap();
}

/// Writes `bytes` and ends, and reads to the end at the same time.
async fn exchange(stream: Stream, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let (mut from, mut to) = split(stream);
    let mut read = Vec::new();
    let (wrote, got) = tokio::join!(
        async {
            to.write_all(bytes).await?;
            to.shutdown().await
        },
        from.read_to_end(&mut read)
    );
    wrote?;
    got?;
    Ok(read)
}

#[tokio::test]
async fn large_transfers_pass_small_socket_buffers_both_ways_and_end_in_order() {
    let (up, down) = (pattern(600 << 10), pattern(400 << 10));
    for version in VERSIONS {
        let (client, server) = connected(version).await;
        small_buffers(&client);
        small_buffers(&server);
        let (at_client, at_server) = tokio::join!(exchange(client, &up), exchange(server, &down));
        assert!(
            at_client.unwrap() == down && at_server.unwrap() == up,
            "{version:?}"
        );
    }
}

#[tokio::test]
async fn a_relay_between_two_tls_connections_passes_all_bytes_and_both_ends() {
    let (up, down) = (pattern(400 << 10), pattern(600 << 10));
    let (count_in, count_out) = (MetricCell::default(), MetricCell::default());
    let meter = RelayMeter {
        received: &count_in,
        sent: &count_out,
    };
    let ((client, front), (back, backend)) = (connected(Tls13).await, connected(Tls12).await);
    for stream in [&client, &front, &back, &backend] {
        small_buffers(stream);
    }
    let relayed = async {
        let end = relay(&front, &back, None, meter).await;
        drop((front, back));
        end
    };
    let (end, at_client, at_backend) =
        tokio::join!(relayed, exchange(client, &up), exchange(backend, &down));
    assert_eq!(end.end, Ok(()));
    assert!(at_client.unwrap() == down && at_backend.unwrap() == up);
}

#[tokio::test]
async fn a_cut_is_no_end_and_a_relay_passes_it_on_as_a_cut() {
    let (count_in, count_out) = (MetricCell::default(), MetricCell::default());
    let meter = RelayMeter {
        received: &count_in,
        sent: &count_out,
    };
    let ((client, front), (back, mut backend)) = (connected(Tls13).await, connected(Tls13).await);
    backend.write_all(b"half").await.unwrap();
    let Stream::Tls(cut) = backend else {
        panic!("TLS")
    };
    // A FIN without the end of TLS.
    cut.socket().shutdown_write().unwrap();
    let end = relay(&front, &back, None, meter).await;
    assert_eq!(
        end.end,
        Err(RelayError::Backend(io::ErrorKind::UnexpectedEof))
    );
    drop((front, back));
    let mut client = client;
    let mut read = Vec::new();
    let error = client.read_to_end(&mut read).await.unwrap_err();
    assert_ne!(error.kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn an_orderly_end_is_zero_bytes_and_a_cut_is_an_error() {
    for version in VERSIONS {
        for in_order in [true, false] {
            let (mut client, mut server) = connected(version).await;
            client.write_all(b"bytes").await.unwrap();
            if in_order {
                client.shutdown_write().unwrap();
            } else {
                client.tls().unwrap().socket().shutdown_write().unwrap();
            }
            let mut read = Vec::new();
            let result = server.read_to_end(&mut read).await;
            assert_eq!(read, b"bytes");
            match result {
                Ok(_) => assert!(in_order),
                Err(error) => {
                    assert!(!in_order);
                    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
                }
            }
            // Our direction is not ended by it.
            server.write_all(b"answer").await.unwrap();
            server.shutdown_write().unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"answer");
        }
    }
}

#[tokio::test]
async fn the_last_bytes_and_the_end_are_one_also_where_they_do_not_fit() {
    let bytes = pattern(600 << 10);
    let (client, server) = connected(Tls13).await;
    small_buffers(&client);
    let write = async {
        let mut left = &bytes[..];
        while !left.is_empty() {
            match client.try_write_last(left) {
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll_fn(|cx| client.poll_write_ready(cx)).await.unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(
            client.try_write(b"more").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    };
    let mut server = server;
    let mut read = Vec::new();
    let ((), got) = tokio::join!(write, server.read_to_end(&mut read));
    got.unwrap();
    assert!(read == bytes);
}

#[tokio::test]
async fn a_session_is_taken_up_again_in_both_versions() {
    let server = server();
    for version in VERSIONS {
        let config = Arc::new(client(version));
        for round in 0..3 {
            let (ours, theirs) = shake(&config, &server, name("a.test")).await;
            let (mut ours, mut theirs): (Stream, Stream) =
                (ours.unwrap().into(), theirs.unwrap().into());
            // Tickets go out with the first bytes.
            theirs.write_all(b"x").await.unwrap();
            ours.read_exact(&mut [0]).await.unwrap();
            let agreed = theirs.tls().unwrap().negotiated();
            assert_eq!(agreed.resumed, round > 0, "{version:?} {round}");
            assert_eq!(agreed.is_13, version == Tls13);
            assert_eq!(agreed.server_name.as_deref(), Some("a.test"));
        }
        // Another server has other keys.
        let (_, theirs) = shake(&config, &self::server(), name("a.test")).await;
        assert!(!theirs.is_ok_and(|theirs| theirs.negotiated().resumed));
    }
}

#[tokio::test]
async fn tickets_on_an_idle_connection_leave_it_quiet() {
    let (client, server) = connected(Tls13).await;
    assert!(client.is_idle_and_open() && server.is_idle_and_open());
    let Stream::Tls(tls) = &server else {
        panic!("TLS")
    };
    tls.session.borrow_mut().flush(tls.socket()).unwrap();
    readable(&client).await;
    assert!(client.is_idle_and_open());
    assert!(
        client.tls().unwrap().session.borrow().barren > 0,
        "the tickets were seen"
    );
    assert!(client.has_no_pending_input());
    server.try_write(b"x").unwrap();
    readable(&client).await;
    assert!(!client.is_idle_and_open(), "data that nobody asked for");
    let (client, server) = connected(Tls13).await;
    server.shutdown_write().unwrap();
    readable(&client).await;
    assert!(!client.is_idle_and_open(), "an orderly end");
    let (client, server) = connected(Tls13).await;
    drop(server);
    readable(&client).await;
    assert!(!client.is_idle_and_open(), "a cut");
}

#[tokio::test]
async fn an_idle_connection_holds_no_buffer_after_an_exchange() {
    for version in VERSIONS {
        let (mut client, mut server) = connected(version).await;
        let (request, answer) = (pattern(30_000), pattern(70_000));
        let mut read = vec![0; request.len()];
        let (sent, got) = tokio::join!(client.write_all(&request), server.read_exact(&mut read));
        sent.unwrap();
        got.unwrap();
        let mut read = vec![0; answer.len()];
        let (sent, got) = tokio::join!(server.write_all(&answer), client.read_exact(&mut read));
        sent.unwrap();
        got.unwrap();
        for stream in [&client, &server] {
            let session = stream.tls().unwrap().session.borrow();
            let held = [&session.incoming, &session.plain, &session.outgoing].map(Vec::capacity);
            assert_eq!(held, [0; 3], "{version:?}");
        }
    }
}

#[test]
fn a_connection_is_small() {
    // Beside it rustls keeps keys and, of a client, certificates on the heap.
    let size = size_of::<TlsStream>();
    assert!(size <= 2_048, "{size} bytes");
}

#[tokio::test]
async fn a_flood_of_records_without_data_ends_the_connection() {
    let mut many = server();
    many.send_tickets(310);
    let (client, theirs) = shake(&Arc::new(client(Tls13)), &many, name("a.test")).await;
    let (client, theirs): (Stream, TlsStream) = (client.unwrap().into(), theirs.unwrap());
    let flood = theirs.session.borrow().outgoing.len();
    assert!(flood > MAX_BARREN, "{flood} bytes");
    let error = loop {
        let _ = theirs.session.borrow_mut().flush(&theirs.socket);
        readable(&client).await;
        match client.try_read(&mut [0; 64]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => break error,
            Ok(count) => panic!("{count} bytes"),
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains("flood"), "{error}");
}

mod names {
    use super::*;

    async fn leaf(server: &ServerTls, asked: &str) -> (Vec<u8>, NegotiatedTls) {
        let config = careless_client();
        let (ours, theirs) = shake(&Arc::new(config), server, name(asked)).await;
        let ours = ours.unwrap();
        let leaf = ours
            .session
            .borrow()
            .end
            .peer_certificate()
            .unwrap()
            .to_vec();
        (leaf, theirs.unwrap().negotiated().clone())
    }

    #[tokio::test]
    async fn a_certificate_is_found_by_exact_name_then_wildcard_then_the_first() {
        let certificates = vec![
            AUTHORITY.ecdsa(&["default.test"]),
            AUTHORITY.ecdsa(&["*.a.test", "a.test"]),
            AUTHORITY.ecdsa(&["exact.a.test"]),
        ];
        let shown: Vec<_> = certificates
            .iter()
            .map(|it| it.key.cert[0].to_vec())
            .collect();
        let server = ServerTls::new(&listener(certificates));
        for (asked, index) in [
            ("default.test", 0),
            ("a.test", 1),
            ("x.a.test", 1),
            ("X.A.test", 1),
            ("exact.a.test", 2),
            ("EXACT.a.test", 2),
            ("x.y.a.test", 0),
            ("other.test", 0),
            ("test", 0),
        ] {
            let (leaf, agreed) = leaf(&server, asked).await;
            assert!(leaf == shown[index], "{asked}");
            let lower = asked.to_ascii_lowercase();
            assert_eq!(agreed.server_name.as_deref(), Some(&*lower));
        }
        // An address is no name: no SNI.
        let (leaf, agreed) = leaf(&server, "127.0.0.1").await;
        assert!(leaf == shown[0]);
        assert_eq!(agreed.server_name, None);
    }

    #[test]
    fn a_host_may_come_where_its_own_certificate_was_shown() {
        let server = ServerTls::new(&listener(vec![
            AUTHORITY.ecdsa(&["a.test", "b.test"]),
            AUTHORITY.ecdsa(&["c.test", "*.d.test"]),
        ]));
        for (host, asked, may) in [
            ("a.test", Some("a.test"), true),
            ("A.test:8443", Some("a.test"), true),
            ("a.test.", Some("a.test"), true),
            ("b.test", Some("a.test"), true),
            ("c.test", Some("a.test"), false),
            ("x.d.test", Some("c.test"), true),
            ("x.d.test", Some("y.d.test"), true),
            ("x.d.test", Some("a.test"), false),
            // Names without a certificate have the default one.
            ("unknown.test", Some("a.test"), true),
            ("unknown.test", Some("c.test"), false),
            ("c.test", Some("unknown.test"), false),
            ("c.test", None, true),
            ("127.0.0.1", Some("a.test"), true),
        ] {
            assert_eq!(
                server.may_serve(host.as_bytes(), asked),
                may,
                "{host} {asked:?}"
            );
        }
    }

    #[tokio::test]
    async fn of_two_certificates_of_a_name_the_client_gets_the_one_it_can_verify() {
        let certificates = vec![
            AUTHORITY.ecdsa(&["a.test"]),
            AUTHORITY.rsa(&["a.test", "b.test"]),
        ];
        let shown: Vec<_> = certificates
            .iter()
            .map(|it| it.key.cert[0].clone())
            .collect();
        let server = ServerTls::new(&listener(certificates));
        for (is_rsa, version) in [(false, Tls12), (false, Tls13), (true, Tls12)] {
            let mut provider = (*crate::base::crypto::provider()).clone();
            provider
                .cipher_suites
                .retain(|suite| !is_rsa || format!("{:?}", suite.suite()).contains("RSA_WITH"));
            let versions = [match version {
                Tls12 => &rustls::version::TLS12,
                Tls13 => &rustls::version::TLS13,
            }];
            let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
                .with_protocol_versions(&versions)
                .unwrap()
                .with_root_certificates(AUTHORITY.roots())
                .with_no_client_auth();
            let (ours, theirs) = shake(&Arc::new(config), &server, name("a.test")).await;
            theirs.unwrap();
            let ours = ours.unwrap();
            let session = ours.session.borrow();
            assert!(session.end.peer_certificate() == Some(&shown[usize::from(is_rsa)]));
        }
    }

    #[tokio::test]
    async fn a_client_without_the_curve_of_a_certificate_gets_another_one() {
        let certificates = vec![AUTHORITY.ecdsa(&["a.test"]), AUTHORITY.rsa(&["a.test"])];
        let rsa = certificates[1].key.cert[0].clone();
        let both = ServerTls::new(&listener(certificates));
        let only = ServerTls::new(&listener(vec![AUTHORITY.ecdsa(&["a.test"])]));
        for (curve, version, gets_rsa) in [
            ("secp256r1", Tls12, false),
            ("X25519", Tls12, true),
            ("secp384r1", Tls12, true),
            // Here the groups are about key exchange alone.
            ("X25519", Tls13, false),
        ] {
            let mut provider = (*crate::base::crypto::provider()).clone();
            let is_wanted = |name| format!("{name:?}") == curve;
            provider.kx_groups.retain(|group| is_wanted(group.name()));
            let versions = [match version {
                Tls12 => &rustls::version::TLS12,
                Tls13 => &rustls::version::TLS13,
            }];
            let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
                .with_protocol_versions(&versions)
                .unwrap()
                .with_root_certificates(AUTHORITY.roots())
                .with_no_client_auth();
            let config = Arc::new(config);
            let (ours, theirs) = shake(&config, &both, name("a.test")).await;
            theirs.unwrap();
            let ours = ours.unwrap();
            let is_rsa = ours.session.borrow().end.peer_certificate() == Some(&rsa);
            assert_eq!(is_rsa, gets_rsa, "{curve} {version:?}");
            let (ours, _) = shake(&config, &only, name("a.test")).await;
            assert!(ours.is_ok(), "the only one is better than none");
        }
    }

    #[tokio::test]
    async fn handshakes_at_the_same_time_keep_their_names_apart() {
        let server = ServerTls::new(&listener(vec![
            AUTHORITY.ecdsa(&["a.test"]),
            AUTHORITY.ecdsa(&["b.test"]),
        ]));
        let config = Arc::new(client(Tls13));
        for _ in 0..10 {
            let (a, b) = tokio::join!(
                shake(&config, &server, name("a.test")),
                shake(&config, &server, name("b.test"))
            );
            let named = |tls: Result<TlsStream, HandshakeError>| {
                tls.unwrap().negotiated().server_name.clone()
            };
            assert_eq!(named(a.1).as_deref(), Some("a.test"));
            assert_eq!(named(b.1).as_deref(), Some("b.test"));
        }
    }
}

mod faults {
    use super::*;

    /// How the server names what a client that only sends `bytes`, and ends, did wrong.
    async fn fault_of(bytes: &[u8]) -> HandshakeError {
        let server = server();
        let (mut peer, stream) = pair().await;
        peer.write_all(bytes).await.unwrap();
        peer.shutdown().await.unwrap();
        accept(stream, &server).await.unwrap_err().1
    }

    /// A ClientHello of TLS 1.1 and nothing more.
    fn hello_11() -> Vec<u8> {
        let mut hello = vec![3, 2];
        hello.extend([7; 32]);
        hello.extend([0, 0, 4, 0xc0, 0x13, 0, 0x2f, 1, 0]);
        let mut bytes = vec![
            22,
            3,
            1,
            0,
            hello.len() as u8 + 4,
            1,
            0,
            0,
            hello.len() as u8,
        ];
        bytes.extend(hello);
        bytes
    }

    #[tokio::test]
    async fn what_is_no_handshake_is_told_apart() {
        let hello = Side::client(Tls13).feed(&[], 1).unwrap();
        let mut then_garbage = hello.clone();
        then_garbage.extend(b"GET / HTTP/1.1\r\n\r\n");
        let mut cut_in_garbage = hello[..30].to_vec();
        cut_in_garbage[3..5].copy_from_slice(&[0, 25]);
        cut_in_garbage.extend(b"GET / HTTP/1.1\r\n\r\n");
        let table: [(&str, &[u8], HandshakeFailure, bool); 10] = [
            ("nothing", b"", HandshakeFailure::Closed, false),
            (
                "half a hello",
                &hello[..100],
                HandshakeFailure::Closed,
                false,
            ),
            (
                "http",
                b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
                HandshakeFailure::NotTls,
                true,
            ),
            (
                "lower case",
                b"hello, server",
                HandshakeFailure::NotTls,
                false,
            ),
            ("zeros", &[0; 40], HandshakeFailure::NotTls, false),
            (
                "ssl 2",
                &[0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 16],
                HandshakeFailure::Version,
                false,
            ),
            ("tls 1.1", &hello_11(), HandshakeFailure::Version, false),
            (
                "garbage behind a hello",
                &then_garbage,
                HandshakeFailure::Protocol,
                false,
            ),
            (
                "garbage in a hello",
                &cut_in_garbage,
                HandshakeFailure::Protocol,
                false,
            ),
            (
                "data first",
                &[23, 3, 3, 0, 5, 1, 2, 3, 4, 5],
                HandshakeFailure::Protocol,
                false,
            ),
        ];
        for (what, bytes, fault, is_http) in table {
            let failed = fault_of(bytes).await;
            assert_eq!(
                (failed.fault, failed.is_http),
                (fault, is_http),
                "{what}: {}",
                failed.detail
            );
        }
    }

    #[tokio::test]
    async fn faults_of_real_clients_have_their_cause() {
        let certificate = || vec![AUTHORITY.ecdsa(&["a.test"])];
        let plain = ServerTls::new(&listener(certificate()));
        let mut rules = listener(certificate());
        rules.min_version = Tls13;
        let only_13 = ServerTls::new(&rules);
        let mut rules = listener(certificate());
        rules.client_ca = Some(AUTHORITY.of_clients(true));
        let with_clients = ServerTls::new(&rules);

        let (_, theirs) = shake(&Arc::new(client(Tls12)), &only_13, name("a.test")).await;
        assert_eq!(theirs.unwrap_err().fault, HandshakeFailure::Version);

        let mut config = client(Tls13);
        config.alpn_protocols = vec![b"h9".to_vec()];
        let (ours, theirs) = shake(&Arc::new(config), &plain, name("a.test")).await;
        assert_eq!(theirs.unwrap_err().fault, HandshakeFailure::Alpn);
        assert_eq!(ours.unwrap_err().fault, HandshakeFailure::Alpn);

        let (_, theirs) = shake(&Arc::new(client(Tls13)), &with_clients, name("a.test")).await;
        assert_eq!(
            theirs.unwrap_err().fault,
            HandshakeFailure::CertificateMissing
        );

        let stranger = Authority::new("stranger").ecdsa(&["client"]);
        let resolver = rustls::sign::SingleCertAndKey::from(Arc::clone(&stranger.key));
        let mut config = client(Tls13);
        config.client_auth_cert_resolver = Arc::new(resolver);
        let (_, theirs) = shake(&Arc::new(config), &with_clients, name("a.test")).await;
        assert_eq!(
            theirs.unwrap_err().fault,
            HandshakeFailure::CertificateInvalid
        );

        // The client does not believe us.
        let foreign = ServerTls::new(&listener(vec![Authority::new("other").ecdsa(&["a.test"])]));
        let (ours, theirs) = shake(&Arc::new(client(Tls13)), &foreign, name("a.test")).await;
        assert_eq!(
            ours.unwrap_err().fault,
            HandshakeFailure::CertificateInvalid
        );
        assert_eq!(theirs.unwrap_err().fault, HandshakeFailure::Alert);
        let (ours, _) = shake(&Arc::new(client(Tls13)), &plain, name("b.test")).await;
        assert_eq!(
            ours.unwrap_err().fault,
            HandshakeFailure::CertificateInvalid
        );

        let mut provider = (*crate::base::crypto::provider()).clone();
        provider
            .cipher_suites
            .retain(|suite| format!("{:?}", suite.suite()).contains("ECDHE_RSA"));
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(AUTHORITY.roots())
            .with_no_client_auth();
        let (_, theirs) = shake(&Arc::new(config), &plain, name("a.test")).await;
        assert_eq!(theirs.unwrap_err().fault, HandshakeFailure::Cipher);
    }

    #[tokio::test]
    async fn a_client_is_known_by_the_subject_of_its_certificate() {
        let mut rules = listener(vec![AUTHORITY.ecdsa(&["a.test"])]);
        rules.client_ca = Some(AUTHORITY.of_clients(false));
        let server = ServerTls::new(&rules);
        for version in VERSIONS {
            let (_, theirs) = shake(&Arc::new(client(version)), &server, name("a.test")).await;
            assert_eq!(theirs.unwrap().negotiated().client_subject, None);
            let mut config = client(version);
            let own = AUTHORITY.ecdsa(&["client"]);
            let resolver = rustls::sign::SingleCertAndKey::from(Arc::clone(&own.key));
            config.client_auth_cert_resolver = Arc::new(resolver);
            let config = Arc::new(config);
            for resumed in [false, true] {
                let (ours, theirs) = shake(&config, &server, name("a.test")).await;
                let mut theirs: Stream = theirs.unwrap().into();
                let agreed = theirs.tls().unwrap().negotiated().clone();
                assert_eq!(
                    agreed.client_subject.as_deref(),
                    Some("CN=subject of a test")
                );
                assert_eq!(agreed.resumed, resumed);
                theirs.write_all(b"x").await.unwrap();
                let mut ours: Stream = ours.unwrap().into();
                ours.read_exact(&mut [0]).await.unwrap();
            }
        }
    }

    #[test]
    fn every_fault_stands_at_its_own_place_in_the_list() {
        for (index, (fault, _)) in FAULTS.iter().enumerate() {
            assert_eq!(*fault as usize, index);
        }
    }
}
