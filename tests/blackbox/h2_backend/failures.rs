//! Failures of a backend: what the client and the log get, and what is sent again.

use std::time::Duration;

use bytes::Bytes;
use hyper::http::{Method, Response};

use super::{config, front};
use crate::harness::{
    answers::expect_error,
    client::{HttpClient, ReadError},
    daemon::TestDaemon,
    frames::{
        CANCEL, DATA, END_STREAM, ENHANCE_YOUR_CALM, NO_ERROR, PING, REFUSED_STREAM, RST_STREAM,
        RawH2Backend, WINDOW_UPDATE, frame, goaway,
    },
    h2::{H2Backend, ReceivedRequest, connect, get, patiently, request, until, whole},
    peer::{Blackhole, Gate, Recorder, ScriptedPeer, refused},
};

/// A backend that does `script` with the stream of each request.
fn raw(script: impl Fn(&mut RawH2Backend, u32) + Send + Sync + 'static) -> ScriptedPeer {
    ScriptedPeer::start(move |connection| {
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        while let Some(stream) = backend.asked() {
            script(&mut backend, stream);
        }
    })
}

/// Asks `daemon` over HTTP/1.1 and checks the error and its line in the log.
fn expect(daemon: &TestDaemon, method: &str, reason: &str) {
    let answer = daemon.client("@web").request(method, "/").unwrap();
    let id = expect_error(&answer, 502, reason);
    assert_eq!(daemon.access_of(&id)["reason"], reason);
}

#[test]
fn every_failure_has_its_reason() {
    let h1 = ScriptedPeer::answering("well");
    let silent = ScriptedPeer::silent();
    let hole = Blackhole::start();
    let closing = ScriptedPeer::start(|mut connection| {
        connection.exactly(24);
    });
    let reset = raw(|backend, stream| _ = backend.reset(stream, 2));
    let gone = ScriptedPeer::start(|connection| {
        if let Some(mut backend) = RawH2Backend::greet(connection) {
            backend.asked();
        }
    });
    let no_status = raw(|backend, stream| _ = backend.head(stream, &[("x", "y")], true));
    let upper = raw(|backend, stream| {
        backend.head(stream, &[(":status", "200"), ("Upper", "y")], true);
    });
    let hop = raw(|backend, stream| {
        backend.head(stream, &[(":status", "200"), ("connection", "close")], true);
    });
    let lengths = raw(|backend, stream| {
        let twice = [
            (":status", "200"),
            ("content-length", "1"),
            ("content-length", "2"),
        ];
        backend.head(stream, &twice, false);
    });
    let switch = raw(|backend, stream| _ = backend.head(stream, &[(":status", "101")], false));
    let calls = [
        (refused(), "connection_refused"),
        (hole.address, "connection_timeout"),
        (silent.address, "connection_timeout"),
        (closing.address, "connection_terminated"),
        (h1.address, "proxy_protocol_error"),
        (reset.address, "connection_terminated"),
        (gone.address, "connection_terminated"),
        (no_status.address, "proxy_protocol_error"),
        (upper.address, "proxy_protocol_error"),
        (hop.address, "proxy_protocol_error"),
        (lengths.address, "proxy_protocol_error"),
        (switch.address, "proxy_protocol_error"),
    ];
    for (address, reason) in calls {
        let connect = if reason == "connection_timeout" {
            "300ms"
        } else {
            "10s"
        };
        let daemon = front(
            address,
            &format!("retries: none, timeouts: {{connect: {connect}}}"),
        );
        expect(&daemon, "GET", reason);
        // It is held against the backend, so that it is ejected like any other.
        let failures = format!("balancer_backend_failures_total{{reason=\"{reason}\"}}");
        assert_eq!(daemon.metric(&failures), 1.0, "{reason}");
    }
}

