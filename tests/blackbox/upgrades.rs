//! 1xx responses, `Expect`, and upgraded connections.

use crate::{
    harness::{
        client::{HttpClient, ReadError},
        peer::{Gate, ScriptedPeer},
    },
    http::{echo, front, pool},
};

const UPGRADE_REQUEST: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";
const SWITCHING_PROTOCOLS: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: y\r\n\r\n";

#[test]
fn expect_goes_to_the_backend_and_its_100_comes_back_before_the_body_is_sent() {
    let peer = ScriptedPeer::start(|mut connection| {
        let head = connection.head().unwrap();
        assert_eq!(head.header("expect"), Some("100-continue"));
        connection.send("HTTP/1.1 100 Continue\r\n\r\n");
        let body = connection.exactly(5).unwrap();
        connection.answer(&String::from_utf8(body).unwrap());
    });
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(client.head().unwrap().0, 100);
    client.send("hello");
    assert_eq!(client.response().unwrap().text(), "hello");
    client.patience(std::time::Duration::from_millis(50));
    assert_eq!(
        client.response(),
        Err(ReadError::TimedOut(Vec::new())),
        "the backend closed, the client's connection stays"
    );
}

#[test]
fn an_expectation_that_is_not_met_saves_the_body() {
    let peer = ScriptedPeer::start(|mut connection| {
        connection.head().unwrap();
        connection.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
        connection.wait_for_end();
    });
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    let response = client.response().unwrap();
    assert_eq!(
        (
            response.status,
            response.text().as_str(),
            response.header("connection")
        ),
        (403, "no", Some("close"))
    );
    assert_eq!(client.rest(), Ok(Vec::new()));
}

#[test]
fn early_hints_reach_a_client_that_knows_them_and_no_other() {
    let peer = ScriptedPeer::start(|mut connection| {
        while connection.request().is_some() {
            connection.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    for link in ["</a.css>", "</b.css>"] {
        let (status, fields) = client.head().unwrap();
        assert_eq!(
            (status, fields),
            (103, vec![("Link".to_owned(), link.to_owned())])
        );
    }
    assert_eq!(client.response().unwrap().text(), "ok");
    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    let response = client.response().unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "ok"));
}

#[test]
fn a_flood_of_1xx_is_an_invalid_answer() {
    let peer = ScriptedPeer::saying(
        "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(20)
            + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    );
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    let mut status = 103;
    let mut seen = 0;
    while status == 103 {
        status = client.head().unwrap().0;
        seen += 1;
    }
    assert_eq!(status, 502);
    assert!(seen <= 18, "{seen}");
}

#[test]
fn a_switched_connection_is_a_tunnel_with_early_bytes_both_ways() {
    let peer = ScriptedPeer::start(|mut connection| {
        let head = connection.head().unwrap();
        assert_eq!(
            (
                head.header("connection"),
                head.header("upgrade"),
                head.header("sec-websocket-key")
            ),
            (Some("upgrade"), Some("websocket"), Some("x"))
        );
        connection.send(format!("{SWITCHING_PROTOCOLS}early from backend"));
        assert_eq!(connection.until(b"client").unwrap(), b"early from client");
        while let Some(byte) = connection.exactly(1) {
            connection.send(byte.to_ascii_uppercase());
        }
        connection.send("after your end");
    });
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    client.send(format!("{UPGRADE_REQUEST}early from client"));
    let (status, fields) = client.head().unwrap();
    assert_eq!(status, 101);
    assert!(
        fields.contains(&("Upgrade".to_owned(), "websocket".to_owned()))
            && fields.contains(&("Sec-WebSocket-Accept".to_owned(), "y".to_owned())),
        "{fields:?}"
    );
    assert!(
        fields
            .iter()
            .any(|(name, id)| name == "X-Request-Id" && id.len() == 32),
        "{fields:?}"
    );
    assert_eq!(client.exactly(18).unwrap(), b"early from backend");
    for word in ["ping", "GET / HTTP/1.1\r\n\r\n", "pong"] {
        client.send(word);
        assert_eq!(
            client.exactly(word.len()).unwrap(),
            word.to_ascii_uppercase().as_bytes()
        );
    }
    client.finish();
    assert_eq!(client.rest().unwrap(), b"after your end");
    let line = daemon.wait_for_access(|line| line["path"] == "/chat");
    assert_eq!(
        (&line["status"], &line["reason"]),
        (&101.into(), &serde_json::Value::Null)
    );
    let (up, down) = (
        "early from clientpingGET / HTTP/1.1\r\n\r\npong",
        "early from backendpingGET / HTTP/1.1\r\n\r\npongafter your end",
    );
    assert_eq!(
        (&line["bytes_in"], &line["bytes_out"]),
        (&up.len().into(), &down.len().into()),
        "early bytes count too"
    );
}

#[test]
fn a_reset_of_one_end_of_a_tunnel_is_a_reset_of_the_other() {
    let peer = ScriptedPeer::start(|mut connection| {
        connection.head().unwrap();
        connection.send(SWITCHING_PROTOCOLS);
        connection.exactly(1).unwrap();
        connection.reset();
    });
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    client.send(UPGRADE_REQUEST);
    assert_eq!(client.head().unwrap().0, 101);
    client.send("x");
    assert_eq!(client.rest(), Err(ReadError::Reset(Vec::new())));
}

#[test]
fn an_upgrade_that_is_declined_leaves_http() {
    let peer = echo();
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    client.send(format!(
        "{UPGRADE_REQUEST}GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
    ));
    assert!(client.response().unwrap().text().starts_with("GET /chat "));
    assert!(
        client.response().unwrap().text().starts_with("GET /next "),
        "what came early was a request"
    );
}

#[test]
fn a_101_that_was_not_asked_for_is_502() {
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
    ] {
        let peer = ScriptedPeer::start(|mut connection| {
            while connection.request().is_some() {
                connection.send(SWITCHING_PROTOCOLS);
            }
        });
        let daemon = front(peer.address, "");
        let mut client = daemon.client("@web");
        client.send(request);
        let response = client.response().unwrap();
        assert_eq!(
            (response.status, response.header("proxy-status")),
            (502, Some("balancer; error=http_protocol_error")),
            "{request}"
        );
        for sent in peer.requests.all() {
            let named = sent.head.to_ascii_lowercase();
            assert!(
                !named.contains("h2c") && !named.contains("http2-settings"),
                "{named}"
            );
        }
    }
}

