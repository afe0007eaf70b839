//! TLS for the black-box tests: certificates made on the spot, a raw client, a scripted backend.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::Arc,
    thread,
};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
};

use super::{PATIENCE, TempDir, client::HttpClient};

/// A client connection under TLS.
pub type ClientTlsStream = StreamOwned<ClientConnection, TcpStream>;

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn params(
    subject: &str,
    names: &[&str],
    change: impl FnOnce(&mut CertificateParams),
) -> CertificateParams {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    change(&mut params);
    params
}

/// An authority, and a directory with the files it has signed.
pub struct TestAuthority {
    issuer: Issuer<'static, KeyPair>,
    directory: TempDir,
    /// Its own certificate.
    pub root: CertificateDer<'static>,
}

impl TestAuthority {
    /// A new one; `ca.pem` is in its directory.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "authority of a test");
        // Clients that read RFC 5280 strictly want this, and the key's name in what it signs.
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let own = params.self_signed(&key).unwrap();
        let directory = TempDir::new();
        fs::write(directory.path().join("ca.pem"), own.pem()).unwrap();
        Self {
            root: own.der().clone(),
            issuer: Issuer::new(params, key),
            directory,
        }
    }

    /// Path of a file in its directory.
    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    /// Writes `FILE.pem`, certificate and key in one, for `names`; gives the certificate.
    pub fn sign(&self, file: &str, names: &[&str]) -> CertificateDer<'static> {
        self.sign_as(file, names, |_| ())
    }

    /// The same with something changed.
    pub fn sign_as(
        &self,
        file: &str,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let mut params = params(file, names, change);
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        self.keep(file, &params.signed_by(&key, &self.issuer).unwrap(), &key)
    }

    /// The same, signed by itself.
    pub fn self_sign_as(
        &self,
        file: &str,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let params = params(file, names, change);
        self.keep(file, &params.self_signed(&key).unwrap(), &key)
    }

    fn keep(
        &self,
        file: &str,
        certificate: &Certificate,
        key: &KeyPair,
    ) -> CertificateDer<'static> {
        let text = certificate.pem() + &key.serialize_pem();
        fs::write(self.path(&format!("{file}.pem")), text).unwrap();
        certificate.der().clone()
    }

    /// `cert: FILE, key: FILE` for the configuration.
    pub fn pair(&self, file: &str) -> String {
        let path = self.path(&format!("{file}.pem"));
        format!("cert: {0}, key: {0}", path.display())
    }

    /// `ca.pem`.
    pub fn ca(&self) -> String {
        self.path("ca.pem").display().to_string()
    }

    fn load(&self, file: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let path = self.path(&format!("{file}.pem"));
        (
            vec![CertificateDer::from_pem_file(&path).unwrap()],
            PrivateKeyDer::from_pem_file(&path).unwrap(),
        )
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        Arc::new(roots)
    }

    /// A client that believes this authority; with the certificate of `file`, where one is given.
    pub fn client(&self, file: Option<&str>, only_12: bool) -> Arc<ClientConfig> {
        let versions: &[_] = if only_12 {
            &[&rustls::version::TLS12]
        } else {
            &[&rustls::version::TLS13]
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.roots());
        let mut config = match file {
            Some(file) => {
                let (chain, key) = self.load(file);
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }

    /// Server configuration with the certificate of `file`.
    pub fn server(&self, file: &str, wants_client: bool) -> Arc<ServerConfig> {
        let (chain, key) = self.load(file);
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if wants_client {
            let verifier = WebPkiClientVerifier::builder_with_provider(self.roots(), provider());
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        Arc::new(builder.with_single_cert(chain, key).unwrap())
    }

    /// A backend with the certificate of `file`: runs `script` for every connection, each in a
    /// thread of its own.
    pub fn backend(
        &self,
        file: &str,
        wants_client: bool,
        script: impl Fn(&mut StreamOwned<ServerConnection, TcpStream>) + Send + Sync + 'static,
    ) -> SocketAddr {
        Self::backend_as(self.server(file, wants_client), script)
    }

    /// The same with another configuration.
    pub fn backend_as(
        config: Arc<ServerConfig>,
        script: impl Fn(&mut StreamOwned<ServerConnection, TcpStream>) + Send + Sync + 'static,
    ) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(script);
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (config, script) = (Arc::clone(&config), Arc::clone(&script));
                thread::spawn(move || {
                    socket.set_nodelay(true).unwrap();
                    let connection = ServerConnection::new(config).unwrap();
                    script(&mut StreamOwned::new(connection, socket));
                });
            }
        });
        address
    }
}

/// Reads a head, to its empty line; `None` where none comes any more.
pub fn head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// Answers every request head without a body with `body`, and goes on.
pub fn answering(body: &'static str) -> impl Fn(&mut StreamOwned<ServerConnection, TcpStream>) {
    move |stream| {
        while head(stream).is_some() {
            let length = body.len();
            let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
            if stream.write_all(text.as_bytes()).is_err() {
                return;
            }
        }
    }
}

/// Connects with TLS as a client that asks for `name`; the error is the handshake's.
pub fn try_connect(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &str,
) -> std::io::Result<ClientTlsStream> {
    try_connect_behind(b"", address, config, name)
}

/// The same with bytes in front that are not under TLS.
pub fn try_connect_behind(
    front: &[u8],
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &str,
) -> std::io::Result<ClientTlsStream> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut socket = TcpStream::connect(address)?;
    socket.write_all(front)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    Ok(StreamOwned::new(connection, socket))
}

/// The bytes with which a client begins that asks for `name`; for an address it asks for none.
pub fn client_hello(config: &Arc<ClientConfig>, name: &str) -> Vec<u8> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// A raw HTTP client under TLS.
pub fn connect(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &str,
) -> HttpClient<ClientTlsStream> {
    let stream = try_connect(address, config, name)
        .unwrap_or_else(|error| panic!("handshake for {name}: {error}"));
    HttpClient::under(stream)
}
