//! Routing to pools, and responses of routes and listeners themselves.

use crate::harness::{
    daemon::TestDaemon,
    peer::{Blackhole, Gate, ScriptedPeer},
};

/// Requests, and the pool that each must get.
const ROUTED_REQUESTS: [(&str, &str); 23] = [
    ("GET / HTTP/1.1\r\nHost: a\r\n", "default"),
    ("GET /api HTTP/1.1\r\nHost: a\r\n", "prefix"),
    ("GET /api/ HTTP/1.1\r\nHost: a\r\n", "prefix"),
    ("GET /api?x HTTP/1.1\r\nHost: a\r\n", "prefix"),
    ("GET /apis HTTP/1.1\r\nHost: a\r\n", "default"),
    ("GET /API HTTP/1.1\r\nHost: a\r\n", "default"),
    ("GET /x/../api HTTP/1.1\r\nHost: a\r\n", "prefix"),
    ("GET /%61pi/x HTTP/1.1\r\nHost: a\r\n", "prefix"),
    ("GET /api/v1 HTTP/1.1\r\nHost: a\r\n", "longer"),
    ("GET /api/v1/status?q HTTP/1.1\r\nHost: a\r\n", "exact"),
    ("GET /api/v1/status/ HTTP/1.1\r\nHost: a\r\n", "longer"),
    ("GET /img/12.png HTTP/1.1\r\nHost: a\r\n", "regex"),
    ("GET /img/12.png.exe HTTP/1.1\r\nHost: a\r\n", "default"),
    ("DELETE /api/x HTTP/1.1\r\nHost: a\r\n", "method"),
    ("DELETE /api/v1 HTTP/1.1\r\nHost: a\r\n", "longer"),
    ("GET /api HTTP/1.1\r\nHost: a\r\nx-beta: 1\r\n", "header"),
    ("GET /api HTTP/1.1\r\nHost: a\r\nX-Beta: 2\r\n", "prefix"),
    (
        "GET /api HTTP/1.1\r\nHost: a\r\nX-Beta: 1\r\nX-Gamma: \r\n",
        "both",
    ),
    (
        "GET /api/v1 HTTP/1.1\r\nHost: SHOP.example:8080\r\n",
        "host",
    ),
    ("GET / HTTP/1.1\r\nHost: a.shop.example\r\n", "suffix"),
    ("GET / HTTP/1.1\r\nHost: a.b.shop.example.\r\n", "suffix"),
    ("GET / HTTP/1.1\r\nHost: notshop.example\r\n", "default"),
    (
        "GET http://shop.example/ HTTP/1.1\r\nHost: shop.example\r\n",
        "host",
    ),
];

