//! Both servers over real sockets on free ports.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    runtime::{Builder, LocalOptions},
    sync::mpsc,
    task::spawn_local,
    time::timeout,
};

use super::*;
use crate::{
    admin::{
        OverrideChange, OverrideReport, ReloadOutcome, find_backend, peer, serve_metrics, testing,
    },
    base::{address::BindAddress, clock},
    config::model,
    pool::OperatorState,
};

fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("balancer-api-{}-{name}", std::process::id()));
    drop(fs::remove_file(&path));
    path
}

/// Sends `request` and reads until the server closes.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await.unwrap();
    String::from_utf8(response).unwrap()
}

fn request(line: &str, headers: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n")
}

fn status_of(response: &str) -> &str {
    response.split(' ').nth(1).unwrap_or_default()
}

fn body_of(response: &str) -> serde_json::Value {
    let (_, body) = response.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap()
}

/// The metrics server on a free port.
async fn metrics_server(daemon: &Arc<Daemon>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve_metrics(listener, Arc::clone(daemon)));
    address
}

/// The API on a unix socket, and its requests to the control thread.
fn unix_server(name: &str, daemon: &Arc<Daemon>) -> (PathBuf, mpsc::Receiver<ControlRequest>) {
    let path = scratch(name);
    let config = model::AdminConfig {
        bind: Some(BindAddress::Unix(path.clone())),
        token_file: None,
    };
    let listener = AdminListener::bind(&config, Path::new("/nonexistent")).unwrap();
    let (control, requests) = mpsc::channel(1);
    tokio::spawn(serve_admin(listener, Arc::clone(daemon), control));
    (path, requests)
}

async fn call_unix(path: &Path, text: &str) -> String {
    exchange(UnixStream::connect(path).await.unwrap(), text).await
}

async fn call_tcp(address: SocketAddr, text: &str) -> String {
    exchange(TcpStream::connect(address).await.unwrap(), text).await
}

#[tokio::test]
async fn readiness_follows_the_daemon_and_liveness_does_not() {
    use std::sync::atomic::Ordering::Relaxed;
    let daemon = testing::daemon(testing::usual());
    let address = metrics_server(&daemon).await;
    let ready = async || {
        let response = call_tcp(address, &request("GET /readyz", "")).await;
        let alive = call_tcp(address, &request("GET /livez", "")).await;
        assert!(status_of(&alive) == "200" && alive.ends_with("\r\n\r\nok\n"));
        let body = response.split("\r\n\r\n").nth(1).unwrap().to_owned();
        (status_of(&response).to_owned(), body)
    };
    assert_eq!(ready().await, ("503".to_owned(), "starting\n".to_owned()));
    daemon.ready.store(true, Relaxed);
    assert_eq!(ready().await, ("200".to_owned(), "ready\n".to_owned()));
    daemon.draining.store(true, Relaxed);
    assert_eq!(ready().await, ("503".to_owned(), "draining\n".to_owned()));
}

#[tokio::test]
async fn the_metrics_page_is_served_and_nothing_else_is() {
    let daemon = testing::daemon(testing::usual());
    let address = metrics_server(&daemon).await;
    let page = call_tcp(address, &request("GET /metrics", "")).await;
    assert_eq!(status_of(&page), "200");
    assert!(page.contains("content-type: text/plain; version=0.0.4"));
    assert!(page.contains("\nbalancer_ready 0\n"));
    let head = call_tcp(address, &request("HEAD /metrics", "")).await;
    assert!(status_of(&head) == "200" && head.ends_with("\r\n\r\n"));
    let wrong = call_tcp(address, &request("POST /metrics", "")).await;
    assert!(status_of(&wrong) == "405" && wrong.contains("allow: GET, HEAD\r\n"));
    let unknown = call_tcp(address, &request("GET /v1/status", "")).await;
    assert_eq!(status_of(&unknown), "404");
    assert_eq!(body_of(&unknown)["error"]["code"], 404);
    assert_eq!(body_of(&unknown)["error"]["message"], "Not Found");
}

