//! The keys of a `tls` towards backends: of a pool, of one backend, and of checks.

use super::{
    KEY,
    KeyDefault::{Value, Words},
    KeyRow,
    spec::{boolean, text},
};

/// `ca`, at `path`.
pub(super) const fn ca(path: &'static str) -> KeyRow {
    KeyRow {
        path,
        value: text("path"),
        default: Words("the machine's authorities"),
        doc: "PEM: who must have signed the backends' certificates, and certificates of backends \
              that are trusted as themselves (self-signed ones)",
        other_words: &[(
            &["ca_cert", "ca_certificates", "ca_file", "cafile"],
            "write `tls: {ca: FILE}` in the pool",
        )],
        section_words: &[(&["root_ca", "client_ca"], "balancer calls this `ca`")],
        ..KEY
    }
}

/// `server_name`, at `path`.
pub(super) const fn server_name(path: &'static str) -> KeyRow {
    KeyRow {
        path,
        value: text("host name or IP address"),
        default: Words("the host of each backend"),
        doc: "the name that the certificate must be for, and that is asked for (SNI)",
        section_words: &[(&["sni", "ssl_name"], "balancer calls this `server_name`")],
        ..KEY
    }
}

/// `verify`, at `path`.
pub(super) const fn verify(path: &'static str) -> KeyRow {
    KeyRow {
        path,
        value: boolean(),
        default: Value("true"),
        doc: "false: any certificate is taken, and a warning says so",
        other_words: &[(
            &["insecure_skip_verify", "insecureskipverify"],
            "write `tls: {ca: FILE}` in the pool, or `tls: {verify: false}` for no verification",
        )],
        ..KEY
    }
}

/// `client_cert`, at `path`.
pub(super) const fn client_cert(path: &'static str) -> KeyRow {
    KeyRow {
        path,
        value: text("path"),
        default: Words("none"),
        doc: "PEM: what backends are shown that ask for a certificate",
        ..KEY
    }
}

/// `client_key`, at `path`.
pub(super) const fn client_key(path: &'static str) -> KeyRow {
    KeyRow {
        path,
        value: text("path"),
        default: Words("required with `client_cert`"),
        doc: "PEM, without a password",
        ..KEY
    }
}
