//! Members from etcd: a scripted one, and the real one where it is installed.

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use super::{bodies, members, source, wait_for_failure, wait_for_members};
use crate::harness::{
    TempDir,
    daemon::TestDaemon,
    etcd::ScriptedEtcd,
    peer::{ScriptedPeer, refused},
    poll, tools,
};

fn configuration(endpoints: &str, more: &str) -> String {
    format!(
        "workers: 1\nlisteners:\n  web: {{bind: \"@web\", pool: app}}\npools:\n  app:\n    discover:\n      etcd: {{endpoints: [{endpoints}], prefix: /app/{more}}}\n    health_check: {{interval: 100ms, rise: 1}}\n"
    )
}

fn value(peer: &ScriptedPeer) -> String {
    format!("{{\"address\": \"{}\"}}", peer.address)
}

#[test]
fn members_follow_the_keys_over_broken_watches_and_compactions() {
    let [one, two, three] = ["one", "two", "three"].map(ScriptedPeer::answering);
    let name = |peer: &ScriptedPeer| peer.address.to_string();
    let etcd = ScriptedEtcd::start();
    etcd.put("/app/1", &value(&one));
    let endpoints = format!("\"{}\", \"{}\"", refused(), etcd.address());
    let daemon = TestDaemon::start(&configuration(&endpoints, ""));
    // The first endpoint refuses, and the next one is asked.
    wait_for_members(&daemon, &[&name(&one)]);
    assert_eq!(bodies(&daemon, 2), ["one".to_owned()].into());
    etcd.put(
        "/app/2",
        &format!(
            "{{\"address\": \"{}\", \"name\": \"two\", \"weight\": 2}}",
            two.address
        ),
    );
    wait_for_members(&daemon, &[&name(&one), "two"]);
    // A watch that ends goes on from where it was: nothing is read twice.
    let watches = |count: usize| {
        let is_watch = |call: &&String| call.starts_with("watch");
        etcd.calls
            .wait_for(|calls| (calls.iter().filter(is_watch).count() >= count).then_some(()))
            .unwrap();
    };
    etcd.cut();
    etcd.delete("/app/1");
    wait_for_members(&daemon, &["two"]);
    watches(2);
    let ranges = || {
        etcd.calls
            .all()
            .iter()
            .filter(|call| *call == "range")
            .count()
    };
    assert_eq!(ranges(), 1, "{:?}", etcd.calls.all());
    // A wrong value keeps the last good one, and is told with its key.
    etcd.put("/app/2", "{\"address\": \"nowhere\"}");
    let cause = wait_for_failure(&daemon, "etcd");
    assert!(
        cause.contains("/app/2") && cause.contains("port is missing"),
        "{cause}"
    );
    assert_eq!(members(&daemon).len(), 1);
    etcd.put("/app/2", &value(&two));
    wait_for_members(&daemon, &[&name(&two)]);
    let good = || source(&daemon, "etcd")["error"].is_null().then_some(());
    poll(good).unwrap();
    // After a compaction all keys are read again.
    etcd.change_unseen("/app/3", &value(&three));
    wait_for_members(&daemon, &[&name(&two), &name(&three)]);
    assert_eq!(ranges(), 2, "{:?}", etcd.calls.all());
}

#[test]
fn without_etcd_the_last_members_are_used_also_after_a_restart() {
    let one = ScriptedPeer::answering("one");
    let state = TempDir::new();
    let program = || {
        // The harness gives each daemon a state directory of its own.
        let script = "STATE_DIRECTORY=\"$KEPT\" exec \"$PROGRAM\" \"$@\"";
        let mut command = Command::new("sh");
        command
            .args(["-c", script, "sh"])
            .env("KEPT", state.path())
            .env("PROGRAM", env!("CARGO_BIN_EXE_balancer"));
        command
    };
    let etcd = ScriptedEtcd::start();
    etcd.put("/app/1", &value(&one));
    let endpoint = format!("\"{}\"", etcd.address());
    let name = one.address.to_string();
    {
        let daemon = TestDaemon::start_by(program, "run", &configuration(&endpoint, ""));
        wait_for_members(&daemon, &[&name]);
        let kept = state.path().join("members/app/etcd.json");
        let text = || {
            fs::read_to_string(&kept)
                .ok()
                .filter(|text| text.contains(&name))
        };
        assert!(poll(text).is_some(), "the members are kept");
        drop(etcd);
        wait_for_failure(&daemon, "etcd");
        assert_eq!(bodies(&daemon, 2), ["one".to_owned()].into());
    }
    let daemon = TestDaemon::start_by(program, "run", &configuration(&endpoint, ""));
    assert_eq!(bodies(&daemon, 2), ["one".to_owned()].into(), "at once");
    let cause = wait_for_failure(&daemon, "etcd");
    assert!(cause.contains("refused"), "{cause}");
    assert_eq!(source(&daemon, "etcd")["members"], 1);
    // Another prefix has no part in them.
    let other = configuration(&endpoint, "").replace("/app/", "/other/");
    let daemon = TestDaemon::start_by(program, "run", &other);
    assert_eq!(members(&daemon), []);
}

