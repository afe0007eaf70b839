//! The address of the client: `allow`, `deny`, limits and the log agree, directly and through a
//! trusted proxy.

use hyper::http::Method;

use crate::harness::{client::HttpClient, daemon::TestDaemon, h2, peer::ScriptedPeer};

/// A daemon whose listener has `rules`. It trusts 127.0.0.1, where every client of these tests
/// comes from.
fn behind_a_proxy(backend: &ScriptedPeer, rules: &str, routes: &str) -> TestDaemon {
    TestDaemon::start(&format!(
        "workers: 1\naccess_log: {{when: {{min_status: 100}}}}\ntrusted_proxies: [127.0.0.1, 10.0.0.0/8]\n\
         listeners: {{web: {{bind: \"@web\", pool: app, {rules}}}}}\nroutes: [{routes}]\n\
         pools: {{app: {{backends: [{}], health_check: none}}}}\n",
        backend.address
    ))
}

fn status(client: &mut HttpClient, path: &str, fields: &str) -> u16 {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
    client.response().unwrap().status
}

fn through(client: &str) -> String {
    format!("X-Forwarded-For: 203.0.113.1, {client}, 10.1.1.1\r\n")
}

#[test]
fn a_listener_that_allows_the_proxy_s_network_lets_in_none_of_its_clients() {
    let backend = ScriptedPeer::answering("ok");
    let daemon = behind_a_proxy(&backend, "allow: [127.0.0.0/8, 198.51.100.0/24]", "");
    let mut client = daemon.client("@web");
    assert_eq!(status(&mut client, "/", &through("192.0.2.1")), 403);
    assert_eq!(status(&mut client, "/", &through("198.51.100.1")), 200);
    assert_eq!(status(&mut client, "/", ""), 200, "the proxy itself");
    let line = daemon.wait_for_access(|line| line["status"] == 403);
    assert_eq!(line["client"], "192.0.2.1");
    let line = daemon.wait_for_access(|line| line["status"] == 200);
    assert_eq!(line["client"], "198.51.100.1");
}

#[test]
fn deny_and_the_allow_of_a_route_see_the_client_behind_the_proxy() {
    let backend = ScriptedPeer::answering("ok");
    let daemon = behind_a_proxy(
        &backend,
        "deny: [192.0.2.66]",
        "{path: /admin, pool: app, allow: [127.0.0.0/8, 10.0.0.0/8, 192.0.2.7]}",
    );
    let mut client = daemon.client("@web");
    for (path, from, expected) in [
        ("/", "192.0.2.66", 403),
        ("/", "192.0.2.1", 200),
        ("/admin", "192.0.2.1", 403),
        ("/admin", "192.0.2.7:4711", 200),
        ("/admin", "::ffff:192.0.2.7", 200),
        ("/admin", "[2001:db8::1]:4711", 403),
    ] {
        let got = status(&mut client, path, &through(from));
        assert_eq!(got, expected, "{path} {from}");
    }
}

#[tokio::test]
async fn each_request_of_an_http_2_connection_has_its_own_client() {
    let backend = ScriptedPeer::answering("ok");
    let daemon = behind_a_proxy(&backend, "allow: [192.0.2.7]", "");
    let (mut sender, _driver) = h2::connect(daemon.address("@web")).await;
    for (from, expected) in [("192.0.2.1", 403), ("192.0.2.7", 200), ("192.0.2.8", 403)] {
        let fields = [("x-forwarded-for", from)];
        let asked = h2::request(Method::GET, "/", &fields);
        let (response, _) = sender.send_request(asked, true).unwrap();
        assert_eq!(
            h2::whole(response).await.unwrap().status(),
            expected,
            "{from}"
        );
    }
}

#[test]
fn ipv4_networks_written_as_ipv6_hold_for_ipv4_clients() {
    let backend = ScriptedPeer::answering("ok");
    let daemon = behind_a_proxy(
        &backend,
        "allow: [\"::ffff:192.0.2.0/120\", \"::ffff:127.0.0.1\"], deny: [\"::ffff:192.0.2.66\"]",
        "",
    );
    let mut client = daemon.client("@web");
    for (from, expected) in [
        ("192.0.2.1", 200),
        ("::ffff:192.0.2.1", 200),
        ("192.0.2.66", 403),
        ("192.0.3.1", 403),
    ] {
        assert_eq!(status(&mut client, "/", &through(from)), expected, "{from}");
    }
    assert_eq!(status(&mut client, "/", ""), 200);
}

#[test]
fn a_client_over_an_ipv6_socket_is_known_by_its_ipv4_address() {
    let backend = ScriptedPeer::answering("ok");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let daemon = TestDaemon::start(&format!(
        "workers: 1\nlisteners: {{web: {{bind: \":{port}\", pool: app, allow: [127.0.0.1]}}}}\n\
         pools: {{app: {{backends: [{}], health_check: none}}}}\n",
        backend.address
    ));
    let mut client = HttpClient::connect(([127, 0, 0, 1], port).into());
    assert_eq!(status(&mut client, "/", ""), 200);
    drop(daemon);
    let sent = backend.wait_for_requests(1);
    assert_eq!(sent[0].header("x-real-ip"), Some("127.0.0.1"));
    assert_eq!(sent[0].header("x-forwarded-for"), Some("127.0.0.1"));
}

#[test]
fn the_log_shows_headers_as_the_client_sent_them() {
    let backend = ScriptedPeer::answering("ok");
    let daemon = TestDaemon::start(&format!(
        "workers: 1\naccess_log: {{when: {{min_status: 100}}, headers: [X-Tenant, X-Forwarded-For]}}\n\
         listeners: {{web: {{bind: \"@web\", pool: app}}}}\n\
         routes: [{{path: /, pool: app, request_headers: {{set: {{X-Tenant: ours}}}}}}]\n\
         pools: {{app: {{backends: [{}], health_check: none}}}}\n",
        backend.address
    ));
    let mut client = daemon.client("@web");
    let fields = "X-Tenant: theirs\r\nX-Forwarded-For: 192.0.2.7\r\n";
    assert_eq!(status(&mut client, "/", fields), 200);
    let line = daemon.wait_for_access(|line| line["status"] == 200);
    assert_eq!(line["header_x_tenant"], "theirs");
    assert_eq!(line["header_x_forwarded_for"], "192.0.2.7");
    assert_eq!(line["client"], "127.0.0.1");
}
