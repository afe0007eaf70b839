//! TLS configuration of a listener: certificates by name, versions, client certificates, tickets.
//!
//! Built once per generation. A reload that changes nothing of it keeps the object, so that tickets
//! of before the reload still resume sessions.

use std::{cell::Cell, collections::HashMap, fmt, sync::Arc};

use rustls::{
    NamedGroup, ServerConfig, SignatureScheme,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::{
    base::crypto::provider,
    config::model::{ListenerTlsConfig, LoadedCertificate, TlsVersion},
    route::{MAX_HOST_BYTES, normal_host},
};

thread_local! {
    /// Name in the ClientHello that was processed last. The unbuffered interface of rustls has no
    /// getter for it; the handshake takes it right after the call in which it was set.
    static REQUESTED_NAME: Cell<Option<Box<str>>> = const { Cell::new(None) };
    /// True if the client whose ClientHello is processed next offers TLS 1.3. rustls does not tell
    /// the certificate resolver.
    static OFFERS_13: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Takes the name in the ClientHello that was just processed, in lower case.
pub(super) fn take_requested_name() -> Option<Box<str>> {
    REQUESTED_NAME.take()
}

/// Tells the certificate resolver if the client offers TLS 1.3. Call it right before the
/// ClientHello is processed.
pub(super) fn set_offers_13(offers: Option<bool>) {
    OFFERS_13.set(offers);
}

/// TLS of one listener.
pub struct ServerTls {
    config: Arc<ServerConfig>,
    resolver: Arc<CertificateResolver>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

/// Chooses the certificate for a ClientHello. A group is all certificates of one name, such as one
/// with an RSA key and one with an ECDSA key.
struct CertificateResolver {
    /// Groups by whole name.
    exact: HashMap<Box<str>, usize>,
    /// Groups by wildcard, without the `*.`.
    wildcard: HashMap<Box<str>, usize>,
    /// The first group is for all other names, and for clients that name none.
    groups: Vec<Vec<CertificateCandidate>>,
}

/// One certificate of a group.
#[derive(Clone)]
struct CertificateCandidate {
    key: Arc<CertifiedKey>,
    /// Curve of an ECDSA key.
    curve: Option<NamedGroup>,
}

impl CertificateCandidate {
    fn new(key: &Arc<CertifiedKey>) -> Self {
        let signs = |scheme| key.key.choose_scheme(&[scheme]).is_some();
        let curve = [
            (
                SignatureScheme::ECDSA_NISTP256_SHA256,
                NamedGroup::secp256r1,
            ),
            (
                SignatureScheme::ECDSA_NISTP384_SHA384,
                NamedGroup::secp384r1,
            ),
            (
                SignatureScheme::ECDSA_NISTP521_SHA512,
                NamedGroup::secp521r1,
            ),
        ]
        .into_iter()
        .find_map(|(scheme, curve)| signs(scheme).then_some(curve));
        Self {
            key: Arc::clone(key),
            curve,
        }
    }

    /// True if the client can verify a signature of this key.
    fn fits(&self, hello: &ClientHello<'_>) -> bool {
        self.key
            .key
            .choose_scheme(hello.signature_schemes())
            .is_some()
    }

    /// True if the client can verify certificates on this key's curve.
    ///
    /// In TLS 1.3 the client's groups are about key exchange alone (RFC 8446 section 4.2.7);
    /// before, they name the curves of certificates as well (RFC 8422 section 5.1.1).
    fn has_curve(&self, hello: &ClientHello<'_>) -> bool {
        let (Some(curve), Some(groups)) = (self.curve, hello.named_groups()) else {
            return true;
        };
        groups.contains(&curve) || OFFERS_13.get() == Some(true)
    }
}

impl fmt::Debug for CertificateResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateResolver")
            .finish_non_exhaustive()
    }
}

impl CertificateResolver {
    fn new(tls: &ListenerTlsConfig) -> Self {
        let mut resolver = Self {
            exact: HashMap::new(),
            wildcard: HashMap::new(),
            groups: Vec::new(),
        };
        for certificate in &tls.certificates {
            resolver.add(certificate);
        }
        resolver
    }

    fn add(&mut self, certificate: &LoadedCertificate) {
        let (mut own, candidate) = (None, CertificateCandidate::new(&certificate.key));
        for name in &certificate.names {
            let (map, name) = match name.strip_prefix("*.") {
                Some(suffix) => (&mut self.wildcard, suffix),
                None => (&mut self.exact, &**name),
            };
            // A second certificate of a name joins its group, in the order of the file.
            if let Some(group) = map.get(name).and_then(|group| self.groups.get_mut(*group)) {
                group.push(candidate.clone());
                continue;
            }
            let group = *own.get_or_insert_with(|| {
                self.groups.push(vec![candidate.clone()]);
                self.groups.len() - 1
            });
            map.insert(name.into(), group);
        }
        if self.groups.is_empty() {
            self.groups.push(vec![candidate.clone()]);
        }
    }

    /// Returns the group for `name`, in lower case: exact, then wildcard (of one label, RFC 6125
    /// section 6.4.3), then the default.
    fn group_of(&self, name: &str) -> usize {
        let wildcard = || {
            let (_, suffix) = name.split_once('.')?;
            self.wildcard.get(suffix)
        };
        self.exact
            .get(name)
            .or_else(wildcard)
            .copied()
            .unwrap_or_default()
    }
}

impl ResolvesServerCert for CertificateResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let group = name.as_deref().map(|name| self.group_of(name));
        REQUESTED_NAME.set(name.map(String::into_boxed_str));
        let group = self.groups.get(group.unwrap_or_default())?;
        let fits = |one: &&CertificateCandidate| one.fits(&hello);
        let mut by_curve = group.iter().filter(|one| one.has_curve(&hello));
        // If none fits, take the first: rustls then reports what is missing.
        let found = by_curve.find(fits).or_else(|| group.iter().find(fits));
        Some(Arc::clone(&found.or_else(|| group.first())?.key))
    }
}

