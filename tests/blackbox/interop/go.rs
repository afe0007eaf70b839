//! Go's HTTP/2, client and server: it gives windows back as its application reads, 4 KiB at a time
//! and less.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use super::{ForeignProgram, InteropFixture, run, script};
use crate::harness::{
    daemon::{TestDaemon, sum_of},
    tls::TestAuthority,
    tools,
};

/// The program of `peer.go`, built once; `None`, and said so, without Go.
fn peer() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        if !tools::is_installed("go", "golang-go") {
            return None;
        }
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let program = target.join("go-peer");
        let mut build = Command::new("go");
        build.args(["build", "-o"]).arg(&program);
        build
            .env("GOCACHE", target.join("go-cache"))
            .env("GOFLAGS", "-mod=mod")
            .env("GOPROXY", "off");
        run(build.arg(script("peer.go")));
        Some(program)
    });
    built.as_deref()
}

/// A daemon before the Go server, spoken to in HTTP/2 under TLS; a refused try is not made again.
fn before(authority: &TestAuthority, server: &ForeignProgram) -> TestDaemon {
    authority.sign("front", &["localhost"]);
    TestDaemon::start(&format!(
        "workers: 2\n\
         listeners:\n  secure: {{bind: \"@secure\", pool: app, tls: {{{}}}}}\n\
         pools:\n  app: {{backends: [\"127.0.0.1:{}\"], protocol: h2, health_check: none, retries: none, \
         tls: {{ca: {}, server_name: app.test}}}}\n",
        authority.pair("front"),
        server.port(),
        authority.ca(),
    ))
}

/// Runs a command of the peer through a daemon before the Go server; nothing may fail.
fn through_go_server(command: &str, path: &str, more: &[&str]) {
    let Some(peer) = peer() else {
        return;
    };
    let authority = TestAuthority::new();
    authority.sign("app", &["app.test"]);
    let pem = authority.path("app.pem");
    let server = ForeignProgram::start(Command::new(peer).arg("serve").arg(&pem).arg(&pem));
    let daemon = before(&authority, &server);
    let front = format!("https://localhost:{}", daemon.address("@secure").port());
    let mut client = Command::new(peer);
    client.args([command, &format!("{front}{path}"), &authority.ca()]);
    run(client.args(more));
    let page = daemon.scrape();
    assert!(sum_of(&page, "balancer_errors_total") < 0.5, "{page}");
}

#[test]
fn a_go_client_that_reads_in_small_steps_gets_all_of_large_downloads() {
    let Some(peer) = peer() else {
        return;
    };
    let stand = InteropFixture::new();
    let front = stand.front("secure");
    for (size, count) in [(60_000_000, "1"), (1_000_000, "40")] {
        let mut client = Command::new(peer);
        client.args(["download", &format!("{front}/bytes/{size}")]);
        run(client.args([&stand.authority.ca(), count]));
    }
    stand.assert_given_up(0.0);
}

#[test]
fn a_go_server_that_reads_in_small_steps_takes_many_uploads_at_once() {
    through_go_server("upload", "/sha256", &["40", "10000000"]);
}

#[test]
fn trailers_of_a_go_server_arrive_behind_bodies_of_known_and_of_unknown_length() {
    through_go_server("trailers", "", &[]);
}
