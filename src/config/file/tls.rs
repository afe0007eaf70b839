//! Reads the `tls` of listeners, pools, backends and checks, and loads the certificates and keys
//! they name.
//!
//! Everything that can be wrong with a certificate is found here, with its place: nothing of TLS
//! can fail after a load.

use std::{io, ops::RangeInclusive, path::PathBuf, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, Error, InconsistentKeys, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName,
        pem::{self, PemObject},
    },
    server::WebPkiClientVerifier,
    sign::CertifiedKey,
};

use super::{NodeRef, Section, TreeReader, assign, common::header_name, quote};
use crate::{
    base::{certificate, clock, crypto::provider},
    config::{
        io_cause,
        model::{
            BackendConfig, ClientAuth, ClientCaConfig, ListenerProtocol, ListenerTlsConfig,
            LoadedCertificate, PoolTlsConfig, TlsOverride, TlsVersion,
        },
        trusted::{AnyCertificate, BackendVerifier, ClientVerifier},
    },
};

/// Largest file of certificates or keys, in bytes.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// Protocols that an http listener may offer (ALPN), and offers by default.
const HTTP_ALPN: &[&str] = &["h2", "http/1.1"];

/// Reads `listeners.NAME.tls`.
pub(super) fn listener(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    protocol: ListenerProtocol,
) -> Option<ListenerTlsConfig> {
    let keys = reader.section(at)?;
    let certificates = certificates(reader, &keys, at);
    let mut min_version = TlsVersion::default();
    keys.read(reader, "min_version", &mut min_version);
    let client_ca = client_ca(reader, &keys);
    let client_subject = client_subject(reader, &keys, client_ca.is_some());
    let mut same_host = true;
    if let Some(at) = keys.get("same_host") {
        assign(&mut same_host, reader.boolean(at));
        if protocol == ListenerProtocol::Tcp {
            reader.error_at_key(
                at,
                "`same_host` belongs to an http listener, this one is tcp",
                "remove it: there are no requests with a Host",
            );
        }
    }
    Some(ListenerTlsConfig {
        certificates,
        same_host,
        min_version,
        alpn: alpn(reader, &keys, protocol),
        client_ca,
        client_subject,
    })
}

fn certificates(
    reader: &mut TreeReader<'_>,
    keys: &Section<'_>,
    at: NodeRef<'_>,
) -> Vec<LoadedCertificate> {
    let mut found = Vec::new();
    let own = keys.get("cert").is_some() || keys.get("key").is_some();
    match keys.get("certificates") {
        Some(at) if own => reader.error_at_key(
            at,
            "`certificates` cannot be used with `cert` and `key`",
            "put all of them into `certificates: [{cert: FILE, key: FILE}]`",
        ),
        Some(list) => {
            let hint = "write `certificates: [{cert: FILE, key: FILE}]`";
            let entries = reader.list(&list, "a list of certificates", hint);
            if entries.is_empty() {
                reader.error_at_key(list, "`certificates` is empty", hint);
            }
            for at in entries {
                let Some(keys) = reader.section(at) else {
                    continue;
                };
                let Some(one) = certificate(reader, &keys, at, ["cert", "key"]) else {
                    continue;
                };
                if let (true, true, Some(at)) =
                    (one.names.is_empty(), !found.is_empty(), keys.get("cert"))
                {
                    reader.warn_at_key(
                        at,
                        format!("the certificate {} has no DNS name", quote(&one.file)),
                        "no client will get it: put it first, where it is the default certificate",
                    );
                }
                found.push(one);
            }
        }
        None if own => found.extend(certificate(reader, keys, at, ["cert", "key"])),
        // The unknown key may be the one for the certificate.
        None if keys.has_unknown() => {}
        None => reader.error_at_key(
            at,
            "`tls` needs a certificate",
            "write `tls: {cert: FILE, key: FILE}`",
        ),
    }
    found
}