#[test]
fn a_user_logs_in_and_a_wrong_password_is_told_without_it() {
    let one = ScriptedPeer::answering("one");
    let etcd = ScriptedEtcd::start_with(Some(("balancer", "secret-word")));
    etcd.put("/app/1", &value(&one));
    let endpoint = format!("\"{}\"", etcd.address());
    let login = |password: &str| format!(", user: balancer, password: {password}");
    let daemon = TestDaemon::start(&configuration(&endpoint, &login("secret-word")));
    wait_for_members(&daemon, &[&one.address.to_string()]);
    let wrong = TestDaemon::start(&configuration(&endpoint, &login("wrong-word")));
    let cause = wait_for_failure(&wrong, "etcd");
    assert!(cause.contains("invalid user ID or password"), "{cause}");
    let seen = [wrong.stderr.all().concat(), wrong.status().to_string()].concat();
    assert!(!seen.contains("wrong-word"), "{seen}");
    let without = TestDaemon::start(&configuration(&endpoint, ""));
    let cause = wait_for_failure(&without, "etcd");
    assert!(cause.contains("invalid auth token"), "{cause}");
}

/// A real etcd in a directory of its own; killed when dropped.
struct RealEtcd {
    child: Child,
    endpoint: String,
    _directory: TempDir,
}

impl Drop for RealEtcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl RealEtcd {
    fn start() -> Self {
        let free = || {
            let probe = TcpListener::bind("127.0.0.1:0").unwrap();
            format!("127.0.0.1:{}", probe.local_addr().unwrap().port())
        };
        let (endpoint, peer) = (free(), free());
        let directory = TempDir::new();
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .args(["--listen-client-urls", &format!("http://{endpoint}")])
            .args(["--advertise-client-urls", &format!("http://{endpoint}")])
            .args(["--listen-peer-urls", &format!("http://{peer}")])
            .args(["--initial-advertise-peer-urls", &format!("http://{peer}")])
            .args(["--initial-cluster", &format!("default=http://{peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let this = Self {
            child,
            endpoint,
            _directory: directory,
        };
        let ready = || {
            this.try_call("kv/range", r#"{"key": "Lw=="}"#)
                .filter(|text| text.contains("revision"))
        };
        assert!(poll(ready).is_some(), "etcd does not answer");
        this
    }

    /// One call of the gateway; its answer if it is there.
    fn try_call(&self, path: &str, body: &str) -> Option<String> {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(&self.endpoint).ok()?;
        let request = format!(
            "POST /v3/{path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text).filter(|text| text.starts_with("HTTP/1.1 200"))
    }

    fn call(&self, path: &str, body: &str) -> String {
        self.try_call(path, body)
            .unwrap_or_else(|| panic!("{path} {body} failed"))
    }

    fn put(&self, key: &str, value: &str) {
        let (key, value) = (
            crate::harness::etcd::base64(key),
            crate::harness::etcd::base64(value),
        );
        self.call(
            "kv/put",
            &format!(r#"{{"key": "{key}", "value": "{value}"}}"#),
        );
    }
}

#[test]
fn a_real_etcd_is_followed() {
    if !tools::is_installed("etcd", "etcd-server") {
        return;
    }
    let [one, two, three] = ["one", "two", "three"].map(ScriptedPeer::answering);
    let name = |peer: &ScriptedPeer| peer.address.to_string();
    let etcd = RealEtcd::start();
    etcd.put("/app/1", &value(&one));
    etcd.put("/apple", &value(&three));
    let text = configuration(&format!("\"{}\"", etcd.endpoint), "");
    let daemon = TestDaemon::start(&text);
    wait_for_members(&daemon, &[&name(&one)]);
    etcd.put("/app/2", &value(&two));
    wait_for_members(&daemon, &[&name(&one), &name(&two)]);
    let key = crate::harness::etcd::base64("/app/1");
    etcd.call("kv/deleterange", &format!(r#"{{"key": "{key}"}}"#));
    wait_for_members(&daemon, &[&name(&two)]);
    assert_eq!(bodies(&daemon, 2), ["two".to_owned()].into());
    // With users, a daemon without one is refused.
    for (path, body) in [
        (
            "auth/user/add",
            r#"{"name": "root", "password": "root-word"}"#,
        ),
        ("auth/user/grant", r#"{"user": "root", "role": "root"}"#),
        ("auth/enable", "{}"),
    ] {
        etcd.call(path, body);
    }
    let login = ", user: root, password: root-word";
    let endpoint = format!("\"{}\"", etcd.endpoint);
    let with_login = TestDaemon::start(&configuration(&endpoint, login));
    wait_for_members(&with_login, &[&name(&two)]);
    let without = TestDaemon::start(&text);
    let cause = wait_for_failure(&without, "etcd");
    assert!(cause.contains("user name is empty"), "{cause}");
}
