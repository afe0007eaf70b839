//! Names and validity of an X.509 certificate (RFC 5280).
//!
//! It only decodes. Nothing here is trustworthy before rustls has verified the chain.

use std::time::Duration;

use x509_cert::{
    Certificate,
    der::Decode,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

/// Decoded fields of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// DNS names in lower case: `example.com`, `*.example.com`.
    pub names: Vec<String>,
    /// Start of the validity, since the Unix epoch.
    pub not_before: Duration,
    /// End of the validity, since the Unix epoch.
    pub not_after: Duration,
}

/// Decodes the DER of a certificate; `None` if it is malformed.
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

/// Returns the subject in the form of RFC 4514: `CN=app,O=Example`. `None` if the certificate is
/// malformed, or if the subject has a byte that a field value must not have (RFC 9110 section 5.5):
/// backends get it in a header.
pub fn subject(der: &[u8]) -> Option<Box<str>> {
    let certificate = Certificate::from_der(der).ok()?;
    let subject = certificate.tbs_certificate().subject().to_string();
    let is_plain = subject.bytes().all(|byte| matches!(byte, 0x20..=0x7e));
    is_plain.then(|| subject.into_boxed_str())
}