#[tokio::test]
async fn garbage_and_early_ends_do_not_stop_the_server() {
    let daemon = testing::daemon(testing::usual());
    let address = metrics_server(&daemon).await;
    for garbage in [
        "",
        "\0\0\0",
        "GET",
        "GET /metrics HTTP/9.9\r\n\r\n",
        "\x16\x03\x01\r\n\r\n",
        "GET http://[/ HTTP/1.1\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(garbage.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut response = Vec::new();
        // The server may reset or refuse it, but must end it.
        drop(stream.read_to_end(&mut response).await);
    }
    let alive = call_tcp(address, &request("GET /livez", "")).await;
    assert_eq!(status_of(&alive), "200");
}

#[tokio::test]
async fn status_tells_state_cause_and_age_of_every_backend() {
    let daemon = testing::daemon(testing::usual());
    let pool = Arc::clone(&daemon.snapshot.load().pools[0]);
    let refused = Err("connection refused".to_owned());
    let now = clock::now();
    pool.record_check(&pool.backends[1], refused, Duration::from_millis(2), now);
    let (path, _requests) = unix_server("status", &daemon);
    let response = call_unix(&path, &request("GET /v1/status", "")).await;
    assert_eq!(status_of(&response), "200");
    let status = body_of(&response);
    assert_eq!(status["generation"], 1);
    assert_eq!(status["ready"], false);
    assert_eq!(status["pid"], std::process::id());
    assert_eq!(status["listeners"][1]["binds"][0], "127.0.0.1:8081");
    assert_eq!(status["listeners"][1]["protocol"], "tcp");
    assert_eq!(status["pools"][0]["policy"], "round_robin");
    assert_eq!(
        status["pools"][0]["states"],
        json!({"checking": 2, "down": 1})
    );
    let backend = &status["pools"][0]["backends"][1];
    assert_eq!(backend["state"], "down");
    assert_eq!(backend["cause"], "the check failed: connection refused");
    assert_eq!(backend["last_check"]["ok"], false);
    assert_eq!(backend["last_check"]["took_seconds"], 0.002);
    assert!(backend["since"].as_str().unwrap().ends_with('Z'));
    assert_eq!(status["pools"][0]["backends"][0]["last_check"], json!(null));
}

#[tokio::test]
async fn reload_waits_for_the_outcome_and_passes_it_on() {
    let daemon = testing::daemon(testing::usual());
    let (path, mut requests) = unix_server("reload", &daemon);
    let outcomes: [MakeOutcome; 2] = [
        || {
            Ok(ReloadReport {
                changes: vec!["pool `app`: added".to_owned()],
                rendered: "warning: odd\n".to_owned(),
                warnings: json!([{"line": 2}]),
            })
        },
        || {
            Err(ReloadError {
                rendered: "error: pool `ap` is not defined".to_owned(),
                json: json!([{"line": 3}]),
            })
        },
    ];
    tokio::spawn(async move {
        for outcome in outcomes {
            let Some(ControlRequest::Reload(sender)) = requests.recv().await else {
                return;
            };
            sender.send(outcome()).unwrap();
        }
    });
    let good = call_unix(&path, &request("POST /v1/reload", "")).await;
    assert_eq!(status_of(&good), "200");
    let expected = json!({
        "changes": ["pool `app`: added"], "warnings": [{"line": 2}], "rendered": "warning: odd\n",
    });
    assert_eq!(body_of(&good), expected);
    let bad = call_unix(&path, &request("POST /v1/reload", "")).await;
    assert_eq!(status_of(&bad), "422");
    assert_eq!(body_of(&bad)["error"]["code"], 422);
    assert_eq!(body_of(&bad)["problems"], json!([{"line": 3}]));
    assert_eq!(body_of(&bad)["rendered"], "error: pool `ap` is not defined");
    // The receiver is dropped, as during a shutdown.
    let late = call_unix(&path, &request("POST /v1/reload", "")).await;
    assert_eq!(status_of(&late), "503");
}

