//! TLS behind a PROXY header, in and out: the header is in the clear, and comes first.

use std::{io::Read, net::TcpListener, thread};

use rustls::{ServerConnection, StreamOwned};

use crate::harness::{
    client::HttpClient,
    daemon::TestDaemon,
    peer::ScriptedPeer,
    tls::{TestAuthority, answering, try_connect, try_connect_behind},
};

#[test]
fn the_client_behind_a_header_and_tls_is_the_one_that_the_header_names() {
    let authority = TestAuthority::new();
    authority.sign("a", &["a.test"]);
    let peer = ScriptedPeer::answering("ok");
    let daemon = TestDaemon::start(&format!(
        "access_log: {{when: {{sample: 100%}}}}\n\
         listeners:\n  web: {{bind: \"@web\", accept_proxy: {{from: 127.0.0.1}}, tls: {{{}}}, pool: app}}\n\
         pools:\n  app: {{backends: [\"{}\"], health_check: none}}\n",
        authority.pair("a"),
        peer.address
    ));
    let (address, config) = (daemon.address("@web"), authority.client(None, false));
    let front = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n";
    let stream = try_connect_behind(front, address, &config, "a.test").unwrap();
    let mut client = HttpClient::under(stream);
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert_eq!(client.response().unwrap().text(), "ok");
    let request = &peer.wait_for_requests(1)[0];
    assert_eq!(request.header("x-forwarded-for"), Some("192.0.2.7"));
    assert_eq!(request.header("x-forwarded-proto"), Some("https"));
    let line = daemon.wait_for_access(|line| line["status"] == 200);
    assert_eq!(
        (&line["client"], &line["tls"]),
        (&"192.0.2.7".into(), &"TLSv1.3".into())
    );
    assert!(
        try_connect(address, &config, "a.test").is_err(),
        "without a header"
    );
}

#[test]
fn a_backend_gets_the_header_before_the_handshake() {
    let authority = TestAuthority::new();
    authority.sign("app", &["app.test"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = listener.local_addr().unwrap();
    let config = authority.server("app", false);
    let server = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        let connection = ServerConnection::new(config).unwrap();
        answering("secret")(&mut StreamOwned::new(connection, socket));
        String::from_utf8(line).unwrap()
    });
    let daemon = TestDaemon::start(&format!(
        "listeners:\n  web: {{bind: \"@web\", pool: app}}\n\
         pools:\n  app: {{backends: [\"{backend}\"], send_proxy: v1, health_check: none, \
         tls: {{ca: {}, server_name: app.test}}}}\n",
        authority.ca()
    ));
    let mut client = daemon.client("@web");
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(client.response().unwrap().text(), "secret");
    drop((client, daemon));
    let line = server.join().unwrap();
    assert!(
        line.starts_with("PROXY TCP4 127.0.0.1 127.0.0.1 "),
        "{line}"
    );
}
