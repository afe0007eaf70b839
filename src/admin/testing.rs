//! A daemon without sockets for the tests of this module.

use std::{sync::Arc, time::Duration};

use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

use crate::{
    base::{clock, crypto::provider},
    config::model::{
        AccessLogConfig, BackendConfig, Config, ListenerConfig, ListenerProtocol,
        ListenerTlsConfig, LoadedCertificate, LogOutput, MetricsConfig, PoolConfig, StickyConfig,
        StickySecret, TlsVersion,
    },
    snapshot::{Daemon, Snapshot},
    telemetry::access_log,
};

/// Configuration without listeners and pools.
pub(super) fn config() -> Config {
    Config {
        metrics: MetricsConfig {
            bind: None,
            ..MetricsConfig::default()
        },
        access_log: AccessLogConfig {
            output: LogOutput::None,
            ..AccessLogConfig::default()
        },
        ..Config::default()
    }
}

/// Listener on `127.0.0.1:PORT`; nothing is bound.
pub(super) fn listener(
    name: &str,
    protocol: ListenerProtocol,
    port: u16,
    pool: usize,
) -> ListenerConfig {
    ListenerConfig {
        binds: vec![format!("127.0.0.1:{port}").parse().unwrap()],
        protocol,
        pool: Some(pool),
        ..ListenerConfig::named(name)
    }
}

/// Pool of `count` backends with TCP checks.
pub(super) fn pool(name: &str, count: usize) -> PoolConfig {
    let backend = |index: usize| {
        let address = format!("10.0.{}.{}:80", index / 250, index % 250);
        BackendConfig::at(address.parse().unwrap())
    };
    PoolConfig {
        backends: (0..count).map(backend).collect(),
        ..PoolConfig::named(name)
    }
}

/// HTTP listener `web` with pool `app` (three backends), and TCP listener `db` with pool `sql` (one
/// backend).
pub(super) fn usual() -> Config {
    Config {
        listeners: vec![
            listener("web", ListenerProtocol::Http, 8080, 0),
            listener("db", ListenerProtocol::Tcp, 8081, 1),
        ],
        pools: vec![pool("app", 3), pool("sql", 1)],
        ..config()
    }
}

/// Snapshot of `config`.
pub(super) fn snapshot(config: Config, previous: Option<&Snapshot>) -> Snapshot {
    let log = access_log::AccessLog::new(&config.access_log, None);
    Snapshot::build(Arc::new(config), previous, log, clock::now())
}

/// Daemon with two workers in its first generation.
pub(super) fn daemon(config: Config) -> Arc<Daemon> {
    Arc::new(Daemon::new(snapshot(config, None), 2, 1_000))
}

/// Sticky sessions with a secret.
pub(super) fn sticky() -> StickyConfig {
    StickyConfig {
        secret: StickySecret::of_file(b"a secret of the tests"),
        ..StickyConfig::named("lb")
    }
}

/// TLS settings with the certificate of the fixtures.
pub(super) fn tls() -> ListenerTlsConfig {
    let chain = include_bytes!("../../tests/fixtures/good.pem");
    let key = include_bytes!("../../tests/fixtures/good.key");
    let chain = vec![CertificateDer::from_pem_slice(chain).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key).unwrap();
    let certificate = LoadedCertificate {
        file: "good.pem".to_owned(),
        key: Arc::new(CertifiedKey::from_der(chain, key, &provider()).unwrap()),
        names: vec!["a.test".to_owned()],
        not_before: Duration::ZERO,
        not_after: Duration::from_hours(1),
    };
    ListenerTlsConfig {
        certificates: vec![certificate],
        min_version: TlsVersion::Tls12,
        alpn: Vec::new(),
        client_ca: None,
        client_subject: None,
        same_host: true,
    }
}
