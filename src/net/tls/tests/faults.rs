//! Failed handshakes and their causes, and what a client certificate is known by.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{VERSIONS, records::SocketlessPeer};
use crate::{
    config::model::TlsVersion::{Tls12, Tls13},
    net::{
        fixture::pair,
        stream::Stream,
        tls::{
            HandshakeError, ServerTls, accept,
            fixture::{
                TEST_AUTHORITY, TestAuthority, client, handshake_pair, listener, name, server,
            },
        },
    },
    telemetry::handshakes::HandshakeFailure,
};

/// Returns the server's error for a client that sends only `bytes`, and ends.
async fn error_of(bytes: &[u8]) -> HandshakeError {
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
async fn bytes_that_are_no_handshake_fail_by_what_they_are() {
    use HandshakeFailure::{Closed, NotTls, Protocol, Version};

    let hello = SocketlessPeer::client(Tls13).feed(&[], 1).unwrap();
    let mut then_garbage = hello.clone();
    then_garbage.extend(b"GET / HTTP/1.1\r\n\r\n");
    let mut cut_in_garbage = hello[..30].to_vec();
    cut_in_garbage[3..5].copy_from_slice(&[0, 25]);
    cut_in_garbage.extend(b"GET / HTTP/1.1\r\n\r\n");
    let http = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let ssl_2 = [0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 16];
    let data = [23, 3, 3, 0, 5, 1, 2, 3, 4, 5];
    let table: [(&str, &[u8], HandshakeFailure, bool); 10] = [
        ("nothing", b"", Closed, false),
        ("half a hello", &hello[..100], Closed, false),
        ("http", http, NotTls, true),
        ("lower case", b"hello, server", NotTls, false),
        ("zeros", &[0; 40], NotTls, false),
        ("ssl 2", &ssl_2, Version, false),
        ("tls 1.1", &hello_11(), Version, false),
        ("garbage behind a hello", &then_garbage, Protocol, false),
        ("garbage in a hello", &cut_in_garbage, Protocol, false),
        ("data first", &data, Protocol, false),
    ];
    for (what, bytes, fault, is_http) in table {
        let failed = error_of(bytes).await;
        assert_eq!(
            (failed.failure, failed.is_http),
            (fault, is_http),
            "{what}: {}",
            failed.detail
        );
    }
}

#[tokio::test]
async fn peers_with_nothing_in_common_fail_by_what_is_missing() {
    let certificate = || vec![TEST_AUTHORITY.ecdsa(&["a.test"])];
    let plain = ServerTls::new(&listener(certificate()));
    let mut rules = listener(certificate());
    rules.min_version = Tls13;
    let only_13 = ServerTls::new(&rules);
    let (_, theirs) = handshake_pair(&Arc::new(client(Tls12)), &only_13, name("a.test")).await;
    assert_eq!(theirs.unwrap_err().failure, HandshakeFailure::Version);

    let mut config = client(Tls13);
    config.alpn_protocols = vec![b"h9".to_vec()];
    let (ours, theirs) = handshake_pair(&Arc::new(config), &plain, name("a.test")).await;
    assert_eq!(theirs.unwrap_err().failure, HandshakeFailure::Alpn);
    assert_eq!(ours.unwrap_err().failure, HandshakeFailure::Alpn);

    let mut provider = (*crate::base::crypto::provider()).clone();
    provider
        .cipher_suites
        .retain(|suite| format!("{:?}", suite.suite()).contains("ECDHE_RSA"));
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(TEST_AUTHORITY.roots())
        .with_no_client_auth();
    let (_, theirs) = handshake_pair(&Arc::new(config), &plain, name("a.test")).await;
    assert_eq!(theirs.unwrap_err().failure, HandshakeFailure::Cipher);
}

#[tokio::test]
async fn a_certificate_that_is_missing_or_not_trusted_fails_by_that() {
    let certificate = || vec![TEST_AUTHORITY.ecdsa(&["a.test"])];
    let plain = ServerTls::new(&listener(certificate()));
    let mut rules = listener(certificate());
    rules.client_ca = Some(TEST_AUTHORITY.of_clients(true));
    let with_clients = ServerTls::new(&rules);

    let (_, theirs) = handshake_pair(&Arc::new(client(Tls13)), &with_clients, name("a.test")).await;
    assert_eq!(
        theirs.unwrap_err().failure,
        HandshakeFailure::CertificateMissing
    );

    let stranger = TestAuthority::new("stranger").ecdsa(&["client"]);
    let resolver = rustls::sign::SingleCertAndKey::from(Arc::clone(&stranger.key));
    let mut config = client(Tls13);
    config.client_auth_cert_resolver = Arc::new(resolver);
    let (_, theirs) = handshake_pair(&Arc::new(config), &with_clients, name("a.test")).await;
    assert_eq!(
        theirs.unwrap_err().failure,
        HandshakeFailure::CertificateInvalid
    );

    // The client does not trust our certificate.
    let foreign = ServerTls::new(&listener(vec![
        TestAuthority::new("other").ecdsa(&["a.test"]),
    ]));
    let (ours, theirs) = handshake_pair(&Arc::new(client(Tls13)), &foreign, name("a.test")).await;
    assert_eq!(
        ours.unwrap_err().failure,
        HandshakeFailure::CertificateInvalid
    );
    assert_eq!(theirs.unwrap_err().failure, HandshakeFailure::Alert);
    let (ours, _) = handshake_pair(&Arc::new(client(Tls13)), &plain, name("b.test")).await;
    assert_eq!(
        ours.unwrap_err().failure,
        HandshakeFailure::CertificateInvalid
    );
}

#[tokio::test]
async fn a_client_is_known_by_the_subject_of_its_certificate() {
    let mut rules = listener(vec![TEST_AUTHORITY.ecdsa(&["a.test"])]);
    rules.client_ca = Some(TEST_AUTHORITY.of_clients(false));
    let server = ServerTls::new(&rules);
    for version in VERSIONS {
        let (_, theirs) = handshake_pair(&Arc::new(client(version)), &server, name("a.test")).await;
        assert_eq!(theirs.unwrap().negotiated().client_subject, None);
        let mut config = client(version);
        let own = TEST_AUTHORITY.ecdsa(&["client"]);
        let resolver = rustls::sign::SingleCertAndKey::from(Arc::clone(&own.key));
        config.client_auth_cert_resolver = Arc::new(resolver);
        let config = Arc::new(config);
        for resumed in [false, true] {
            let (ours, theirs) = handshake_pair(&config, &server, name("a.test")).await;
            let mut theirs: Stream = theirs.unwrap().into();
            let negotiated = theirs.tls().unwrap().negotiated().clone();
            assert_eq!(
                negotiated.client_subject.as_deref(),
                Some("CN=subject of a test")
            );
            assert_eq!(negotiated.resumed, resumed);
            theirs.write_all(b"x").await.unwrap();
            let mut ours: Stream = ours.unwrap().into();
            ours.read_exact(&mut [0]).await.unwrap();
        }
    }
}
