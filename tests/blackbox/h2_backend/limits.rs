//! Responses above a limit: an error of their stream, not of the connection or of the backend.

use std::sync::Arc;

use super::{config, front};
use crate::harness::{
    client::HttpClient,
    daemon::TestDaemon,
    frames::{
        DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GET_FIELDS, GOAWAY, HEADERS, RST_STREAM,
        RawFrame, RawH2Backend, RawH2Client, fields, frame, head,
    },
    peer::ScriptedPeer,
};

const STATUS_OK: (&str, &str) = (":status", "200");

/// Makes all the frames of a response.
type ResponseFrames = Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>;

/// Requests that are answered with too much.
const ODD_COUNT: usize = 4;

/// A backend that answers the next [`ODD_COUNT`] requests behind the first of a connection with
/// `answer`; the first gets half of its response before, and the rest afterwards.
fn download_and(answer: ResponseFrames) -> ScriptedPeer {
    ScriptedPeer::start(move |connection| {
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        let Some(first) = backend.asked() else {
            return;
        };
        backend.head(first, &[STATUS_OK], false);
        backend.send(frame(DATA, 0, first, b"half "));
        for _ in 0..ODD_COUNT {
            let Some(stream) = backend.asked() else {
                return;
            };
            backend.send(answer(stream));
        }
        backend.send(frame(DATA, END_STREAM, first, b"whole"));
        backend.0.wait_for_end();
    })
}

fn failures(daemon: &TestDaemon) -> f64 {
    daemon.metric("balancer_backend_failures_total{pool=\"app\"}")
}

fn is_up(daemon: &TestDaemon) -> bool {
    daemon.metric("balancer_backend_state{pool=\"app\",state=\"up\"}") == 1.0
}

/// Responses above each limit, with the reason for each.
fn oversized_responses() -> Vec<(&'static str, ResponseFrames, &'static str)> {
    let long = |size| fields(&[STATUS_OK, ("x-a", &"x".repeat(size))]);
    let hint = fields(&[(":status", "103"), ("link", "</a.css>")]);
    let hints = move |stream, count| frame(HEADERS, END_HEADERS, stream, &hint).repeat(count);
    let with_trailers = |stream, section: &[u8]| {
        let mut all = frame(HEADERS, END_HEADERS, stream, &fields(&[STATUS_OK]));
        all.extend(frame(DATA, 0, stream, b"body"));
        all.extend(head(END_STREAM, stream, section, 16 << 10));
        all
    };
    vec![
        (
            "interim responses",
            Box::new(move |stream| {
                let mut all = hints(stream, 19);
                all.extend(frame(
                    HEADERS,
                    END_HEADERS | END_STREAM,
                    stream,
                    &fields(&[STATUS_OK]),
                ));
                all
            }),
            "proxy_protocol_error",
        ),
        (
            "a head of 65 KiB",
            Box::new(move |stream| head(END_STREAM, stream, &long(65 << 10), 16 << 10)),
            "http_response_header_section_size",
        ),
        (
            "a head of 129 KiB",
            Box::new(move |stream| head(0, stream, &long(129 << 10), 16 << 10)),
            "http_response_header_section_size",
        ),
        (
            "a head of 400 KiB in small frames",
            Box::new(move |stream| head(END_STREAM, stream, &long(400 << 10), 1 << 10)),
            "http_response_header_section_size",
        ),
        (
            "many fields",
            Box::new(|stream| {
                let list = [vec![STATUS_OK], vec![("x-a", "b"); 300]].concat();
                head(END_STREAM, stream, &fields(&list), 16 << 10)
            }),
            "http_response_header_section_size",
        ),
        (
            "trailers of 70 KiB",
            Box::new(move |stream| {
                with_trailers(stream, &fields(&[("x-a", &"x".repeat(70 << 10))]))
            }),
            "http_response_header_section_size",
        ),
        (
            "trailers of 129 KiB",
            Box::new(move |stream| {
                with_trailers(stream, &fields(&[("x-a", &"x".repeat(129 << 10))]))
            }),
            "http_response_header_section_size",
        ),
    ]
}

#[test]
fn one_response_that_is_too_much_leaves_the_others_of_its_connection_alone() {
    for (what, answer, reason) in oversized_responses() {
        let backend = download_and(answer);
        let daemon = front(backend.address, "retries: none, ejection: {failures: 1}");
        let mut client = RawH2Client::connect(daemon.address("@web"));
        client.ask(1, &GET_FIELDS);
        client.until(|frame| frame.kind == DATA && frame.stream == 1);
        let mut rest = None;
        for turn in 0..ODD_COUNT as u32 {
            let stream = 2 * turn + 3;
            client.ask(
                stream,
                &[
                    GET_FIELDS[0],
                    GET_FIELDS[1],
                    (":path", "/odd"),
                    GET_FIELDS[3],
                ],
            );
            let found = client.until(|frame| {
                if frame.stream == 1 && frame.flags & END_STREAM > 0 {
                    rest = Some(frame.payload.clone());
                }
                frame.kind == GOAWAY
                    || frame.stream == stream && matches!(frame.kind, HEADERS | RST_STREAM)
            });
            assert_ne!(found.kind, GOAWAY, "{what}");
            let logged = daemon.wait_for_access(|line| line["path"] == "/odd");
            assert_eq!(logged["reason"], reason, "{what}");
        }
        let rest = rest.unwrap_or_else(|| {
            let end = |frame: &RawFrame| frame.stream == 1 && frame.flags & END_STREAM > 0;
            client.until(end).payload
        });
        assert_eq!(rest, b"whole", "{what}");
        assert_eq!(backend.connections(), 1, "{what}");
        assert_eq!(failures(&daemon), 0.0, "{what}");
        assert!(is_up(&daemon), "{what}");
    }
}

