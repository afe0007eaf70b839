//! HTTP/2 under TLS: chosen by ALPN, and what a connection for one host may not ask for.

use std::{fs, net::TcpStream, sync::Arc, time::Duration};

use balancer::{
    base::{address::BackendAddress, clock},
    config::model::PoolTlsConfig,
    net::{connect, stream::Stream},
};
use hyper::http::{Method, Request};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::task::LocalSet;

use crate::harness::{
    TempDir,
    daemon::TestDaemon,
    h2::{patiently, whole},
    peer::ScriptedPeer,
};

// Valid for a hundred years, and useless elsewhere: the authority's key was deleted.
const AUTHORITY_PEM: &str = "-----BEGIN CERTIFICATE-----
MIIBiDCCAS+gAwIBAgIUBYfPK2DURUhhmNQSSYXwIlbx38kwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOdGVzdCBhdXRob3JpdHkwIBcNMjYxMTIzMDA1MDExWhgPMjEy
NjEwMzAwMDUwMTFaMBkxFzAVBgNVBAMMDnRlc3QgYXV0aG9yaXR5MFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAEegbZlMa8UGQJoLiSQTffbHinUVl+BcKGeQQ2VKTz
7IqgapBPswZRbfuXoEexWean3JxZnF2HeyB9EhEVn8gPgqNTMFEwHQYDVR0OBBYE
FHqHKLtAgEtypkjisKvmq+t5/ED5MB8GA1UdIwQYMBaAFHqHKLtAgEtypkjisKvm
q+t5/ED5MA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDRwAwRAIgNLzkP4I4
trfl/9U5uuOVx50oi3m1D6oFghBX5VDSAokCIF0z3JNlhzFfMsN511JIUCqdddrG
uxA2OlmxXNFjwsI3
-----END CERTIFICATE-----
";
const FIRST_PAIR: [&str; 2] = [
    "-----BEGIN CERTIFICATE-----
MIIBhzCCAS2gAwIBAgIUSBhKJTqamtzHFIA88ylk5I79OpMwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOdGVzdCBhdXRob3JpdHkwIBcNMjYxMTIzMDA1MDExWhgPMjEy
NjEwMzAwMDUwMTFaMBMxETAPBgNVBAMMCG9uZS50ZXN0MFkwEwYHKoZIzj0CAQYI
KoZIzj0DAQcDQgAEOvxoIO644JdL2kVxNtpp+SHHaBlR1UhT8qD23V7lKW57T72k
u5ZUgttWov73LeTL5OXeMXayYohtTLB8LoZYvKNXMFUwEwYDVR0RBAwwCoIIb25l
LnRlc3QwHQYDVR0OBBYEFC2ocbdHCq9DBryR8GxslYrt1XD8MB8GA1UdIwQYMBaA
FHqHKLtAgEtypkjisKvmq+t5/ED5MAoGCCqGSM49BAMCA0gAMEUCIQCTJWtAPVLm
rD2kd0EbIgll5A5J0yYqVkkki4NgUhRr9wIgaRnPR75Z9ZYIcSttyU6/FKsbEasV
PjFNJKWYK0W6IGc=
-----END CERTIFICATE-----
",
    "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgn+6RqAfGxVZZBFHB
Z3ynoL28eSBuNBfSXgZR/GZZMPqhRANCAAQ6/Ggg7rjgl0vaRXE22mn5IcdoGVHV
SFPyoPbdXuUpbntPvaS7llSC21ai/vct5Mvk5d4xdrJiiG1MsHwuhli8
-----END PRIVATE KEY-----
",
];
const SECOND_PAIR: [&str; 2] = [
    "-----BEGIN CERTIFICATE-----
MIIBhzCCAS2gAwIBAgIUSBhKJTqamtzHFIA88ylk5I79OpQwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOdGVzdCBhdXRob3JpdHkwIBcNMjYxMTIzMDA1MDExWhgPMjEy
NjEwMzAwMDUwMTFaMBMxETAPBgNVBAMMCHR3by50ZXN0MFkwEwYHKoZIzj0CAQYI
KoZIzj0DAQcDQgAEeU3jhbSNwhnodKKHogaNRfSpLK5DscgvgM4F0zh71ifX82UD
sfvADaK5WWQDdlaLxPT+9QP38yRNPRcuF1trE6NXMFUwEwYDVR0RBAwwCoIIdHdv
LnRlc3QwHQYDVR0OBBYEFM36dmvkx95brgFhjafoSzMSKl9nMB8GA1UdIwQYMBaA
FHqHKLtAgEtypkjisKvmq+t5/ED5MAoGCCqGSM49BAMCA0gAMEUCIQCVBMR9t30H
IIw1z/aufEIXUAle5nPZEou2yfre40wf4QIgKUmaNGrSI6tUZbN7juB3MJo8piv2
/zxeBHCfpIit3sI=
-----END CERTIFICATE-----
",
    "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgrzAyIKPcmM8pEmm2
3AN51ICYOR2Bq7P1PDrZ9/ykYGGhRANCAAR5TeOFtI3CGeh0ooeiBo1F9KksrkOx
yC+AzgXTOHvWJ9fzZQOx+8ANorlZZAN2VovE9P71A/fzJE09Fy4XW2sT
-----END PRIVATE KEY-----
",
];

