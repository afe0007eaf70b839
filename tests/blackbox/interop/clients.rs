//! Other clients: curl, httpx, Node, Java.

use std::{fs, process::Command};

use super::{ForeignProgram, InteropFixture, origin, python, run, script};
use crate::harness::{TempDir, tools};

/// A few windows and buffers long.
const BODY_BYTES: usize = 3_000_000;

/// curl with what all its calls have in common.
fn curl(stand: &InteropFixture, mode: &str) -> Command {
    let mut curl = Command::new("curl");
    // `-q` first: no defaults of the user.
    curl.args([
        "-q",
        "--silent",
        "--show-error",
        "--fail",
        "--max-time",
        "30",
    ])
    .args(["--noproxy", "*", mode, "--cacert"])
    .arg(stand.authority.ca());
    curl
}

/// Like [`run`], and shows nothing.
#[track_caller]
fn call(curl: &mut Command) -> String {
    ForeignProgram::start(curl).finish()
}

/// All that is asked of curl in one version of HTTP: an option, where it connects to, the version
/// that is spoken then.
fn curl_asks(stand: &InteropFixture, mode: &str, front: &str, version: &str) {
    let files = TempDir::new();
    let (sent, got) = (files.path().join("sent"), files.path().join("got"));
    fs::write(&sent, b"0123456789".repeat(BODY_BYTES / 10)).unwrap();
    let told = [
        "--write-out",
        "%{http_version} %{response_code} %{size_download}",
    ];
    let what = format!("{mode} {front}");

    let mut get = curl(stand, mode);
    let url = format!("{front}/bytes/{BODY_BYTES}");
    let said = call(get.args(told).arg("--output").arg(&got).arg(&url));
    assert_eq!(said, format!("{version} 200 {BODY_BYTES}"), "{what}");
    let head = call(curl(stand, mode).args(["--head", &url]));
    let digest = origin::hex(&fs::read(&got).unwrap());
    assert!(
        head.to_lowercase().contains(&format!("x-sha256: {digest}")),
        "{what}: {head}"
    );
    assert!(
        head.to_lowercase()
            .contains(&format!("content-length: {BODY_BYTES}")),
        "{what}: {head}"
    );

    let digest = origin::hex(&fs::read(&sent).unwrap());
    let digest_of = format!("{front}/sha256");
    let body = format!("@{}", sent.display());
    for expect in ["Expect:", "Expect: 100-continue"] {
        let mut post = curl(stand, mode);
        post.args(["--include", "--header", expect, "--data-binary", &body]);
        let said = call(post.arg(&digest_of));
        assert!(said.ends_with(&digest), "{what}: {said}");
        let has_interim = said.starts_with("HTTP/1.1 100") || said.starts_with("HTTP/2 100");
        assert_eq!(has_interim, expect != "Expect:", "{what}: {said}");
    }

    let said = call(curl(stand, mode).args(["--include", &format!("{front}/early")]));
    assert!(said.contains(" 103"), "{what}: {said}");
    assert_eq!(
        said.to_lowercase().matches("link: </style.css>").count(),
        2,
        "{what}: {said}"
    );
    assert!(said.ends_with("late"), "{what}: {said}");

    let mut trailers = curl(stand, mode);
    trailers.args(["--dump-header", "-", "--output"]).arg(&got);
    let said = call(trailers.arg(format!("{front}/chunks/{BODY_BYTES}")));
    let digest = origin::hex(&fs::read(&got).unwrap());
    let last = said.trim_end().to_lowercase();
    assert!(
        last.ends_with(&format!("x-sha256: {digest}")),
        "{what}: {said}"
    );
}

