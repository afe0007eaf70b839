//! Header fields on their way: forwarding fields, request ids, hop-by-hop fields, edits by routes.

use hyper::http::Method;

use crate::{
    harness::{client::HttpClient, h2, peer::ScriptedPeer},
    http::{echo, front},
};

/// The head the backend got for a request with `fields`.
fn forwarded(client: &mut HttpClient, fields: &str) -> Vec<(String, String)> {
    client.send(format!(
        "GET /x HTTP/1.1\r\nHost: shop.example:81\r\n{fields}\r\n"
    ));
    let head = client.response().unwrap().text();
    head.trim_end()
        .lines()
        .skip(1)
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect()
}

fn all<'a>(fields: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    fields
        .iter()
        .filter(|(known, _)| known == name)
        .map(|(_, value)| value.as_str())
        .collect()
}

const FORGED_FIELDS: &str = "X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nForwarded: for=9.9.9.9\r\nX_Forwarded_For: 8.8.8.8\r\nX_Request_Id: forged\r\nX-Request-Id: forged\r\nVia: 1.1 before\r\n";

#[test]
fn forwarding_fields_of_a_stranger_are_replaced() {
    let peer = echo();
    let daemon = front(peer.address, "");
    let got = forwarded(&mut daemon.client("@web"), FORGED_FIELDS);
    assert_eq!(all(&got, "host"), ["shop.example:81"], "the host is kept");
    assert_eq!(all(&got, "x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(all(&got, "x-forwarded-proto"), ["http"]);
    assert_eq!(all(&got, "x-forwarded-host"), ["shop.example:81"]);
    assert_eq!(all(&got, "forwarded"), [""; 0]);
    assert_eq!(all(&got, "via"), ["1.1 before", "1.1 balancer"]);
    let id = all(&got, "x-request-id");
    assert!(
        id.len() == 1 && id[0].len() == 32 && id[0] != "forged",
        "{id:?}"
    );
    assert!(!got.iter().any(|(name, _)| name.contains('_')), "{got:?}");
}

/// Fields by which a client may claim an address, in every spelling that some server reads.
const CLAIMED_ADDRESS_FIELDS: [&str; 22] = [
    "X-Forwarded",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Server",
    "x-forwarded-ssl",
    "X-Forwarded-Scheme",
    "X-Forwarded-Uri",
    "X-Forwarded-Method",
    "X-Forwarded-For-Original",
    "X_Forwarded_Proto",
    "X-Forwarded_Host",
    "x_forwarded-tls-client-cert-info",
    "X_FORWARDED_PREFIX",
    "Forwarded",
    "X-Real-IP",
    "x_real_ip",
    "X-Real_IP",
    "True-Client-IP",
    "TRUE_CLIENT_IP",
    "CF-Connecting-IP",
    "cf_connecting_ip",
    "CF_Connecting-IP",
];

fn claims() -> String {
    CLAIMED_ADDRESS_FIELDS
        .map(|name| format!("{name}: 9.9.9.9\r\n"))
        .concat()
}

/// The value `9.9.9.9` reaches no backend under any name.
fn assert_unclaimed(got: &[(String, String)]) {
    let claimed: Vec<_> = got.iter().filter(|(_, value)| value == "9.9.9.9").collect();
    assert!(claimed.is_empty(), "{claimed:?}");
}

const CLIENT_HEADER: &str =
    "trusted_proxies: {from: [127.0.0.2], client_header: CF-Connecting-IP}\n";

#[test]
fn no_claim_of_a_stranger_reaches_a_backend_and_what_is_true_is_set() {
    let peer = echo();
    for more in ["", "forwarded: {x_forwarded: false, real_ip: none}\n"] {
        let daemon = front(peer.address, &format!("{CLIENT_HEADER}{more}"));
        let got = forwarded(&mut daemon.client("@web"), &claims());
        assert_unclaimed(&got);
        let port = daemon.address("@web").port().to_string();
        let set = [port.as_str(), "127.0.0.1"].map(|value| vec![value]);
        let set = if more.is_empty() {
            set
        } else {
            [vec![], vec![]]
        };
        assert_eq!(all(&got, "x-forwarded-port"), set[0]);
        assert_eq!(all(&got, "x-real-ip"), set[1]);
    }
}

#[tokio::test]
async fn no_claim_of_a_stranger_reaches_a_backend_over_http_2() {
    let peer = echo();
    let daemon = front(peer.address, CLIENT_HEADER);
    let (mut sender, _driver) = h2::connect(daemon.address("@web")).await;
    let names = CLAIMED_ADDRESS_FIELDS.map(str::to_ascii_lowercase);
    let fields: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), "9.9.9.9"))
        .collect();
    let (response, _) = sender
        .send_request(h2::request(Method::GET, "/", &fields), true)
        .unwrap();
    let head = String::from_utf8(h2::whole(response).await.unwrap().body).unwrap();
    assert!(!head.contains("9.9.9.9"), "{head}");
    let port = daemon.address("@web").port();
    assert!(
        head.contains(&format!("X-Forwarded-Port: {port}\r\n")),
        "{head}"
    );
    assert!(head.contains("X-Real-IP: 127.0.0.1\r\n"), "{head}");
}

