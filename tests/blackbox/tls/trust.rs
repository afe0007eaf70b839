//! Trust in certificates, and the log lines for those that are not trusted.

use std::{net::SocketAddr, path::Path};

use rcgen::{BasicConstraints, CertificateParams, IsCa, date_time_ymd};

use crate::harness::{
    daemon::TestDaemon,
    peer::ScriptedPeer,
    tls::{TestAuthority, answering, connect, try_connect},
};

fn daemon(backend: SocketAddr, ca: &Path, more: &str) -> TestDaemon {
    TestDaemon::start(&format!(
        "access_log: {{when: {{sample: 100%}}}}\n\
         listeners:\n  web: {{bind: \"@web\", pool: app}}\n\
         pools:\n  app: {{backends: [\"{backend}\"], tls: {{ca: {}, server_name: app.test}}, ejection: none, retries: none{more}}}\n",
        ca.display()
    ))
}

const WITHOUT_CHECKS: &str = ", health_check: none";

fn is_authority(params: &mut CertificateParams) {
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
}

fn has_expired(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2019, 1, 1);
    params.not_after = date_time_ymd(2020, 1, 1);
}

fn is_of_the_future(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2200, 1, 1);
    params.not_after = date_time_ymd(2201, 1, 1);
}

#[test]
fn a_self_signed_certificate_in_ca_is_trusted_as_itself() {
    for change in [|_: &mut CertificateParams| (), is_authority] {
        let authority = TestAuthority::new();
        authority.self_sign_as("app", &["app.test"], change);
        let backend = authority.backend("app", false, answering("secret"));
        let own = daemon(backend, &authority.path("app.pem"), WITHOUT_CHECKS);
        assert_eq!(own.get("@web", "/").unwrap().text(), "secret");
        let checked = daemon(
            backend,
            &authority.path("app.pem"),
            ", health_check: {path: /, interval: 100ms}",
        );
        checked.wait_for_metric("balancer_backend_up", |up| up == 1.0);
        // The same subject and name, and another key.
        authority.self_sign_as("other", &["app.test"], change);
        let other = daemon(backend, &authority.path("other.pem"), WITHOUT_CHECKS);
        assert_eq!(other.get("@web", "/").unwrap().status, 502);
    }
}

/// Changes a certificate before it is signed.
type CertificateChange = fn(&mut CertificateParams);

#[test]
fn what_is_wrong_with_the_certificate_of_a_backend_is_a_warning() {
    let plain: CertificateChange = |_| ();
    for (name, change, is_listed, cause) in [
        ("app.test", plain, false, "unknown issuer"),
        ("app.test", is_authority, false, "CA:TRUE"),
        ("app.test", has_expired, true, "expired on Wed, 01 Jan 2020"),
        ("app.test", is_of_the_future, true, "not valid yet"),
        ("other.test", plain, true, "not valid for name"),
        ("other.test", plain, true, "app.test, but for other.test"),
    ] {
        let authority = TestAuthority::new();
        // Signed by itself, and by an authority.
        authority.self_sign_as("itself", &[name], change);
        let mut shown = vec!["itself"];
        if is_listed {
            authority.sign_as("signed", &[name], change);
            shown.push("signed");
        }
        for file in shown {
            let backend = authority.backend(file, false, answering("never"));
            let listed = match (is_listed, file) {
                (true, "itself") => "itself.pem",
                _ => "ca.pem",
            };
            let daemon = daemon(backend, &authority.path(listed), WITHOUT_CHECKS);
            let response = daemon.get("@web", "/").unwrap();
            let status = response.header("proxy-status");
            assert_eq!(
                status,
                Some("balancer; error=tls_certificate_error"),
                "{cause} {file}"
            );
            let line = daemon.wait_for_log(|line| line.contains("of the backend refused"));
            assert!(line.contains(cause), "{file}: {line}");
            assert!(line.contains("\"level\":\"warn\""), "{line}");
            assert!(line.contains("\"pool\":\"app\""), "{line}");
        }
    }
}

#[test]
fn a_self_signed_certificate_in_client_ca_lets_in_its_owner_alone() {
    let authority = TestAuthority::new();
    authority.sign("a", &["a.test"]);
    let peer = ScriptedPeer::answering("ok");
    for change in [|_: &mut CertificateParams| (), is_authority] {
        authority.self_sign_as("client", &["client.test"], change);
        authority.self_sign_as("stranger", &["client.test"], change);
        let daemon = TestDaemon::start(&format!(
            "listeners:\n  web: {{bind: \"@web\", tls: {{{}, client_ca: {}, client_subject: X-Subject}}, pool: app}}\n\
             pools:\n  app: {{backends: [\"{}\"], health_check: none}}\n",
            authority.pair("a"),
            authority.path("client.pem").display(),
            peer.address
        ));
        let address = daemon.address("@web");
        for only_12 in [false, true] {
            let own = authority.client(Some("client"), only_12);
            let mut client = connect(address, &own, "a.test");
            assert_eq!(client.request("GET", "/").unwrap().text(), "ok");
            let stranger = authority.client(Some("stranger"), only_12);
            let refused = try_connect(address, &stranger, "a.test").map(|stream| {
                crate::harness::client::HttpClient::under(stream).request("GET", "/")
            });
            assert!(!matches!(refused, Ok(Ok(_))));
        }
        let line = daemon.wait_for_log(|line| line.contains("of a client refused"));
        assert!(line.contains("\"level\":\"warn\""), "{line}");
        assert!(line.contains("\"listener\":\"web\""), "{line}");
        let warnings = "balancer_tls_handshake_failures_total{reason=\"certificate_invalid\"}";
        assert_eq!(daemon.metric(warnings), 2.0);
    }
    let requests = peer.requests.all();
    assert!(
        requests
            .iter()
            .all(|one| one.header("x-subject") == Some("CN=client"))
    );
}
