//! What an X.509 certificate says about itself (RFC 5280): for whom it is, and from when to when.
//!
//! Only reads. Whether to believe it is decided by whoever verifies the chain.

use std::time::Duration;

use x509_cert::{
    Certificate,
    der::Decode,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

/// What we want to know of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// DNS names it is for, in lower case: `example.com`, `*.example.com`.
    pub names: Vec<String>,
    /// Valid from this time on, since the Unix epoch.
    pub not_before: Duration,
    /// Valid up to this time, since the Unix epoch.
    pub not_after: Duration,
}

/// Reads the DER of a certificate; `None` if it is malformed.
pub fn parse(der: &[u8]) -> Option<CertificateInfo> {
    let certificate = Certificate::from_der(der).ok()?;
    let body = certificate.tbs_certificate();
    let validity = body.validity();
    let (_, names) = body.get_extension::<SubjectAltName>().ok()?.unzip();
    let names = names.map_or_else(Vec::new, |SubjectAltName(names)| names);
    Some(CertificateInfo {
        names: names
            .iter()
            .filter_map(|name| match name {
                GeneralName::DnsName(name) => Some(name.as_str().to_ascii_lowercase()),
                _ => None,
            })
            .collect(),
        not_before: validity.not_before.to_unix_duration(),
        not_after: validity.not_after.to_unix_duration(),
    })
}

/// The subject as RFC 4514 writes it: `CN=app,O=Example`. `None` if the certificate is malformed, or if the subject has a
/// byte that may not stand in a field value (RFC 9110 section 5.5).
pub fn subject(der: &[u8]) -> Option<Box<str>> {
    let certificate = Certificate::from_der(der).ok()?;
    let subject = certificate.tbs_certificate().subject().to_string();
    let is_plain = subject.bytes().all(|byte| matches!(byte, 0x20..=0x7e));
    is_plain.then(|| subject.into_boxed_str())
}