#[test]
fn a_101_that_speaks_of_a_body_opens_the_tunnel_without_saying_so() {
    for framing in [
        "Transfer-Encoding: chunked",
        "Content-Length: 0",
        "Content-Length: 17",
    ] {
        let switch = SWITCHING_PROTOCOLS.replace("\r\n\r\n", &format!("\r\n{framing}\r\n\r\n"));
        let peer = ScriptedPeer::start(move |mut connection| {
            connection.head().unwrap();
            connection.send(&switch);
            let word = connection.exactly(4).unwrap();
            connection.send(word.to_ascii_uppercase());
        });
        let daemon = front(peer.address, "");
        let mut client = daemon.client("@web");
        client.send(UPGRADE_REQUEST);
        let (status, fields) = client.head().unwrap();
        assert_eq!(status, 101, "{framing}");
        let is_framing = |name: &str| {
            ["content-length", "transfer-encoding"].contains(&&*name.to_ascii_lowercase())
        };
        assert!(
            !fields.iter().any(|(name, _)| is_framing(name)),
            "{fields:?}"
        );
        client.send("ping");
        assert_eq!(client.rest().unwrap(), b"PING", "{framing}");
    }
}

#[test]
fn a_426_says_to_what_the_client_must_upgrade() {
    let peer = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            let option = if request.target == "/bare" {
                ""
            } else {
                "Connection: upgrade\r\n"
            };
            connection.send(format!("HTTP/1.1 426 Upgrade Required\r\n{option}Upgrade: TLS/1.2, foo/2\r\nContent-Length: 2\r\n\r\nno"));
        }
    });
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    for target in ["/", "/bare"] {
        let response = client.request("GET", target).unwrap();
        assert_eq!((response.status, response.text().as_str()), (426, "no"));
        assert_eq!(response.header("upgrade"), Some("TLS/1.2, foo/2"));
        assert_eq!(response.header("connection"), Some("upgrade"));
    }
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let response = client.response().unwrap();
    assert_eq!(response.header("upgrade"), Some("TLS/1.2, foo/2"));
    assert_eq!(response.header("connection"), Some("upgrade, close"));
    // Other responses say nothing of it.
    let other = ScriptedPeer::saying(
        "HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n",
    );
    let daemon = front(other.address, "");
    let response = daemon.client("@web").request("GET", "/").unwrap();
    assert_eq!(response.count("upgrade"), 0, "{response:?}");
}

/// As `docker exec` begins a session: the body comes first, then the switch.
const DOCKER_EXEC_REQUEST: &str = "POST /exec/1/start HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n";
const EXEC_SWITCH: &str = "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";

#[test]
fn a_request_with_a_body_of_known_length_can_switch() {
    let peer = ScriptedPeer::start(|mut connection| {
        let request = connection.request().unwrap();
        assert_eq!(
            (request.header("connection"), request.header("upgrade")),
            (Some("upgrade"), Some("tcp"))
        );
        assert_eq!(request.body, b"{\"Tty\":1}\r\n");
        connection.send(format!("{EXEC_SWITCH}$ "));
        while let Some(byte) = connection.exactly(1) {
            connection.send(byte.to_ascii_uppercase());
        }
    });
    let daemon = front(peer.address, "");
    // The body and what follows it at once, and in pieces.
    for pieces in [
        vec![format!("{DOCKER_EXEC_REQUEST}{{\"Tty\":1}}\r\nls")],
        vec![
            DOCKER_EXEC_REQUEST.to_owned(),
            "{\"Tty\"".to_owned(),
            ":1}\r\nls".to_owned(),
        ],
        vec![
            format!("{DOCKER_EXEC_REQUEST}{{\"Tty\":1}}\r\n"),
            "ls".to_owned(),
        ],
    ] {
        let mut client = daemon.client("@web");
        let (last, first) = pieces.split_last().unwrap();
        for piece in first {
            client.send(piece);
        }
        if pieces.len() == 2 {
            assert_eq!(client.head().unwrap().0, 101);
            client.send(last);
        } else {
            client.send(last);
            assert_eq!(client.head().unwrap().0, 101);
        }
        assert_eq!(client.exactly(4).unwrap(), b"$ LS");
        client.send("exit").finish();
        assert_eq!(client.rest().unwrap(), b"EXIT");
        let line = daemon.wait_for_access(|line| line["status"] == 101);
        assert_eq!(
            (&line["bytes_in"], &line["bytes_out"]),
            (&17.into(), &8.into())
        );
    }
}

