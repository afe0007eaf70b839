//! Backends that attack: bounded memory, bounded time, and a clean answer for the client.

use super::front;
use crate::harness::{
    frames::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GET_FIELDS, HEADERS, PING, PRIORITY,
        PUSH_PROMISE, RST_STREAM, RawH2Backend, RawH2Client, SETTINGS, WINDOW_UPDATE, fields,
        frame,
    },
    h2::{connect, get},
    peer::{Gate, ScriptedPeer},
};

/// Makes the next frame for a stream.
type NextFrame = Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>;

/// A backend that answers each request with frames that `next` makes, for as long as they are
/// taken.
fn flooding(next: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static) -> ScriptedPeer {
    ScriptedPeer::start(move |connection| {
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        let Some(stream) = backend.asked() else {
            return;
        };
        while backend.send(next(stream)) {}
    })
}

#[tokio::test]
async fn floods_of_frames_end_their_connection_and_are_the_backends_fault() {
    let interim = fields(&[(":status", "103"), ("link", "</a.css>")]);
    let floods: [(&str, NextFrame); 8] = [
        ("ping", Box::new(|_| frame(PING, 0, 0, &[0; 8]))),
        ("settings", Box::new(|_| frame(SETTINGS, 0, 0, &[]))),
        (
            "priority",
            Box::new(|stream| frame(PRIORITY, 0, stream, &[0; 5])),
        ),
        (
            "window",
            Box::new(|_| frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
        ),
        (
            "acknowledgement",
            Box::new(|_| frame(PING, ACK, 0, &[0; 8])),
        ),
        ("empty data", Box::new(|stream| frame(DATA, 0, stream, &[]))),
        (
            "1xx",
            Box::new(move |stream| frame(HEADERS, END_HEADERS, stream, &interim)),
        ),
        (
            "continuation",
            Box::new(|stream| frame(CONTINUATION, 0, stream, &[])),
        ),
    ];
    for (name, next) in floods {
        let backend = flooding(next);
        let daemon = front(backend.address, "retries: none");
        let (sender, _driver) = connect(daemon.address("@web")).await;
        let answer = get(&sender, "/").await.unwrap();
        let error = answer.header("proxy-status");
        assert_eq!(answer.status(), 502, "{name}");
        assert_eq!(error, Some("balancer; error=http_protocol_error"), "{name}");
        let resident = daemon.proc_status("VmRSS");
        assert!(resident < 100 << 10, "{name}: {resident} KiB");
    }
}

#[tokio::test]
async fn an_unwanted_push_ends_the_connection() {
    let promise = {
        let mut payload = 2_u32.to_be_bytes().to_vec();
        payload.extend(fields(&[(":method", "GET"), (":path", "/pushed")]));
        payload
    };
    let backend = flooding(move |stream| frame(PUSH_PROMISE, END_HEADERS, stream, &promise));
    let daemon = front(backend.address, "retries: none");
    let (sender, _driver) = connect(daemon.address("@web")).await;
    let answer = get(&sender, "/").await.unwrap();
    let error = answer.header("proxy-status");
    assert_eq!(error, Some("balancer; error=http_protocol_error"));
}

#[tokio::test]
async fn an_answer_to_one_request_never_reaches_another() {
    // Responses to streams that were never opened, to ended ones, and twice to the same one.
    let backend = ScriptedPeer::start(|connection| {
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        while let Some(stream) = backend.asked() {
            backend.answer(stream, "own");
            backend.answer(stream, "second");
            if stream > 1 {
                backend.answer(stream - 2, "earlier");
            }
        }
    });
    let daemon = front(backend.address, "");
    let (sender, _driver) = connect(daemon.address("@web")).await;
    for _ in 0..20 {
        let answer = get(&sender, "/").await.unwrap();
        assert!(
            answer.status() == 502 || answer.body == b"own",
            "{:?}",
            String::from_utf8_lossy(&answer.body)
        );
    }
}

#[tokio::test]
async fn what_may_not_be_forwarded_is_refused_with_all_that_comes_with_it() {
    // HTTP/2 has this field in requests only. All of the response is there at once.
    let odd = [("te", "trailers")];
    let head = |list: &[(&str, &str)], flags, stream| {
        frame(HEADERS, END_HEADERS | flags, stream, &fields(list))
    };
    let bad_head = move |stream| {
        let mut all = head(&[(":status", "103")], 0, stream);
        all.extend(head(&[(":status", "200"), odd[0]], 0, stream));
        all
    };
    let bad_trailers = move |stream| {
        let mut all = head(&[(":status", "200")], 0, stream);
        all.extend(frame(DATA, 0, stream, b"body"));
        all.extend(head(&odd, END_STREAM, stream));
        all
    };
    let answers: [(NextFrame, _, _); 2] = [
        (Box::new(bad_head), Some(502), "proxy_protocol_error"),
        (Box::new(bad_trailers), None, "http_response_incomplete"),
    ];
    for (answer, status, reason) in answers {
        let backend = ScriptedPeer::start(move |connection| {
            let Some(mut backend) = RawH2Backend::greet(connection) else {
                return;
            };
            while let Some(stream) = backend.asked() {
                backend.send(answer(stream));
            }
        });
        let daemon = front(backend.address, "retries: none");
        let (sender, _driver) = connect(daemon.address("@web")).await;
        for _ in 0..3 {
            let answer = get(&sender, "/").await;
            assert_eq!(answer.ok().map(|answer| answer.status()), status);
            let logged = daemon.wait_for_access(|_| true);
            assert_eq!(logged["reason"], reason);
        }
        assert_eq!(backend.connections(), 1);
    }
}

#[test]
fn clients_that_give_up_do_not_cost_the_others_their_connection() {
    const CLIENT_COUNT: u32 = 8;
    const REQUESTS_PER_CLIENT: u32 = 190;
    let backend = ScriptedPeer::start(|connection| {
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        while let Some(head) = backend.until(|frame| frame.kind == HEADERS) {
            if head.flags & END_STREAM == 0 {
                backend.answer(head.stream, "still here");
            } else {
                // Each of its frames makes the daemon check the budget.
                backend.send(frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()));
            }
        }
    });
    let daemon = front(backend.address, "");
    for _ in 0..CLIENT_COUNT {
        let mut client = RawH2Client::connect(daemon.address("@web"));
        for turn in 0..REQUESTS_PER_CLIENT {
            let stream = 2 * turn + 1;
            client.ask(stream, &GET_FIELDS);
            // The request has begun when its reset comes.
            client.send(frame(PING, 0, 0, &[0; 8]));
            client.until(|frame| frame.kind == PING);
            client.send(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        }
        client.send(frame(PING, 0, 0, &[0; 8]));
        client.until(|frame| frame.kind == PING);
    }
    let mut client = RawH2Client::connect(daemon.address("@web"));
    client.send(frame(HEADERS, END_HEADERS, 1, &fields(&GET_FIELDS)));
    client.send(frame(DATA, END_STREAM, 1, b"x"));
    let body = client.until(|frame| frame.kind == DATA);
    assert_eq!(body.payload, b"still here");
    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_backend_that_reads_nothing_is_not_sent_heads_without_end() {
    let gate = Gate::new();
    let door = gate.clone();
    let backend = ScriptedPeer::start(move |connection| {
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        // It reads nothing, and is not silent.
        while !door.is_open() && backend.send(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])) {
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    });
    let daemon = front(backend.address, "");
    let before = daemon.proc_status("VmRSS");
    let long = "y".repeat(250);
    let mut list = GET_FIELDS.to_vec();
    list.extend(std::iter::repeat_n(("x", &*long), 60));
    for _ in 0..20 {
        let mut client = RawH2Client::connect(daemon.address("@web"));
        for turn in 0..190 {
            let stream = 2 * turn + 1;
            client.ask(stream, &list);
            client.send(frame(PING, 0, 0, &[0; 8]));
            client.until(|frame| frame.kind == PING);
            client.send(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        }
    }
    let grown = daemon.proc_status("VmRSS").saturating_sub(before);
    assert!(grown < 30 << 10, "{grown} KiB");
    gate.open();
}
