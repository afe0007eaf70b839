//! TLS passthrough by the server name of the ClientHello: destinations, refusals, and their
//! records.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use crate::harness::{
    PATIENCE,
    client::{HttpClient, ReadError},
    daemon::TestDaemon,
    peer::{ScriptedPeer, refused},
    tls::{
        ClientTlsStream, TestAuthority, answering, client_hello, try_connect, try_connect_behind,
    },
};
use rustix::process::Signal;
use rustls::{AlertDescription, ClientConfig};

const HANDSHAKE_FAILURES: &str = "balancer_tls_handshake_failures_total";
/// A fatal alert in a record of its own: `unrecognized_name`.
const UNRECOGNIZED_NAME_ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// Servers with certificates of their own, and the authority behind them.
struct SniServers {
    authority: TestAuthority,
    app: SocketAddr,
    wild: SocketAddr,
    rest: SocketAddr,
}

impl SniServers {
    fn start() -> Self {
        let authority = TestAuthority::new();
        authority.sign("app", &["app.test", "exact.wild.test"]);
        authority.sign("wild", &["*.wild.test", "b.a.wild.test"]);
        authority.sign("rest", &["other.test", "wild.test", "127.0.0.1"]);
        Self {
            app: authority.backend("app", false, answering("app")),
            wild: authority.backend("wild", false, answering("wild")),
            rest: authority.backend("rest", false, answering("rest")),
            authority,
        }
    }

    /// `@tls` in front of them; `listener` are further keys.
    fn config(&self, sni: &str, listener: &str) -> String {
        format!(
            "drain: {{timeout: 300ms}}\naccess_log: {{when: {{sample: 100%}}}}\nlisteners:\n  \
             front: {{bind: \"@tls\", protocol: tcp, sni: {sni}{listener}}}\npools:\n  \
             app: {{backends: [\"{}\"], health_check: none}}\n  \
             wild: {{backends: [\"{}\"], health_check: none}}\n  \
             rest: {{backends: [\"{}\"], health_check: none}}\n",
            self.app, self.wild, self.rest
        )
    }

    fn client(&self) -> Arc<ClientConfig> {
        self.authority.client(None, false)
    }
}

const SNI_MAP: &str = "{app.test: app, \"*.wild.test\": wild, Exact.Wild.Test.: app}";

/// One request over TLS that is the backend's own.
fn ask(stream: ClientTlsStream) -> String {
    let mut client = HttpClient::under(stream);
    client.send("GET / HTTP/1.1\r\nHost: any\r\n\r\n");
    client.response().unwrap().text()
}

fn failures(reason: &str) -> String {
    format!("{HANDSHAKE_FAILURES}{{listener=\"front\",reason=\"{reason}\"}}")
}

/// In front of one backend for `app.test`, and the same for all others where `pool` says so.
fn in_front_of(backends: &[SocketAddr], listener: &str, pool: &str) -> TestDaemon {
    let backends: Vec<_> = backends.iter().map(|one| format!("\"{one}\"")).collect();
    TestDaemon::start(&format!(
        "drain: {{timeout: 300ms}}\naccess_log: {{when: {{sample: 100%}}}}\nlisteners:\n  \
         front: {{bind: \"@tls\", protocol: tcp, sni: {{app.test: app}}{listener}}}\npools:\n  \
         app: {{backends: [{}], health_check: none{pool}}}\n",
        backends.join(", ")
    ))
}

/// Records all bytes, to the end of the connection.
fn keeping() -> (ScriptedPeer, crate::harness::peer::Recorder<Vec<u8>>) {
    let got = crate::harness::peer::Recorder::default();
    let into = got.clone();
    let peer = ScriptedPeer::start(move |mut connection| {
        if let Ok(bytes) = connection.rest() {
            into.push(bytes);
        }
    });
    (peer, got)
}