#[test]
fn what_follows_a_body_whose_switch_was_declined_is_a_request() {
    let peer = echo();
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    client.send(format!(
        "{DOCKER_EXEC_REQUEST}GET /b HTTPGET /next HTTP/1.1\r\nHost: a\r\n\r\n"
    ));
    let first = client.response().unwrap().text();
    assert!(first.starts_with("POST /exec/1/start ") && first.ends_with("GET /b HTTP"));
    let second = client.response().unwrap().text();
    assert!(second.starts_with("GET /next "), "{second}");
}

#[test]
fn a_body_that_is_still_on_its_way_at_the_switch_is_sent_to_its_end_first() {
    const BODY_BYTES: usize = 600_000;
    let peer = ScriptedPeer::start(|mut connection| {
        let head = connection.head().unwrap();
        connection.send(SWITCHING_PROTOCOLS);
        let length: usize = head.header("content-length").unwrap().parse().unwrap();
        let body = connection.exactly(length + 5).unwrap();
        let (body, behind) = body.split_at(length);
        assert!(body.iter().all(|byte| *byte == b'b'));
        connection.send(behind);
    });
    for retries in ["", ", retries: none"] {
        let keys = format!("backends: [{}], health_check: none{retries}", peer.address);
        let daemon = pool(&keys, "");
        let mut client = daemon.client("@web");
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: {BODY_BYTES}\r\n\r\n"));
        client.send(vec![b'b'; BODY_BYTES / 2]);
        assert_eq!(client.head().unwrap().0, 101);
        client.send(vec![b'b'; BODY_BYTES / 2]).send("hello");
        assert_eq!(client.rest().unwrap(), b"hello");
    }
}

#[test]
fn a_tunnel_whose_reader_is_slow_is_not_idle() {
    let length = 4 << 20;
    let peer = ScriptedPeer::start(move |mut connection| {
        connection.head().unwrap();
        connection.send(SWITCHING_PROTOCOLS);
        connection.send(vec![b'a'; length]);
        connection.wait_for_end();
    });
    let keys = format!(
        "backends: [{}], health_check: none, timeouts: {{idle: 700ms}}",
        peer.address
    );
    let daemon = pool(&keys, "");
    let mut client = HttpClient::connect_slow_reader(daemon.address("@web"));
    client.send(UPGRADE_REQUEST);
    assert_eq!(client.head().unwrap().0, 101);
    for _ in 0..32 {
        client.each(length / 32, |_| {}).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(60));
    }
    client.finish();
    assert_eq!(client.rest(), Ok(Vec::new()));
}

#[test]
fn server_sent_events_arrive_one_by_one() {
    let next = [Gate::new(), Gate::new(), Gate::new()];
    let doors = next.clone();
    let peer = ScriptedPeer::start(move |mut connection| {
        let request = connection.request().unwrap();
        let chunked = request.target == "/chunked";
        connection.send(if chunked {
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        } else {
            "HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        });
        for (number, door) in doors.iter().enumerate() {
            door.wait();
            let event = format!("data: {number}\n\n");
            connection.send(if chunked {
                format!("9\r\n{event}\r\n")
            } else {
                event
            });
        }
        if chunked {
            connection.send("0\r\n\r\n");
        }
    });
    let daemon = front(peer.address, "");
    let mut chunked = daemon.client("@web");
    chunked.send("GET /chunked HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut plain = daemon.client("@web");
    plain.send("GET /plain HTTP/1.1\r\nHost: a\r\n\r\n");
    for client in [&mut chunked, &mut plain] {
        assert_eq!(
            client.head().unwrap().0,
            200,
            "the head comes before the first event"
        );
    }
    for (number, gate) in next.iter().enumerate() {
        gate.open();
        for client in [&mut chunked, &mut plain] {
            assert_eq!(
                client.until(b"\n\n\r\n").unwrap(),
                format!("9\r\ndata: {number}\n\n\r\n").as_bytes()
            );
        }
    }
    for client in [&mut chunked, &mut plain] {
        assert_eq!(client.until(b"\r\n\r\n").unwrap(), b"0\r\n\r\n");
    }
}
