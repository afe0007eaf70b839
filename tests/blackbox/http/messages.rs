//! Framing, both ways: the other side gets the same message, and the connection stays in step.

use crate::{
    harness::{
        client::ReadError,
        peer::{Gate, ScriptedPeer},
    },
    http::{echo, front},
};

#[test]
fn ten_pipelined_requests_are_answered_in_order() {
    let peer = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            let body = String::from_utf8(request.body).unwrap();
            connection.answer(&format!("{} {body}", request.target));
        }
    });
    let daemon = front(peer.address, "");
    let mut all = String::new();
    for number in 0..10 {
        all += &match number % 3 {
            0 => format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n"),
            1 => format!(
                "POST /{number} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nbody{number}"
            ),
            _ => format!(
                "PUT /{number} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n1\r\n{number}\r\n0\r\n\r\n"
            ),
        };
    }
    let mut client = daemon.client("@web");
    client.send(&all);
    for number in 0..10 {
        let body = if number % 3 == 0 {
            String::new()
        } else {
            format!("body{number}")
        };
        let response = client.response().unwrap();
        assert_eq!(
            (response.status, response.text()),
            (200, format!("/{number} {body}"))
        );
    }
    let targets: Vec<String> = peer
        .requests
        .all()
        .into_iter()
        .map(|request| request.target)
        .collect();
    assert_eq!(
        targets,
        (0..10)
            .map(|number| format!("/{number}"))
            .collect::<Vec<_>>()
    );
}

#[test]
fn a_request_may_be_split_at_every_byte() {
    let peer = echo();
    let daemon = front(peer.address, "");
    let request = "POST /split?a=b HTTP/1.1\r\nHost: a\r\nX-Long: some value\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n";
    let mut client = daemon.client("@web");
    for at in 1..request.len() {
        let (first, second) = request.split_at(at);
        client.send(first);
        // A response to another connection shows that the daemon has been awake since.
        if at % 16 == 0 {
            daemon.get("@web", "/other").unwrap();
        }
        client.send(second);
        let response = client.response().unwrap();
        assert_eq!(response.status, 200, "at {at}");
        assert!(
            response.text().ends_with("\r\n\r\nhello world"),
            "at {at}: {}",
            response.text()
        );
    }
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let peer = echo();
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    for byte in b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nxyz" {
        client.send([*byte]);
    }
    assert!(client.response().unwrap().text().ends_with("xyz"));
}

#[test]
fn a_response_may_be_split_at_every_byte() {
    let response = "HTTP/1.1 200 OK\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n";
    let peer = ScriptedPeer::start(move |mut connection| {
        let mut at = 1;
        while connection.request().is_some() {
            let (first, second) = response.split_at(at);
            connection.send_pieces([first, second]);
            at += 1;
        }
    });
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    for at in 1..response.len() {
        let response = client.request("GET", "/").unwrap();
        assert_eq!(
            (response.status, response.text().as_str()),
            (200, "hello world"),
            "at {at}"
        );
        assert_eq!(
            response.trailers,
            [("X-Sum".to_owned(), "1".to_owned())],
            "at {at}"
        );
    }
    assert_eq!(peer.connections(), 1);
}

#[test]
fn a_connection_goes_on_after_bodies_of_every_size() {
    let peer = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            let body = vec![b'x'; request.target[1..].parse().unwrap()];
            connection.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                body.len()
            ));
            connection.send(body);
        }
    });
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    for size in [
        0, 1, 4_096, 4_097, 10_000, 16_000, 20_000, 65_537, 200_000, 262_144, 400_000,
    ] {
        let body = vec![b'y'; size];
        client.send(format!(
            "POST /{size} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
        ));
        client.send(body);
        assert_eq!(client.response().unwrap().body.len(), size);
    }
    assert_eq!(peer.connections(), 1);
}

#[test]
fn lengths_and_chunks_pass_as_what_they_are() {
    let peer = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            let chunked = request.target == "/chunked";
            let field = if chunked {
                "transfer-encoding"
            } else {
                "content-length"
            };
            assert!(request.header(field).is_some(), "{}", request.head);
            connection.send(if chunked {
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            } else {
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
            });
        }
    });
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    client.send("POST /chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nxyz\r\n0\r\n\r\n");
    let response = client.response().unwrap();
    assert_eq!(
        (
            response.header("transfer-encoding"),
            response.count("content-length")
        ),
        (Some("chunked"), 0)
    );
    assert_eq!(response.text(), "abc");
    client.send("POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nxyz");
    let response = client.response().unwrap();
    assert_eq!(
        (
            response.header("content-length"),
            response.count("transfer-encoding")
        ),
        (Some("3"), 0)
    );
    let bodies: Vec<Vec<u8>> = peer
        .requests
        .all()
        .into_iter()
        .map(|request| request.body)
        .collect();
    assert_eq!(bodies, [b"xyz", b"xyz"]);
}