#[test]
fn what_a_backend_says_beyond_all_bounds_ends_its_connection_and_is_not_held_against_it() {
    let answers: [ResponseFrames; 2] = [
        Box::new(|stream| {
            let block = fields(&[STATUS_OK, ("x-a", &"x".repeat(600 << 10))]);
            head(END_STREAM, stream, &block, 16 << 10)
        }),
        Box::new(|_| frame(crate::harness::frames::PING, 0, 0, &[0; 8]).repeat(3_000)),
    ];
    for answer in answers {
        let backend = ScriptedPeer::start({
            let answer = Arc::new(answer);
            move |connection| {
                let Some(mut backend) = RawH2Backend::greet(connection) else {
                    return;
                };
                if let Some(stream) = backend.asked() {
                    backend.send(answer(stream));
                    let end = backend.until(|frame| frame.kind == GOAWAY);
                    assert!(end.is_none_or(|end| end.code() == ENHANCE_YOUR_CALM));
                }
            }
        });
        let daemon = front(backend.address, "retries: none, ejection: {failures: 1}");
        let mut client = HttpClient::connect(daemon.address("@web"));
        for _ in 0..2 {
            assert_eq!(client.request("GET", "/").unwrap().status, 502);
        }
        assert_eq!(backend.connections(), 2);
        assert_eq!(failures(&daemon), 0.0);
        assert!(is_up(&daemon));
    }
}

#[test]
fn response_heads_of_several_frames_are_free_as_long_as_their_size_is_allowed() {
    const FRAME_SIZES: [usize; 3] = [16 << 10, 4 << 10, 1 << 10];
    let backend = ScriptedPeer::start(|connection| {
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        let value = "x".repeat(40_000);
        let block = fields(&[STATUS_OK, ("x-a", &value)]);
        let mut turn = 0;
        while let Some(stream) = backend.asked() {
            backend.send(head(END_STREAM, stream, &block, FRAME_SIZES[turn % 3]));
            turn += 1;
        }
    });
    let daemon = front(backend.address, "");
    let mut client = HttpClient::connect(daemon.address("@web"));
    for turn in 0..600 {
        let answer = client.request("GET", "/").unwrap();
        assert_eq!(answer.status, 200, "{turn}");
        assert_eq!(answer.header("x-a").map(str::len), Some(40_000));
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn request_heads_of_several_frames_reach_a_backend() {
    let backend = ScriptedPeer::start(|connection| {
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        loop {
            let Some(first) = backend.until(|frame| frame.kind == HEADERS) else {
                return;
            };
            let (mut last, mut length) = (first.flags, first.payload.len());
            while last & END_HEADERS == 0 {
                let Some(next) = backend.next() else { return };
                assert!(next.payload.len() <= 16 << 10);
                (last, length) = (next.flags, length + next.payload.len());
            }
            backend.answer(first.stream, &(length > 15_000).to_string());
        }
    });
    let daemon = TestDaemon::start(&config(&[backend.address], ""));
    let mut client = HttpClient::connect(daemon.address("@web"));
    let cookie = "k~".repeat(15_000);
    for _ in 0..200 {
        client.send(format!(
            "GET / HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n"
        ));
        assert_eq!(client.response().unwrap().text(), "true");
    }
}

#[test]
fn blanks_at_the_ends_of_values_cost_no_answer_and_no_status() {
    let backend = ScriptedPeer::start(|connection| {
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        while let Some(stream) = backend.asked() {
            backend.head(stream, &[(":status", "103"), ("link", " </a.css> ")], false);
            let list = [
                STATUS_OK,
                ("x-a", "b c\t "),
                ("content-length", "4 "),
                ("x-empty", " "),
            ];
            backend.head(stream, &list, false);
            backend.send(frame(DATA, 0, stream, b"body"));
            let status = [("grpc-status", "5 "), ("grpc-message", "no such user: ")];
            backend.head(stream, &status, true);
        }
    });
    let daemon = front(backend.address, "retries: none, ejection: {failures: 1}");
    let mut old = HttpClient::connect(daemon.address("@web"));
    for _ in 0..6 {
        old.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let (status, early) = old.head().unwrap();
        assert_eq!(status, 103);
        assert!(
            early
                .iter()
                .any(|(name, value)| name == "link" && value == "</a.css>")
        );
        let answer = old.response().unwrap();
        assert_eq!(
            (answer.header("x-a"), answer.text()),
            (Some("b c"), "body".to_owned())
        );
    }
    let mut client = RawH2Client::connect(daemon.address("@web"));
    client.ask(1, &GET_FIELDS);
    let trailers = client.until(|frame| frame.stream == 1 && frame.flags & END_STREAM > 0);
    assert_eq!(trailers.kind, HEADERS);
    assert_eq!(failures(&daemon), 0.0);
    assert_eq!(backend.connections(), 1);
}
