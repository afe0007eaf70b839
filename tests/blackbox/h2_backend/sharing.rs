//! Shared connections: who shares one, when another one is opened, and when they end.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use hyper::http::{Method, Response};
use tokio::sync::Semaphore;

use super::{config, front};
use crate::harness::{
    client::HttpClient,
    daemon::TestDaemon,
    frames::{ACK, GOAWAY, NO_ERROR, PING, RawH2Backend, SETTINGS, frame, goaway},
    h2::{H2Backend, ReceivedRequest, connect, get, patiently, request, until, whole},
    peer::{Gate, Recorder, ScriptedPeer},
};

/// A backend whose answers wait for permits, and what it has seen: the connection of each request.
async fn gated(builder: &h2::server::Builder) -> (H2Backend, Arc<Semaphore>, Recorder<usize>) {
    let gate = Arc::new(Semaphore::new(0));
    let seen = Recorder::default();
    let (opened, noted) = (Arc::clone(&gate), seen.clone());
    let script = move |asked: ReceivedRequest| {
        let (gate, seen) = (Arc::clone(&opened), noted.clone());
        async move {
            seen.push(asked.connection);
            gate.acquire().await.unwrap().forget();
            let path = asked.path().to_owned();
            asked.answer(&[], path);
        }
    };
    (H2Backend::start_with(builder, script).await, gate, seen)
}

/// Asks for `/0`, `/1` and so on at a time, each by a client of its own, and checks that each gets
/// its own response.
fn ask(daemon: &TestDaemon, count: usize) -> tokio::task::JoinSet<()> {
    let address = daemon.address("@web");
    let mut all = tokio::task::JoinSet::new();
    for number in 0..count {
        all.spawn_blocking(move || {
            let path = format!("/{number}");
            let answer = HttpClient::connect(address).request("GET", &path).unwrap();
            assert_eq!((answer.status, answer.text()), (200, path));
        });
    }
    all
}

async fn done(mut all: tokio::task::JoinSet<()>) {
    while let Some(one) = patiently(all.join_next()).await {
        one.unwrap();
    }
}

#[tokio::test]
async fn requests_at_a_time_share_one_connection() {
    let (backend, gate, seen) = gated(&h2::server::Builder::new()).await;
    let daemon = front(backend.address, "");
    let all = ask(&daemon, 40);
    until(|| seen.all().len() == 40).await;
    assert_eq!(backend.connections(), 1);
    let active = "balancer_backend_connections_active{pool=\"app\"}";
    let idle = "balancer_backend_connections_idle{pool=\"app\"}";
    assert_eq!((daemon.metric(active), daemon.metric(idle)), (1.0, 0.0));
    gate.add_permits(40);
    done(all).await;
    daemon.wait_for_metric(active, |count| count == 0.0);
    daemon.wait_for_metric(idle, |count| count == 1.0);
}

#[tokio::test]
async fn a_backend_gets_no_more_streams_on_a_connection_than_it_allows() {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(3);
    let (backend, gate, seen) = gated(&builder).await;
    let daemon = front(backend.address, "");
    let all = ask(&daemon, 12);
    until(|| seen.all().len() == 12).await;
    let seen = seen.all();
    for connection in 0..backend.connections() {
        let streams = seen.iter().filter(|seen| **seen == connection).count();
        assert!(streams <= 3, "{streams} on connection {connection}");
    }
    gate.add_permits(12);
    done(all).await;
}

#[tokio::test]
async fn a_backend_that_allows_no_streams_is_waited_for_as_long_as_for_a_connection() {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(0);
    let (backend, _gate, _seen) = gated(&builder).await;
    let daemon = front(backend.address, "retries: none, timeouts: {connect: 300ms}");
    let (sender, _driver) = connect(daemon.address("@web")).await;
    let answer = get(&sender, "/").await.unwrap();
    let status = answer.header("proxy-status");
    assert_eq!(status, Some("balancer; error=connection_timeout"));
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn a_backend_that_allows_no_streams_at_first_gets_the_request_when_it_does() {
    let (waiting, gate) = (Gate::new(), Gate::new());
    let (told, opened) = (waiting.clone(), gate.clone());
    let backend = ScriptedPeer::start(move |connection| {
        let Some(mut backend) = RawH2Backend::greet_with(connection, &[(3, 0)]) else {
            return;
        };
        // Our settings have been taken: the connection is made, but for a stream.
        backend.until(|frame| frame.kind == SETTINGS && frame.flags == ACK);
        told.open();
        opened.wait();
        let allowed = [&3_u16.to_be_bytes()[..], &50_u32.to_be_bytes()].concat();
        backend.send(frame(SETTINGS, 0, 0, &allowed));
        while let Some(stream) = backend.asked() {
            backend.answer(stream, "well");
        }
    });
    let daemon = front(backend.address, "timeouts: {connect: 20s}");
    let (sender, _driver) = connect(daemon.address("@web")).await;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let sender = sender.clone();
        asking.spawn(async move {
            assert_eq!(get(&sender, "/").await.unwrap().body, b"well");
        });
    }
    until(|| waiting.is_open()).await;
    gate.open();
    done(asking).await;
    assert_eq!(backend.connections(), 1);
    let failures = daemon.metric("balancer_backend_failures_total{pool=\"app\"}");
    assert_eq!(failures, 0.0);
}

