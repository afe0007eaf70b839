//! The interface to the service manager: signals, files, sd_notify(3) and the watchdog.

use std::{
    fs,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    process::{Child, Stdio},
    time::Duration,
};

use crate::harness::{
    PATIENCE, TempDir,
    daemon::{TestDaemon, command},
    peer::{Gate, ScriptedPeer},
    poll,
};
use balancer::base::clock;
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::{Pid, Signal, kill_process},
};

fn config(backend: &ScriptedPeer) -> String {
    format!(
        "drain: {{timeout: 1h}}\nlisteners:\n  web: {{bind: \"@web\", pool: app}}\npools:\n  app:\n    health_check: none\n    backends: [{}]\n",
        backend.address
    )
}

fn next(daemon: &TestDaemon) -> Vec<String> {
    let text = daemon.notified().unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn start_reload_and_end_are_told_in_this_order() {
    let backend = ScriptedPeer::answering("here");
    let text = config(&backend);
    let mut daemon = TestDaemon::launch(&text);
    assert_eq!(next(&daemon), ["READY=1", "STATUS=serving generation 1"]);

    let changed = text.replace("1h", "2h");
    assert_eq!(daemon.reload(&changed).status, 200);
    let reloading = next(&daemon);
    assert_eq!(reloading[0], "RELOADING=1");
    let micros: u64 = reloading[1]
        .strip_prefix("MONOTONIC_USEC=")
        .unwrap()
        .parse()
        .unwrap();
    assert!(micros > 0);
    assert_eq!(next(&daemon), ["READY=1", "STATUS=serving generation 2"]);

    assert_eq!(daemon.reload("nonsense: true\n").status, 422);
    assert_eq!(next(&daemon)[0], "RELOADING=1");
    let failed = next(&daemon);
    assert_eq!(
        failed[0], "READY=1",
        "the reload is over, and the daemon serves"
    );
    assert!(failed[1].contains("generation 2; the last reload failed"));

    daemon.signal(Signal::TERM);
    assert_eq!(next(&daemon), ["STOPPING=1", "STATUS=draining"]);
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

#[test]
fn the_watchdog_is_fed_at_half_its_time_also_during_a_drain() {
    let gate = Gate::new();
    let door = gate.clone();
    let backend = ScriptedPeer::start(move |mut connection| {
        if connection.request().is_some() {
            door.wait();
            connection.answer("finished");
        }
    });
    let with_watchdog = || {
        let mut command = command();
        command.env("WATCHDOG_USEC", "1200000");
        command
    };
    let mut daemon = TestDaemon::start_by(with_watchdog, "run", &config(&backend));
    daemon.wait_notified("WATCHDOG=1");
    let began = clock::now();
    daemon.wait_notified("WATCHDOG=1");
    daemon.wait_notified("WATCHDOG=1");
    let two = began.elapsed();
    assert!(two > Duration::from_millis(600), "{two:?}: not in a rush");
    let mut busy = daemon.client("@web");
    busy.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    backend.wait_for_requests(1);
    daemon.signal(Signal::TERM);
    daemon.wait_notified("STOPPING=1");
    daemon.wait_notified("WATCHDOG=1");
    daemon.wait_notified("WATCHDOG=1");
    gate.open();
    assert_eq!(busy.response().unwrap().text(), "finished");
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

/// A daemon of its own, without ports, that tells an abstract socket; it is killed with the test.
struct BareProcess {
    child: Child,
    directory: TempDir,
    socket: UnixDatagram,
}

impl BareProcess {
    fn start(name: &str) -> Self {
        let directory = TempDir::new();
        let folder = directory.path().display();
        let text = format!(
            "admin: {{bind: \"unix:{folder}/admin.sock\"}}\nmetrics: {{bind: none}}\nlisteners:\n  web: {{bind: \"unix:{folder}/web.sock\", pool: app}}\npools:\n  app:\n    health_check: none\n    backends: [\"unix:{folder}/none.sock\"]\n"
        );
        let file = directory.path().join("balancer.yaml");
        fs::write(&file, text).unwrap();
        let name = format!("balancer-test-{name}-{}", std::process::id());
        let socket = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&socket).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = command()
            .args(["run", "-c"])
            .arg(&file)
            .env("NOTIFY_SOCKET", format!("@{name}"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        Self {
            child,
            directory,
            socket,
        }
    }

    fn notified(&self) -> String {
        let mut buffer = [0; 4096];
        let count = self.socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits until signals are held back: the program has begun.
    fn wait_held(&self) {
        let mask = |text: &str, key| {
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            u64::from_str_radix(line.trim(), 16).ok()
        };
        let held = poll(|| {
            let path = format!("/proc/{}/status", self.child.id());
            let text = fs::read_to_string(path).ok()?;
            (mask(&text, "SigBlk:")? & 1 == 1).then_some(())
        });
        assert!(held.is_some(), "HUP is not blocked in the main thread");
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }
}

impl Drop for BareProcess {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn signals_that_come_while_the_daemon_starts_are_acted_on_when_it_serves() {
    let mut daemon = BareProcess::start("early");
    daemon.wait_held();
    for signal in [Signal::HUP, Signal::USR1, Signal::USR2, Signal::HUP] {
        daemon.signal(signal);
    }
    assert!(daemon.notified().starts_with("READY=1\n"));
    assert!(daemon.notified().starts_with("RELOADING=1\n"));
    assert!(daemon.notified().starts_with("READY=1\n"));
    let ignored = poll(|| daemon.log().contains("USR2 ignored").then_some(()));
    assert!(ignored.is_some(), "{}", daemon.log());
    daemon.signal(Signal::TERM);
    while !daemon.notified().starts_with("STOPPING=1\n") {}
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_term_while_the_daemon_starts_ends_it() {
    let mut daemon = BareProcess::start("early-term");
    daemon.wait_held();
    daemon.signal(Signal::TERM);
    let ended = poll(|| daemon.child.try_wait().unwrap());
    assert_eq!(ended.unwrap().code(), Some(0), "{}", daemon.log());
}

#[test]
fn a_hangup_during_a_drain_leaves_a_line() {
    let gate = Gate::new();
    let backend = ScriptedPeer::slow(&gate, "finished");
    let mut daemon = TestDaemon::start(&config(&backend));
    let mut busy = daemon.client("@web");
    busy.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    backend.wait_for_requests(1);
    daemon.signal(Signal::TERM);
    daemon.wait_notified("STOPPING=1");
    daemon.signal(Signal::HUP);
    daemon.wait_for_log(|line| line.contains("not reloaded: the daemon is draining"));
    gate.open();
    assert_eq!(busy.response().unwrap().text(), "finished");
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

#[test]
fn only_regular_files_are_configuration_and_a_reload_that_finds_another_kind_changes_nothing() {
    let backend = ScriptedPeer::answering("here");
    let text = config(&backend);
    let mut daemon = TestDaemon::start(&text);
    let folder = daemon.directory();
    let fifo = |name: &str| {
        mknodat(CWD, folder.join(name), FileType::Fifo, Mode::RUSR, 0).unwrap();
    };
    fs::create_dir(folder.join("pages")).unwrap();
    for name in ["cert.pem", "token", "pages/502.html"] {
        fifo(name);
    }
    let certificate = "tls: {cert: cert.pem, key: cert.pem}, pool: app";
    let tls = text.replace("pool: app}", &format!("{certificate}}}"));
    for changed in [
        tls.clone(),
        tls.replace("cert.pem", "/dev/zero"),
        tls.replace("cert.pem", "pages"),
        format!("errors: {{pages: pages}}\n{text}"),
        format!("admin: {{bind: \"unix:@dir/admin.sock\", token_file: token}}\n{text}"),
    ] {
        let refused = daemon.reload(&changed);
        assert_eq!(refused.status, 422, "{changed}");
        let refused = refused.text();
        assert!(
            refused.contains("and only regular files are read"),
            "{refused}"
        );
        assert!(refused.contains("balancer.yaml:"), "no place: {refused}");
    }
    fs::remove_file(folder.join("balancer.yaml")).unwrap();
    fifo("balancer.yaml");
    assert_eq!(daemon.admin("POST", "/v1/reload").status, 422);
    fs::remove_file(folder.join("balancer.yaml")).unwrap();
    assert_eq!(daemon.reload(&text.replace("1h", "2h")).status, 200);
    assert_eq!(daemon.get("@web", "/").unwrap().text(), "here");
}
