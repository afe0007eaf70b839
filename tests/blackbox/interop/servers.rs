//! Other servers behind balancer: Python's `websockets`, and nginx under TLS.

use std::{fs, net::SocketAddr, process::Command};

use super::{ForeignProgram, origin, python, run, script};
use crate::harness::{
    TempDir, daemon::TestDaemon, program::shared_address, tls::TestAuthority, tools,
};

#[test]
fn websockets_of_python_talk_through_both_listeners() {
    let Some(python) = python(&["websockets"]) else {
        return;
    };
    let server = ForeignProgram::start(Command::new(&python).arg(script("websocket_server.py")));
    let authority = TestAuthority::new();
    authority.sign("front", &["localhost"]);
    let daemon = TestDaemon::start(&format!(
        "access_log: {{when: {{sample: 100%}}}}\n\
         listeners:\n  secure: {{bind: \"@secure\", pool: app, tls: {{{}}}}}\n  plain: {{bind: \"@plain\", pool: app}}\n\
         pools:\n  app: {{backends: [\"127.0.0.1:{}\"], health_check: none}}\n",
        authority.pair("front"),
        server.port(),
    ));
    let plain = format!("ws://{}", daemon.address("@plain"));
    let secure = format!("wss://localhost:{}", daemon.address("@secure").port());
    for front in [plain, secure] {
        let mut client = Command::new(&python);
        client.arg(script("websocket_client.py")).arg(front);
        run(client.arg(authority.ca()));
    }
    for listener in ["plain", "secure"] {
        let line = daemon.wait_for_access(|line| line["listener"] == listener);
        assert_eq!(line["status"], 101, "{line}");
    }
}

/// Size of the file that nginx serves.
const FILE_BYTES: usize = 3_000_000;

/// nginx under TLS with the certificate of `app`: a large file of its own, and `/sha256` of
/// `origin` behind it.
fn nginx(
    authority: &TestAuthority,
    origin: SocketAddr,
    files: &TempDir,
) -> (ForeignProgram, SocketAddr) {
    let address = shared_address();
    let large: Vec<u8> = (0..FILE_BYTES).map(|at| (at % 253) as u8).collect();
    fs::write(files.path().join("large"), large).unwrap();
    let config = format!(
        "daemon off; master_process off; pid DIR/pid; error_log stderr;\n\
         events {{}}\n\
         http {{\n\
           access_log off;\n\
           client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/fastcgi;\n\
           uwsgi_temp_path DIR/uwsgi; scgi_temp_path DIR/scgi;\n\
           client_max_body_size 100m;\n\
           server {{\n\
             listen {address} ssl http2 reuseport;\n\
             ssl_certificate {0}; ssl_certificate_key {0};\n\
             root {1};\n\
             add_header X-Spoken $server_protocol always;\n\
             location /sha256 {{ proxy_pass http://{origin}; proxy_http_version 1.1; }}\n\
           }}\n\
         }}\n",
        authority.path("app.pem").display(),
        files.path().display(),
    );
    let mut nginx = Command::new("nginx");
    nginx.args(["-e", "stderr", "-c"]);
    (ForeignProgram::serve(&mut nginx, &config, address), address)
}

/// A daemon in front of nginx; `pool` is added to the pool's keys.
fn before(backend: SocketAddr, pool: &str) -> TestDaemon {
    TestDaemon::start(&format!(
        "access_log: {{when: {{sample: 100%}}}}\n\
         listeners:\n  web: {{bind: \"@web\", pool: app}}\n\
         pools:\n  app: {{backends: [\"{backend}\"], {pool}}}\n"
    ))
}

/// Everything that is asked of nginx, several times on one connection, in the version of HTTP that
/// it is spoken to in.
fn ask(daemon: &TestDaemon, version: &str) {
    daemon.wait_for_metric("balancer_backend_up", |up| up > 0.5);
    let mut client = daemon.client("@web");
    let sent = b"0123456789".repeat(FILE_BYTES / 10);
    for _ in 0..2 {
        let got = client.request("GET", "/large").unwrap();
        assert_eq!(got.status, 200);
        assert!(got.header("server").unwrap().starts_with("nginx/"));
        assert_eq!(got.header("x-spoken"), Some(version));
        let wanted: Vec<u8> = (0..FILE_BYTES).map(|at| (at % 253) as u8).collect();
        assert!(got.body == wanted, "{} bytes", got.body.len());
        client.send(format!(
            "POST /sha256 HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
            sent.len()
        ));
        client.send(&sent);
        let got = client.response().unwrap();
        assert_eq!((got.status, got.text()), (200, origin::hex(&sent)));
        assert_eq!(client.request("GET", "/nothing").unwrap().status, 404);
    }
    assert!(daemon.metric("balancer_errors_total") < 0.5);
}

/// The same with each type of check that nginx answers.
fn ask_with_each_check(backend: SocketAddr, pool: &str, version: &str) {
    for check in ["type: tcp", "path: /large, method: HEAD"] {
        let pool = format!("{pool}, health_check: {{{check}, interval: 100ms}}");
        ask(&before(backend, &pool), version);
    }
}

#[test]
fn nginx_under_tls_is_asked_and_believed_only_where_it_proves_its_name() {
    if !tools::is_installed("nginx", "nginx-light") {
        return;
    }
    let (authority, stranger) = (TestAuthority::new(), TestAuthority::new());
    authority.sign("app", &["app.test"]);
    let (origin, files) = (origin::start(), TempDir::new());
    let (_nginx, address) = nginx(&authority, origin.address, &files);
    let right = format!("tls: {{ca: {}, server_name: app.test}}", authority.ca());
    ask_with_each_check(address, &right, "HTTP/1.1");
    for tls in [
        format!("ca: {}, server_name: other.test", authority.ca()),
        format!("ca: {}, server_name: app.test", stranger.ca()),
        "server_name: app.test".to_owned(),
    ] {
        let daemon = before(address, &format!("tls: {{{tls}}}, health_check: none"));
        let answer = daemon.get("@web", "/large").unwrap();
        assert_eq!(answer.status, 502, "{tls}");
        let status = answer.header("proxy-status").unwrap();
        assert!(status.contains("tls_certificate_error"), "{tls}: {status}");
        let line = daemon.wait_for_access(|line| line["status"] == 502);
        assert_eq!(line["reason"], "tls_certificate_error", "{tls}");
    }
}

#[test]
fn nginx_is_spoken_to_in_http_2_where_the_pool_says_so() {
    if !tools::is_installed("nginx", "nginx-light") {
        return;
    }
    let authority = TestAuthority::new();
    authority.sign("app", &["app.test"]);
    let (origin, files) = (origin::start(), TempDir::new());
    let (_nginx, address) = nginx(&authority, origin.address, &files);
    let pool = format!(
        "protocol: h2, tls: {{ca: {}, server_name: app.test}}",
        authority.ca()
    );
    ask_with_each_check(address, &pool, "HTTP/2.0");
}