/// A control thread that takes one change, and whose state directory fails with `error`.
async fn take_change(
    requests: &mut mpsc::Receiver<ControlRequest>,
    daemon: &Daemon,
    error: Option<&str>,
) -> (OverrideChange, String, Option<String>) {
    let Some(ControlRequest::Override(request)) = requests.recv().await else {
        panic!("not a change of a backend")
    };
    let found = find_backend(&daemon.snapshot.load(), &request.pool, &request.backend);
    let (sender, saved) = oneshot::channel();
    sender
        .send(error.map_or(Ok(()), |error| Err(error.to_owned())))
        .unwrap();
    let report = found.map(|backend| OverrideReport {
        backend: Some(backend),
        saved,
    });
    request.outcome.send(report).unwrap();
    (request.change, request.by, request.note)
}

fn post(path: &str, body: &str) -> String {
    let length = format!("Content-Length: {}\r\n", body.len());
    request(&format!("POST /v1/backends/{path}"), &length) + body
}

#[tokio::test]
async fn a_change_of_a_backend_says_who_asked_and_how_it_went() {
    let daemon = testing::daemon(testing::usual());
    let (path, mut requests) = unix_server("backend", &daemon);
    let body = r#"{"note":"new kernel"}"#;
    let drain = post("app/10.0.0.1%3A80/drain", body);
    let (response, taken) = tokio::join!(
        call_unix(&path, &drain),
        take_change(&mut requests, &daemon, None)
    );
    let user = peer::RequestPeer::User(Some(rustix::process::geteuid().as_raw())).name();
    let change = OverrideChange::State(OperatorState::Draining);
    assert_eq!(taken, (change, user, Some("new kernel".to_owned())));
    assert_eq!(status_of(&response), "200", "{response}");
    let document = body_of(&response);
    assert_eq!(
        (&document["pool"], &document["pool_available"]),
        (&json!("app"), &json!(3))
    );
    assert_eq!(document["backend"]["name"], "10.0.0.1:80");
    assert_eq!(document["persistent"], true);
    let weight = post("app/10.0.0.1:80/weight", r#"{"weight":0}"#);
    let (response, _) = tokio::join!(
        call_unix(&path, &weight),
        take_change(&mut requests, &daemon, Some("disk full"))
    );
    let document = body_of(&response);
    assert_eq!(document["persistent"], false);
    assert_eq!(document["persistence_error"], "disk full");
    let unknown = post("ap/10.0.0.1:80/ready", "");
    let (response, _) = tokio::join!(
        call_unix(&path, &unknown),
        take_change(&mut requests, &daemon, None)
    );
    assert_eq!(status_of(&response), "404");
    let details = body_of(&response)["error"]["details"].clone();
    assert_eq!(details, "There is no pool `ap`; did you mean `app`?");
}

#[tokio::test]
async fn one_backend_is_shown_and_wrong_requests_change_none() {
    let daemon = testing::daemon(testing::usual());
    let (path, mut requests) = unix_server("backend-wrong", &daemon);
    let shown = call_unix(&path, &request("GET /v1/backends/sql/10.0.0.0:80", "")).await;
    assert_eq!(body_of(&shown)["backend"]["state"], "checking");
    assert_eq!(body_of(&shown)["backend"]["override"], json!(null));
    let large = "x".repeat(20_000);
    for (text, status) in [
        (request("GET /v1/backends/sql/10.0.0.9:80", ""), "404"),
        (request("DELETE /v1/backends/sql/10.0.0.0:80", ""), "405"),
        (request("GET /v1/backends/sql/10.0.0.0:80/drain", ""), "405"),
        (request("POST /v1/backends/sql/10.0.0.0:80/stop", ""), "404"),
        (request("POST /v1/backends/sql", ""), "404"),
        (
            request(
                "POST /v1/backends/sql/x/drain",
                "Origin: http://localhost\r\n",
            ),
            "403",
        ),
        (post("sql/10.0.0.0:80/drain?for=1m", ""), "400"),
        (post("sql/10.0.0.0:80/weight", "{}"), "400"),
        (post("sql/10.0.0.0:80/drain", "["), "400"),
        (post("sql/10.0.0.0:80/drain", &large), "413"),
    ] {
        let response = call_unix(&path, &text).await;
        assert_eq!(status_of(&response), status, "{text}");
        assert_eq!(body_of(&response)["error"]["code"].to_string(), status);
    }
    assert!(requests.try_recv().is_err());
}

type MakeOutcome = fn() -> ReloadOutcome;

#[tokio::test]
async fn a_web_page_cannot_cause_a_reload() {
    let daemon = testing::daemon(testing::usual());
    let (path, mut requests) = unix_server("origin", &daemon);
    for (line, headers, status) in [
        ("POST /v1/reload", "Origin: http://localhost\r\n", "403"),
        ("GET /v1/reload", "", "405"),
        ("DELETE /v1/status", "", "405"),
        ("GET /", "", "404"),
    ] {
        let response = call_unix(&path, &request(line, headers)).await;
        assert_eq!(status_of(&response), status, "{line}");
        assert_eq!(body_of(&response)["error"]["code"].to_string(), status);
    }
    assert!(requests.try_recv().is_err());
}

#[tokio::test]
async fn on_tcp_only_the_token_and_a_loopback_host_open_the_api() {
    let daemon = testing::daemon(testing::usual());
    let token_file = scratch("token");
    fs::write(&token_file, "s3cret\n").unwrap();
    let config = model::AdminConfig {
        bind: Some("127.0.0.1:0".parse().unwrap()),
        token_file: Some(token_file.clone()),
    };
    let listener = AdminListener::bind(&config, Path::new("/nonexistent")).unwrap();
    let BindAddress::Ip(address) = listener.address().unwrap() else {
        panic!("bound to TCP")
    };
    let (control, _requests) = mpsc::channel(1);
    tokio::spawn(serve_admin(listener, daemon, control));
    for (host, authorization, status) in [
        ("localhost", "Bearer s3cret", "200"),
        ("127.0.0.1:9901", "bearer  s3cret", "200"),
        ("[::1]:9901", "Bearer s3cret", "200"),
        ("localhost", "Bearer s3cre", "401"),
        ("localhost", "Bearer s3cret2", "401"),
        ("localhost", "Basic s3cret", "401"),
        ("localhost", "", "401"),
        ("evil.example", "Bearer s3cret", "403"),
        ("127.0.0.1.evil.example", "Bearer s3cret", "403"),
        ("[::2]", "Bearer s3cret", "403"),
    ] {
        let text = format!(
            "GET /v1/status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: {authorization}\r\n\r\n"
        );
        let response = call_tcp(address, &text).await;
        assert_eq!(status_of(&response), status, "{host} {authorization}");
        assert!(!response.contains("s3cret"));
    }
    fs::remove_file(token_file).unwrap();
}

#[tokio::test]
async fn tcp_without_a_token_or_beyond_loopback_is_refused_at_bind() {
    let bind = |address: &str, token_file: Option<PathBuf>| {
        let config = model::AdminConfig {
            bind: Some(address.parse().unwrap()),
            token_file,
        };
        AdminListener::bind(&config, Path::new("/nonexistent"))
            .map(drop)
            .map_err(|error| error.to_string())
    };
    let empty = scratch("empty-token");
    fs::write(&empty, "\n").unwrap();
    assert!(
        bind("127.0.0.1:0", None)
            .unwrap_err()
            .contains("token_file")
    );
    assert!(
        bind("127.0.0.1:0", Some(empty.clone()))
            .unwrap_err()
            .contains("is empty")
    );
    assert!(
        bind("127.0.0.1:0", Some("/nonexistent".into()))
            .unwrap_err()
            .contains("/nonexistent")
    );
    assert!(
        bind("0.0.0.0:0", Some(empty.clone()))
            .unwrap_err()
            .contains("not loopback")
    );
    fs::remove_file(empty).unwrap();
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
    let path = scratch("stale");
    let admin = model::AdminConfig {
        bind: None,
        token_file: None,
    };
    let bind = || AdminListener::bind(&admin, &path).map_err(|error| error.to_string());
    // Dropping a listener of the standard library leaves its file behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let first = bind().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let error = bind().unwrap_err();
    assert!(
        error.contains("another process listens") && error.contains(&*path.to_string_lossy()),
        "{error}"
    );
    drop(first);
    assert!(!path.exists());
    fs::write(&path, "precious").unwrap();
    assert!(bind().unwrap_err().contains("not a socket"));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();
}

#[tokio::test]
async fn a_socket_file_that_somebody_else_put_there_is_left() {
    let path = scratch("replaced");
    let admin = model::AdminConfig {
        bind: None,
        token_file: None,
    };
    let listener = AdminListener::bind(&admin, &path).unwrap();
    fs::rename(&path, scratch("replaced-old")).unwrap();
    fs::write(&path, "theirs").unwrap();
    drop(listener);
    assert!(path.exists());
    fs::remove_file(&path).unwrap();
    fs::remove_file(
        std::env::temp_dir().join(format!("balancer-api-{}-replaced-old", std::process::id())),
    )
    .unwrap();
}

/// Asks for `path` on a connection that stays open.
async fn send_request(stream: &mut (impl AsyncWrite + Unpin), path: &str) {
    let text = format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
}

/// Reads the response to [`send_request`].
async fn read_response(stream: &mut (impl AsyncRead + Unpin)) {
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\n") {
        assert_ne!(stream.read_buf(&mut response).await.unwrap(), 0);
    }
    assert!(response.starts_with(b"HTTP/1.1 200 "));
}

