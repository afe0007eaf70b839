//! Certificates, and both sides of TLS made from them, for the tests of this module and of
//! those above.

use std::sync::{Arc, LazyLock};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_RSA_SHA256};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::WebPkiClientVerifier,
    sign::CertifiedKey,
};

use super::{HandshakeError, TlsStream, accept, handshake};
use crate::{
    base::crypto::provider,
    config::model::{ClientCaConfig, ListenerTlsConfig, LoadedCertificate, TlsVersion},
    net::{fixture::pair, stream::Stream, tls::ServerTls},
};

/// A key, as RSA keys take seconds to generate.
const RSA_KEY: &str = include_str!("../../../tests/fixtures/rsa.pem");

pub(super) struct TestAuthority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) root: CertificateDer<'static>,
}

impl TestAuthority {
    pub(super) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(params, key);
        Self { issuer, root }
    }

    fn sign(&self, names: &[&str], key: &KeyPair) -> LoadedCertificate {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names.clone()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "subject of a test");
        let chain = vec![params.signed_by(key, &self.issuer).unwrap().der().clone()];
        let secret = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        LoadedCertificate {
            file: String::new(),
            key: Arc::new(CertifiedKey::from_der(chain, secret, &provider()).unwrap()),
            names,
            not_before: std::time::Duration::ZERO,
            not_after: std::time::Duration::MAX,
        }
    }

    /// Signs a certificate with an ECDSA key.
    pub(super) fn ecdsa(&self, names: &[&str]) -> LoadedCertificate {
        self.sign(names, &KeyPair::generate().unwrap())
    }

    /// Signs a certificate with an RSA key.
    pub(super) fn rsa(&self, names: &[&str]) -> LoadedCertificate {
        let key = KeyPair::from_pem_and_sign_algo(RSA_KEY, &PKCS_RSA_SHA256).unwrap();
        self.sign(names, &key)
    }

    pub(super) fn roots(&self) -> Arc<RootCertStore> {
        let mut store = RootCertStore::empty();
        store.add(self.root.clone()).unwrap();
        Arc::new(store)
    }

    pub(super) fn of_clients(&self, required: bool) -> ClientCaConfig {
        let builder = WebPkiClientVerifier::builder_with_provider(self.roots(), provider());
        let builder = if required {
            builder
        } else {
            builder.allow_unauthenticated()
        };
        ClientCaConfig {
            roots: vec![self.root.clone()],
            required,
            verifier: builder.build().unwrap(),
        }
    }
}

/// Issuer of every certificate that is trusted here.
pub(super) static TEST_AUTHORITY: LazyLock<TestAuthority> =
    LazyLock::new(|| TestAuthority::new("authority"));

pub(super) fn listener(certificates: Vec<LoadedCertificate>) -> ListenerTlsConfig {
    ListenerTlsConfig {
        certificates,
        min_version: TlsVersion::Tls12,
        alpn: vec!["http/1.1".to_owned()],
        client_ca: None,
        client_subject: None,
        same_host: true,
    }
}

/// A server for `a.test`.
pub(super) fn server() -> ServerTls {
    ServerTls::new(&listener(vec![TEST_AUTHORITY.ecdsa(&["a.test"])]))
}

pub(super) fn name(name: &str) -> ServerName<'static> {
    ServerName::try_from(name.to_owned()).unwrap()
}

/// A client that believes [`TEST_AUTHORITY`] and speaks one version.
pub(super) fn client(version: TlsVersion) -> ClientConfig {
    let versions = [match version {
        TlsVersion::Tls12 => &rustls::version::TLS12,
        TlsVersion::Tls13 => &rustls::version::TLS13,
    }];
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&versions)
        .unwrap()
        .with_root_certificates(TEST_AUTHORITY.roots())
        .with_no_client_auth()
}

/// Both ends of a handshake over 127.0.0.1: the client's, and the server's.
pub(super) async fn handshake_pair(
    config: &Arc<ClientConfig>,
    server: &ServerTls,
    name: ServerName<'static>,
) -> (
    Result<TlsStream, HandshakeError>,
    Result<TlsStream, HandshakeError>,
) {
    let (peer, stream) = pair().await;
    let (client, server) = tokio::join!(handshake::connect(peer.into(), config, name), async {
        accept(stream, server).await.map_err(|(_, failed)| failed)
    });
    (client, server)
}

/// Both ends of an established connection: the client's, and the server's.
pub(crate) async fn connected(version: TlsVersion) -> (Stream, Stream) {
    let (client, server) =
        handshake_pair(&Arc::new(client(version)), &server(), name("a.test")).await;
    (client.unwrap().into(), server.unwrap().into())
}

/// Takes any certificate: for clients that only look at which one is shown.
#[derive(Debug)]
struct AcceptAnyCertificate;

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A client that takes any certificate.
pub(super) fn careless_client() -> ClientConfig {
    let mut config = client(TlsVersion::Tls13);
    config
        .dangerous()
        .set_certificate_verifier(Arc::new(AcceptAnyCertificate));
    config
}
