//! Addresses to listen on: several of one port, unavailable ones, and where the error is reported.

use std::{
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
};

use super::{get, must_reload, one_pool, reload};
use crate::harness::{
    daemon::{TestDaemon, balancer},
    peer::ScriptedPeer,
    poll,
};

/// A port that is free on every address.
fn free_port() -> u16 {
    let socket = TcpListener::bind("[::]:0").unwrap();
    socket.local_addr().unwrap().port()
}

/// Listeners with a fixed answer: their names and addresses.
fn answering(listeners: &[(&str, String)]) -> String {
    let listen = |(name, bind): &(&str, String)| format!("  {name}: {{bind: {bind}}}\n");
    let answer = |(name, _): &(&str, String)| {
        format!("  - {{listeners: [{name}], respond: {{body: {name}}}}}\n")
    };
    format!(
        "listeners:\n{}routes:\n{}",
        listeners.iter().map(listen).collect::<String>(),
        listeners.iter().map(answer).collect::<String>()
    )
}

#[test]
fn a_wildcard_and_a_specific_address_of_one_port_are_both_served_the_specific_one_first() {
    let port = free_port();
    let wide = ("wide", format!("\":{port}\""));
    let narrow = ("narrow", format!("\"127.0.0.1:{port}\""));
    let second = ("second", format!("\"127.0.0.2:{port}\""));
    let check = |address: &str, answer: &str| {
        let address: SocketAddr = format!("{address}:{port}").parse().unwrap();
        // The workers leave a socket a moment after the reload.
        let is_answer = |text: &String| text == answer;
        let found = poll(|| get(address, "/").ok().map(|it| it.text()).filter(is_answer));
        assert!(found.is_some(), "{address} is not answered by {answer}");
    };
    for listeners in [
        [wide.clone(), narrow.clone(), second.clone()],
        [second.clone(), narrow.clone(), wide.clone()],
    ] {
        let mut daemon = TestDaemon::start(&answering(&listeners));
        check("127.0.0.1", "narrow");
        check("127.0.0.2", "second");
        check("[::1]", "wide");
        check("127.0.0.3", "wide");
        must_reload(&mut daemon, &answering(&[wide.clone(), second.clone()]));
        check("127.0.0.1", "wide");
        must_reload(&mut daemon, &answering(&listeners));
        check("127.0.0.1", "narrow");
        check("[::1]", "wide");
        check("127.0.0.2", "second");
    }
}

#[test]
fn a_list_may_have_a_wildcard_beside_an_address_and_both_wildcards() {
    let port = free_port();
    for list in [
        format!("[\":{port}\", \"127.0.0.1:{port}\"]"),
        format!("[\"[::ffff:127.0.0.1]:{port}\", \":{port}\"]"),
        format!("[\"0.0.0.0:{port}\", \"[::]:{port}\"]"),
    ] {
        let config = answering(&[("web", list.clone())]);
        let mut daemon = TestDaemon::start(&config);
        for address in ["127.0.0.1", "[::1]"] {
            let address: SocketAddr = format!("{address}:{port}").parse().unwrap();
            assert_eq!(get(address, "/").unwrap().text(), "web", "{list}");
        }
        must_reload(&mut daemon, &config.replace("body: web", "body: again"));
    }
}

#[test]
fn one_address_twice_is_refused_by_check_start_and_reload() {
    let port = free_port();
    let mut daemon = TestDaemon::start(&answering(&[("web", "\"@web\"".to_owned())]));
    for (first, second) in [
        (format!(":{port}"), format!("[::]:{port}")),
        (
            format!("127.0.0.1:{port}"),
            format!("[::ffff:127.0.0.1]:{port}"),
        ),
        ("127.0.0.1:0".to_owned(), "127.0.0.1:0".to_owned()),
        (
            "unix:/run/x/a.sock".to_owned(),
            "unix:/run/y/../x/./a.sock".to_owned(),
        ),
    ] {
        for config in [
            answering(&[("web", format!("[\"{first}\", \"{second}\"]"))]),
            answering(&[
                ("web", format!("\"{first}\"")),
                ("more", format!("\"{second}\"")),
            ]),
        ] {
            let mut other = TestDaemon::launch(&config);
            assert_eq!(other.wait_exit().code(), Some(78), "{config}");
            let file = other.directory().join("balancer.yaml");
            let checked = balancer(&["check", file.to_str().unwrap()]);
            assert_eq!(checked.status.code(), Some(1), "{config}");
            let (code, said) = reload(&mut daemon, &config);
            assert_eq!(code, Some(1), "{config}");
            assert!(said.contains("already used"), "{said}");
        }
    }
}