#[test]
fn every_name_leads_to_its_own_servers_and_to_their_certificate() {
    let servers = SniServers::start();
    let daemon = TestDaemon::start(&servers.config(SNI_MAP, ""));
    // Pools that only `sni` names have their series before the first client.
    let page = daemon.scrape();
    assert!(
        page.contains("balancer_tcp_sessions_active{pool=\"wild\"} 0"),
        "{page}"
    );
    for only_12 in [false, true] {
        let client = servers.authority.client(None, only_12);
        for (name, body) in [
            ("app.test", "app"),
            ("a.wild.test", "wild"),
            ("b.a.wild.test", "wild"),
            ("exact.wild.test", "app"),
        ] {
            let stream = try_connect(daemon.address("@tls"), &client, name).unwrap();
            assert_eq!(ask(stream), body, "{name}");
            let line = daemon.wait_for_access(|line| line["host"] == name);
            assert_eq!(line["pool"], body);
            assert_eq!(
                (&line["protocol"], &line["listener"]),
                (&"TCP".into(), &"front".into())
            );
            assert!(
                line.get("tls").is_none() && line.get("reason").is_none(),
                "{line}"
            );
        }
    }
    daemon.wait_for_metric(
        "balancer_tcp_sessions_total{pool=\"app\",result=\"ok\"}",
        |n| n == 4.0,
    );
    assert_eq!(daemon.metric(HANDSHAKE_FAILURES), 0.0);
}

#[test]
fn who_asks_for_no_name_that_is_known_goes_to_the_pool_of_the_listener() {
    let servers = SniServers::start();
    let daemon = TestDaemon::start(&servers.config(SNI_MAP, ", pool: rest"));
    let client = servers.client();
    // For an address a client asks for no name.
    for name in ["other.test", "wild.test", "127.0.0.1"] {
        let stream = try_connect(daemon.address("@tls"), &client, name).unwrap();
        assert_eq!(ask(stream), "rest", "{name}");
    }
    let line = daemon.wait_for_access(|line| line.get("host").is_none());
    assert_eq!(line["pool"], "rest");
    let line = daemon.wait_for_access(|line| line["host"] == "other.test");
    assert_eq!(line["backend"], servers.rest.to_string());
    assert_eq!(daemon.metric(HANDSHAKE_FAILURES), 0.0);
}

#[test]
fn without_a_pool_it_is_told_that_the_name_is_not_known() {
    let servers = SniServers::start();
    let daemon = TestDaemon::start(&servers.config(SNI_MAP, ""));
    let client = servers.client();
    for (count, name) in ["other.test", "wild.test", "127.0.0.1"].iter().enumerate() {
        let error = try_connect(daemon.address("@tls"), &client, name).unwrap_err();
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        let alert = rustls::Error::AlertReceived(AlertDescription::UnrecognisedName);
        assert_eq!(inner, Some(&alert), "{name}: {error}");
        daemon.wait_for_metric(&failures("unknown_name"), |n| n == count as f64 + 1.0);
    }
    // The alert, and an orderly end, although the client still sends.
    let hello = client_hello(&client, "other.test");
    let mut raw = daemon.client("@tls");
    raw.send([&hello[..], &vec![0; 30_000]].concat())
        .send(vec![0; 30_000]);
    assert_eq!(raw.rest(), Ok(UNRECOGNIZED_NAME_ALERT.to_vec()));
    let line = daemon.wait_for_access(|line| line["host"] == "other.test");
    assert_eq!(
        (&line["reason"], &line["bytes_out"]),
        (&"no_route".into(), &7.into())
    );
    assert!(
        line["bytes_in"].as_u64() >= Some(hello.len() as u64),
        "{line}"
    );
    assert!(
        line.get("pool").is_none() && line.get("status").is_none(),
        "{line}"
    );
    daemon.wait_for_metric(
        "balancer_errors_total{pool=\"-\",reason=\"no_route\",code=\"0\"}",
        |n| n == 4.0,
    );
    assert_eq!(daemon.metric("balancer_tcp_sessions_total"), 0.0);
    let log = daemon.stderr.all().join("\n");
    assert!(!log.contains("not passed on"), "{log}");
}

