//! The harness itself, which must be right before the tests that use it can be.

use std::{net::TcpStream, time::Duration};

use crate::harness::{
    client::{HttpClient, ReadError, get},
    daemon::sum_of,
    peer::{Blackhole, Gate, ScriptedPeer, refused},
};

#[test]
fn an_answer_in_pieces_is_read_whole_and_the_request_is_recorded() {
    let peer = ScriptedPeer::start(|mut connection| {
        connection.request().unwrap();
        connection.send_pieces([
            "HTTP/1.1 200 OK\r\nTransfer-Enc",
            "oding: chunked\r\n\r",
            "\n5\r\nhel",
            "lo\r\n0\r\nX-End: yes\r\n\r\n",
        ]);
    });
    let mut client = HttpClient::connect(peer.address);
    client.send("POST /a HTTP/1.1\r\nHost: b\r\nContent-Length: 3\r\n\r\nxyz");
    let response = client.response().unwrap();
    assert_eq!(response.text(), "hello");
    assert_eq!(response.trailers, [("X-End".to_owned(), "yes".to_owned())]);
    let request = &peer.wait_for_requests(1)[0];
    assert_eq!(
        (request.target.as_str(), &request.body[..]),
        ("/a", &b"xyz"[..])
    );
    assert_eq!(request.header("host"), Some("b"));
}

#[test]
fn the_ends_of_a_connection_are_told_apart() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc";
    let peer = ScriptedPeer::saying(head);
    assert_eq!(
        get(peer.address, "/"),
        Err(ReadError::Short(b"abc".to_vec()))
    );
    let peer = ScriptedPeer::saying("");
    assert_eq!(get(peer.address, "/"), Err(ReadError::Closed));
    let peer = ScriptedPeer::resetting_after("");
    assert_eq!(get(peer.address, "/"), Err(ReadError::Reset(Vec::new())));
    let peer = ScriptedPeer::saying("SSH-2.0-x\r\n\r\n");
    assert!(matches!(get(peer.address, "/"), Err(ReadError::NotHttp(_))));
    let peer = ScriptedPeer::silent();
    let mut client = HttpClient::connect(peer.address);
    client.patience(Duration::from_millis(20));
    assert_eq!(
        client.request("GET", "/"),
        Err(ReadError::TimedOut(Vec::new()))
    );
}

#[test]
fn a_script_waits_at_the_gate_until_it_opens() {
    let gate = Gate::new();
    let door = gate.clone();
    let peer = ScriptedPeer::start(move |mut connection| {
        connection.request().unwrap();
        door.wait();
        connection.answer("late");
    });
    let mut client = HttpClient::connect(peer.address);
    client.send("GET / HTTP/1.1\r\nHost: b\r\n\r\n");
    peer.wait_for_requests(1);
    gate.open();
    assert_eq!(client.response().unwrap().text(), "late");
}

#[test]
fn a_blackhole_neither_accepts_nor_refuses() {
    let hole = Blackhole::start();
    let error = TcpStream::connect_timeout(&hole.address, Duration::from_millis(100)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    let error = TcpStream::connect_timeout(&refused(), Duration::from_secs(5)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_selector_adds_up_the_series_that_have_its_labels() {
    let page = "# TYPE a counter\na{p=\"x\",c=\"200\"} 3\na{p=\"x\",c=\"502\"} 4\na{p=\"y\",c=\"502\"} 5\nab 9\n";
    let near = |selector: &str, value: f64| (sum_of(page, selector) - value).abs() < 1e-9;
    assert!(near("a", 12.0));
    assert!(near("a{p=\"x\"}", 7.0));
    assert!(near("a{c=\"502\",p=\"y\"}", 5.0));
    assert!(near("ab", 9.0));
    assert!(near("none", 0.0));
}