#[test]
fn curl_gets_and_sends_everything_in_each_version_of_http() {
    if !tools::is_installed("curl", "curl") {
        return;
    }
    let stand = InteropFixture::new();
    let (secure, plain) = (stand.front("secure"), stand.front("plain"));
    run(Command::new("curl").arg("--version"));
    for (mode, front, version) in [
        ("--http1.1", &secure, "1.1"),
        ("--http2", &secure, "2"),
        ("--http1.1", &plain, "1.1"),
        ("--http2-prior-knowledge", &plain, "2"),
        // It asks for an upgrade to h2c, which is obsolete (RFC 9113 section 3.1), and goes on
        // without.
        ("--http2", &plain, "1.1"),
    ] {
        curl_asks(&stand, mode, front, version);
    }
    let said = call(curl(&stand, "--http2").arg(format!("{secure}/head")));
    assert!(said.contains("X-Forwarded-Proto: https"), "{said}");
    stand.assert_given_up(0.0);
}

#[test]
fn httpx_shares_a_connection_among_requests_and_streams_both_ways() {
    let Some(python) = python(&["httpx", "h2"]) else {
        return;
    };
    for (version, listener, connections) in [
        ("HTTP/1.1", "secure", 8.0),
        ("HTTP/2", "secure", 1.0),
        ("HTTP/2", "plain", 1.0),
    ] {
        let stand = InteropFixture::new();
        let front = stand.front(listener);
        let mut client = Command::new(&python);
        client.arg(script("client.py")).args([version, &front]);
        run(client.arg(stand.authority.ca()));
        assert_eq!(stand.connections(listener), connections, "{version}");
        stand.assert_given_up(0.0);
    }
}

/// Node's own client, run with the test's authority.
fn node(stand: &InteropFixture, name: &str) -> Command {
    let mut node = Command::new("node");
    node.env("NODE_EXTRA_CA_CERTS", stand.authority.ca());
    node.arg(script(name));
    node
}

#[test]
fn node_has_streams_trailers_resets_and_websockets_over_one_http_2_connection() {
    if !tools::is_installed("node", "nodejs") {
        return;
    }
    let mut server = Command::new("node");
    let server = ForeignProgram::start(server.arg(script("websocket_server.mjs")));
    let more = format!(
        "  other: {{backends: [\"127.0.0.1:{}\"], health_check: none}}\n\
         routes: [{{path: /websocket, pool: other}}]\n",
        server.port()
    );
    for listener in ["secure", "plain"] {
        let stand = InteropFixture::with(&more);
        let front = stand.front(listener);
        run(node(&stand, "http2.mjs").arg(front));
        assert_eq!(stand.connections(listener), 1.0);
        let line = stand
            .daemon
            .wait_for_access(|line| line["path"] == "/websocket");
        assert_eq!(line["protocol"], "HTTP/2", "{line}");
        stand.assert_given_up(1.0);
    }
}

#[test]
fn fetch_of_node_gets_and_streams() {
    if !tools::is_installed("node", "nodejs") {
        return;
    }
    for listener in ["secure", "plain"] {
        let stand = InteropFixture::new();
        run(node(&stand, "fetch.mjs").arg(stand.front(listener)));
        stand.assert_given_up(1.0);
    }
}

/// True if `java File.java` works, which needs more than a runtime.
fn has_java() -> bool {
    let modules = Command::new("java").arg("--list-modules").output();
    let compiles =
        modules.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains("jdk.compiler"));
    compiles || tools::skipped("java with its compiler", "Debian: default-jdk-headless")
}

#[test]
fn the_http_client_of_java_speaks_both_versions() {
    if !has_java() {
        return;
    }
    let stand = InteropFixture::new();
    let mut java = Command::new("java");
    // Quick to start: it runs for a second.
    java.args([
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        "-Xshare:auto",
    ]);
    java.arg(script("Client.java"));
    run(java.args([
        stand.front("secure"),
        stand.front("plain"),
        stand.authority.ca(),
    ]));
    for protocol in ["HTTP/1.1", "HTTP/2"] {
        stand
            .daemon
            .wait_for_access(|line| line["listener"] == "secure" && line["protocol"] == protocol);
    }
    stand.assert_given_up(0.0);
}
