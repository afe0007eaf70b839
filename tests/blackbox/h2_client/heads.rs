//! Heads and trailers of clients: their maximum size, and the reaction to larger ones.

use super::front;
use crate::harness::{
    client::HttpClient,
    daemon::TestDaemon,
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GET_FIELDS, GOAWAY,
        HEADERS, PING, RST_STREAM, RawFrame, RawH2Client, fields, frame, head,
    },
    peer::{Gate, ScriptedPeer},
};

/// The usual request with other fields.
fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    GET_FIELDS
        .iter()
        .copied()
        .chain(more.iter().copied())
        .collect()
}

/// Sends the request in frames of `size` bytes.
fn ask(client: &mut RawH2Client, stream: u32, list: &[(&str, &str)], size: usize) {
    client.send(head(END_STREAM, stream, &fields(list), size));
}

/// True if the response on `stream` is 200: the first byte of its field block, RFC 7541 appendix A.
fn is_well(client: &mut RawH2Client, stream: u32) -> bool {
    let frame = client.until(|frame| {
        frame.kind == GOAWAY || frame.stream == stream && matches!(frame.kind, HEADERS | RST_STREAM)
    });
    frame.kind == HEADERS && frame.payload.iter().find(|byte| **byte != 0x20) == Some(&0x88)
}

/// Reads on to the end of the response on `stream`.
fn to_the_end(client: &mut RawH2Client, stream: u32) {
    let is_end = |frame: &RawFrame| frame.stream == stream && frame.flags & END_STREAM > 0;
    client.until(is_end);
}

fn logged_statuses(daemon: &TestDaemon, status: u16, count: usize) {
    let wanted = format!("\"status\":{status}");
    let all = |lines: &[String]| {
        let found = lines.iter().filter(|line| line.contains(&wanted)).count();
        (found == count).then_some(())
    };
    daemon.stdout.wait_for(all).expect("each is logged");
}

#[test]
fn blanks_at_the_ends_of_values_mean_no_more_than_over_http_1() {
    let backend = ScriptedPeer::answering("hello");
    let daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    let list = [
        ("x-a", " b c\t"),
        ("cookie", "d=e "),
        ("cookie", "\tf=g"),
        ("user-agent", "curl "),
        ("te", "trailers "),
        ("content-length", " 2 "),
        ("host", " test "),
        ("x-empty", " \t "),
    ];
    client.send(frame(HEADERS, END_HEADERS, 1, &fields(&with(&list))));
    client.send(frame(DATA, END_STREAM, 1, b"hi"));
    assert!(is_well(&mut client, 1));
    let trailers = fields(&[("x-sum", " 7 "), ("grpc-message", "no such user: ")]);
    client.send(frame(HEADERS, END_HEADERS, 3, &fields(&with(&[]))));
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, &trailers));
    assert!(is_well(&mut client, 3));
    let requests = backend.wait_for_requests(2);
    for line in [
        "x-a: b c",
        "cookie: d=e; f=g",
        "user-agent: curl",
        "host: test",
        "x-empty: ",
    ] {
        let line = format!("\r\n{line}\r\n");
        assert!(requests[0].head.contains(&line), "{}", requests[0].head);
    }
    let expected = "x-sum: 7\r\ngrpc-message: no such user:\r\n\r\n";
    assert_eq!(requests[1].trailers, expected);
}

#[test]
fn the_authority_and_host_may_differ_by_the_usual_port_and_one_of_them_is_enough() {
    let backend = ScriptedPeer::answering("hello");
    let daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    for (place, (authority, host, expected)) in [
        ("test", "test:80", "test"),
        ("test:80", "Test", "test:80"),
        ("", "test", "test"),
    ]
    .into_iter()
    .enumerate()
    {
        let stream = 2 * place as u32 + 1;
        let list = [
            GET_FIELDS[0],
            GET_FIELDS[1],
            GET_FIELDS[2],
            (":authority", authority),
            ("host", host),
        ];
        client.ask(stream, &list);
        assert!(is_well(&mut client, stream), "{authority} {host}");
        let requests = backend.wait_for_requests(place + 1);
        assert_eq!(requests[place].header("host"), Some(expected));
    }
}

#[test]
fn many_cookies_are_served_as_over_http_1() {
    let backend = ScriptedPeer::answering("hello");
    let daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    let long = format!("session={}", "x".repeat(92));
    for (place, (count, crumb)) in [(76, "a=0123456789"), (300, "b=1"), (300, &*long)]
        .into_iter()
        .enumerate()
    {
        let stream = 2 * place as u32 + 1;
        ask(
            &mut client,
            stream,
            &with(&vec![("cookie", crumb); count]),
            16 << 10,
        );
        assert!(is_well(&mut client, stream), "{count} cookies");
        let requests = backend.wait_for_requests(2 * place + 1);
        let joined = vec![crumb; count].join("; ");
        assert_eq!(requests[2 * place].header("cookie"), Some(&*joined));
        // The same over HTTP/1.
        let mut old = HttpClient::connect(daemon.address("@web"));
        old.send(format!(
            "GET / HTTP/1.1\r\nHost: test\r\nX-Old: 1\r\nCookie: {joined}\r\n\r\n"
        ));
        assert_eq!(old.response().unwrap().status, 200);
    }
}

