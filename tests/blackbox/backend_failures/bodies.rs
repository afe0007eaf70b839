//! Responses that break after their head: cut bodies, and bytes behind the end.

use super::{HASTY_TIMEOUTS, PATIENT_TIMEOUTS, daemon, daemon_with};

use crate::harness::{
    client::{HeaderFields, ReadError},
    daemon::sum_of,
    peer::{Gate, PeerConnection, ScriptedPeer},
};

/// Kinds of cuts in the body of a response.
#[derive(Clone, Copy, Debug, PartialEq)]
enum BodyEnd {
    Close,
    Reset,
    Silence,
    BadChunk,
}

const FRAMED_BY_LENGTH: &str = "Content-Length: 100\r\n\r\nfirst part";

const FRAMED_BY_CHUNKS: &str = "Transfer-Encoding: chunked\r\n\r\na\r\nfirst part\r\n14\r\nonly";

const FRAMED_BY_CLOSE: &str = "Connection: close\r\n\r\nfirst part";

const BODY_CUTS: &[(&str, BodyEnd)] = &[
    (FRAMED_BY_LENGTH, BodyEnd::Close),
    (FRAMED_BY_LENGTH, BodyEnd::Reset),
    (FRAMED_BY_LENGTH, BodyEnd::Silence),
    (FRAMED_BY_CHUNKS, BodyEnd::Close),
    (FRAMED_BY_CHUNKS, BodyEnd::Reset),
    (FRAMED_BY_CHUNKS, BodyEnd::Silence),
    (FRAMED_BY_CHUNKS, BodyEnd::BadChunk),
    // Its end is the end of the body, so only these are a cut.
    (FRAMED_BY_CLOSE, BodyEnd::Reset),
    (FRAMED_BY_CLOSE, BodyEnd::Silence),
];

fn cutting(framing: &'static str, end: BodyEnd, gate: Gate) -> ScriptedPeer {
    ScriptedPeer::start(move |mut connection: PeerConnection| {
        if connection.request().is_none() {
            return;
        }
        connection.send(format!("HTTP/1.1 200 OK\r\n{framing}"));
        gate.wait();
        match end {
            BodyEnd::Close => {}
            BodyEnd::Reset => connection.reset(),
            BodyEnd::Silence => connection.wait_for_end(),
            BodyEnd::BadChunk => {
                connection.send("x".repeat(16) + "\r\nnonsense\r\n0\r\n\r\n");
                connection.wait_for_end();
            }
        }
    })
}

/// Checks that a client sees the end of a response as a cut, by the framing that its head
/// announced.
fn is_visibly_cut(headers: &HeaderFields, end: Result<Vec<u8>, ReadError>, what: &str) {
    let field = |name: &str| headers.iter().any(|(known, _)| known == name);
    if !field("Content-Length") && !field("Transfer-Encoding") {
        return assert!(matches!(end, Err(ReadError::Reset(_))), "{what}: {end:?}");
    }
    let rest = match end {
        Ok(rest) | Err(ReadError::Reset(rest)) => rest,
        other => panic!("{what}: {other:?}"),
    };
    if field("Content-Length") {
        // Shorter than announced is a cut, with every end of the connection.
        assert!(rest.len() < 90, "{what}");
    } else {
        let rest = String::from_utf8_lossy(&rest).into_owned();
        assert!(
            !rest.contains("\r\n0\r\n"),
            "{what}: a last chunk in {rest}"
        );
        assert!(!rest.contains("nonsense"), "{what}: {rest}");
    }
}

#[test]
fn a_response_cut_in_mid_body_is_cut_for_the_client_too() {
    let mut rows = Vec::new();
    for version in ["1.1", "1.0"] {
        for (framing, end) in BODY_CUTS {
            let gate = Gate::new();
            let peer = cutting(framing, *end, gate.clone());
            rows.push((version, *framing, *end, gate, peer));
        }
    }
    let pools = rows.iter().map(|(.., end, _, peer)| {
        let timeouts = if *end == BodyEnd::Silence {
            HASTY_TIMEOUTS
        } else {
            PATIENT_TIMEOUTS
        };
        (peer.address, timeouts, "none")
    });
    let daemon = daemon("{}", pools);
    for (number, (version, framing, end, gate, peer)) in rows.iter().enumerate() {
        let what = format!("HTTP/{version} {end:?} after {framing:?}");
        let mut client = daemon.client("@web");
        client.send(format!(
            "GET /{number} HTTP/{version}\r\nHost: test\r\nConnection: keep-alive\r\n\r\n"
        ));
        let (status, headers) = client.head().unwrap();
        assert_eq!(status, 200, "{what}");
        client.until(b"first part").expect("the first part");
        gate.open();
        is_visibly_cut(&headers, client.rest(), &what);
        let pool = format!("p{number}");
        let line = daemon.wait_for_access(|line| line["pool"] == pool.as_str());
        let reason = if *end == BodyEnd::Silence {
            "http_response_idle_timeout"
        } else {
            "http_response_incomplete"
        };
        assert_eq!(
            (&line["status"], &line["reason"]),
            (&200.into(), &reason.into())
        );
        assert_eq!(line["attempts"], 1, "{what}");
        let (page, backend) = (daemon.scrape(), peer.address);
        for series in [
            format!("balancer_errors_total{{pool=\"{pool}\",reason=\"{reason}\",code=\"0\"}}"),
            format!(
                "balancer_backend_failures_total{{pool=\"{pool}\",backend=\"{backend}\",reason=\"{reason}\"}}"
            ),
        ] {
            assert_eq!(sum_of(&page, &series) as u64, 1, "{what}: {series}\n{page}");
        }
    }
}