/// Fills all slots of a server. One more connection replaces the one that was idle longest.
async fn fill<S: AsyncRead + AsyncWrite + Unpin>(path: &str, connect: impl AsyncFn() -> S) {
    let mut inside = Vec::new();
    for _ in 0..=control_connections() {
        let mut stream = connect().await;
        send_request(&mut stream, path).await;
        read_response(&mut stream).await;
        inside.push(stream);
    }
    let mut first = inside.remove(0);
    assert_eq!(first.read(&mut [0]).await.unwrap_or(0), 0);
    for stream in &mut inside {
        send_request(stream, path).await;
        read_response(stream).await;
    }
}

#[tokio::test]
async fn one_connection_above_the_limit_replaces_the_longest_idle() {
    let daemon = testing::daemon(testing::usual());
    let address = metrics_server(&daemon).await;
    fill("/livez", async || {
        TcpStream::connect(address).await.unwrap()
    })
    .await;
    let (path, _requests) = unix_server("full", &daemon);
    fill("/v1/status", async || {
        UnixStream::connect(&path).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn a_removed_socket_is_created_again_with_its_directory() {
    let daemon = testing::daemon(testing::usual());
    let folder = scratch("again");
    drop(fs::remove_dir_all(&folder));
    fs::create_dir(&folder).unwrap();
    let path = folder.join("admin.sock");
    let listener = AdminListener::bind(
        &model::AdminConfig {
            bind: None,
            token_file: None,
        },
        &path,
    )
    .unwrap();
    let (control, _requests) = mpsc::channel(1);
    tokio::spawn(serve_admin(listener, daemon, control));
    let text = request("GET /v1/status", "");
    assert_eq!(status_of(&call_unix(&path, &text).await), "200");
    fs::remove_dir_all(&folder).unwrap();
    let again = async {
        while UnixStream::connect(&path).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOCKET_CHECK_INTERVAL * 5, again).await.unwrap();
    assert_eq!(status_of(&call_unix(&path, &text).await), "200");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        fs::metadata(&folder).unwrap().permissions().mode() & 0o777,
        0o700
    );
    fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn a_rotated_token_is_taken_at_once_and_one_that_cannot_be_read_changes_nothing() {
    let daemon = testing::daemon(testing::usual());
    let token_file = scratch("rotated");
    fs::write(&token_file, "first\n").unwrap();
    let config = model::AdminConfig {
        bind: Some("127.0.0.1:0".parse().unwrap()),
        token_file: Some(token_file.clone()),
    };
    let listener = AdminListener::bind(&config, Path::new("/nonexistent")).unwrap();
    let BindAddress::Ip(address) = listener.address().unwrap() else {
        panic!("bound to TCP")
    };
    let (control, _requests) = mpsc::channel(1);
    tokio::spawn(serve_admin(listener, daemon, control));
    let status_for = async |token: &str| {
        let header = format!("Authorization: Bearer {token}\r\n");
        let response = call_tcp(address, &request("GET /v1/status", &header)).await;
        status_of(&response).to_owned()
    };
    assert_eq!(status_for("first").await, "200");
    fs::write(&token_file, "second\n").unwrap();
    assert_eq!(
        [status_for("first").await, status_for("second").await],
        ["401", "200"]
    );
    fs::remove_file(&token_file).unwrap();
    assert_eq!(
        [status_for("first").await, status_for("second").await],
        ["401", "200"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_no_whole_head_loses_its_slot_at_the_header_timeout() {
    let daemon = testing::daemon(testing::usual());
    let address = metrics_server(&daemon).await;
    let (path, _requests) = unix_server("slow", &daemon);
    let expected = http::HEADER_TIMEOUT..http::HEADER_TIMEOUT + Duration::from_secs(1);
    for beginning in ["", "GET /livez HTTP/1.1\r\nHost: local"] {
        let began = clock::now();
        call_tcp(address, beginning).await;
        let took = clock::now() - began;
        assert!(expected.contains(&took), "metrics: {beginning:?}: {took:?}");
        let began = clock::now();
        call_unix(&path, beginning).await;
        let took = clock::now() - began;
        assert!(expected.contains(&took), "admin: {beginning:?}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_at_the_header_timeout() {
    let daemon = testing::daemon(testing::usual());
    let address = metrics_server(&daemon).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let began = clock::now();
    send_request(&mut stream, "/livez").await;
    read_response(&mut stream).await;
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    // The virtual clock may move on while the kernel carries the request: at most once to the first
    // timeout.
    let took = clock::now() - began;
    let expected = http::HEADER_TIMEOUT..http::HEADER_TIMEOUT * 2 + Duration::from_secs(1);
    assert!(expected.contains(&took), "{took:?}");
}

#[test]
fn both_servers_run_on_a_local_runtime_as_that_of_the_control_thread() {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .unwrap();
    runtime.block_on(async {
        let daemon = testing::daemon(testing::usual());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(spawn_local(serve_metrics(listener, Arc::clone(&daemon))));
        let path = scratch("local");
        let config = model::AdminConfig {
            bind: Some(BindAddress::Unix(path.clone())),
            token_file: None,
        };
        let admin = AdminListener::bind(&config, Path::new("/nonexistent")).unwrap();
        let (control, _requests) = mpsc::channel(1);
        drop(spawn_local(serve_admin(admin, daemon, control)));
        let page = call_tcp(address, &request("GET /metrics", "")).await;
        assert!(page.contains("\nbalancer_config_generation 1\n"), "{page}");
        let status = call_unix(&path, &request("GET /v1/status", "")).await;
        assert_eq!(body_of(&status)["generation"], 1);
    });
}