#[test]
fn what_is_not_tls_goes_nowhere_also_with_a_pool() {
    let peer = ScriptedPeer::answering("ok");
    let daemon = in_front_of(&[peer.address], ", pool: app", "");
    let starts = [
        &b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n"[..],
        b"SSH-2.0-x\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"\x80\x2e\x01\x03\x01",
        b"\0\0\0\0",
    ];
    for (count, start) in starts.iter().enumerate() {
        let mut client = daemon.client("@tls");
        client.send(start);
        assert_eq!(
            client.rest(),
            Err(ReadError::Reset(Vec::new())),
            "{}",
            start.escape_ascii()
        );
        daemon.wait_for_metric(&failures("not_tls"), |n| n == count as f64 + 1.0);
    }
    let line = daemon.wait_for_access(|line| line["reason"] == "tls_required");
    assert!(
        line.get("pool").is_none() && line.get("host").is_none(),
        "{line}"
    );
    assert_eq!(peer.connections(), 0);
}

#[test]
fn a_hello_that_cannot_be_read_goes_nowhere_also_with_a_pool() {
    let peer = ScriptedPeer::answering("ok");
    let daemon = in_front_of(&[peer.address], ", pool: app", "");
    let hello = client_hello(&TestAuthority::new().client(None, false), "app.test");
    let at = hello
        .windows(8)
        .position(|part| part == b"app.test")
        .unwrap();
    let mut two_dots = hello.clone();
    two_dots[at + 2] = b'.';
    let mut quoted = hello.clone();
    quoted[at] = b'"';
    let mut two_names = hello.clone();
    two_names[at - 3] = 1;
    let too_large = b"\x16\x03\x01\x40\x00\x01\x00\x40\x00".to_vec();
    for (count, bytes) in [two_dots, quoted, two_names, too_large].iter().enumerate() {
        let mut client = daemon.client("@tls");
        client.send(bytes);
        // `decode_error`
        assert_eq!(client.rest(), Ok(vec![21, 3, 3, 0, 2, 2, 50]), "{count}");
        daemon.wait_for_metric(&failures("protocol"), |n| n == count as f64 + 1.0);
    }
    daemon.wait_for_access(|line| line["reason"] == "http_request_error");
    assert_eq!(peer.connections(), 0);
}

#[test]
fn a_hello_may_come_in_any_pieces_and_records() {
    let servers = SniServers::start();
    let daemon = TestDaemon::start(&servers.config(SNI_MAP, ""));
    let mut config = (*servers.client()).clone();
    config.max_fragment_size = Some(32);
    let config = Arc::new(config);
    assert!(client_hello(&config, "app.test")[3..5] < [0, 32][..]);
    for (name, body) in [("app.test", "app"), ("a.wild.test", "wild")] {
        let stream = try_connect(daemon.address("@tls"), &config, name).unwrap();
        assert_eq!(ask(stream), body);
    }
    let (peer, got) = keeping();
    let daemon = in_front_of(&[peer.address], "", "");
    let hello = client_hello(&config, "app.test");
    let mut bytewise = daemon.client("@tls");
    for byte in &hello {
        bytewise.send([*byte]);
    }
    bytewise.finish();
    assert_eq!(bytewise.rest(), Ok(Vec::new()));
    assert_eq!(got.wait_for(|all| all.first().cloned()), Some(hello));
}