#[test]
fn an_address_that_cannot_be_had_is_told_with_the_listener_and_its_place() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let mut daemon = TestDaemon::start(&answering(&[("web", "\"@web\"".to_owned())]));
    let held = UnixListener::bind(daemon.directory().join("held.sock")).unwrap();
    let socket = daemon.directory().join("held.sock");
    for (address, cause) in [
        (taken.to_string(), "is taken by another process"),
        (
            "192.0.2.1:8080".to_owned(),
            "this machine has no such address",
        ),
        (
            format!("unix:{}", socket.display()),
            "another process listens there",
        ),
        (
            "unix:/nowhere/at/all.sock".to_owned(),
            "No such file or directory",
        ),
    ] {
        let config = answering(&[
            ("web", "\"@web\"".to_owned()),
            ("second", format!("[\"@more\", \"{address}\"]")),
        ]);
        let said = |text: &str| {
            assert!(
                text.contains("listener `second`: cannot listen on"),
                "{text}"
            );
            assert!(text.contains(cause), "{text}");
            assert!(text.contains("balancer.yaml:3:"), "{text}");
            assert!(text.contains("listeners.second.bind[1]"), "{text}");
        };
        let mut other = TestDaemon::launch(&config);
        assert_eq!(other.wait_exit().code(), Some(1), "{config}");
        other.wait_for_log(|line| line.contains("listeners.second.bind"));
        said(&other.stderr.all().join("\n"));
        let (code, text) = reload(&mut daemon, &config);
        assert_eq!(code, Some(1), "{config}");
        said(&text);
    }
    drop(held);
}

#[test]
fn a_reload_refuses_where_admin_and_metrics_could_not_listen_at_the_next_start() {
    let backend = ScriptedPeer::answering("here");
    let plain = one_pool(&backend.address.to_string());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut daemon = TestDaemon::start(&plain);
    for (key, section, cause) in [
        (
            "metrics.bind",
            format!("metrics: {{bind: \"127.0.0.1:{port}\"}}"),
            "is taken by another process",
        ),
        (
            "metrics.bind",
            "metrics: {bind: \"192.0.2.1:9900\"}".to_owned(),
            "no such address",
        ),
        (
            "admin.bind",
            "admin: {bind: \"unix:/nowhere/admin.sock\"}".to_owned(),
            "No such file",
        ),
        (
            "admin.bind",
            "admin: {bind: \"unix:@dir/balancer.yaml\"}".to_owned(),
            "not a socket",
        ),
    ] {
        let (code, said) = reload(&mut daemon, &format!("{section}\n{plain}"));
        assert_eq!(code, Some(1), "{section}");
        assert!(said.contains(cause), "{said}");
        assert!(
            said.contains(key) && said.contains("balancer.yaml:1:"),
            "{said}"
        );
        assert_eq!(daemon.status()["generation"], 1, "{said}");
    }
    // What could be had at the next start is taken, also what this process holds itself until then.
    drop(taken);
    for sections in [
        format!("metrics: {{bind: \"127.0.0.1:{port}\"}}"),
        "admin: {bind: \"unix:@dir/other.sock\"}".to_owned(),
        "metrics: {bind: none}".to_owned(),
    ] {
        must_reload(&mut daemon, &format!("{sections}\n{plain}"));
    }
    assert!(!daemon.directory().join("other.sock").exists());
    let elsewhere = plain.replace("@web", "@elsewhere");
    let said = must_reload(
        &mut daemon,
        &format!("metrics: {{bind: \"@web\"}}\n{elsewhere}"),
    );
    assert!(
        said.contains("metrics.bind changed: needs a restart"),
        "{said}"
    );
    let own = plain.replace("@web", "@metrics");
    let (code, said) = reload(&mut daemon, &format!("metrics: {{bind: none}}\n{own}"));
    assert_eq!(code, Some(1));
    assert!(
        said.contains("`metrics` has it until the next start"),
        "{said}"
    );
}
