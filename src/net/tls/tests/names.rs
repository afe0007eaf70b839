//! Certificates by name: each client gets the one for its name that it can verify.

use std::sync::Arc;

use crate::{
    config::model::TlsVersion::{Tls12, Tls13},
    net::tls::{
        HandshakeError, NegotiatedTls, ServerTls, TlsStream,
        fixture::{TEST_AUTHORITY, careless_client, client, handshake_pair, listener, name},
    },
};

async fn leaf(server: &ServerTls, asked: &str) -> (Vec<u8>, NegotiatedTls) {
    let config = careless_client();
    let (ours, theirs) = handshake_pair(&Arc::new(config), server, name(asked)).await;
    let ours = ours.unwrap();
    let leaf = ours
        .session
        .borrow()
        .connection
        .peer_certificate()
        .unwrap()
        .to_vec();
    (leaf, theirs.unwrap().negotiated().clone())
}

#[tokio::test]
async fn a_certificate_is_found_by_exact_name_then_wildcard_then_the_first() {
    let certificates = vec![
        TEST_AUTHORITY.ecdsa(&["default.test"]),
        TEST_AUTHORITY.ecdsa(&["*.a.test", "a.test"]),
        TEST_AUTHORITY.ecdsa(&["exact.a.test"]),
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
        let (leaf, negotiated) = leaf(&server, asked).await;
        assert!(leaf == shown[index], "{asked}");
        let lower = asked.to_ascii_lowercase();
        assert_eq!(negotiated.server_name.as_deref(), Some(&*lower));
    }
    // An address is no name: no SNI.
    let (leaf, negotiated) = leaf(&server, "127.0.0.1").await;
    assert!(leaf == shown[0]);
    assert_eq!(negotiated.server_name, None);
}

#[test]
fn a_host_may_come_where_its_own_certificate_was_shown() {
    let server = ServerTls::new(&listener(vec![
        TEST_AUTHORITY.ecdsa(&["a.test", "b.test"]),
        TEST_AUTHORITY.ecdsa(&["c.test", "*.d.test"]),
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
        TEST_AUTHORITY.ecdsa(&["a.test"]),
        TEST_AUTHORITY.rsa(&["a.test", "b.test"]),
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
            .with_root_certificates(TEST_AUTHORITY.roots())
            .with_no_client_auth();
        let (ours, theirs) = handshake_pair(&Arc::new(config), &server, name("a.test")).await;
        theirs.unwrap();
        let ours = ours.unwrap();
        let session = ours.session.borrow();
        assert!(session.connection.peer_certificate() == Some(&shown[usize::from(is_rsa)]));
    }
}

#[tokio::test]
async fn a_client_without_the_curve_of_a_certificate_gets_another_one() {
    let certificates = vec![
        TEST_AUTHORITY.ecdsa(&["a.test"]),
        TEST_AUTHORITY.rsa(&["a.test"]),
    ];
    let rsa = certificates[1].key.cert[0].clone();
    let both = ServerTls::new(&listener(certificates));
    let only = ServerTls::new(&listener(vec![TEST_AUTHORITY.ecdsa(&["a.test"])]));
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
            .with_root_certificates(TEST_AUTHORITY.roots())
            .with_no_client_auth();
        let config = Arc::new(config);
        let (ours, theirs) = handshake_pair(&config, &both, name("a.test")).await;
        theirs.unwrap();
        let ours = ours.unwrap();
        let is_rsa = ours.session.borrow().connection.peer_certificate() == Some(&rsa);
        assert_eq!(is_rsa, gets_rsa, "{curve} {version:?}");
        let (ours, _) = handshake_pair(&config, &only, name("a.test")).await;
        assert!(ours.is_ok(), "the only one is better than none");
    }
}

#[tokio::test]
async fn handshakes_at_the_same_time_keep_their_names_apart() {
    let server = ServerTls::new(&listener(vec![
        TEST_AUTHORITY.ecdsa(&["a.test"]),
        TEST_AUTHORITY.ecdsa(&["b.test"]),
    ]));
    let config = Arc::new(client(Tls13));
    for _ in 0..10 {
        let (a, b) = tokio::join!(
            handshake_pair(&config, &server, name("a.test")),
            handshake_pair(&config, &server, name("b.test"))
        );
        let named =
            |tls: Result<TlsStream, HandshakeError>| tls.unwrap().negotiated().server_name.clone();
        assert_eq!(named(a.1).as_deref(), Some("a.test"));
        assert_eq!(named(b.1).as_deref(), Some("b.test"));
    }
}