/// A certificate and its key, named by two keys of a section.
fn certificate(
    reader: &mut TreeReader<'_>,
    keys: &Section<'_>,
    at: NodeRef<'_>,
    [cert, key]: [&str; 2],
) -> Option<LoadedCertificate> {
    let (Some(cert_at), Some(key_at)) = (keys.get(cert), keys.get(key)) else {
        if keys.is_meant(cert) && keys.is_meant(key) {
            return None;
        }
        reader.error_at_key(
            at,
            format!("`{cert}` and `{key}` must be given together"),
            format!("write `{{{cert}: FILE, {key}: FILE}}`; both may be in one file"),
        );
        return None;
    };
    let chain = chain(reader, cert_at, SERVER_FILE);
    let key = private_key(reader, key_at);
    let (file, chain, key) = (cert_at.scalar()?, chain?, key?);
    let facts = chain.first().and_then(|leaf| certificate::parse(leaf));
    let Some(facts) = facts else {
        reader.error(
            cert_at,
            format!("{} is not a valid X.509 certificate", quote(file)),
            "its first certificate is malformed: create or copy it again",
        );
        return None;
    };
    warn_of_validity(
        reader,
        cert_at,
        file,
        &chain,
        facts.not_before..=facts.not_after,
    );
    let owner = owner(&chain, &key);
    match CertifiedKey::from_der(chain, key, &provider()) {
        Ok(key) => Some(LoadedCertificate {
            file: file.to_owned(),
            key: Arc::new(key),
            names: facts.names,
            not_before: facts.not_before,
            not_after: facts.not_after,
        }),
        Err(error) => {
            report_unusable(reader, [cert_at, key_at], file, &error, owner);
            None
        }
    }
}

/// Warns of a certificate or an issuer that is not valid now: the file is accepted, as a renewal
/// may be on its way.
fn warn_of_validity(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    file: &str,
    chain: &[CertificateDer<'static>],
    valid: RangeInclusive<Duration>,
) {
    let now = clock::unix_now();
    if now > *valid.end() {
        reader.warn_at_key(
            at,
            format!("the certificate {} has expired", quote(file)),
            "clients will refuse it: renew it",
        );
    } else if now < *valid.start() {
        reader.warn_at_key(
            at,
            format!("the certificate {} is not valid yet", quote(file)),
            "clients will refuse it: check the system clock, or the certificate",
        );
    }
    let issuers = chain
        .iter()
        .skip(1)
        .filter_map(|der| certificate::parse(der));
    if let Some(number) = issuers
        .map(|facts| facts.not_before)
        .position(|from| now < from)
    {
        reader.warn_at_key(
            at,
            format!(
                "certificate number {} of {} is not valid yet",
                number + 2,
                quote(file)
            ),
            "clients will refuse the chain: check the system clock, or the issuer",
        );
    }
}

/// Reports a certificate or key that rustls cannot use; `owner` is the certificate of the chain
/// that the key is for.
fn report_unusable(
    reader: &mut TreeReader<'_>,
    [cert_at, key_at]: [NodeRef<'_>; 2],
    file: &str,
    error: &Error,
    owner: Option<usize>,
) {
    match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            reader.error(
                key_at,
                format!(
                    "this key does not belong to the certificate {}",
                    quote(file)
                ),
                owner.map_or_else(
                    || "name the key that the certificate was made for".to_owned(),
                    |place| {
                        format!(
                            "it belongs to certificate number {place} of that file: put that one first, \
                             then its issuers"
                        )
                    },
                ),
            );
        }
        Error::InvalidCertificate(cause) => {
            // The text of a cause is meant for programmers.
            let is_old = format!("{cause:?}").contains("UnsupportedCertVersion");
            let what = if is_old {
                "an X.509 version 3"
            } else {
                "a valid X.509"
            };
            reader.error(
                cert_at,
                format!("{} is not {what} certificate", quote(file)),
                "create one with X.509 version 3 and a `subjectAltName` for the names of the host",
            );
        }
        _ => {
            reader.error(
                key_at,
                "this key cannot be used",
                "use an RSA key of at least 2048 bits, ECDSA P-256 or P-384, or Ed25519",
            );
        }
    }
}