#[test]
fn trailers_make_no_claims_either() {
    let peer = echo();
    let daemon = front(peer.address, CLIENT_HEADER);
    let mut client = daemon.client("@web");
    let claims = claims();
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{claims}X-End: 1\r\n\r\n"
    ));
    let got = client.response().unwrap().text();
    assert!(!got.contains("9.9.9.9"), "{got}");
    let sent = peer.wait_for_requests(1);
    assert!(
        !sent[0].trailers.contains("9.9.9.9"),
        "{}",
        sent[0].trailers
    );
}

#[test]
fn trailers_have_none_of_the_names_that_the_configuration_chooses() {
    let peer = echo();
    let daemon = front(
        peer.address,
        "trusted_proxies: {from: [127.0.0.0/8], client_header: X-Visitor}\nforwarded: {real_ip: X-Caller}\n",
    );
    let mut client = daemon.client("@web");
    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nX-Visitor: 192.0.2.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Visitor: 9.9.9.9\r\nx_caller: 9.9.9.9\r\nX-End: 1\r\n\r\n",
    );
    let got = client.response().unwrap().text();
    assert!(got.contains("X-Caller: 192.0.2.1\r\n"), "{got}");
    assert_eq!(peer.wait_for_requests(1)[0].trailers, "X-End: 1\r\n\r\n");
}

#[test]
fn what_a_trusted_proxy_says_is_kept_and_its_client_is_the_real_one() {
    let peer = echo();
    let daemon = front(peer.address, "trusted_proxies: [127.0.0.0/8]\n");
    let mut client = daemon.client("@web");
    let got = forwarded(
        &mut client,
        "X-Forwarded-For: 192.0.2.9\r\nX-Forwarded-Port: 8443\r\nX-Forwarded-Prefix: /a\r\nX-Real-IP: 7.7.7.7\r\nTrue-Client-IP: 192.0.2.9\r\nX_Real_IP: 8.8.8.8\r\nX_Forwarded_Prefix: /b\r\n",
    );
    for (name, value) in [
        ("x-forwarded-for", "192.0.2.9, 127.0.0.1"),
        ("x-forwarded-port", "8443"),
        ("x-forwarded-prefix", "/a"),
        ("x-real-ip", "192.0.2.9"),
        ("true-client-ip", "192.0.2.9"),
    ] {
        assert_eq!(all(&got, name), [value], "{name}");
    }
    assert!(!got.iter().any(|(name, _)| name.contains('_')), "{got:?}");
    let got = forwarded(&mut client, "X-Forwarded-Proto: https\r\n");
    assert_eq!(
        all(&got, "x-forwarded-port"),
        [""; 0],
        "https was not spoken at our port"
    );
    let got = forwarded(&mut client, "");
    let port = daemon.address("@web").port().to_string();
    assert_eq!(all(&got, "x-forwarded-port"), [port.as_str()]);
}

