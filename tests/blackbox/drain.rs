//! Graceful shutdown: TERM, INT and QUIT.

use std::{io::ErrorKind, net::TcpStream};

use crate::harness::{
    client::HttpClient,
    daemon::TestDaemon,
    peer::{Gate, ScriptedPeer},
    poll,
};
use rustix::process::Signal;

fn config(drain: &str, backend: &ScriptedPeer) -> String {
    format!(
        "drain: {{{drain}}}\naccess_log: {{when: {{sample: 100%}}}}\nlisteners:\n  web: {{bind: [\"@web\", \"unix:@dir/web.sock\"], pool: app}}\n  raw: {{bind: \"@raw\", protocol: tcp, pool: app}}\npools:\n  app:\n    health_check: none\n    backends: [{}]\n",
        backend.address
    )
}

fn is_refused(daemon: &TestDaemon, word: &str) -> bool {
    let refused = poll(|| TcpStream::connect(daemon.address(word)).err());
    refused.map(|error| error.kind()) == Some(ErrorKind::ConnectionRefused)
}

#[test]
fn the_delay_goes_on_serving_unready_and_a_second_term_ends_at_once() {
    let gate = Gate::new();
    let backend = ScriptedPeer::slow(&gate, "finished");
    let mut daemon = TestDaemon::start(&config("delay: 1h", &backend));
    let mut held = daemon.client("@web");
    assert_eq!(held.request("GET", "/").unwrap().status, 200);
    held.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    backend.wait_for_requests(2);
    assert_eq!(daemon.get("@metrics", "/readyz").unwrap().status, 200);
    daemon.signal(Signal::TERM);
    daemon.wait_notified("STOPPING=1");
    assert_eq!(daemon.get("@metrics", "/readyz").unwrap().status, 503);
    assert_eq!(daemon.get("@metrics", "/livez").unwrap().status, 200);
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "finished");
    assert_eq!(daemon.admin("POST", "/v1/reload").status, 503);
    let (web, admin) = (daemon.directory().join("web.sock"), daemon.admin_socket());
    assert!(web.exists() && admin.exists());
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait_exit().code(), Some(0));
    assert!(held.response().is_err(), "what did not finish is cut");
    assert!(!web.exists() && !admin.exists(), "no socket file stays");
    daemon.wait_for_log(|line| line.contains("closed remaining connections"));
    gate.open();
}

#[test]
fn requests_in_flight_finish_idle_connections_close_and_new_ones_are_refused() {
    let gate = Gate::new();
    let backend = ScriptedPeer::slow(&gate, "finished");
    let mut daemon = TestDaemon::start(&config("timeout: 1h", &backend));
    let mut idle = daemon.client("@web");
    assert_eq!(idle.request("GET", "/").unwrap().header("connection"), None);
    let mut busy = daemon.client("@web");
    busy.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    backend.wait_for_requests(2);
    daemon.signal(Signal::TERM);
    assert_eq!(idle.rest().unwrap(), b"", "closed without a word");
    assert!(is_refused(&daemon, "@web"));
    // Its file goes after the TCP sockets.
    let file = daemon.directory().join("web.sock");
    assert!(poll(|| (!file.exists()).then_some(())).is_some());
    gate.open();
    let last = busy.response().unwrap();
    assert_eq!(last.text(), "finished");
    assert_eq!(last.header("connection"), Some("close"));
    assert_eq!(daemon.wait_exit().code(), Some(0));
    // The log is written to the end before the process leaves.
    daemon.wait_for_access(|line| line["path"] == "/slow" && line["status"] == 200);
    daemon.wait_for_log(|line| line.contains("stopped"));
}

#[test]
fn connections_that_wait_in_the_queue_when_the_drain_begins_are_answered() {
    let gate = Gate::new();
    gate.open();
    let backend = ScriptedPeer::slow(&gate, "finished");
    let mut daemon = TestDaemon::start(&config("delay: 0s", &backend));
    let path = daemon.directory().join("web.sock");
    daemon.signal(Signal::STOP);
    let mut tcp: Vec<_> = (0..40).map(|_| daemon.client("@web")).collect();
    let mut unix: Vec<_> = (0..10).map(|_| HttpClient::connect_unix(&path)).collect();
    let request = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";
    for client in &mut tcp {
        client.send(request);
    }
    for client in &mut unix {
        client.send(request);
    }
    daemon.signal(Signal::TERM);
    daemon.signal(Signal::CONT);
    for client in &mut tcp {
        assert_eq!(client.response().unwrap().text(), "finished");
    }
    for client in &mut unix {
        assert_eq!(client.response().unwrap().text(), "finished");
    }
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

#[test]
fn sessions_live_until_the_deadline_and_are_then_cut_with_a_reason() {
    let gate = Gate::new();
    let backend = ScriptedPeer::slow(&gate, "finished");
    let mut daemon = TestDaemon::start(&config("timeout: 2s", &backend));
    let mut session = daemon.client("@raw");
    assert_eq!(session.request("GET", "/").unwrap().text(), "finished");
    daemon.signal(Signal::INT);
    assert!(is_refused(&daemon, "@raw"));
    assert_eq!(session.request("GET", "/").unwrap().text(), "finished");
    assert!(session.response().is_err());
    assert_eq!(daemon.wait_exit().code(), Some(0));
    daemon.wait_for_access(|line| line["listener"] == "raw" && line["reason"] == "drain_timeout");
}

#[test]
fn quit_drains_too_and_another_quit_does_not_hurry() {
    let gate = Gate::new();
    let backend = ScriptedPeer::slow(&gate, "finished");
    let mut daemon = TestDaemon::start(&config("timeout: 1h", &backend));
    let mut busy = daemon.client("@web");
    busy.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    backend.wait_for_requests(1);
    daemon.signal(Signal::QUIT);
    daemon.wait_notified("STOPPING=1");
    assert!(is_refused(&daemon, "@web"));
    daemon.signal(Signal::QUIT);
    gate.open();
    assert_eq!(busy.response().unwrap().text(), "finished");
    assert_eq!(daemon.wait_exit().code(), Some(0));
}
