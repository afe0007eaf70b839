//! Sessions over sockets: transfers, ends, resumption, buffers. Each test is a promise of this
//! module.

mod faults;
mod names;
mod records;

use std::{future::poll_fn, io, sync::Arc};

use tokio::io::{AsyncReadExt, AsyncWriteExt, split};

use super::{
    TlsStream,
    fixture::{client, connected, handshake_pair, name, server},
    session::MAX_BYTES_WITHOUT_PLAINTEXT,
};
use crate::{
    base::rng::Random,
    config::model::TlsVersion::{self, Tls12, Tls13},
    net::{
        copy::{RelayError, RelayMeter, relay},
        stream::Stream,
    },
    telemetry::metrics::MetricCell,
};

const VERSIONS: [TlsVersion; 2] = [Tls12, Tls13];

fn pattern(length: usize) -> Vec<u8> {
    let mut random = Random::seeded(7);
    (0..length).map(|_| random.below(256) as u8).collect()
}

#[tokio::test]
async fn a_session_that_failed_can_be_written_to_and_closed_without_harm() {
    for version in VERSIONS {
        let (client, server) = connected(version).await;
        let socket = client.tls().unwrap().socket();
        // A valid record header, and a record that is not encrypted.
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
        // The peer gets an alert.
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
    // A FIN without `close_notify`.
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
async fn the_last_bytes_and_the_end_go_together_even_if_they_do_not_fit_at_once() {
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
async fn a_session_is_resumed_in_both_versions() {
    let server = server();
    for version in VERSIONS {
        let config = Arc::new(client(version));
        for round in 0..3 {
            let (ours, theirs) = handshake_pair(&config, &server, name("a.test")).await;
            let (mut ours, mut theirs): (Stream, Stream) =
                (ours.unwrap().into(), theirs.unwrap().into());
            // Tickets go out with the first bytes.
            theirs.write_all(b"x").await.unwrap();
            ours.read_exact(&mut [0]).await.unwrap();
            let negotiated = theirs.tls().unwrap().negotiated();
            assert_eq!(negotiated.resumed, round > 0, "{version:?} {round}");
            assert_eq!(negotiated.is_13, version == Tls13);
            assert_eq!(negotiated.server_name.as_deref(), Some("a.test"));
        }
        // Another server has other keys.
        let (_, theirs) = handshake_pair(&config, &self::server(), name("a.test")).await;
        assert!(!theirs.is_ok_and(|theirs| theirs.negotiated().resumed));
    }
}

#[tokio::test]
async fn tickets_leave_an_idle_connection_usable() {
    let (client, server) = connected(Tls13).await;
    assert!(client.is_idle_and_open() && server.is_idle_and_open());
    let Stream::Tls(tls) = &server else {
        panic!("TLS")
    };
    tls.session.borrow_mut().flush(tls.socket()).unwrap();
    readable(&client).await;
    assert!(client.is_idle_and_open());
    assert!(
        client
            .tls()
            .unwrap()
            .session
            .borrow()
            .bytes_without_plaintext
            > 0,
        "the tickets were seen"
    );
    assert!(client.has_no_pending_input());
    server.try_write(b"x").unwrap();
    readable(&client).await;
    assert!(!client.is_idle_and_open(), "unsolicited data");
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
            let held =
                [&session.incoming, &session.plaintext, &session.outgoing].map(Vec::capacity);
            assert_eq!(held, [0; 3], "{version:?}");
        }
    }
}

#[test]
fn a_connection_is_small() {
    // On the heap rustls keeps keys and, for a client, certificates.
    let size = size_of::<TlsStream>();
    assert!(size <= 2_048, "{size} bytes");
}

#[tokio::test]
async fn a_flood_of_records_without_data_ends_the_connection() {
    let mut many = server();
    many.send_tickets(310);
    let (client, theirs) = handshake_pair(&Arc::new(client(Tls13)), &many, name("a.test")).await;
    let (client, theirs): (Stream, TlsStream) = (client.unwrap().into(), theirs.unwrap());
    let flood = theirs.session.borrow().outgoing.len();
    assert!(flood > MAX_BYTES_WITHOUT_PLAINTEXT, "{flood} bytes");
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