/// Answers the first connection with `bytes`, which are more than its response, and all others as
/// they should be.
fn talkative(bytes: &'static str) -> ScriptedPeer {
    ScriptedPeer::start(move |mut connection| {
        while let Some(request) = connection.request() {
            let sent = if request.connection == 0 {
                connection.send(bytes)
            } else {
                connection.answer("right")
            };
            if !sent {
                return;
            }
        }
    })
}

/// Method, bytes of the backend, and the status and body that a client gets of them.
const SURPLUS_BYTES: [(&str, &str, u16, &str); 7] = [
    (
        "GET",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloEXTRA",
        200,
        "hello",
    ),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        200,
        "hello",
    ),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        200,
        "hello",
    ),
    (
        "GET",
        "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil",
        204,
        "",
    ),
    (
        "GET",
        "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        204,
        "",
    ),
    (
        "GET",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil",
        304,
        "",
    ),
    (
        "HEAD",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        200,
        "",
    ),
];

#[test]
fn bytes_after_a_response_never_reach_another_client() {
    let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let peers: Vec<ScriptedPeer> = SURPLUS_BYTES.iter().map(|row| talkative(row.1)).collect();
    let late = late_talker(evil);
    let addresses = peers.iter().chain([&late.0]).map(|peer| peer.address);
    // One worker, so that the second request finds the connection of the first if it was kept.
    let config = addresses.map(|address| (address, PATIENT_TIMEOUTS, "none"));
    let daemon = daemon_with(1, "{}", config);
    for (number, (method, bytes, status, body)) in SURPLUS_BYTES.iter().enumerate() {
        let mut client = daemon.client("@web");
        let target = format!("/{number}");
        let first = client.request(method, &target).unwrap();
        assert_eq!((first.status, first.text().as_str()), (*status, *body));
        // The same client and another one: both must get their own response.
        let second = client.request("GET", &target).unwrap();
        assert_eq!(second.text(), "right", "after {bytes:?}");
        let third = daemon.get("@web", &target).unwrap();
        assert_eq!(third.text(), "right", "after {bytes:?}");
        assert_eq!(peers[number].connections(), 2, "after {bytes:?}");
    }
    let (peer, said, speak) = late;
    let target = format!("/{}", SURPLUS_BYTES.len());
    let mut client = daemon.client("@web");
    assert_eq!(client.request("GET", &target).unwrap().text(), "hello");
    daemon.wait_for_metric("balancer_backend_connections_idle", |idle| idle > 0.5);
    speak.open();
    said.wait();
    assert_eq!(client.request("GET", &target).unwrap().text(), "right");
    assert_eq!(peer.connections(), 2);
}

/// Sends an unrequested response, when told to, on a connection that has become idle.
fn late_talker(evil: &'static str) -> (ScriptedPeer, Gate, Gate) {
    let (said, speak) = (Gate::new(), Gate::new());
    let doors = (said.clone(), speak.clone());
    let peer = ScriptedPeer::start(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.connection > 0 {
                connection.answer("right");
                continue;
            }
            connection.answer("hello");
            doors.1.wait();
            connection.send(evil);
            doors.0.open();
        }
    });
    (peer, said, speak)
}

#[test]
fn the_time_for_everything_ends_a_response_in_its_body() {
    let peer = ScriptedPeer::start(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfirst part");
        connection.wait_for_end();
    });
    let timeouts = "{connect: 300ms, response: 15s, idle: 15s, total: 300ms}";
    let daemon = daemon("{}", [(peer.address, timeouts, "none")]);
    assert!(daemon.get("@web", "/0").is_err(), "cut");
    let line = daemon.wait_for_access(|line| line["reason"] == "total_timeout");
    assert_eq!(
        (&line["status"], &line["bytes_out"]),
        (&200.into(), &10.into())
    );
    let series = "balancer_errors_total{pool=\"p0\",reason=\"total_timeout\",code=\"0\"}";
    let page = daemon.scrape();
    assert_eq!(sum_of(&page, series) as u64, 1, "{page}");
}