#[tokio::test]
async fn a_connection_has_as_many_requests_at_a_time_as_the_pool_says() {
    let (backend, gate, seen) = gated(&h2::server::Builder::new()).await;
    let daemon = front(backend.address, "limits: {streams_per_connection: 4}");
    let all = ask(&daemon, 12);
    until(|| seen.all().len() == 12).await;
    let seen = seen.all();
    for connection in 0..backend.connections() {
        let streams = seen.iter().filter(|seen| **seen == connection).count();
        assert!(streams <= 4, "{streams} on connection {connection}");
    }
    gate.add_permits(12);
    done(all).await;
}

/// A backend that takes 10 requests on a connection, without announcing it, and resets others with
/// `code`; the connections that it has reset requests on. Requests that it takes wait for permits.
async fn narrow(code: h2::Reason) -> (H2Backend, Arc<Semaphore>, Recorder<usize>) {
    let gate = Arc::new(Semaphore::new(0));
    let held: Arc<Mutex<HashMap<usize, usize>>> = Arc::default();
    let (refused, opened) = (Recorder::default(), Arc::clone(&gate));
    let noted = refused.clone();
    let script = move |mut asked: ReceivedRequest| {
        let (gate, held, noted) = (Arc::clone(&opened), Arc::clone(&held), noted.clone());
        async move {
            let number = asked.connection;
            let before = {
                let mut held = held.lock().unwrap();
                let count = held.entry(number).or_default();
                *count += 1;
                *count - 1
            };
            if before >= 10 {
                noted.push(number);
                asked.respond.send_reset(code);
            } else {
                gate.acquire().await.unwrap().forget();
                asked.answer(&[], "well");
            }
            *held.lock().unwrap().get_mut(&number).unwrap() -= 1;
        }
    };
    let backend = H2Backend::start(script).await;
    (backend, gate, refused)
}
#[tokio::test]
async fn a_full_connection_loses_no_request_and_gets_fewer_from_then_on() {
    for code in [h2::Reason::REFUSED_STREAM, h2::Reason::ENHANCE_YOUR_CALM] {
        let (backend, gate, refused) = narrow(code).await;
        let daemon = front(backend.address, "timeouts: {connect: 20s}");
        let (sender, _driver) = connect(daemon.address("@web")).await;
        let burst = || {
            let mut asking = tokio::task::JoinSet::new();
            for _ in 0..40 {
                let sender = sender.clone();
                // What was not processed is sent again with any method.
                asking.spawn(async move {
                    let mut sender = sender.ready().await.unwrap();
                    let asked = request(Method::POST, "/", &[]);
                    let (response, mut body) = sender.send_request(asked, false).unwrap();
                    body.send_data("once".into(), true).unwrap();
                    let answer = whole(response).await.unwrap();
                    let why = answer.header("proxy-status");
                    assert_eq!(answer.status(), 200, "{why:?}");
                });
            }
            asking
        };
        let asking = burst();
        let taken = || backend.requests.all().len() - refused.all().len();
        until(|| taken() == 40).await;
        gate.add_permits(40);
        done(asking).await;
        // What it has learned holds for the next burst.
        let before = refused.all().len();
        assert!(before >= 30, "{before}");
        let asking = burst();
        until(|| taken() == 80).await;
        gate.add_permits(40);
        done(asking).await;
        let again = refused.all().len() - before;
        assert!(again <= 2, "{again} more were refused");
        let failures = daemon.metric("balancer_backend_failures_total{pool=\"app\"}");
        assert_eq!(failures, 0.0, "a full connection is no failure");
    }
}

