//! The part of the model that is about TLS: certificates and keys, loaded and checked.
//!
//! Seen from outside as part of `model`.

use std::{fmt, sync::Arc, time::Duration};

use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, ServerName},
    server::danger::ClientCertVerifier,
    sign::CertifiedKey,
};

use crate::base::address::BackendAddress;

/// `listeners.NAME.tls`.
#[derive(Debug, Clone, PartialEq)]
pub struct ListenerTlsConfig {
    /// At least one; the first is for names that none is for, and for clients that name none.
    pub certificates: Vec<LoadedCertificate>,
    /// Default 1.2.
    pub min_version: TlsVersion,
    /// Protocols offered (ALPN, RFC 7301), the preferred first. Default h2, http/1.1.
    pub alpn: Vec<String>,
    /// `client_ca` with `client_auth`.
    pub client_ca: Option<ClientCaConfig>,
    /// `client_subject`: request header that tells backends the subject of the client's
    /// certificate.
    pub client_subject: Option<String>,
    /// `same_host`: a request for a host with another certificate than the one shown is refused.
    /// Default true.
    pub same_host: bool,
}

/// `min_version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsVersion {
    /// RFC 5246.
    #[default]
    Tls12,
    /// RFC 8446.
    Tls13,
}

/// `client_auth`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientAuth {
    /// A client without a certificate is refused.
    #[default]
    Required,
    /// A client may have none.
    Optional,
}

/// A certificate with its chain and key, loaded and checked.
#[derive(Clone)]
pub struct LoadedCertificate {
    /// The file of the certificate, as the configuration writes it.
    pub file: String,
    /// Chain to show and key to sign with.
    pub key: Arc<CertifiedKey>,
    /// DNS names it is for, in lower case.
    pub names: Vec<String>,
    /// Valid from this time on, since the Unix epoch.
    pub not_before: Duration,
    /// Valid up to this time, since the Unix epoch.
    pub not_after: Duration,
}

/// Two are the same when they show the same chain: a chain names its key.
impl PartialEq for LoadedCertificate {
    fn eq(&self, other: &Self) -> bool {
        self.file == other.file && self.key.cert == other.key.cert
    }
}

impl fmt::Debug for LoadedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// Authorities that may sign the certificates of clients.
#[derive(Clone)]
pub struct ClientCaConfig {
    /// Certificates of the authorities, in DER.
    pub roots: Vec<CertificateDer<'static>>,
    /// `client_auth: required`, as opposed to `optional`.
    pub required: bool,
    /// Checks what a client shows.
    pub verifier: Arc<dyn ClientCertVerifier>,
}

impl PartialEq for ClientCaConfig {
    fn eq(&self, other: &Self) -> bool {
        self.roots == other.roots && self.required == other.required
    }
}

impl fmt::Debug for ClientCaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCa")
            .field("required", &self.required)
            .finish_non_exhaustive()
    }
}

/// `pools.NAME.tls`.
#[derive(Clone)]
pub struct PoolTlsConfig {
    /// Name that the backends' certificates must be for; `None` is the host of each one's address.
    pub server_name: Option<ServerName<'static>>,
    /// Verification of their certificates. Default true.
    pub verify: bool,
    /// `ca`, in DER; empty is what the machine believes.
    pub roots: Vec<CertificateDer<'static>>,
    /// `client_cert` with `client_key`.
    pub client_cert: Option<LoadedCertificate>,
    /// All of it for rustls; sessions to take up again are kept in it.
    pub config: Arc<ClientConfig>,
}

impl PoolTlsConfig {
    /// The name that the certificate of the backend at `address` must be for. `None`: it has none
    /// of its own.
    pub fn name_for(&self, address: &BackendAddress) -> Option<ServerName<'static>> {
        if let Some(name) = &self.server_name {
            return Some(name.clone());
        }
        match address {
            BackendAddress::Ip(address) => Some(address.ip().into()),
            BackendAddress::Name { host, .. } | BackendAddress::Resolved { host, .. } => {
                ServerName::try_from(host.clone()).ok()
            }
            // The certificates are for the hosts that provide the service.
            BackendAddress::Service(name) => ServerName::try_from(name.clone()).ok(),
            BackendAddress::Unix(_) => None,
        }
    }
}

impl PartialEq for PoolTlsConfig {
    fn eq(&self, other: &Self) -> bool {
        self.server_name == other.server_name
            && self.verify == other.verify
            && self.roots == other.roots
            && self.client_cert == other.client_cert
    }
}

impl fmt::Debug for PoolTlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolTls")
            .field("server_name", &self.server_name)
            .field("verify", &self.verify)
            .finish_non_exhaustive()
    }
}

/// `tls` of a backend or of checks, which goes before that of the pool.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum TlsOverride {
    /// The key is not given: as the pool, or as the traffic.
    #[default]
    Inherited,
    /// `none`: plain.
    Plain,
    /// Settings of its own.
    Own(Arc<PoolTlsConfig>),
}

impl TlsOverride {
    /// The settings in force, where those of the pool or of the traffic are `inherited`.
    pub fn resolve<'a>(
        &'a self,
        inherited: Option<&'a PoolTlsConfig>,
    ) -> Option<&'a PoolTlsConfig> {
        match self {
            Self::Inherited => inherited,
            Self::Plain => None,
            Self::Own(own) => Some(own),
        }
    }
}
