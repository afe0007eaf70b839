//! Kept connections that their backend closes: which requests are sent again on another one.

use super::{count, daemon, pattern, send, with_length};
use std::net::{SocketAddr, TcpListener};

use crate::harness::{
    answers::expect_error,
    daemon::sum_of,
    peer::{Gate, PeerConnection, ScriptedPeer, refused},
};

/// Behaviour of a backend at the second request of a connection, or before it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum StaleConnection {
    /// Closes right after the response.
    ClosedBefore,
    /// Reads the request and closes.
    ClosedAfter,
    /// Reads the request and resets.
    ResetAfter,
    /// Closes with the request unread, which resets.
    ClosedUnread,
}

/// Answers one request a connection, and promises more.
fn forgetful(stale: StaleConnection) -> ScriptedPeer {
    ScriptedPeer::start(move |mut connection| {
        if connection.request().is_none() || stale == StaleConnection::ClosedBefore {
            return connection.send_last("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood");
        }
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood");
        match stale {
            StaleConnection::ClosedUnread => connection.wait_for_bytes(),
            StaleConnection::ResetAfter => {
                connection.request();
                connection.reset();
            }
            _ => {
                connection.request();
            }
        }
    })
}

#[test]
fn a_stale_connection_never_shows_to_a_get() {
    for stale in [
        StaleConnection::ClosedBefore,
        StaleConnection::ClosedAfter,
        StaleConnection::ResetAfter,
        StaleConnection::ClosedUnread,
    ] {
        let peer = forgetful(stale);
        let daemon = daemon(&[peer.address], "");
        let mut client = daemon.client("@web");
        for _ in 0..20 {
            let response = client.request("GET", "/").unwrap();
            assert_eq!(response.text(), "good", "{stale:?}");
        }
        let page = daemon.scrape();
        let failures = sum_of(&page, "balancer_backend_failures_total");
        assert!(failures < 0.5, "{stale:?} counts as {failures} failures");
        let again = sum_of(
            &page,
            "balancer_retries_total{reason=\"connection_terminated\"}",
        );
        let met = if stale == StaleConnection::ClosedBefore {
            0
        } else {
            19
        };
        assert_eq!(again as u64, met, "{stale:?}");
        assert_eq!(peer.connections(), 20, "{stale:?}");
    }
}

#[test]
fn a_post_that_a_stale_connection_may_have_delivered_is_not_sent_again() {
    for stale in [
        StaleConnection::ClosedAfter,
        StaleConnection::ResetAfter,
        StaleConnection::ClosedUnread,
    ] {
        let peer = forgetful(stale);
        let daemon = daemon(&[peer.address], "");
        let mut client = daemon.client("@web");
        assert_eq!(client.request("GET", "/").unwrap().text(), "good");
        client.send(with_length("POST", b"order 5"));
        let response = client.response().unwrap();
        let id = expect_error(&response, 502, "connection_terminated");
        let line = daemon.access_of(&id);
        assert_eq!(
            (&line["attempts"], &line["reused"]),
            (&1.into(), &true.into())
        );
        assert_eq!(peer.connections(), 1, "{stale:?}");
    }
}

#[test]
fn a_post_meets_no_connection_that_was_closed_before() {
    let peer = forgetful(StaleConnection::ClosedBefore);
    let daemon = daemon(&[peer.address], "");
    let mut client = daemon.client("@web");
    for number in 0..20 {
        client.send(with_length("POST", b"order 5"));
        assert_eq!(client.response().unwrap().text(), "good");
        assert_eq!(peer.requests.all().len(), number + 1);
    }
}

/// Its first connection takes a head, answers when told to, and reads nothing more: what is sent
/// after the window is full stays unacknowledged in the daemon's kernel. When told to, it ends its
/// side. All others are in order.
fn choked(sent: Gate, end: Gate, closed: Gate) -> ScriptedPeer {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(16).unwrap();
    ScriptedPeer::start_on(
        TcpListener::from(socket),
        move |mut connection: PeerConnection| {
            if connection.number() > 0 {
                while connection.request().is_some() && connection.answer("good") {}
                return;
            }
            connection.head().unwrap();
            sent.wait();
            connection.answer("early");
            end.wait();
            connection.finish();
            // Kept open: closing it with the upload unread would be a reset.
            closed.wait();
        },
    )
}