#[test]
fn heads_of_several_frames_are_free_as_long_as_their_size_is_allowed() {
    let backend = ScriptedPeer::answering("hello");
    let daemon = front(backend.address, "");
    let cookie = "c".repeat(17_000);
    let list = with(&[("cookie", &cookie)]);
    for (size, count) in [
        (16 << 10, 1_500),
        (4 << 10, 500),
        (1 << 10, 300),
        (300, 100),
    ] {
        let mut client = RawH2Client::connect(daemon.address("@web"));
        for turn in 0..count {
            let stream = 2 * turn + 1;
            ask(&mut client, stream, &list, size);
            assert!(
                is_well(&mut client, stream),
                "frames of {size}, turn {turn}"
            );
            to_the_end(&mut client, stream);
        }
    }
}

#[test]
fn continuations_that_no_size_needs_end_the_connection() {
    let backend = ScriptedPeer::answering("hello");
    let daemon = front(backend.address, "");
    let bystander = &mut RawH2Client::connect(daemon.address("@web"));
    // Few of them in each head, and many in one.
    let mut client = RawH2Client::connect(daemon.address("@web"));
    let block = fields(&GET_FIELDS);
    let size = block.len().div_ceil(5);
    let code = (0..1_000).find_map(|turn| {
        let stream = 2 * turn + 1;
        client.send(head(END_STREAM, stream, &block, size));
        let frame = client.until(|frame| {
            frame.kind == GOAWAY || frame.stream == stream && frame.flags & END_STREAM > 0
        });
        (frame.kind == GOAWAY).then(|| frame.code())
    });
    assert_eq!(code, Some(ENHANCE_YOUR_CALM));
    let mut client = RawH2Client::connect(daemon.address("@web"));
    client.send(frame(HEADERS, END_STREAM, 1, &block));
    for _ in 0..20 {
        client.send(frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b']));
    }
    assert_eq!(client.goodbye(), ENHANCE_YOUR_CALM);
    bystander.ask(1, &GET_FIELDS);
    assert!(is_well(bystander, 1));
}

#[test]
fn a_head_that_is_too_large_is_answered_431_and_other_streams_go_on() {
    let gate = Gate::new();
    let door = gate.clone();
    let backend = ScriptedPeer::start(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.target == "/slow" {
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsl");
                door.wait();
                connection.send("ow");
            } else {
                connection.answer("hello");
            }
        }
    });
    let daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    client.ask(
        1,
        &[
            GET_FIELDS[0],
            GET_FIELDS[1],
            (":path", "/slow"),
            GET_FIELDS[3],
        ],
    );
    client.until(|frame| frame.kind == DATA);
    let sizes = [33_000, 40_000, 65_000, 66_000, 129 << 10, 200 << 10];
    for (place, size) in sizes.into_iter().enumerate() {
        let stream = 2 * place as u32 + 3;
        let value = "x".repeat(size);
        // What is entered in the table behind the large field is entered all the same.
        let mut block = fields(&with(&[("x-a", &value)]));
        block.extend([0x40, 3, b'x', b'-', b'b', 1, b'0' + place as u8]);
        client.send(head(END_STREAM, stream, &block, 16 << 10));
        assert!(!is_well(&mut client, stream), "{size}");
        to_the_end(&mut client, stream);
    }
    logged_statuses(&daemon, 431, sizes.len());
    let mut block = fields(&GET_FIELDS);
    block.push(0xbe);
    client.send(head(END_STREAM, 99, &block, 16 << 10));
    assert!(is_well(&mut client, 99));
    let last = backend.wait_for_requests(2)[1].clone();
    assert_eq!(last.header("x-b"), Some("5"));
    gate.open();
    let rest = client.until(|frame| frame.kind == DATA && frame.stream == 1);
    assert_eq!(rest.payload, b"ow");
}

#[test]
fn a_head_of_another_size_than_any_that_is_honest_ends_the_connection() {
    let backend = ScriptedPeer::answering("hello");
    let daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    let value = "x".repeat(300 << 10);
    let block = fields(&with(&[("x-a", &value)]));
    client.send(head(END_STREAM, 1, &block, 16 << 10));
    assert_eq!(client.goodbye(), ENHANCE_YOUR_CALM);
    assert_eq!(backend.connections(), 0);
}

#[test]
fn trailers_may_be_as_large_as_heads_and_no_larger() {
    let backend = ScriptedPeer::start(|mut connection| {
        while connection
            .request()
            .is_some_and(|_| connection.answer("hello"))
        {}
    });
    let daemon = front(backend.address, "");
    let mut client = RawH2Client::connect(daemon.address("@web"));
    for (place, (size, count, is_good)) in [
        (9_000, 1, true),
        (30_000, 1, true),
        (1, 99, true),
        (33_000, 1, false),
        (1, 101, false),
        (129 << 10, 1, false),
    ]
    .into_iter()
    .enumerate()
    {
        let stream = 2 * place as u32 + 1;
        let value = "x".repeat(size);
        client.send(frame(HEADERS, END_HEADERS, stream, &fields(&GET_FIELDS)));
        client.send(frame(DATA, 0, stream, b"body"));
        let trailers = fields(&vec![("grpc-status-details-bin", &*value); count]);
        client.send(head(END_STREAM, stream, &trailers, 16 << 10));
        assert_eq!(is_well(&mut client, stream), is_good, "{size} {count}");
        to_the_end(&mut client, stream);
    }
    logged_statuses(&daemon, 431, 3);
    let requests = backend.wait_for_requests(3);
    let sizes: Vec<_> = requests
        .iter()
        .map(|request| request.trailers.len())
        .collect();
    assert_eq!(sizes, [9_029, 30_029, 99 * 28 + 2]);
    // The connection is as good as before.
    client.send(frame(PING, 0, 0, &[0; 8]));
    client.until(|frame| frame.kind == PING);
    let failures = daemon.metric("balancer_backend_failures_total{pool=\"app\"}");
    assert!(failures.abs() < f64::EPSILON, "{failures}");
}