/// The number (from 1) of the certificate behind the first that `key` belongs to: a chain in the
/// wrong order.
fn owner(chain: &[CertificateDer<'static>], key: &PrivateKeyDer<'static>) -> Option<usize> {
    let fits = |certificate: &CertificateDer<'static>| {
        let alone = vec![certificate.clone()];
        CertifiedKey::from_der(alone, key.clone_key(), &provider()).is_ok()
    };
    let place = chain.iter().skip(1).position(fits)?;
    Some(place + 2)
}

/// The bytes of a file that `at` names.
fn pem_file(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<Vec<u8>> {
    let text = reader.text(at, "the path of a PEM file", "write the path of a PEM file")?;
    let path: PathBuf = reader.resolve(text);
    match reader.files.read(&path, MAX_PEM_BYTES) {
        Ok(bytes) if bytes.len() as u64 > MAX_PEM_BYTES => {
            reader.error(
                at,
                format!("{} is larger than 1MiB", quote(text)),
                "name a file with certificates only",
            );
            None
        }
        Ok(bytes) => Some(bytes),
        Err(error) => {
            reader.error(
                at,
                format!("cannot read {}: {}", quote(text), io_cause(&error)),
                file_hint(&error),
            );
            None
        }
    }
}

/// The hint for a file that cannot be read.
fn file_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "check the path; relative paths start at the directory of the configuration file"
        }
        io::ErrorKind::InvalidInput => "name a regular file in PEM form",
        _ => "make it readable by balancer's user",
    }
}

/// The remedy for a file of the server's own certificate in which there is none.
const SERVER_FILE: &str = "it must contain `-----BEGIN CERTIFICATE-----`: the server's own certificate first, then its issuers";
/// The same for a file of CA certificates.
const CA_FILE: &str =
    "it must contain the CA certificates, each with `-----BEGIN CERTIFICATE-----`";

/// All certificates of a PEM file, at least one; `hint` is for a file that has none.
fn chain(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    hint: &str,
) -> Option<Vec<CertificateDer<'static>>> {
    let bytes = pem_file(reader, at)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(chain) if !chain.is_empty() => Some(chain),
        _ => {
            let file = quote(at.scalar().unwrap_or_default());
            reader.error(at, format!("{file} has no certificate in PEM form"), hint);
            None
        }
    }
}

fn private_key(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<PrivateKeyDer<'static>> {
    let bytes = pem_file(reader, at)?;
    match PrivateKeyDer::from_pem_slice(&bytes) {
        Ok(key) => Some(key),
        Err(error) => {
            let file = quote(at.scalar().unwrap_or_default());
            let encrypted = b"ENCRYPTED";
            let is_encrypted = bytes.windows(encrypted.len()).any(|part| part == encrypted);
            let (message, hint) = if is_encrypted {
                (
                    format!("the private key in {file} is encrypted"),
                    "store it without a password, readable only by balancer's user",
                )
            } else if matches!(error, pem::Error::NoItemsFound) {
                (
                    format!("{file} has no private key in PEM form"),
                    "it must contain `-----BEGIN PRIVATE KEY-----`",
                )
            } else {
                (
                    format!("the private key in {file} cannot be decoded"),
                    "create or copy it again",
                )
            };
            reader.error(at, message, hint);
            None
        }
    }
}