#[test]
fn a_post_that_the_backend_provably_never_saw_is_sent_again() {
    let (sent, gate, over) = (Gate::new(), Gate::new(), Gate::new());
    let peer = choked(sent.clone(), gate.clone(), over.clone());
    let daemon = daemon(&[peer.address], "");
    let mut client = daemon.client("@web");
    client.send(with_length("PATCH", &pattern(14_000)));
    // All of it is with the kernel, so that the connection is one to be kept.
    daemon.wait_for_metric("balancer_listener_received_bytes_total", |count| {
        count > 14_000.0
    });
    sent.open();
    assert_eq!(client.response().unwrap().text(), "early");
    daemon.wait_for_metric("balancer_backend_connections_idle", |idle| idle > 0.5);
    client.send(with_length("POST", b"order 5"));
    // In use: it was found idle, and the request is written at once.
    daemon.wait_for_metric("balancer_backend_connections_active", |active| active > 0.5);
    gate.open();
    assert_eq!(client.response().unwrap().text(), "good");
    let got = peer.wait_for_requests(1);
    assert_eq!((got.len(), got[0].body.as_slice()), (1, &b"order 5"[..]));
    assert_eq!(count(&daemon, "balancer_retries_total"), 1);
    over.open();
}

#[test]
fn races_with_a_closing_backend_neither_double_a_post_nor_fail_a_get() {
    // Answers three requests a connection and closes a little later: the next one, in turn a GET
    // and a POST, races with the end.
    let peer = ScriptedPeer::start(|mut connection| {
        for _ in 0..3 {
            if connection.request().is_none() || !connection.answer("good") {
                return;
            }
        }
        for _ in 0..connection.number() % 7 * 300 {
            std::hint::spin_loop();
        }
    });
    let daemon = daemon(&[peer.address], "    ejection: none\n");
    let mut client = daemon.client("@web");
    let mut answered = 0;
    for number in 0..400 {
        assert_eq!(client.request("GET", "/").unwrap().status, 200);
        client.send(with_length("POST", format!("order {number}").as_bytes()));
        match client.response().unwrap() {
            response if response.status == 200 => answered += 1,
            response => drop(expect_error(&response, 502, "connection_terminated")),
        }
    }
    let mut orders: Vec<_> = peer.requests.all();
    orders.retain(|request| request.method == "POST");
    let (all, mut bodies) = (
        orders.len(),
        orders.into_iter().map(|one| one.body).collect::<Vec<_>>(),
    );
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), all, "a POST came twice");
    assert!(all >= answered && answered >= 200, "{answered} of {all}");
}

/// The attempts of one GET on a connection that its backend closes as soon as it has read it.
fn attempts_on_a_stale_connection(conditions: &str) -> (u16, u64) {
    let peer = forgetful(StaleConnection::ClosedAfter);
    let more = format!("    ejection: none\n    retries: {{conditions: [{conditions}]}}\n");
    let daemon = daemon(&[peer.address], &more);
    let mut client = daemon.client("@web");
    assert_eq!(client.request("GET", "/").unwrap().text(), "good");
    let response = client.request("GET", "/").unwrap();
    let id = response.header("x-request-id").unwrap();
    let attempts = daemon.access_of(id)["attempts"].as_u64().unwrap();
    (response.status, attempts)
}

#[test]
fn connect_and_stale_are_conditions_of_their_own() {
    let refusing = refused();
    for (words, tries) in [("connect", 3), ("stale, terminated, timeout, invalid", 1)] {
        let more = format!("    ejection: none\n    retries: {{conditions: [{words}]}}\n");
        let daemon = daemon(&[refusing], &more);
        // Nothing was sent: the method does not matter.
        let id = expect_error(
            &send(&daemon, &with_length("POST", b"order 5")),
            502,
            "connection_refused",
        );
        assert_eq!(daemon.access_of(&id)["attempts"], tries, "{words}");
    }
    assert_eq!(attempts_on_a_stale_connection("stale"), (200, 2));
    assert_eq!(
        attempts_on_a_stale_connection("connect, timeout, invalid"),
        (502, 1)
    );
    // It was closed before a whole response head, after all.
    assert_eq!(attempts_on_a_stale_connection("terminated"), (200, 2));
}