#[test]
fn the_backend_gets_every_byte_of_the_client_behind_the_headers_of_both() {
    let (peer, got) = keeping();
    let trusted = ", accept_proxy: {from: 127.0.0.1}";
    let daemon = in_front_of(&[peer.address], trusted, ", send_proxy: v1");
    let header = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n";
    let hello = client_hello(&TestAuthority::new().client(None, false), "app.test");
    let bulk: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7) as u8).collect();
    let bytes = [&header[..], &hello, &bulk].concat();
    let mut client = daemon.client("@tls");
    client.send(&bytes).finish();
    assert_eq!(client.rest(), Ok(Vec::new()));
    let seen = got.wait_for(|all| all.first().cloned()).unwrap();
    assert!(seen == bytes, "{} bytes of {}", seen.len(), bytes.len());
    let line = daemon.wait_for_access(|line| line["host"] == "app.test");
    assert_eq!(line["client"], "192.0.2.7");
    let length = (hello.len() + bulk.len()) as u64;
    assert_eq!(line["bytes_in"].as_u64(), Some(length));
    let received = "balancer_listener_received_bytes_total{listener=\"front\"}";
    assert_eq!(daemon.metric(received), length as f64);
}

#[test]
fn handshakes_work_behind_a_header_and_not_without() {
    let servers = SniServers::start();
    let daemon = TestDaemon::start(&servers.config(SNI_MAP, ", accept_proxy: {from: 127.0.0.1}"));
    let (address, client) = (daemon.address("@tls"), servers.client());
    let front = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n";
    let stream = try_connect_behind(front, address, &client, "a.wild.test").unwrap();
    assert_eq!(ask(stream), "wild");
    assert!(try_connect(address, &client, "a.wild.test").is_err());
}

#[test]
fn a_backend_that_refuses_is_passed_over_and_the_next_gets_the_whole_hello() {
    let servers = SniServers::start();
    let daemon = in_front_of(&[refused(), servers.app], "", "");
    for _ in 0..4 {
        let stream = try_connect(daemon.address("@tls"), &servers.client(), "app.test").unwrap();
        assert_eq!(ask(stream), "app");
    }
    daemon.wait_for_access(|line| line["attempts"] == 2 && line.get("reason").is_none());
}

#[test]
fn a_hello_that_is_not_there_in_time_ends_the_connection_however_it_drips() {
    let peer = ScriptedPeer::answering("ok");
    let daemon = in_front_of(&[peer.address], ", pool: app, timeouts: {tls: 300ms}", "");
    let hello = client_hello(&TestAuthority::new().client(None, false), "app.test");
    let mut silent = daemon.client("@tls");
    let mut dripping = daemon.client("@tls");
    // The pace of the client, which is what is tested.
    let pause = || thread::sleep(Duration::from_millis(10));
    let cut = hello[..hello.len() - 1].iter().any(|byte| {
        pause();
        !dripping.try_send([*byte])
    });
    assert!(cut, "a drip every 10 ms keeps nothing open");
    assert_eq!(silent.rest(), Err(ReadError::Reset(Vec::new())));
    daemon.wait_for_metric(&failures("timeout"), |n| n == 2.0);
    daemon.wait_for_metric("balancer_listener_connections_active", |n| n == 0.0);
    daemon.wait_for_access(|line| line["reason"] == "http_request_timeout");
    assert_eq!(peer.connections(), 0);
}

#[test]
fn a_client_that_leaves_in_its_hello_is_forgotten_and_a_look_is_no_line_in_the_log() {
    let peer = ScriptedPeer::answering("ok");
    let daemon = in_front_of(&[peer.address], ", pool: app", "");
    let hello = client_hello(&TestAuthority::new().client(None, false), "app.test");
    let mut look = daemon.client("@tls");
    look.finish();
    let _ = look.rest();
    let mut half = daemon.client("@tls");
    half.send(&hello[..100]).finish();
    let _ = half.rest();
    let mut gone = daemon.client("@tls");
    gone.send(&hello[..100]);
    gone.reset();
    daemon.wait_for_metric(&failures("closed"), |n| n == 3.0);
    daemon.wait_for_metric("balancer_listener_connections_active", |n| n == 0.0);
    let lines = || daemon.stdout.all();
    daemon.stdout.wait_for(|all| (all.len() == 2).then_some(()));
    for line in lines() {
        assert!(
            line.contains("\"reason\":\"client_disconnected\""),
            "{line}"
        );
        assert!(line.contains("\"bytes_in\":100"), "{line}");
    }
    assert_eq!((lines().len(), peer.connections()), (2, 0));
}

