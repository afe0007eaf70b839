//! gRPC: client and servers are grpcio, with balancer in between.

use std::{net::SocketAddr, path::Path, process::Command};

use super::{ForeignProgram, python, run, script};
use crate::harness::{daemon::TestDaemon, peer::refused, tls::TestAuthority};

fn server(python: &Path, name: &str, pem: Option<&Path>) -> ForeignProgram {
    let mut command = Command::new(python);
    command.arg(script("grpc_server.py")).arg(name).args(pem);
    ForeignProgram::start(&mut command)
}

fn client(python: &Path, command: &str, target: &str, more: &[&str]) -> String {
    let mut client = Command::new(python);
    client.arg(script("grpc_client.py")).args([command, target]);
    run(client.args(more))
}

/// Listeners with and without TLS, before `backends` that are spoken to as `pool` says.
fn front(authority: &TestAuthority, backends: &[SocketAddr], pool: &str) -> TestDaemon {
    authority.sign("front", &["localhost"]);
    TestDaemon::start(&format!(
        "workers: 2\naccess_log: {{when: {{sample: 100%}}}}\n\
         listeners:\n  secure: {{bind: \"@secure\", pool: app, tls: {{{}}}}}\n  plain: {{bind: \"@plain\", pool: app}}\n\
         pools:\n  app: {{backends: {:?}, {pool}}}\n",
        authority.pair("front"),
        backends
            .iter()
            .map(SocketAddr::to_string)
            .collect::<Vec<_>>(),
    ))
}

fn address(server: &ForeignProgram) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], server.port()))
}

fn plain(daemon: &TestDaemon) -> String {
    daemon.address("@plain").to_string()
}

#[test]
fn every_kind_of_call_goes_through_to_grpcio() {
    let Some(python) = python(&["grpc"]) else {
        return;
    };
    let authority = TestAuthority::new();
    authority.sign("app", &["app.test"]);
    let pem = authority.path("app.pem");
    let under_tls = format!(
        "protocol: h2, health_check: none, tls: {{ca: {}, server_name: app.test}}",
        authority.ca()
    );
    for (pem, pool) in [
        (None, "protocol: h2c, health_check: none"),
        (Some(pem.as_path()), under_tls.as_str()),
    ] {
        let one = server(&python, "one", pem);
        let daemon = front(&authority, &[address(&one)], pool);
        client(&python, "calls", &plain(&daemon), &[]);
        let line = daemon.wait_for_access(|line| line["path"] == "/interop.Calls/Talk");
        assert_eq!(line["protocol"], "HTTP/2", "{line}");

        // Of a server that has not seen the calls above.
        let one = server(&python, "one", pem);
        let daemon = front(&authority, &[address(&one)], pool);
        let target = format!("localhost:{}", daemon.address("@secure").port());
        client(&python, "calls", &target, &[&authority.ca()]);
    }
}

fn wait_for_up(daemon: &TestDaemon, wanted: f64) {
    daemon.wait_for_metric("balancer_backend_up", |up| up == wanted);
}

/// Numbers of responses per server, for twenty calls on one connection.
fn names(python: &Path, daemon: &TestDaemon) -> String {
    client(python, "names", &plain(daemon), &["20"])
}

#[test]
fn calls_of_one_connection_are_spread_over_the_servers_until_none_is_left() {
    let Some(python) = python(&["grpc"]) else {
        return;
    };
    let (one, two) = (server(&python, "one", None), server(&python, "two", None));
    let daemon = front(
        &TestAuthority::new(),
        &[address(&one), address(&two)],
        "protocol: h2c, health_check: {interval: 100ms}",
    );
    wait_for_up(&daemon, 2.0);
    assert_eq!(names(&python, &daemon), "one 10\ntwo 10");
    let accepted = "balancer_listener_connections_total{listener=\"plain\"}";
    assert_eq!(daemon.metric(accepted), 1.0);

    drop(one);
    wait_for_up(&daemon, 1.0);
    assert_eq!(names(&python, &daemon), "two 20");
    drop(two);
    wait_for_up(&daemon, 0.0);
    let said = client(&python, "down", &plain(&daemon), &[]);
    assert!(said.contains("destination_unavailable"), "{said}");
    let line = daemon.wait_for_access(|line| line["reason"] == "destination_unavailable");
    assert_eq!(line["path"], "/interop.Calls/Echo", "{line}");
}

#[test]
fn a_server_that_says_it_does_not_serve_gets_no_calls() {
    let Some(python) = python(&["grpc"]) else {
        return;
    };
    let (one, two) = (server(&python, "one", None), server(&python, "two", None));
    let daemon = front(
        &TestAuthority::new(),
        &[address(&one), address(&two)],
        "protocol: h2c, health_check: {type: grpc, interval: 100ms}",
    );
    wait_for_up(&daemon, 2.0);
    let direct = address(&one).to_string();
    client(&python, "health", &direct, &["down"]);
    wait_for_up(&daemon, 1.0);
    assert_eq!(names(&python, &daemon), "two 20");
    client(&python, "health", &direct, &["up"]);
    wait_for_up(&daemon, 2.0);
    assert_eq!(names(&python, &daemon), "one 10\ntwo 10");
}

#[test]
fn a_call_that_no_server_takes_is_told_to_be_unavailable_and_why() {
    let Some(python) = python(&["grpc"]) else {
        return;
    };
    let pool = "health_check: none, ejection: none";
    let daemon = front(&TestAuthority::new(), &[refused()], pool);
    let said = client(&python, "down", &plain(&daemon), &[]);
    assert!(said.contains("connection_refused"), "{said}");
    let line = daemon.wait_for_access(|line| line["reason"] == "connection_refused");
    assert_eq!(line["path"], "/interop.Calls/Echo", "{line}");
}