#[test]
fn a_head_that_is_too_large_is_told_apart() {
    let backend = raw(|backend, stream| {
        let value = "x".repeat(200);
        let names: Vec<_> = (0..400).map(|number| format!("x-{number}")).collect();
        let mut list = vec![(":status", "200")];
        list.extend(names.iter().map(|name| (name.as_str(), value.as_str())));
        let block = crate::harness::frames::fields(&list);
        let mut parts = block.chunks(16_000).peekable();
        let mut kind = crate::harness::frames::HEADERS;
        while let Some(part) = parts.next() {
            let last = if parts.peek().is_none() { 4 } else { 0 };
            backend.send(frame(kind, last, stream, part));
            kind = crate::harness::frames::CONTINUATION;
        }
    });
    let daemon = front(backend.address, "retries: none");
    expect(&daemon, "GET", "http_response_header_section_size");
}

#[tokio::test]
async fn a_backend_that_does_not_answer_in_time_gets_no_more_on_that_connection() {
    let connections = Recorder::default();
    let noted = connections.clone();
    let backend = H2Backend::start(move |asked: ReceivedRequest| {
        let noted = noted.clone();
        async move {
            noted.push(asked.connection);
            if asked.path() == "/hang" {
                std::future::pending::<()>().await;
            }
            asked.answer(&[], "well");
        }
    })
    .await;
    let daemon = front(backend.address, "retries: none, timeouts: {response: 1s}");
    let (sender, _driver) = connect(daemon.address("@web")).await;
    for path in ["/", "/hang", "/"] {
        let answer = get(&sender, path).await.unwrap();
        let error = answer.header("proxy-status");
        match path {
            "/hang" => assert_eq!(error, Some("balancer; error=http_response_timeout")),
            _ => assert_eq!(answer.body, b"well"),
        }
    }
    assert_eq!(connections.all(), [0, 0, 1]);
}

/// A backend whose first connection does `refuse` with the request on stream `refused`, and is then
/// well. What it was asked to do is recorded when it does it.
fn refusing(
    refused: u32,
    refuse: impl Fn(&mut RawH2Backend, u32) + Send + Sync + 'static,
) -> (ScriptedPeer, Recorder<u32>) {
    let done = Recorder::default();
    let noted = done.clone();
    let backend = ScriptedPeer::start(move |connection| {
        let is_first = connection.number() == 0;
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        while let Some(stream) = backend.asked() {
            if is_first && stream == refused {
                refuse(&mut backend, stream);
                continue;
            }
            noted.push(stream);
            backend.answer(stream, "well");
        }
    });
    (backend, done)
}

#[tokio::test]
async fn a_refused_request_of_any_method_is_sent_again() {
    let refusals: [fn(&mut RawH2Backend, u32); 3] = [
        |backend, stream| _ = backend.reset(stream, REFUSED_STREAM),
        |backend, stream| _ = backend.send(goaway(stream.saturating_sub(2), NO_ERROR)),
        |backend, stream| _ = backend.send(goaway(stream.saturating_sub(2), CANCEL)),
    ];
    // The first request of the connection or a later one.
    for (refuse, stream) in refusals.into_iter().flat_map(|it| [(it, 1), (it, 3)]) {
        let (backend, done) = refusing(stream, refuse);
        let daemon = front(backend.address, "");
        let (sender, _driver) = connect(daemon.address("@web")).await;
        for number in 1..=3 {
            let mut sender = sender.clone().ready().await.unwrap();
            let (response, mut body) = sender
                .send_request(request(Method::POST, "/", &[]), false)
                .unwrap();
            body.send_data(Bytes::from_static(b"once"), true).unwrap();
            assert_eq!(whole(response).await.unwrap().body, b"well");
            assert_eq!(done.all().len(), number, "done once");
        }
        assert_eq!(backend.connections(), 2);
        let failures = daemon.metric("balancer_backend_failures_total{pool=\"app\"}");
        assert_eq!(failures, 0.0, "no backend is to blame");
    }
}

/// Ways to refuse every request.
type RefusalKind = fn(&mut RawH2Backend, u32);