#[test]
fn trailers_pass_both_ways_but_not_those_that_frame_or_authorise() {
    let peer = ScriptedPeer::start(|mut connection| {
        let head = connection.head().unwrap();
        assert_eq!(head.header("trailer"), Some("X-Sum"));
        let body = connection.until(b"\r\n\r\n").unwrap();
        assert_eq!(body, b"3\r\nxyz\r\n0\r\nX-Sum: 7\r\n\r\n");
        connection.send("HTTP/1.1 200 OK\r\nTrailer: X-End\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-End: 9\r\nSet-Cookie: a=b\r\n\r\n");
    });
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxyz\r\n0\r\nX-Sum: 7\r\nContent-Length: 1\r\nAuthorization: x\r\n\r\n");
    let response = client.response().unwrap();
    assert_eq!(response.header("trailer"), Some("X-End"));
    assert_eq!(response.trailers, [("X-End".to_owned(), "9".to_owned())]);
}

#[test]
fn answers_that_have_no_body_get_none() {
    let peer = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            connection.send(match request.target.as_str() {
                "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
                "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
                "/304" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nETag: \"x\"\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            });
        }
    });
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    let response = client.request("HEAD", "/head").unwrap();
    assert_eq!(
        (response.status, response.header("content-length")),
        (200, Some("1000"))
    );
    let response = client.request("GET", "/204").unwrap();
    assert_eq!(
        (
            response.status,
            response.count("content-length"),
            response.count("transfer-encoding")
        ),
        (204, 0, 0)
    );
    let response = client.request("GET", "/304").unwrap();
    assert_eq!(
        (
            response.status,
            response.header("content-length"),
            response.header("etag")
        ),
        (304, Some("7"), Some("\"x\""))
    );
    assert_eq!(client.request("GET", "/").unwrap().text(), "ok");
    assert_eq!(
        peer.connections(),
        1,
        "the connection to the backend stays in step"
    );
}

#[test]
fn a_body_where_none_may_be_reaches_no_client() {
    for (method, head) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\n\r\n"),
    ] {
        let peer = ScriptedPeer::start(move |mut connection| {
            while connection.request().is_some() {
                connection.send(format!("{head}EVIL!"));
            }
        });
        let daemon = front(peer.address, "");
        let mut client = daemon.client("@web");
        for _ in 0..2 {
            let (status, _) = {
                client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
                client.head().unwrap()
            };
            assert!(matches!(status, 200 | 204 | 304), "{status}");
        }
        assert_eq!(
            peer.connections(),
            2,
            "{head}: the connection with the surplus is not used again"
        );
    }
}

#[test]
fn an_old_client_is_served_in_its_own_way() {
    let peer = ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            assert!(request.head.contains(" HTTP/1.1\r\n"));
            connection.send(match request.target.as_str() {
                "/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            });
        }
    });
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    client.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
    let response = client.response().unwrap();
    assert_eq!(
        (response.text().as_str(), response.header("connection")),
        ("ok", Some("keep-alive"))
    );
    client.send("GET / HTTP/1.0\r\n\r\n");
    let response = client.response().unwrap();
    assert_eq!(
        (response.text().as_str(), response.header("connection")),
        ("ok", Some("close"))
    );
    assert_eq!(client.rest().unwrap(), b"");
    let mut client = daemon.client("@web");
    client.send("GET /chunked HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
    let response = client.response().unwrap();
    assert_eq!(
        (
            response.count("transfer-encoding"),
            response.header("connection")
        ),
        (0, Some("close"))
    );
    assert_eq!(
        response.text(),
        "abcde",
        "decoded, without trailers, and ended by the close"
    );
}

#[test]
fn an_old_backend_is_understood() {
    let peer = ScriptedPeer::start(|mut connection| {
        if connection.request().is_some() {
            connection.send("HTTP/1.0 200 Fine\r\nServer: old\r\n\r\nuntil the end");
        }
    });
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    for _ in 0..2 {
        let response = client.request("GET", "/").unwrap();
        assert_eq!(
            (
                response.header("transfer-encoding"),
                response.text().as_str()
            ),
            (Some("chunked"), "until the end")
        );
    }
    let mut old = daemon.client("@web");
    old.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(old.response().unwrap().text(), "until the end");
}