fn roots(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
) -> Option<(Vec<CertificateDer<'static>>, RootCertStore)> {
    let chain = chain(reader, at, CA_FILE)?;
    let now = clock::unix_now();
    let is_valid = |der: &CertificateDer<'_>| {
        certificate::parse(der)
            .is_none_or(|facts| (facts.not_before..=facts.not_after).contains(&now))
    };
    if !chain.iter().any(is_valid) {
        let has_expired = |der: &CertificateDer<'_>| {
            certificate::parse(der).is_some_and(|facts| facts.not_after < now)
        };
        let file = quote(at.scalar().unwrap_or_default());
        let (message, cure) = if chain.iter().all(has_expired) {
            (
                format!("every CA certificate in {file} has expired"),
                "renew the CA certificates",
            )
        } else {
            (
                format!("no CA certificate in {file} is valid now"),
                "check the system clock, or renew the CA certificates",
            )
        };
        let hint = format!("certificates signed by these CAs will be refused: {cure}");
        reader.warn_at_key(at, message, hint);
    }
    let mut store = RootCertStore::empty();
    for certificate in &chain {
        if store.add(certificate.clone()).is_err() {
            reader.error(
                at,
                "a certificate in this file cannot be used as a CA certificate",
                "name a file with X.509 version 3 certificates of CAs",
            );
            return None;
        }
    }
    Some((chain, store))
}

fn client_ca(reader: &mut TreeReader<'_>, keys: &Section<'_>) -> Option<ClientCaConfig> {
    let mut client_auth = ClientAuth::default();
    keys.read(reader, "client_auth", &mut client_auth);
    let required = client_auth == ClientAuth::Required;
    let Some(at) = keys.get("client_ca") else {
        if let Some(at) = keys.get("client_auth") {
            reader.error_at_key(
                at,
                "`client_auth` needs `client_ca`",
                "write `client_ca: FILE`, the CAs that sign the clients' certificates",
            );
        }
        return None;
    };
    let (roots, store) = roots(reader, at)?;
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider());
    let builder = if required {
        builder
    } else {
        builder.allow_unauthenticated()
    };
    let Ok(by_path) = builder.build() else {
        reader.error(
            at,
            "these CA certificates cannot be used",
            "name a file with X.509 version 3 certificates of CAs",
        );
        return None;
    };
    Some(ClientCaConfig {
        verifier: Arc::new(ClientVerifier {
            listed: roots.clone(),
            by_path,
        }),
        roots,
        required,
    })
}

fn client_subject(reader: &mut TreeReader<'_>, keys: &Section<'_>, has_ca: bool) -> Option<String> {
    let at = keys.get("client_subject")?;
    let name = reader.text(
        at,
        "the name of a header",
        "write `client_subject: X-Client-Subject`",
    )?;
    if !header_name(reader, at, name, false) {
        return None;
    }
    if !has_ca && keys.get("client_ca").is_none() {
        reader.error_at_key(
            at,
            "`client_subject` needs `client_ca`",
            "write `client_ca: FILE`, the CAs that sign the clients' certificates",
        );
    }
    Some(name.to_owned())
}

fn alpn(
    reader: &mut TreeReader<'_>,
    keys: &Section<'_>,
    protocol: ListenerProtocol,
) -> Vec<String> {
    let Some(list) = keys.get("alpn") else {
        return match protocol {
            ListenerProtocol::Http => HTTP_ALPN.iter().copied().map(str::to_owned).collect(),
            ListenerProtocol::Tcp => Vec::new(),
        };
    };
    let hint = "write `alpn: [h2, http/1.1]`";
    let mut found = Vec::new();
    for at in reader.one_or_more(&list, "the name of a protocol", hint) {
        let name = match protocol {
            ListenerProtocol::Http => reader.word_among(at, HTTP_ALPN),
            ListenerProtocol::Tcp => reader
                .text(at, "the name of a protocol", hint)
                .filter(|name| (1..=255).contains(&name.len())),
        };
        found.extend(name.map(str::to_owned));
    }
    found
}