/// A stream to `daemon` under TLS, for `one.test`, which offers `alpn`.
async fn secured(daemon: &TestDaemon, alpn: &[&str]) -> Stream {
    let root = CertificateDer::from_pem_slice(AUTHORITY_PEM.as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let rules = PoolTlsConfig {
        server_name: Some(ServerName::try_from("one.test").unwrap()),
        verify: true,
        roots: vec![root],
        client_cert: None,
        config: Arc::new(config),
    };
    let address = daemon.address("@web");
    let stream = Stream::from_tcp(TcpStream::connect(address).unwrap()).unwrap();
    let deadline = clock::now() + Duration::from_secs(20);
    let address = BackendAddress::Ip(address);
    let secured = connect::secure(stream, Some(&rules), &address, deadline);
    secured.await.unwrap()
}

#[tokio::test]
async fn alpn_chooses_http_2_and_other_hosts_are_misdirected() {
    let backend = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            if !connection.answer(&request.head) {
                break;
            }
        }
    });
    let files = TempDir::new();
    for (name, [certificate, key]) in [("one", FIRST_PAIR), ("two", SECOND_PAIR)] {
        fs::write(files.path().join(format!("{name}.crt")), certificate).unwrap();
        fs::write(files.path().join(format!("{name}.key")), key).unwrap();
    }
    let pair = |name| {
        let path = files.path().join(name);
        format!("{{cert: {0}.crt, key: {0}.key}}", path.display())
    };
    let daemon = TestDaemon::start(&format!(
        "workers: 1\naccess_log: {{when: {{min_status: 100}}}}\nlisteners: {{web: {{bind: \"@web\", pool: app, tls: {{certificates: [{}, {}]}}}}}}\npools: {{app: {{backends: [{}], health_check: none}}}}\n",
        pair("one"),
        pair("two"),
        backend.address
    ));
    let local = LocalSet::new();
    let clients = local.run_until(async {
        let stream = secured(&daemon, &["http/1.1", "h2"]).await;
        assert!(
            stream.negotiated_tls().unwrap().h2,
            "h2 is preferred by default"
        );
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::task::spawn_local(connection);
        for (host, status) in [("one.test", 200), ("two.test", 421), ("one.test", 200)] {
            let asked = Request::builder()
                .method(Method::GET)
                .uri(format!("https://{host}/at/{host}"))
                .body(())
                .unwrap();
            let mut sender = sender.clone().ready().await.unwrap();
            let (response, _) = sender.send_request(asked, true).unwrap();
            let answer = whole(response).await.unwrap();
            assert_eq!(answer.status(), status, "{host}");
            let text = String::from_utf8(answer.body).unwrap();
            assert_eq!(text.contains("X-Forwarded-Proto: https"), status == 200);
        }
        let logged = daemon.wait_for_access(|line| line["path"] == "/at/one.test");
        assert_eq!(logged["protocol"], "HTTP/2");
        assert_eq!(logged["tls"], "TLSv1.3");
        let plain = patiently(secured(&daemon, &["http/1.1"])).await;
        assert!(
            !plain.negotiated_tls().unwrap().h2,
            "a client may prefer HTTP/1"
        );
    });
    Box::pin(clients).await;
}