#[test]
fn a_client_header_of_a_trusted_proxy_names_the_client_everywhere() {
    let peer = echo();
    let daemon = front(
        peer.address,
        "trusted_proxies: {from: 127.0.0.1, client_header: CF-Connecting-IP}\nforwarded: {rfc7239: true, real_ip: X-Client}\n",
    );
    let mut client = daemon.client("@web");
    let got = forwarded(
        &mut client,
        "CF-Connecting-IP: 192.0.2.9\r\nCF_Connecting_IP: 9.9.9.9\r\nX-Client: 9.9.9.9\r\nX_Client: 9.9.9.9\r\n",
    );
    assert_unclaimed(&got);
    for (name, value) in [
        ("cf-connecting-ip", "192.0.2.9"),
        ("x-client", "192.0.2.9"),
        ("x-forwarded-for", "192.0.2.9, 127.0.0.1"),
        (
            "forwarded",
            "for=192.0.2.9, for=127.0.0.1;proto=http;host=\"shop.example:81\"",
        ),
    ] {
        assert_eq!(all(&got, name), [value], "{name}");
    }
    for (fields, expected) in [
        ("X-Forwarded-For: 9.9.9.9\r\n", "127.0.0.1"),
        ("CF-Connecting-IP: nonsense\r\n", "127.0.0.1"),
        ("CF-Connecting-IP: [2001:db8::1]:80\r\n", "2001:db8::1"),
    ] {
        let got = forwarded(&mut client, fields);
        assert_eq!(all(&got, "x-client"), [expected], "{fields}");
    }
    let got = forwarded(
        &mut client,
        "CF-Connecting-IP: 192.0.2.9\r\nX-Forwarded-For: 9.9.9.9, 192.0.2.9\r\n",
    );
    assert_eq!(
        all(&got, "x-forwarded-for"),
        ["9.9.9.9, 192.0.2.9, 127.0.0.1"]
    );
}

#[test]
fn a_route_decides_about_the_client_s_address_too() {
    let peer = echo();
    let daemon = front(
        peer.address,
        "routes: [{path: /x, pool: app, request_headers: {set: {X-Real-IP: fixed}, remove: [X-Forwarded-Port]}}]\n",
    );
    let got = forwarded(&mut daemon.client("@web"), &claims());
    assert_eq!(all(&got, "x-real-ip"), ["fixed"]);
    assert_eq!(all(&got, "x-forwarded-port"), [""; 0]);
}

#[test]
fn forwarding_fields_of_a_trusted_proxy_are_appended_to() {
    let peer = echo();
    let daemon = front(
        peer.address,
        "trusted_proxies: [127.0.0.0/8]\nforwarded: {rfc7239: true}\n",
    );
    let mut client = daemon.client("@web");
    let got = forwarded(&mut client, FORGED_FIELDS);
    assert_eq!(all(&got, "x-forwarded-for"), ["9.9.9.9, 127.0.0.1"]);
    assert_eq!(all(&got, "x-forwarded-proto"), ["https"]);
    assert_eq!(all(&got, "x-forwarded-host"), ["evil"]);
    assert_eq!(
        all(&got, "forwarded"),
        ["for=9.9.9.9, for=127.0.0.1;proto=http;host=\"shop.example:81\""]
    );
    assert_eq!(all(&got, "x-request-id"), ["forged"]);
    let got = forwarded(
        &mut client,
        "X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\n",
    );
    assert_eq!(
        all(&got, "x-forwarded-for"),
        ["1.1.1.1, 2.2.2.2, 127.0.0.1"]
    );
    assert_eq!(all(&got, "x-forwarded-proto"), ["http"]);
    let got = forwarded(
        &mut client,
        &format!("X-Request-Id: {}\r\n", "x".repeat(129)),
    );
    assert_eq!(
        all(&got, "x-request-id")[0].len(),
        32,
        "too long to be kept"
    );
}

#[test]
fn forwarding_fields_can_be_switched_off_but_not_forged() {
    let peer = echo();
    let daemon = front(
        peer.address,
        "forwarded: {x_forwarded: false, rfc7239: true, via: false, request_id: X-Trace}\n",
    );
    let got = forwarded(&mut daemon.client("@web"), FORGED_FIELDS);
    for gone in ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"] {
        assert_eq!(all(&got, gone), [""; 0], "{gone}");
    }
    assert_eq!(
        all(&got, "forwarded"),
        ["for=127.0.0.1;proto=http;host=\"shop.example:81\""]
    );
    assert_eq!(all(&got, "via"), ["1.1 before"]);
    assert_eq!(
        all(&got, "x-request-id"),
        ["forged"],
        "only the configured field is ours"
    );
    assert_eq!(all(&got, "x-trace").len(), 1);
}