/// Reads the `tls` of one backend, or that of checks alone; `is_h2` where HTTP/2 is spoken in it.
pub(super) fn overriding(reader: &mut TreeReader<'_>, at: NodeRef<'_>, is_h2: bool) -> TlsOverride {
    if at.is_or_word() {
        return TlsOverride::Plain;
    }
    match pool(reader, at, is_h2) {
        Some(own) => TlsOverride::Own(Arc::new(own)),
        None => TlsOverride::Inherited,
    }
}

/// Checks that there is a name for the certificate of `backend`: without `server_name` it must be
/// for the backend's own host.
pub(super) fn check_name(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    tls: &PoolTlsConfig,
    backend: &BackendConfig,
) {
    if tls.verify && tls.name_for(&backend.address).is_none() {
        reader.error_at_key(
            at,
            format!(
                "the certificate of {} has no name to be checked for",
                quote(&backend.name)
            ),
            "write `server_name: HOST`",
        );
    }
}

/// Reads `pools.NAME.tls`; `is_h2` where HTTP/2 is spoken in it.
pub(super) fn pool(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    is_h2: bool,
) -> Option<PoolTlsConfig> {
    let keys = reader.section(at)?;
    let reported = reader.problems.len();
    let mut verify = true;
    if let Some(at) = keys.get("verify") {
        assign(&mut verify, reader.boolean(at));
        if !verify {
            reader.warn_at_key(
                at,
                "certificates of these backends are not verified",
                "an attacker between balancer and the backends can read and change the traffic: write `ca: FILE`, the CA of the backends",
            );
        }
    }
    let mut server_name = None;
    if let Some(at) = keys.get("server_name")
        && let Some(name) = reader.text(at, "a host name", "write `server_name: app.internal`")
    {
        server_name = ServerName::try_from(name.to_owned()).ok();
        if server_name.is_none() {
            reader.error(
                at,
                format!("{} is not a host name", quote(name)),
                "write a host name or an IP address, without a port",
            );
        }
    }
    let client = [keys.get("client_cert"), keys.get("client_key")];
    let client_cert = match client {
        [None, None] => None,
        _ => certificate(reader, &keys, at, ["client_cert", "client_key"]),
    };
    let (roots, store) = match keys.get("ca") {
        Some(at) => roots(reader, at)?,
        // Another key may be meant to say how they are verified.
        None if keys.has_unknown() || reader.has_errors_since(reported) => return None,
        None if verify => (Vec::new(), system_roots(reader, at)?),
        None => (Vec::new(), RootCertStore::empty()),
    };
    let mut config = client_config(store, &roots, verify, client_cert.as_ref())
        .map_err(|error| reader.error_at_key(at, error, "see docs/configuration.md"))
        .ok()?;
    if is_h2 {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    Some(PoolTlsConfig {
        server_name,
        verify,
        roots,
        client_cert,
        config: Arc::new(config),
    })
}

/// The authorities this machine believes.
fn system_roots(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<RootCertStore> {
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(reader.files.system_roots());
    if added > 0 {
        return Some(store);
    }
    reader.error_at_key(
        at,
        "this machine has no CA certificates to verify backends with",
        "write `ca: FILE`, the CA of the backends, or install ca-certificates",
    );
    None
}

fn client_config(
    store: RootCertStore,
    listed: &[CertificateDer<'static>],
    verify: bool,
    client_cert: Option<&LoadedCertificate>,
) -> Result<ClientConfig, String> {
    let verifier: Arc<dyn ServerCertVerifier> = if verify {
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider());
        Arc::new(BackendVerifier {
            listed: listed.to_vec(),
            by_path: builder.build().map_err(|error| error.to_string())?,
        })
    } else {
        Arc::new(AnyCertificate(provider()))
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    Ok(match client_cert {
        Some(certificate) => {
            let resolver = rustls::sign::SingleCertAndKey::from(Arc::clone(&certificate.key));
            builder.with_client_cert_resolver(Arc::new(resolver))
        }
        None => builder.with_no_client_auth(),
    })
}