#[tokio::test]
async fn a_request_of_any_method_that_one_backend_refuses_goes_to_another() {
    let refusals: [RefusalKind; 3] = [
        |backend, stream| _ = backend.reset(stream, REFUSED_STREAM),
        |backend, stream| _ = backend.send(goaway(stream.saturating_sub(2), NO_ERROR)),
        |backend, stream| {
            backend.send(goaway(stream.saturating_sub(2), CANCEL));
            backend.0.finish();
        },
    ];
    for (refuse, ejection) in refusals
        .into_iter()
        .flat_map(|it| [(it, "none"), (it, "{}")])
    {
        let bad = raw(refuse);
        let good = H2Backend::start(async |asked: ReceivedRequest| asked.answer(&[], "well")).await;
        let backends = [bad.address, good.address];
        let daemon = TestDaemon::start(&config(&backends, &format!("ejection: {ejection}")));
        let (sender, _driver) = connect(daemon.address("@web")).await;
        let mut asking = tokio::task::JoinSet::new();
        for number in 0..80 {
            let mut sender = sender.clone().ready().await.unwrap();
            let asked = request(Method::POST, "/", &[]);
            let (response, mut body) = sender.send_request(asked, false).unwrap();
            body.send_data(Bytes::from_static(b"once"), true).unwrap();
            let answered = async move {
                let answer = whole(response).await.unwrap();
                let why = answer.header("proxy-status");
                assert_eq!(answer.status(), 200, "{why:?}");
            };
            // The first half one by one, the others at a time.
            if number < 40 {
                answered.await;
            } else {
                asking.spawn(answered);
            }
        }
        while let Some(one) = patiently(asking.join_next()).await {
            one.unwrap();
        }
        assert_eq!(good.requests.all().len(), 80, "each is done once");
        let refused = daemon.metric("balancer_backend_failures_total{pool=\"app\"}");
        assert!(refused >= 4.0, "it is held against who goes on with it");
        let ejected = daemon.metric("balancer_backend_ejections_total{pool=\"app\"}");
        assert_eq!(ejected > 0.0, ejection == "{}");
    }
}

#[test]
fn what_is_refused_everywhere_costs_the_attempts_that_are_allowed_and_one() {
    let backend = raw(|backend, stream| _ = backend.reset(stream, REFUSED_STREAM));
    for (retries, attempts) in [
        ("none", 1),
        ("{attempts: 0}", 2),
        ("{attempts: 2}", 4),
        // What was not processed is neither of these.
        ("{conditions: [terminated, timeout, invalid]}", 1),
    ] {
        let before = backend.connections();
        let pool = format!("retries: {retries}, ejection: none");
        let daemon = front(backend.address, &pool);
        let answer = daemon.client("@web").request("POST", "/").unwrap();
        let id = expect_error(&answer, 502, "connection_terminated");
        assert_eq!(daemon.access_of(&id)["attempts"], attempts, "{retries}");
        assert_eq!(backend.connections() - before, attempts, "{retries}");
    }
}

#[tokio::test]
async fn an_orderly_end_of_many_connections_is_no_failure_of_the_backend() {
    // Each connection answers one request, and says that it is the last when others are on their
    // way.
    let backend = raw(|backend, stream| {
        if stream == 1 {
            backend.answer(stream, "well");
            return;
        }
        backend.send(goaway(1, NO_ERROR));
        backend.0.finish();
    });
    let good = H2Backend::start(async |asked: ReceivedRequest| asked.answer(&[], "well")).await;
    let daemon = TestDaemon::start(&config(&[backend.address, good.address], ""));
    let (sender, _driver) = connect(daemon.address("@web")).await;
    for _ in 0..10 {
        for _ in 0..4 {
            let mut sender = sender.clone().ready().await.unwrap();
            let asked = request(Method::POST, "/", &[]);
            let (response, _) = sender.send_request(asked, true).unwrap();
            assert_eq!(whole(response).await.unwrap().body, b"well");
        }
    }
    assert!(backend.connections() >= 5, "{}", backend.connections());
    let failures = daemon.metric("balancer_backend_failures_total{pool=\"app\"}");
    assert_eq!(failures, 0.0);
}