#[test]
fn the_request_id_is_the_same_for_backend_client_and_log() {
    let peer = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            let id = request.header("x-request-id").unwrap();
            connection.send(format!(
                "HTTP/1.1 200 OK\r\nX-Request-ID: of-the-backend\r\nContent-Length: {}\r\n\r\n{id}",
                id.len()
            ));
        }
    });
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    let mut ids = Vec::new();
    for _ in 0..3 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n");
        let response = client.response().unwrap();
        assert_eq!(response.count("x-request-id"), 1);
        let id = response.header("x-request-id").unwrap().to_owned();
        assert_eq!(id, response.text());
        let line = daemon.wait_for_access(|line| line["request_id"] == id.as_str());
        assert_eq!(line["trace_id"], "0af7651916cd43dd8448eb211c80319c");
        ids.push(id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 3, "each has its own");
    assert!(peer.requests.all()[0].header("traceparent").is_some());
}

#[test]
fn fields_for_one_hop_go_no_further() {
    let peer = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            let head = request.head;
            connection.send(format!(
                "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nUpgrade: foo\r\nProxy-Connection: close\r\nX-End: 2\r\nContent-Length: {}\r\n\r\n{head}",
                head.len()
            ));
        }
    });
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    let got = forwarded(
        &mut client,
        "Connection: x-secret, keep-alive\r\nconnection: X-Other, Host, Authorization, X-Forwarded-For, Cookie\r\nX-Secret: 1\r\nX-Other: 2\r\nAuthorization: b\r\nCookie: c\r\nKeep-Alive: timeout=9\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\nUpgrade: foo\r\nX-End: 3\r\n",
    );
    for gone in [
        "connection",
        "x-secret",
        "x-other",
        "keep-alive",
        "proxy-connection",
        "te",
        "upgrade",
    ] {
        assert_eq!(all(&got, gone), [""; 0], "{gone}");
    }
    for (kept, value) in [
        ("host", "shop.example:81"),
        ("authorization", "b"),
        ("cookie", "c"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-end", "3"),
    ] {
        assert_eq!(all(&got, kept), [value], "{kept}");
    }
    let response = client.request("GET", "/").unwrap();
    for gone in [
        "connection",
        "keep-alive",
        "x-hop",
        "upgrade",
        "proxy-connection",
    ] {
        assert_eq!(response.count(gone), 0, "{gone}");
    }
    assert_eq!(response.header("x-end"), Some("2"));
}

#[test]
fn a_route_edits_the_fields_of_both_directions() {
    let peer = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            let head = request.head;
            connection.send(format!("HTTP/1.1 200 OK\r\nServer: secret\r\nX-Kept: 1\r\nX-Set: old\r\nContent-Length: {}\r\n\r\n{head}", head.len()));
        }
    });
    let daemon = front(
        peer.address,
        "routes:\n  - path: /x\n    pool: app\n    request_headers: {set: {X-Tenant: main, Host: inner}, add: {X-Add: b}, remove: [X-Debug]}\n    response_headers: {set: {X-Set: new}, add: {X-Add: c}, remove: [Server]}\n",
    );
    let mut client = daemon.client("@web");
    let got = forwarded(
        &mut client,
        "X-Tenant: forged\r\nx_tenant: forged\r\nX-Add: a\r\nX-Debug: 1\r\nX_Debug: 2\r\n",
    );
    assert_eq!(all(&got, "x-tenant"), ["main"]);
    assert_eq!(all(&got, "x-add"), ["a", "b"]);
    assert_eq!(all(&got, "host"), ["inner"]);
    assert_eq!(all(&got, "x-forwarded-host"), ["shop.example:81"]);
    assert!(
        !got.iter()
            .any(|(name, _)| name.contains("debug") || name.contains('_')),
        "{got:?}"
    );
    client.send("GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let response = client.response().unwrap();
    assert_eq!(
        response.text().matches("Host: ").count(),
        1,
        "one Host, though an old client sent none: {}",
        response.text()
    );
    assert_eq!(
        (response.header("x-set"), response.count("x-set")),
        (Some("new"), 1)
    );
    assert_eq!(
        (
            response.header("x-add"),
            response.count("server"),
            response.header("x-kept")
        ),
        (Some("c"), 0, Some("1"))
    );
    let response = client.request("GET", "/other").unwrap();
    assert_eq!(
        (response.header("server"), response.header("x-set")),
        (Some("secret"), Some("old"))
    );
}