#[test]
fn a_reload_changes_where_new_sessions_go_and_leaves_the_open_ones() {
    let servers = SniServers::start();
    let mut daemon = TestDaemon::start(&servers.config(SNI_MAP, ""));
    let address = daemon.address("@tls");
    let client = servers.client();
    let open = try_connect(address, &client, "app.test").unwrap();
    // One whose hello is not whole when the reload comes follows the rules that hold when it is.
    let hello = client_hello(&client, "b.a.wild.test");
    let mut half = TcpStream::connect(address).unwrap();
    half.set_read_timeout(Some(PATIENCE)).unwrap();
    half.write_all(&hello[..50]).unwrap();
    daemon.wait_for_metric("balancer_listener_connections_active", |n| n == 2.0);
    let answer = daemon.reload(&servers.config("{app.test: rest, other.test: rest}", ""));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(
        answer.text().contains("listener front: sni changed"),
        "{}",
        answer.text()
    );
    half.write_all(&hello[50..]).unwrap();
    let mut alert = Vec::new();
    half.read_to_end(&mut alert).unwrap();
    assert_eq!(alert, UNRECOGNIZED_NAME_ALERT);
    let stream = try_connect(address, &client, "other.test").unwrap();
    assert_eq!(ask(stream), "rest");
    // And one that finds no names any more is not passed on as if it had not been asked.
    let mut half = daemon.client("@tls");
    half.send(&hello[..50]);
    daemon.wait_for_metric("balancer_listener_connections_active", |n| n == 2.0);
    let plain = servers.config("none", ", pool: rest");
    assert_eq!(daemon.reload(&plain).status, 200);
    half.send(&hello[50..]);
    assert_eq!(half.rest(), Err(ReadError::Reset(Vec::new())));
    let again = servers.config("{app.test: rest, other.test: rest}", "");
    assert_eq!(daemon.reload(&again).status, 200);
    assert!(try_connect(address, &client, "a.wild.test").is_err());
    assert_eq!(ask(open), "app");
}

#[test]
fn the_drain_cuts_who_is_still_in_the_hello() {
    let peer = ScriptedPeer::answering("ok");
    let mut daemon = in_front_of(&[peer.address], ", timeouts: {tls: none}", "");
    let mut client = daemon.client("@tls");
    client.send([22, 3, 1]);
    daemon.wait_for_metric("balancer_listener_connections_active", |n| n == 1.0);
    daemon.signal(Signal::TERM);
    assert!(client.rest().is_err());
    assert!(daemon.wait_exit().success());
    daemon.wait_for_access(|line| line["reason"] == "drain_timeout");
}

#[test]
fn rules_for_clients_hold_before_a_byte_is_read() {
    let servers = SniServers::start();
    let daemon = TestDaemon::start(&servers.config(SNI_MAP, ", deny: 127.0.0.1"));
    assert!(try_connect(daemon.address("@tls"), &servers.client(), "app.test").is_err());
    daemon.wait_for_access(|line| line["reason"] == "http_request_denied");
    let daemon = TestDaemon::start(&servers.config(SNI_MAP, ", limits: {connections: 1}"));
    let waiting = TcpStream::connect(daemon.address("@tls")).unwrap();
    daemon.wait_for_metric("balancer_listener_connections_active", |n| n == 1.0);
    assert!(try_connect(daemon.address("@tls"), &servers.client(), "app.test").is_err());
    waiting.shutdown(Shutdown::Both).unwrap();
    daemon.wait_for_metric("balancer_listener_connections_active", |n| n == 0.0);
    let stream = try_connect(daemon.address("@tls"), &servers.client(), "app.test").unwrap();
    assert_eq!(ask(stream), "app");
}