#[test]
fn an_old_backend_that_keeps_its_connection_gets_the_next_request_on_it() {
    let peer = ScriptedPeer::start(|mut connection| {
        while connection.request().is_some() {
            connection
                .send("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let daemon = front(peer.address, "");
    for _ in 0..3 {
        assert_eq!(daemon.get("@web", "/").unwrap().text(), "ok");
    }
    assert_eq!(peer.connections(), 1);
}

#[test]
fn an_end_in_the_middle_is_never_a_clean_end() {
    for (answer, version) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "1.1"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            "1.1",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            "1.0",
        ),
    ] {
        let peer = ScriptedPeer::saying(answer);
        let daemon = front(peer.address, "");
        let mut client = daemon.client("@web");
        client.send(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n"));
        let cut = client.response().unwrap_err();
        assert!(
            matches!(
                cut,
                ReadError::Short(_) | ReadError::Closed | ReadError::Reset(_)
            ),
            "{version} {answer}: {cut:?}"
        );
        if version == "1.0" {
            assert!(
                matches!(cut, ReadError::Reset(_)),
                "an orderly end would look whole: {cut:?}"
            );
        }
        daemon.wait_for_access(|line| line["reason"] == "http_response_incomplete");
    }
}

#[test]
fn an_answer_before_the_end_of_the_body_reaches_the_client() {
    let peer = ScriptedPeer::start(|mut connection| {
        connection.head().unwrap();
        connection.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig");
        connection.wait_for_end();
    });
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nbegin");
    let response = client.response().unwrap();
    assert_eq!((response.status, response.text().as_str()), (413, "big"));
    assert_eq!(response.header("connection"), Some("close"));
    client.try_send([b'x'; 50_000]);
    assert_eq!(
        client.rest(),
        Ok(Vec::new()),
        "an orderly end, not a reset that destroys the answer"
    );
    assert_eq!(peer.connections(), 1);
}

#[test]
fn a_cut_request_body_is_never_completed_towards_the_backend() {
    for framing in [
        "Content-Length: 10\r\n\r\nabc",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        let seen = Gate::new();
        let door = seen.clone();
        let peer = ScriptedPeer::start(move |mut connection| {
            connection.head().unwrap();
            let mut got = Vec::new();
            while connection
                .each(1, |byte| got.extend_from_slice(byte))
                .is_some()
            {}
            assert!(
                got.starts_with(b"abc") && got.len() == 3 || got == b"3\r\nabc\r\n",
                "{got:?}"
            );
            door.open();
        });
        let daemon = front(peer.address, "");
        let mut client = daemon.client("@web");
        client
            .send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}"))
            .finish();
        seen.wait();
        let line = daemon.wait_for_access(|line| line["path"] == "/");
        assert_eq!(line["reason"], "client_disconnected");
    }
}

#[test]
fn a_bad_chunk_of_a_request_is_400_and_ends_the_connection() {
    let peer = ScriptedPeer::silent();
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
    let response = client.response().unwrap();
    assert_eq!(
        (response.status, response.header("connection")),
        (400, Some("close"))
    );
    assert_eq!(client.rest(), Ok(Vec::new()));
    assert_eq!(
        daemon.wait_for_access(|line| line["status"] == 400)["reason"],
        "http_request_incomplete"
    );
    assert_eq!(
        peer.requests.all(),
        [],
        "neither the broken request nor what follows is complete for the backend"
    );
}

#[test]
fn a_client_that_ends_its_side_is_served() {
    let gate = Gate::new();
    let door = gate.clone();
    let peer = ScriptedPeer::start(move |mut connection| {
        connection.request().unwrap();
        door.wait();
        connection.answer("late");
    });
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").finish();
    peer.wait_for_requests(1);
    gate.open();
    assert_eq!(client.response().unwrap().text(), "late");
    assert_eq!(client.rest(), Ok(Vec::new()));
}

#[test]
fn a_client_that_resets_ends_the_work_of_the_backend() {
    let began = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    for (case, answer) in [("before the head", ""), ("between chunks", began)] {
        let (ended, begun) = (Gate::new(), Gate::new());
        let (door, start) = (ended.clone(), begun.clone());
        let peer = ScriptedPeer::start(move |mut connection| {
            connection.request().unwrap();
            connection.send(answer);
            start.open();
            connection.wait_for_end();
            door.open();
        });
        let daemon = front(peer.address, "");
        let mut client = daemon.client("@web");
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        begun.wait();
        if !answer.is_empty() {
            client.until(b"abc\r\n").unwrap();
        }
        client.reset();
        ended.wait();
        let line = daemon.wait_for_access(|line| line["path"] == "/");
        assert_eq!(line["reason"], "client_disconnected", "{case}");
    }
}

#[test]
fn a_client_that_resets_while_the_backend_takes_nothing_ends_the_exchange() {
    let gate = Gate::new();
    let door = gate.clone();
    let peer = ScriptedPeer::start(move |mut connection| {
        connection.head().unwrap();
        door.wait();
        connection.wait_for_end();
    });
    let daemon = front(peer.address, "");
    let mut client = daemon.client("@web");
    client.patience(std::time::Duration::from_millis(300));
    client.limit_writes(std::time::Duration::from_millis(300));
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n");
    // Until nothing fits any more: now the daemon waits for the backend alone.
    while client.try_send([7; 100_000]) {}
    client.reset();
    let line = daemon.wait_for_access(|line| line["path"] == "/");
    assert_eq!(line["reason"], "client_disconnected");
    gate.open();
}