#[test]
fn what_a_route_sets_or_removes_is_not_added_again() {
    let peer = echo();
    let daemon = front(
        peer.address,
        "forwarded: {rfc7239: true}
routes:
  - path: /x
    pool: app
    request_headers:
      set: {X-Forwarded-Proto: https, Via: mine, X-Request-Id: fixed}
      add: {X-Forwarded-Host: added}
      remove: [X-Forwarded-For, Forwarded]
    response_headers: {set: {date: never}, remove: [X-Request-Id]}
",
    );
    let mut client = daemon.client("@web");
    let got = forwarded(&mut client, FORGED_FIELDS);
    for (name, values) in [
        ("x-forwarded-proto", &["https"][..]),
        ("via", &["mine"]),
        ("x-request-id", &["fixed"]),
        ("x-forwarded-host", &["shop.example:81", "added"]),
        ("x-forwarded-for", &[]),
        ("forwarded", &[]),
    ] {
        assert_eq!(all(&got, name), values, "{name}");
    }
    let response = client.request("GET", "/x").unwrap();
    assert_eq!(
        (response.header("date"), response.count("date")),
        (Some("never"), 1)
    );
    assert_eq!(response.count("x-request-id"), 0);
    let other = client.request("GET", "/").unwrap();
    assert_eq!(
        (other.count("date"), other.count("x-request-id")),
        (1, 1),
        "other routes are not touched"
    );
}

#[test]
fn the_target_reaches_the_backend_in_origin_form() {
    let peer = echo();
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    for (sent, host, target) in [
        (
            "GET http://shop.example/a/../b%2f?c=%0a HTTP/1.1\r\nHost: shop.example",
            "shop.example",
            "/a/../b%2f?c=%0a",
        ),
        (
            "GET HTTP://Shop.Example HTTP/1.1\r\nHost: shop.example",
            "shop.example",
            "/",
        ),
        (
            "GET http://shop.example/ HTTP/1.0\r\nConnection: keep-alive",
            "shop.example",
            "/",
        ),
        (
            "OPTIONS * HTTP/1.1\r\nHost: shop.example",
            "shop.example",
            "*",
        ),
        (
            "GET //evil.example/ HTTP/1.1\r\nHost: shop.example",
            "shop.example",
            "//evil.example/",
        ),
    ] {
        client.send(format!("{sent}\r\n\r\n"));
        let head = client.response().unwrap().text();
        let method = sent.split(' ').next().unwrap();
        assert!(
            head.starts_with(&format!("{method} {target} HTTP/1.1\r\n")),
            "{sent}: {head}"
        );
        assert!(
            head.contains(&format!("\r\nHost: {host}\r\n")),
            "{sent}: {head}"
        );
    }
}

#[test]
fn a_response_without_a_date_gets_one_and_a_date_is_kept() {
    let peer = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            let date = if request.head.contains("/dated") {
                "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
            } else {
                ""
            };
            connection.send(format!(
                "HTTP/1.1 200 OK\r\n{date}Content-Length: 2\r\n\r\nok"
            ));
        }
    });
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    let dated = client.request("GET", "/dated").unwrap();
    assert_eq!(
        (dated.header("date"), dated.count("date")),
        (Some("Sun, 06 Nov 1994 08:49:37 GMT"), 1)
    );
    let undated = client.request("GET", "/").unwrap();
    let date = undated.header("date").unwrap();
    assert!(
        date.len() == 29 && date.ends_with(" GMT") && !date.contains("1994"),
        "{date}"
    );
}

#[test]
fn an_old_request_without_a_host_gets_the_address_it_came_to() {
    let peer = echo();
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    client.send("GET /x HTTP/1.0\r\n\r\n");
    let head = client.response().unwrap().text();
    let wanted = format!("Host: {}\r\n", daemon.address("@web"));
    assert!(head.contains(&wanted), "{head}");
    assert!(!head.contains("X-Forwarded-Host"), "{head}");
}
