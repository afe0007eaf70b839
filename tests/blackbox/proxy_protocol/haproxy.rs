//! The same with HAProxy in front of balancer and behind it, so that not only our own reading of
//! the specification is tested. Skipped if HAProxy is not installed.

use std::{net::SocketAddr, process::Command};

use socket2::{Domain, Socket, Type};

use super::{db, echo, forwarded_for, to, web};
use crate::harness::{
    client::HttpClient,
    peer::ScriptedPeer,
    program::{ForeignProgram, shared_address},
    tools,
};

fn is_installed() -> bool {
    tools::is_installed("haproxy", "haproxy")
}

/// Starts HAProxy with `sections` and waits until it listens on `address`.
fn start(sections: &str, address: SocketAddr) -> ForeignProgram {
    let defaults = "global\n maxconn 100\ndefaults\n timeout connect 10s\n timeout client 20s\n timeout server 20s\n";
    ForeignProgram::serve(
        Command::new("haproxy").args(["-db", "-q", "-f"]),
        &format!("{defaults}{sections}"),
        address,
    )
}

#[test]
fn haproxy_in_front_of_us_is_understood() {
    if !is_installed() {
        return;
    }
    let backend = echo();
    let shout = ScriptedPeer::start(|mut connection| {
        connection.send("hello\n");
        connection.wait_for_end();
    });
    let trusted = ", accept_proxy: {from: [127.0.0.1]}";
    let web = web(trusted, &to(backend.address), "");
    let db = db(trusted, &to(shout.address));
    for send in [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2 proxy-v2-options crc32c,unique-id",
    ] {
        let (http, tcp) = (shared_address(), shared_address());
        let _haproxy = start(
            &format!(
                "listen a\n mode http\n unique-id-format %[uuid]\n bind {http}\n server a {} {send} check\n\
                 listen b\n mode tcp\n bind {tcp}\n server b {} {send} check\n",
                web.address("@web"),
                db.address("@db"),
            ),
            http,
        );
        // The client's address is that of HAProxy's client: another of the loopback network tells
        // them apart.
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let own: SocketAddr = "127.0.0.77:0".parse().unwrap();
        client.bind(&own.into()).unwrap();
        client.connect(&http.into()).unwrap();
        let answer = HttpClient::over(client.into()).request("GET", "/").unwrap();
        assert_eq!(answer.status, 200, "{send}");
        assert_eq!(forwarded_for(&answer.text()), Some(own.ip()), "{send}");
        let mut client = HttpClient::connect(tcp);
        assert_eq!(client.until(b"\n").unwrap(), b"hello\n", "{send}");
    }
    let line = db.wait_for_access(|line| line["listener"] == "db");
    assert_eq!(line["client"], "127.0.0.1");
    web.wait_for_access(|line| line["client"] == "127.0.0.77");
    let rejected = "balancer_listener_connections_rejected_total";
    assert!(web.metric(rejected) + db.metric(rejected) < 0.5);
}

#[test]
fn haproxy_behind_us_understands() {
    if !is_installed() {
        return;
    }
    let backend = echo();
    for version in ["v1", "v2"] {
        let (http, tcp) = (shared_address(), shared_address());
        let _haproxy = start(
            &format!(
                "listen a\n mode http\n bind {http} accept-proxy\n http-request set-header X-Seen %[src]:%[src_port],%[dst_port]\n server a {0}\n\
                 listen b\n mode http\n bind {tcp} accept-proxy\n http-request set-header X-Seen %[src]:%[src_port],%[dst_port]\n server b {0}\n",
                backend.address,
            ),
            http,
        );
        let send = format!(", send_proxy: {version}");
        let http_pool =
            format!("backends: [\"{http}\"], health_check: {{path: /, interval: 100ms}}{send}");
        let web = web("", &http_pool, "");
        let db = db(
            "",
            &format!("backends: [\"{tcp}\"], health_check: {{interval: 100ms}}{send}"),
        );
        for (daemon, word) in [(&web, "@web"), (&db, "@db")] {
            daemon.wait_for_metric("balancer_backend_up", |up| up > 0.5);
            let mut client = daemon.client(word);
            for _ in 0..2 {
                let body = client.request("GET", "/").unwrap().text();
                let port = daemon.address(word).port();
                let wanted = format!("x-seen: {},{port}\r\n", client.local_address());
                assert!(body.to_lowercase().contains(&wanted), "{wanted}: {body}");
            }
        }
    }
}
