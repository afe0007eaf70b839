//! What a listener's TLS is configured with: certificates by name, versions, client certificates, tickets.
//!
//! Built once per generation; taken over unchanged by a reload that changes nothing of it, tickets included.

use std::{cell::Cell, collections::HashMap, fmt, sync::Arc};

use rustls::{
    NamedGroup, ServerConfig, SignatureScheme,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::{
    base::crypto::provider,
    config::model::{ListenerTlsConfig, LoadedCertificate, TlsVersion},
    route::{MAX_HOST, normal_host},
};

thread_local! {
    /// The name in the ClientHello looked at last. rustls says it nowhere else on its unbuffered interface; the handshake
    /// takes it right after the call in which it was set.
    static ASKED: Cell<Option<Box<str>>> = const { Cell::new(None) };
    /// Whether the client whose ClientHello is worked off next offers TLS 1.3, which rustls says nowhere.
    static OFFERS_13: Cell<Option<bool>> = const { Cell::new(None) };
}

/// The name in the ClientHello that was just worked off, in lower case.
pub(super) fn asked() -> Option<Box<str>> {
    ASKED.take()
}

/// Tells the choice of the certificate whether the client offers TLS 1.3, right before its ClientHello is worked off.
pub(super) fn set_offers_13(offers: Option<bool>) {
    OFFERS_13.set(offers);
}

/// TLS of one listener.
pub struct ServerTls {
    config: Arc<ServerConfig>,
    names: Arc<Names>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

/// Certificates by the names they are for. A group is all certificates of one name, such as one with RSA and one with ECDSA.
struct Names {
    exact: HashMap<Box<str>, usize>,
    /// Without the `*.`.
    wildcard: HashMap<Box<str>, usize>,
    /// The first is the default.
    groups: Vec<Vec<Candidate>>,
}

/// A certificate of a name.
#[derive(Clone)]
struct Candidate {
    key: Arc<CertifiedKey>,
    /// Curve of an ECDSA key.
    curve: Option<NamedGroup>,
}

impl Candidate {
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

    /// The client can verify a signature of this key.
    fn fits(&self, hello: &ClientHello<'_>) -> bool {
        self.key
            .key
            .choose_scheme(hello.signature_schemes())
            .is_some()
    }

    /// The client can verify certificates on this key's curve. In TLS 1.3 its groups are about key exchange alone, RFC 8446
    /// section 4.2.7; before that they name the curves of certificates as well, RFC 8422 section 5.1.1.
    fn has_curve(&self, hello: &ClientHello<'_>) -> bool {
        let (Some(curve), Some(groups)) = (self.curve, hello.named_groups()) else {
            return true;
        };
        groups.contains(&curve) || OFFERS_13.get() == Some(true)
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

impl Names {
    fn new(tls: &ListenerTlsConfig) -> Self {
        let mut names = Self {
            exact: HashMap::new(),
            wildcard: HashMap::new(),
            groups: Vec::new(),
        };
        for certificate in &tls.certificates {
            names.add(certificate);
        }
        names
    }

    fn add(&mut self, certificate: &LoadedCertificate) {
        let (mut own, candidate) = (None, Candidate::new(&certificate.key));
        for name in &certificate.names {
            let (map, name) = match name.strip_prefix("*.") {
                Some(suffix) => (&mut self.wildcard, suffix),
                None => (&mut self.exact, &**name),
            };
            // Beside another one of that name: both are of its group, in the order of the file.
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

    /// The group for `name`, in lower case: exact, then one label wide, then the default.
    fn group_of(&self, name: &str) -> usize {
        let wide = || {
            let (_, suffix) = name.split_once('.')?;
            self.wildcard.get(suffix)
        };
        self.exact
            .get(name)
            .or_else(wide)
            .copied()
            .unwrap_or_default()
    }
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let group = name.as_deref().map(|name| self.group_of(name));
        ASKED.set(name.map(String::into_boxed_str));
        let group = self.groups.get(group.unwrap_or_default())?;
        let fits = |one: &&Candidate| one.fits(&hello);
        let mut by_curve = group.iter().filter(|one| one.has_curve(&hello));
        // Where none fits, the first one makes rustls say what is missing.
        let found = by_curve.find(fits).or_else(|| group.iter().find(fits));
        Some(Arc::clone(&found.or_else(|| group.first())?.key))
    }
}

impl ServerTls {
    /// TLS as `tls` wants it. `alpn` is what the listener can speak of it.
    pub fn new(tls: &ListenerTlsConfig) -> Self {
        let names = Arc::new(Names::new(tls));
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
        let resolver: Arc<dyn ResolvesServerCert> = names.clone();
        let mut config = builder.with_cert_resolver(resolver);
        config.alpn_protocols = tls
            .alpn
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        config.ignore_client_order = true;
        // Keys of its own, so that a session of one listener is never taken up on another. Without them: no tickets.
        if let Ok(ticketer) = rustls::crypto::ring::Ticketer::new() {
            config.ticketer = ticketer;
        }
        Self {
            config: Arc::new(config),
            names,
        }
    }

    /// True where a name has several certificates, of which each client gets the one it can verify.
    pub(super) fn has_choice(&self) -> bool {
        self.names.groups.iter().any(|group| group.len() > 1)
    }

    /// Tickets that a client gets after its handshake.
    #[cfg(test)]
    pub(super) fn send_tickets(&mut self, count: usize) {
        Arc::make_mut(&mut self.config).send_tls13_tickets = count;
    }

    pub(super) fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }

    /// Whether a request for `host`, as its field has it, may come on a connection whose client `asked` for a name: not if
    /// the two have different certificates (RFC 9110 section 15.5.20).
    pub fn may_serve(&self, host: &[u8], asked: Option<&str>) -> bool {
        let Some(asked) = asked else { return true };
        let mut buffer = [0; MAX_HOST];
        let host = normal_host(host, &mut buffer).and_then(|host| str::from_utf8(host).ok());
        host.is_some_and(|host| {
            host == asked || self.names.group_of(host) == self.names.group_of(asked)
        })
    }
}