#[test]
fn the_most_specific_route_takes_a_request_in_any_order_of_routes() {
    let names = [
        "default", "host", "suffix", "prefix", "longer", "exact", "regex", "method", "header",
        "both",
    ];
    let peers: Vec<ScriptedPeer> = names
        .iter()
        .map(|name| ScriptedPeer::answering(name))
        .collect();
    let pools: String = names
        .iter()
        .zip(&peers)
        .map(|(name, peer)| {
            format!(
                "  {name}: {{backends: [{}], health_check: none}}\n",
                peer.address
            )
        })
        .collect();
    let daemon = TestDaemon::start(&format!(
        "listeners: {{web: {{bind: \"@web\", pool: default}}}}\npools:\n{pools}routes:
  - {{path: /api, pool: prefix}}
  - {{path: /api, method: [DELETE, PUT], pool: method}}
  - {{path: /api, headers: {{X-Beta: \"1\"}}, pool: header}}
  - {{path: /api, headers: {{X-Beta: \"1\", X-Gamma: \"*\"}}, pool: both}}
  - {{path: /api/v1, pool: longer}}
  - {{path_exact: /api/v1/status, pool: exact}}
  - {{path_regex: \"/img/[0-9]+[.]png\", pool: regex}}
  - {{host: shop.example, pool: host}}
  - {{host: \"*.shop.example\", pool: suffix}}
"
    ));
    let mut client = daemon.client("@web");
    for (request, pool) in ROUTED_REQUESTS {
        client.send(format!("{request}\r\n"));
        assert_eq!(client.response().unwrap().text(), pool, "{request}");
    }
}

#[test]
fn routes_and_listeners_answer_themselves() {
    let daemon = TestDaemon::start(
        "listeners:\n  web: {bind: \"@web\"}\n  plain: {bind: \"@plain\", redirect: https}\n  alt: {bind: \"@alt\", redirect: {to: https, port: 8443, status: 301}}\nroutes:
  - {listeners: [web], path_exact: /ping, respond: {status: 200, body: pong}}
  - {listeners: [web], path_exact: /gone, respond: {status: 410}}
  - {listeners: [web], path: /old, redirect: {to: /new, status: 302}}
  - {listeners: [web], path: /secure, redirect: https}
",
    );
    let mut client = daemon.client("@web");
    let response = client.request("GET", "/ping").unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "pong"));
    let response = client.request("HEAD", "/ping").unwrap();
    assert_eq!(
        (response.status, response.header("content-length")),
        (200, Some("4"))
    );
    assert_eq!(client.request("GET", "/gone").unwrap().status, 410);
    let response = client.request("GET", "/old/x?y").unwrap();
    assert_eq!(
        (response.status, response.header("location")),
        (302, Some("/new"))
    );
    let response = client.request("GET", "/secure/x?y=%0d").unwrap();
    assert_eq!(
        (response.status, response.header("location")),
        (308, Some("https://test/secure/x?y=%0d"))
    );
    let response = client.request("GET", "/none").unwrap();
    assert_eq!(
        (response.status, response.header("proxy-status")),
        (404, Some("balancer; error=destination_not_found"))
    );
    assert_eq!(
        client.request("GET", "/ping").unwrap().text(),
        "pong",
        "none of it ends the connection"
    );
    for (word, host, status, location) in [
        ("@plain", "shop.example:80", 308, "https://shop.example/a?b"),
        ("@alt", "shop.example", 301, "https://shop.example:8443/a?b"),
        ("@plain", "[::1]:80", 308, "https://[::1]/a?b"),
    ] {
        let mut client = daemon.client(word);
        client.send(format!("GET /a?b HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let response = client.response().unwrap();
        assert_eq!(
            (response.status, response.header("location")),
            (status, Some(location))
        );
    }
    let mut client = daemon.client("@plain");
    client.send("GET /a HTTP/1.0\r\n\r\n");
    assert_eq!(
        client.response().unwrap().status,
        400,
        "there is no URL without a host"
    );
}

#[test]
fn the_redirect_of_a_listener_leaves_only_the_routes_that_name_it_or_are_first() {
    let peers = ["host", "acme"].map(ScriptedPeer::answering);
    let daemon = TestDaemon::start(&format!(
        "listeners:
  plain: {{bind: \"@plain\", redirect: https}}
  secure: {{bind: \"@secure\"}}
pools:
  host: {{backends: [{}], health_check: none}}
  acme: {{backends: [{}], health_check: none}}
routes:
  - {{host: shop.example, pool: host}}
  - {{listeners: [plain], path: /.well-known/acme-challenge, pool: acme}}
  - {{path: /admin, first: true, respond: {{status: 403}}}}
",
        peers[0].address, peers[1].address
    ));
    for (word, path, expected) in [
        ("@plain", "/", 308),
        ("@plain", "/.well-known/acme-challenge/x", 200),
        ("@plain", "/admin", 403),
        ("@secure", "/", 200),
        ("@secure", "/.well-known/acme-challenge/x", 200),
        ("@secure", "/admin/", 403),
    ] {
        let mut client = daemon.client(word);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\n\r\n"));
        let response = client.response().unwrap();
        assert_eq!(response.status, expected, "{word} {path}");
        if response.status == 200 {
            let expected = if word == "@plain" { "acme" } else { "host" };
            assert_eq!(response.text(), expected, "{word} {path}");
        }
    }
}

#[test]
fn a_route_that_refuses_and_is_first_holds_for_hosts_with_routes_of_their_own() {
    let peer = ScriptedPeer::answering("shop");
    let daemon = TestDaemon::start(&format!(
        "listeners: {{web: {{bind: \"@web\"}}}}\npools: {{app: {{backends: [{}], health_check: none}}}}\nroutes:
  - {{host: shop.example, pool: app}}
  - {{host: shop.example, path_exact: /admin/x, listeners: [web], pool: app}}
  - {{path_regex: \"(?i)/admin/.*\", first: true, respond: {{status: 403}}}}
",
        peer.address
    ));
    let mut client = daemon.client("@web");
    for (path, status) in [
        ("/", 200),
        ("/admin", 200),
        ("/admin/x", 403),
        ("/ADMIN/x", 403),
        ("/admin/%0a", 403),
        ("/admin/x%0Dy", 403),
        ("/admin/%E2%80%A8", 403),
        ("/admin/%ff", 403),
    ] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\n\r\n"));
        assert_eq!(client.response().unwrap().status, status, "{path}");
    }
}

#[test]
fn headers_of_one_hop_match_what_the_client_sent() {
    let socket = ScriptedPeer::start(|mut connection| {
        if let Some(head) = connection.head() {
            let status = match head.header("upgrade") {
                Some(_) => "101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket",
                None => "200 OK\r\nContent-Length: 0",
            };
            connection.send(format!("HTTP/1.1 {status}\r\nX-Pool: socket\r\n\r\n"));
            connection.wait_for_end();
        }
    });
    let peers = ["trailers", "close"].map(ScriptedPeer::answering);
    let daemon = TestDaemon::start(&format!(
        "listeners: {{web: {{bind: \"@web\"}}}}\npools:
  socket: {{backends: [{}], health_check: none}}
  trailers: {{backends: [{}], health_check: none}}
  close: {{backends: [{}], health_check: none}}
routes:
  - {{headers: {{Upgrade: websocket}}, pool: socket}}
  - {{headers: {{TE: trailers, Keep-Alive: \"*\"}}, pool: trailers}}
  - {{headers: {{Connection: close}}, pool: close}}
",
        socket.address, peers[0].address, peers[1].address
    ));
    for fields in [
        "Connection: Upgrade\r\nUpgrade: websocket",
        "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket",
        "Upgrade: websocket",
    ] {
        let mut client = daemon.client("@web");
        client.send(format!("GET /chat HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n"));
        let (status, head) = client.head().unwrap();
        assert_eq!(status == 101, fields.starts_with("Connection"), "{fields}");
        assert!(status == 101 || status == 200, "{fields}: {status}");
        assert!(format!("{head:?}").contains("socket"), "{fields}");
    }
    for (fields, pool) in [
        ("TE: trailers\r\nKeep-Alive: timeout=5", Some("trailers")),
        ("Connection: Close", Some("close")),
        ("Connection: keep-alive", None),
        ("X-Upgrade: websocket", None),
    ] {
        let mut client = daemon.client("@web");
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n"));
        let response = client.response().unwrap();
        let found = (response.status == 200).then(|| response.text());
        assert_eq!(found.as_deref(), pool, "{fields}");
    }
}

#[test]
fn a_star_in_remove_takes_every_header_that_begins_so_and_no_other() {
    let peer = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            connection.send(format!(
                "HTTP/1.1 200 OK\r\nX-Inner-A: 1\r\nx_inner_b: 2\r\nX-Inne: 3\r\nServer: s\r\nContent-Length: {}\r\n\r\n{}",
                request.head.len(),
                request.head
            ));
        }
    });
    let daemon = TestDaemon::start(&format!(
        "listeners: {{web: {{bind: \"@web\"}}}}\npools: {{app: {{backends: [{}], health_check: none}}}}\nroutes:
  - path: /
    pool: app
    request_headers: {{remove: [X-Internal-*, H*, E*, C*, x-forwarded-*], set: {{X-Internal-Own: ours}}}}
    response_headers: {{remove: [X-Inner-*, S*, c*]}}
",
        peer.address
    ));
    let mut client = daemon.client("@web");
    client.send("POST / HTTP/1.1\r\nHost: a\r\nX-Internal-Id: 1\r\nx-internal-: 2\r\nX_Internal_B: 3\r\nX-Internal: 4\r\nCookie: c=d\r\nContent-Length: 2\r\n\r\nhi");
    let response = client.response().unwrap();
    let head = response.text().to_ascii_lowercase();
    for gone in [
        "x-internal-id",
        "x-internal-:",
        "x_internal_b",
        "cookie",
        "x-forwarded-for",
    ] {
        assert!(!head.contains(gone), "{gone}: {head}");
    }
    for kept in [
        "\r\nhost: a",
        "x-internal: 4",
        "x-internal-own: ours",
        "content-length: 2",
        "via:",
    ] {
        assert!(head.contains(kept), "{kept}: {head}");
    }
    for (name, value) in [
        ("x-inner-a", None),
        ("x_inner_b", None),
        ("server", None),
        ("x-inne", Some("3")),
    ] {
        assert_eq!(response.header(name), value, "{name}");
    }
    assert!(response.header("content-length").is_some());
}

#[test]
fn an_answer_of_our_own_to_a_request_with_a_body_keeps_the_connection_in_step() {
    let daemon = TestDaemon::start(
        "listeners: {web: {bind: \"@web\"}}\nroutes: [{path: /, respond: {status: 200, body: pong}}]\n",
    );
    let mut client = daemon.client("@web");
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\nabGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    for _ in 0..2 {
        assert_eq!(client.response().unwrap().text(), "pong");
    }
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n\r\nGET /");
    assert_eq!(
        client.response().unwrap().header("connection"),
        Some("close"),
        "the rest of the body was not waited for"
    );
    client.try_send(" HTTP/1.1\r\nHost: evil\r\n\r\n");
    assert_eq!(client.rest(), Ok(Vec::new()));
}

#[test]
fn a_route_has_its_own_timeouts_and_guests() {
    let gate = Gate::new();
    let door = gate.clone();
    let peer = ScriptedPeer::start(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.target.starts_with("/slow") {
                door.wait();
            }
            connection.answer("ok");
        }
    });
    let daemon = TestDaemon::start(&format!(
        "listeners: {{web: {{bind: \"@web\", pool: app}}}}\npools: {{app: {{backends: [{}], health_check: none}}}}\nroutes:
  - {{path: /slow/fails, pool: app, timeouts: {{response: 100ms}}, retries: none}}
  - {{path: /slow/total, pool: app, timeouts: {{total: 100ms}}}}
  - {{path: /inner, pool: app, allow: [10.0.0.0/8]}}
  - {{path: /local, pool: app, allow: [127.0.0.1]}}
",
        peer.address
    ));
    let response = daemon.get("@web", "/slow/fails").unwrap();
    assert_eq!(
        (response.status, response.header("proxy-status")),
        (502, Some("balancer; error=http_response_timeout"))
    );
    assert_eq!(daemon.get("@web", "/slow/total").unwrap().status, 502);
    assert_eq!(daemon.get("@web", "/inner").unwrap().status, 403);
    assert_eq!(daemon.get("@web", "/local").unwrap().status, 200);
    let mut patient = daemon.client("@web");
    patient.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    peer.requests
        .wait_for(|all| {
            all.iter()
                .any(|request| request.target == "/slow")
                .then_some(())
        })
        .unwrap();
    gate.open();
    assert_eq!(patient.response().unwrap().status, 200);
}

#[test]
fn a_route_has_its_own_time_to_connect_and_to_be_idle() {
    let (unreachable, gate) = (Blackhole::start(), Gate::new());
    let door = gate.clone();
    let slow = ScriptedPeer::start(move |mut connection| {
        while connection.request().is_some() {
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
            door.wait();
        }
    });
    let daemon = TestDaemon::start(&format!(
        "access_log: {{when: {{min_status: 100}}}}\nlisteners: {{web: {{bind: \"@web\"}}}}\npools:
  unreachable: {{backends: [{}], health_check: none, retries: none, timeouts: {{connect: 1h}}}}
  slow: {{backends: [{}], health_check: none, retries: none, timeouts: {{idle: 24h}}}}
routes:
  - {{path: /connect, pool: unreachable, timeouts: {{connect: 100ms}}}}
  - {{path: /idle, pool: slow, timeouts: {{idle: 100ms}}}}
",
        unreachable.address, slow.address
    ));
    let response = daemon.get("@web", "/connect").unwrap();
    assert_eq!(
        (response.status, response.header("proxy-status")),
        (502, Some("balancer; error=connection_timeout"))
    );
    assert!(daemon.get("@web", "/idle").is_err(), "the answer is cut");
    let line = daemon.wait_for_access(|line| line["path"] == "/idle");
    assert_eq!(line["reason"], "http_response_idle_timeout");
    gate.open();
}

#[test]
fn a_stranger_to_a_route_is_refused_by_name_and_no_backend_is_asked() {
    let peer = ScriptedPeer::answering("inner");
    let daemon = TestDaemon::start(&format!(
        "listeners: {{web: {{bind: \"@web\"}}}}\npools: {{app: {{backends: [{}], health_check: none}}}}\nroutes:
  - {{path: /inner, pool: app, allow: [10.0.0.0/8, \"::1\"]}}
  - {{path: /split, split: {{app: 1}}, allow: [10.0.0.0/8]}}
  - {{path: /own, respond: {{body: secret}}, allow: [10.0.0.0/8]}}
  - {{path: /moved, redirect: {{to: /secret}}, allow: [10.0.0.0/8]}}
",
        peer.address
    ));
    let mut client = daemon.client("@web");
    for target in ["/inner", "/inner/../inner/x", "/split", "/own", "/moved"] {
        let response = client.request("GET", target).unwrap();
        assert_eq!(
            (response.status, response.header("proxy-status")),
            (403, Some("balancer; error=http_request_denied")),
            "{target}"
        );
        assert_eq!(response.header("location"), None, "{target}");
    }
    assert_eq!(peer.connections(), 0);
}