#[tokio::test]
async fn calm_asked_of_a_lone_request_may_come_from_its_handler() {
    let resets: [RefusalKind; 2] = [
        |backend, stream| _ = backend.reset(stream, ENHANCE_YOUR_CALM),
        // Beside another, but part of the response came before.
        |backend, stream| {
            let Some(second) = backend.asked() else {
                return;
            };
            backend.send(frame(WINDOW_UPDATE, 0, second, &1_u32.to_be_bytes()));
            backend.reset(second, ENHANCE_YOUR_CALM);
            backend.answer(stream, "well");
        },
    ];
    for (reset, count) in resets.into_iter().zip([1, 2]) {
        let backend = raw(reset);
        let daemon = front(backend.address, "");
        let (sender, _driver) = connect(daemon.address("@web")).await;
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..count {
            let mut sender = sender.clone().ready().await.unwrap();
            let asked = request(Method::POST, "/", &[]);
            let (response, _) = sender.send_request(asked, true).unwrap();
            asking.spawn(async move { whole(response).await.unwrap().status() });
        }
        let mut statuses = Vec::new();
        while let Some(status) = patiently(asking.join_next()).await {
            statuses.push(status.unwrap());
        }
        statuses.sort_unstable();
        assert_eq!(statuses.last(), Some(&502), "not sent again");
        assert_eq!(backend.connections(), 1);
    }
}

#[tokio::test]
async fn what_a_backend_may_have_done_is_not_sent_again() {
    let resets: [fn(&mut RawH2Backend, u32); 3] = [
        |backend, stream| _ = backend.reset(stream, CANCEL),
        // It has taken this one.
        |backend, stream| {
            backend.send(goaway(stream, NO_ERROR));
            backend.0.finish();
        },
        |backend, _| backend.0.finish(),
    ];
    for reset in resets {
        let (backend, done) = refusing(3, reset);
        let daemon = front(backend.address, "");
        let (sender, _driver) = connect(daemon.address("@web")).await;
        for status in [200, 502, 200] {
            let mut sender = sender.clone().ready().await.unwrap();
            let asked = request(Method::POST, "/", &[]);
            let (response, _) = sender.send_request(asked, true).unwrap();
            assert_eq!(whole(response).await.unwrap().status(), status);
        }
        assert_eq!(done.all().len(), 2);
        // A GET is, as its method says that it may.
        let (backend, _) = refusing(3, reset);
        let daemon = front(backend.address, "");
        let (sender, _driver) = connect(daemon.address("@web")).await;
        for _ in 0..3 {
            assert_eq!(get(&sender, "/").await.unwrap().status(), 200);
        }
    }
}