impl ServerTls {
    /// Builds the TLS of a listener.
    pub fn new(tls: &ListenerTlsConfig) -> Self {
        let resolver = Arc::new(CertificateResolver::new(tls));
        let versions: &[_] = match tls.min_version {
            TlsVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            TlsVersion::Tls13 => &[&rustls::version::TLS13],
        };
        #[expect(
            clippy::expect_used,
            reason = "fails only for a provider without a suite of these versions, and ours is fixed"
        )]
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .expect("the provider has suites for both versions");
        let builder = match &tls.client_ca {
            Some(ca) => builder.with_client_cert_verifier(Arc::clone(&ca.verifier)),
            None => builder.with_no_client_auth(),
        };
        let shared: Arc<dyn ResolvesServerCert> = resolver.clone();
        let mut config = builder.with_cert_resolver(shared);
        config.alpn_protocols = tls
            .alpn
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        // Our order of suites, not the client's: AES-GCM, for which servers have instructions, is
        // first.
        config.ignore_client_order = true;
        // Ticket keys of its own, so that a session of one listener is never resumed on another,
        // past that one's check of client certificates. Without random keys there are no tickets.
        if let Ok(ticketer) = rustls::crypto::ring::Ticketer::new() {
            config.ticketer = ticketer;
        }
        Self {
            config: Arc::new(config),
            resolver,
        }
    }

    /// True if a name has several certificates, of which each client gets the one it can verify.
    pub(super) fn has_choice(&self) -> bool {
        self.resolver.groups.iter().any(|group| group.len() > 1)
    }

    /// Sets the number of tickets that a client gets after its handshake.
    #[cfg(test)]
    pub(super) fn send_tickets(&mut self, count: usize) {
        Arc::make_mut(&mut self.config).send_tls13_tickets = count;
    }

    pub(super) fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }

    /// True if a request for `host`, as in its field, may arrive on a connection whose client
    /// `requested` this server name: both have the same certificate. Otherwise the request is
    /// misdirected (RFC 9110 section 15.5.20), and could reach a host past its client certificates.
    pub fn may_serve(&self, host: &[u8], requested: Option<&str>) -> bool {
        let Some(requested) = requested else {
            return true;
        };
        let mut buffer = [0; MAX_HOST_BYTES];
        let host = normal_host(host, &mut buffer).and_then(|host| str::from_utf8(host).ok());
        host.is_some_and(|host| {
            host == requested || self.resolver.group_of(host) == self.resolver.group_of(requested)
        })
    }
}