#[tokio::test]
async fn a_connection_ends_after_its_requests_its_age_or_its_idle_time() {
    for (rules, connections) in [
        ("max_requests: 2", 3),
        ("idle_per_backend: 0", 6),
        ("max_age: 1ms", 6),
    ] {
        let (backend, gate, seen) = gated(&h2::server::Builder::new()).await;
        gate.add_permits(6);
        let daemon = front(backend.address, &format!("keepalive: {{{rules}}}"));
        let (sender, _driver) = connect(daemon.address("@web")).await;
        for number in 0..6 {
            assert_eq!(get(&sender, "/").await.unwrap().status(), 200, "{rules}");
            // Older than a millisecond by the next request.
            let made = balancer::base::clock::now();
            until(|| made.elapsed().as_millis() > 1).await;
            assert_eq!(seen.all().len(), number + 1);
        }
        let used: HashSet<_> = seen.all().into_iter().collect();
        assert_eq!(used.len(), connections, "{rules}");
    }
    // It says so to the backend.
    let parted = Recorder::default();
    let noted = parted.clone();
    let backend = ScriptedPeer::start(move |connection| {
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        let Some(stream) = backend.asked() else {
            return;
        };
        backend.answer(stream, "well");
        noted.push(
            backend
                .until(|frame| frame.kind == GOAWAY)
                .map(|it| it.code()),
        );
    });
    let daemon = front(backend.address, "keepalive: {idle_timeout: 50ms}");
    let (sender, _driver) = connect(daemon.address("@web")).await;
    assert_eq!(get(&sender, "/").await.unwrap().body, b"well");
    until(|| parted.all() == [Some(0)]).await;
}

#[tokio::test]
async fn a_reload_that_changes_the_protocol_changes_the_connections() {
    let backend = H2Backend::start(async |asked| asked.answer(&[], "two")).await;
    let mut daemon = front(backend.address, "");
    let address = daemon.address("@web");
    let (sender, _driver) = connect(address).await;
    assert_eq!(get(&sender, "/").await.unwrap().body, b"two");
    // The same backend, which does not speak it: an idle connection of before must not be used.
    let other = config(&[backend.address], "retries: none").replace("h2c", "http1");
    assert_eq!(daemon.reload(&other).status, 200);
    assert_eq!(get(&sender, "/").await.unwrap().status(), 502);
    assert_eq!(daemon.reload(&config(&[backend.address], "")).status, 200);
    assert_eq!(get(&sender, "/").await.unwrap().body, b"two");
    // What does not change it leaves them alone.
    let before = backend.connections();
    let same = config(&[backend.address], "timeouts: {response: 9s}");
    assert_eq!(daemon.reload(&same).status, 200);
    assert_eq!(get(&sender, "/").await.unwrap().body, b"two");
    assert_eq!(backend.connections(), before);
}

#[tokio::test]
async fn a_backend_that_leaves_finishes_what_it_has() {
    let (backend, gate, seen) = gated(&h2::server::Builder::new()).await;
    let (other, more, _) = gated(&h2::server::Builder::new()).await;
    more.add_permits(1);
    let mut daemon = front(backend.address, "");
    let all = ask(&daemon, 1);
    until(|| seen.all().len() == 1).await;
    assert_eq!(daemon.reload(&config(&[other.address], "")).status, 200);
    let (sender, _driver) = connect(daemon.address("@web")).await;
    assert_eq!(get(&sender, "/new").await.unwrap().body, b"/new");
    gate.add_permits(1);
    done(all).await;
    assert_eq!(backend.requests.all().len(), 1);
}

#[tokio::test]
async fn clients_that_are_told_of_share_nothing() {
    let headers = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&headers);
    let backend = ScriptedPeer::start(move |mut connection| {
        let Some(line) = connection.until(b"\r\n") else {
            return;
        };
        assert!(line.starts_with(b"PROXY TCP4 127.0.0.1 127.0.0.1 "));
        counted.fetch_add(1, SeqCst);
        let Some(mut backend) = RawH2Backend::greet(connection) else {
            return;
        };
        while let Some(stream) = backend.asked() {
            backend.answer(stream, "well");
        }
    });
    let daemon = front(backend.address, "send_proxy: v1");
    for expected in 1..=2 {
        let (sender, _driver) = connect(daemon.address("@web")).await;
        for _ in 0..3 {
            assert_eq!(get(&sender, "/").await.unwrap().body, b"well");
        }
        assert_eq!(headers.load(SeqCst), expected);
    }
}

#[tokio::test]
async fn requests_of_one_client_are_spread_over_the_backends() {
    let first = H2Backend::start(async |asked| asked.answer(&[], "1")).await;
    let second = H2Backend::start(async |asked| asked.answer(&[], "2")).await;
    let daemon = TestDaemon::start(&config(&[first.address, second.address], ""));
    let (mut sender, _driver) = connect(daemon.address("@web")).await;
    for _ in 0..10 {
        let asked = request(Method::POST, "/", &[("content-type", "application/grpc")]);
        let (response, _) = sender.send_request(asked, true).unwrap();
        whole(response).await.unwrap();
    }
    let counts = (first.requests.all().len(), second.requests.all().len());
    assert_eq!(counts, (5, 5));
}