#[tokio::test]
async fn a_response_that_is_cut_is_a_cut_for_every_client() {
    let cuts: [fn(&mut RawH2Backend, u32); 5] = [
        |backend, stream| _ = backend.reset(stream, 2),
        // It says that nothing is wrong, and has not come to the end.
        |backend, stream| _ = backend.reset(stream, NO_ERROR),
        // An end behind that is none.
        |backend, stream| {
            let mut all = frame(RST_STREAM, 0, stream, &NO_ERROR.to_be_bytes());
            all.extend(frame(DATA, END_STREAM, stream, b"more"));
            backend.send(all);
        },
        |backend, _| backend.0.finish(),
        |backend, _| _ = backend.send(frame(DATA, 0, 0, b"not on a stream")),
    ];
    for cut in cuts {
        let backend = raw(move |backend, stream| {
            backend.head(stream, &[(":status", "200")], false);
            backend.send(frame(DATA, 0, stream, b"half"));
            // What is before the ping has been taken when it is answered.
            backend.send(frame(PING, 0, 0, &[0; 8]));
            backend.until(|frame| frame.kind == PING);
            cut(backend, stream);
        });
        let daemon = front(backend.address, "");
        let address = daemon.address("@web");
        let (sender, _driver) = connect(address).await;
        let error = get(&sender, "/two")
            .await
            .map(|answer| answer.body)
            .unwrap_err();
        assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR));
        let logged = daemon.wait_for_access(|line| line["path"] == "/two");
        assert_eq!(logged["reason"], "http_response_incomplete");
        let one = tokio::task::spawn_blocking(move || {
            HttpClient::connect(address)
                .request("GET", "/one")
                .map(|it| it.text())
        });
        let cut = one.await.unwrap();
        assert!(
            matches!(
                cut,
                Err(ReadError::Short(_) | ReadError::Reset(_) | ReadError::Closed)
            ),
            "{cut:?}"
        );
        let logged = daemon.wait_for_access(|line| line["path"] == "/one");
        assert_eq!(logged["reason"], "http_response_incomplete");
    }
}

#[tokio::test]
async fn an_answer_that_wants_no_more_of_the_request_is_whole() {
    let backend = raw(|backend, stream| {
        backend.until(|frame| frame.kind == DATA);
        backend.answer(stream, "enough");
        backend.reset(stream, NO_ERROR);
    });
    let daemon = front(backend.address, "");
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    let (response, mut body) = sender
        .send_request(request(Method::POST, "/", &[]), false)
        .unwrap();
    body.send_data(Bytes::from_static(b"much more will follow"), false)
        .unwrap();
    assert_eq!(whole(response).await.unwrap().body, b"enough");
    let logged = daemon.wait_for_access(|line| line["path"] == "/");
    assert_eq!(
        (&logged["status"], &logged["reason"]),
        (&200.into(), &serde_json::Value::Null)
    );
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_stream_along_and_no_other() {
    let seen = Recorder::default();
    let noted = seen.clone();
    let (begun, gate) = (Gate::new(), Gate::new());
    let (told, opened) = (begun.clone(), gate.clone());
    let backend = ScriptedPeer::start(move |connection| {
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        let Some(first) = backend.asked() else {
            return;
        };
        told.open();
        let Some(second) = backend.asked() else {
            return;
        };
        opened.open();
        let reset = backend.until(|frame| frame.kind == RST_STREAM);
        noted.push(reset.map(|frame| (frame.stream == first, frame.code())));
        backend.answer(second, "well");
        while backend.next().is_some() {}
    });
    let daemon = front(backend.address, "");
    let address = daemon.address("@web");
    let (leaving, _first) = connect(address).await;
    let mut asking = leaving.clone().ready().await.unwrap();
    let (left, _) = asking
        .send_request(request(Method::GET, "/left", &[]), true)
        .unwrap();
    until(|| begun.is_open()).await;
    let (staying, _second) = connect(address).await;
    let stays = tokio::spawn(async move { get(&staying, "/stays").await.unwrap().body });
    until(|| gate.is_open()).await;
    drop(left);
    assert_eq!(patiently(stays).await.unwrap(), b"well");
    assert_eq!(seen.all(), [Some((true, CANCEL))]);
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_a_long_poll_does_not_close_the_shared_connection() {
    let left = Recorder::default();
    let noted = left.clone();
    let backend = H2Backend::start(move |mut asked: ReceivedRequest| {
        let noted = noted.clone();
        async move {
            if asked.path() == "/poll" {
                let reset = std::future::poll_fn(|cx| asked.respond.poll_reset(cx)).await;
                return noted.push(reset.unwrap());
            }
            asked.answer(&[], "well");
        }
    })
    .await;
    let daemon = front(backend.address, "");
    let (sender, _driver) = connect(daemon.address("@web")).await;
    let poll = tokio::spawn({
        let sender = sender.clone();
        async move { get(&sender, "/poll").await.map(drop) }
    });
    until(|| backend.requests.all().len() == 1).await;
    // It has been silent for longer than the stall timeout, without a request.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    poll.abort();
    until(|| left.all() == [h2::Reason::CANCEL]).await;
    for _ in 0..3 {
        assert_eq!(get(&sender, "/").await.unwrap().body, b"well");
    }
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_backend_up() {
    let sent = Recorder::default();
    let noted = sent.clone();
    let backend = H2Backend::start(move |mut asked: ReceivedRequest| {
        let noted = noted.clone();
        async move {
            let response = Response::new(());
            let mut stream = asked.respond.send_response(response, false).unwrap();
            loop {
                stream.reserve_capacity(16 << 10);
                let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
                let Some(Ok(room)) = room else { return };
                noted.push(room);
                if stream.send_data(vec![0; room].into(), false).is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let daemon = front(backend.address, "");
    let address = daemon.address("@web");
    let (mut sender, _driver) = connect(address).await;
    let (response, _) = sender
        .send_request(request(Method::GET, "/", &[]), true)
        .unwrap();
    let _unread = patiently(response).await.unwrap();
    let total = || sent.all().iter().sum::<usize>();
    // It goes on until all windows between are full, and stands still then.
    let mut before = 0;
    let deadline = balancer::base::clock::now() + crate::harness::PATIENCE;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        if total() == before && before > 0 {
            break;
        }
        before = total();
        assert!(balancer::base::clock::now() < deadline, "{before} bytes");
    }
    assert!(
        before < 2 << 20,
        "{before} bytes for a client that reads none"
    );
}

#[tokio::test]
async fn a_backend_that_does_not_read_holds_the_client_up() {
    let backend =
        H2Backend::start(async |_asked: ReceivedRequest| std::future::pending().await).await;
    let daemon = TestDaemon::start(&config(&[backend.address], ""));
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    let (_response, mut body) = sender
        .send_request(request(Method::POST, "/", &[]), false)
        .unwrap();
    let mut sent = 0;
    loop {
        body.reserve_capacity(16 << 10);
        let room = std::future::poll_fn(|cx| body.poll_capacity(cx));
        // A window that is not opened for so long will not be.
        match tokio::time::timeout(Duration::from_millis(500), room).await {
            Ok(room) => {
                let room = room.unwrap().unwrap();
                body.send_data(vec![0; room].into(), false).unwrap();
                sent += room;
            }
            Err(_) => break,
        }
        assert!(sent < 2 << 20, "{sent} bytes for a backend that reads none");
    }
    assert!(sent > 0);
}

#[test]
fn a_request_that_http2_cannot_express_is_the_clients_fault() {
    let backend = raw(|backend, stream| _ = backend.answer(stream, "well"));
    let daemon = front(backend.address, "");
    let answer = daemon.client("@web").request("GET", "/<a>").unwrap();
    expect_error(&answer, 400, "http_request_error");
    let failures = daemon.metric("balancer_backend_failures_total{pool=\"app\"}");
    assert_eq!(failures, 0.0);
    assert_eq!(daemon.get("@web", "/a").unwrap().text(), "well");
}

#[test]
fn a_request_that_a_backend_resets_again_and_again_uses_the_allowed_attempts() {
    let backend = raw(|backend, stream| {
        if stream == 1 {
            backend.answer(stream, "well");
        } else {
            backend.reset(stream, 2);
        }
    });
    let daemon = front(backend.address, "retries: {attempts: 1}, ejection: none");
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "well");
    // The connection is as good as before: it has not become stale.
    expect(&daemon, "GET", "connection_terminated");
    let logged = daemon.wait_for_access(|line| line["status"] == 502);
    assert_eq!(logged["attempts"], 2);
    let failures = daemon.metric("balancer_backend_failures_total{pool=\"app\"}");
    assert_eq!(failures, 2.0);
    assert_eq!(backend.connections(), 1);
}