#[tokio::test]
async fn connections_for_few_requests_are_made_side_by_side() {
    for (rules, connections) in [("idle_per_backend: 0", 4), ("max_requests: 2", 2)] {
        // None of them is any good before all are there.
        let all = Barrier::new(connections);
        let backend = ScriptedPeer::start(move |connection| {
            all.wait();
            let Some(mut backend) = RawH2Backend::greet(connection) else {
                return;
            };
            while let Some(stream) = backend.asked() {
                backend.answer(stream, "well");
            }
        });
        let pool = format!("keepalive: {{{rules}}}, timeouts: {{connect: 20s}}");
        let daemon = front(backend.address, &pool);
        let (sender, _driver) = connect(daemon.address("@web")).await;
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let sender = sender.clone();
            asking.spawn(async move {
                assert_eq!(get(&sender, "/").await.unwrap().body, b"well");
            });
        }
        done(asking).await;
        assert_eq!(backend.connections(), connections, "{rules}");
    }
}

#[tokio::test]
async fn connections_that_a_backend_takes_leave_of_get_nothing_more() {
    let (third, leave) = (Gate::new(), Gate::new());
    let seen = Recorder::default();
    let (noted, opened, left) = (seen.clone(), third.clone(), leave.clone());
    let backend = ScriptedPeer::start(move |connection| {
        let number = connection.number();
        let Some(mut backend) = RawH2Backend::greet_with(connection, &[(3, 2)]) else {
            return;
        };
        if number > 1 {
            while let Some(stream) = backend.asked() {
                backend.answer(stream, "well");
            }
            return;
        }
        // Two are full with waiting requests, and can take one more each in the end.
        let first = backend.asked().unwrap();
        noted.push(first);
        if number == 0 {
            let second = backend.asked().unwrap();
            noted.push(second);
            opened.wait();
            backend.answer(second, "well");
        }
        left.wait();
        backend.send(goaway(3, NO_ERROR));
        backend.send(frame(PING, 0, 0, &[0; 8]));
        backend.until(|frame| frame.kind == PING && frame.flags == ACK);
        noted.push(0);
        backend.until(|_| false);
    });
    let daemon = front(backend.address, "");
    let (sender, _driver) = connect(daemon.address("@web")).await;
    let mut asking = tokio::task::JoinSet::new();
    for count in 1..=3 {
        let sender = sender.clone();
        asking.spawn(async move { get(&sender, "/").await.map(|answer| answer.status()) });
        until(|| seen.all().len() == count).await;
    }
    assert_eq!(backend.connections(), 2);
    third.open();
    let answered = patiently(asking.join_next()).await.unwrap().unwrap();
    assert_eq!(answered.unwrap(), 200);
    leave.open();
    until(|| seen.all().iter().filter(|seen| **seen == 0).count() == 2).await;
    let mut sender = sender.ready().await.unwrap();
    let asked = request(Method::POST, "/", &[]);
    let (response, _) = sender.send_request(asked, true).unwrap();
    assert_eq!(whole(response).await.unwrap().body, b"well");
    let failures = daemon.metric("balancer_backend_failures_total{pool=\"app\"}");
    assert_eq!(failures, 0.0);
}

#[tokio::test]
async fn clients_that_do_not_read_hold_up_no_other() {
    const LARGE_BYTES: usize = 2 << 20;
    let sent = Recorder::default();
    let noted = sent.clone();
    let backend = H2Backend::start(move |mut asked: ReceivedRequest| {
        let noted = noted.clone();
        async move {
            if asked.path() == "/small" {
                return asked.answer(&[], vec![0; 100_000]);
            }
            let response = Response::new(());
            let mut stream = asked.respond.send_response(response, false).unwrap();
            for _ in 0..LARGE_BYTES / 16_384 {
                stream.reserve_capacity(16_384);
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
    let mut unread = Vec::new();
    for _ in 0..6 {
        let (mut sender, driver) = connect(address).await;
        let asked = request(Method::GET, "/large", &[]);
        let (response, _) = sender.send_request(asked, true).unwrap();
        unread.push((patiently(response).await.unwrap(), driver));
    }
    // It is as well to ask before all windows are full; that only makes it easier.
    let mut before = 0;
    loop {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let total = sent.all().iter().sum::<usize>();
        if total == before && total > 0 {
            break;
        }
        before = total;
    }
    assert_eq!(backend.connections(), 1);
    let (sender, _driver) = connect(address).await;
    let answer = patiently(get(&sender, "/small")).await.unwrap();
    assert_eq!(answer.body.len(), 100_000);
    assert_eq!(backend.connections(), 1);
}
