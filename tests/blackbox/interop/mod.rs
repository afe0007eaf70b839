//! Clients and servers that people use, through the built program.
//!
//! The other program's part is a script in `tests/interop/`, which exits with 1 if something is
//! wrong; what balancer must have seen is asserted here. If a program is missing, its test is
//! skipped and prints so. docs/soak-tests.md lists what to install.

mod clients;
mod go;
mod grpc;
mod origin;
mod servers;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::harness::{
    daemon::{TestDaemon, sum_of},
    peer::ScriptedPeer,
    program::ForeignProgram,
    tls::TestAuthority,
    tools,
};

/// A daemon for clients of others, in front of [`origin`].
struct InteropFixture {
    authority: TestAuthority,
    daemon: TestDaemon,
    _origin: ScriptedPeer,
}

impl InteropFixture {
    fn new() -> Self {
        Self::with("")
    }

    /// A listener under TLS, `@secure`, and one without, `@plain`, each HTTP/1.1 and HTTP/2. `more`
    /// pools and routes follow the one of the origin.
    fn with(more: &str) -> Self {
        let authority = TestAuthority::new();
        authority.sign("front", &["localhost", "127.0.0.1"]);
        let origin = origin::start();
        let daemon = TestDaemon::start(&format!(
            "workers: 2\naccess_log: {{when: {{sample: 100%}}}}\n\
             listeners:\n  secure: {{bind: \"@secure\", pool: app, tls: {{{}}}}}\n  plain: {{bind: \"@plain\", pool: app}}\n\
             pools:\n  app: {{backends: [\"{}\"], health_check: none}}\n{more}",
            authority.pair("front"),
            origin.address,
        ));
        Self {
            authority,
            daemon,
            _origin: origin,
        }
    }

    /// The URL of a listener: the one under TLS by the name that its certificate has.
    fn front(&self, listener: &str) -> String {
        let address = self.daemon.address(&format!("@{listener}"));
        match listener {
            "secure" => format!("https://localhost:{}", address.port()),
            _ => format!("http://{address}"),
        }
    }

    /// Number of connections that a listener has accepted.
    fn connections(&self, listener: &str) -> f64 {
        let name = "balancer_listener_connections_total";
        self.daemon
            .metric(&format!("{name}{{listener=\"{listener}\"}}"))
    }

    /// Nothing went wrong, but for as many exchanges as the client has given up.
    #[track_caller]
    fn assert_given_up(&self, exchanges: f64) {
        let given_up = "balancer_errors_total{reason=\"client_disconnected\"}";
        self.daemon
            .wait_for_metric(given_up, |found| found == exchanges);
        let page = self.daemon.scrape();
        assert_eq!(sum_of(&page, "balancer_errors_total"), exchanges, "{page}");
    }
}

/// A file of `tests/interop/`.
fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/interop")
        .join(name)
}

/// Runs a client to its end; gives what it says, and shows that with `--nocapture`.
#[track_caller]
fn run(command: &mut Command) -> String {
    let said = ForeignProgram::start(command).finish();
    println!("{said}");
    said
}

/// The Python that has the modules of `tests/interop/requirements.txt`: `INTEROP_PYTHON`, or the
/// one in `target/interop-venv`. `None`, and said so, where it lacks one of `modules`.
fn python(modules: &[&str]) -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/interop-venv/bin/python");
    let python = std::env::var_os("INTEROP_PYTHON").map_or(own, PathBuf::from);
    let has = |module: &&&str| {
        let import = format!("import {module}");
        !tools::runs(Command::new(&python).args(["-c", &import]))
    };
    let missing = modules.iter().find(has);
    if let Some(module) = missing {
        let how = "in target/interop-venv, see docs/soak-tests.md";
        tools::skipped(&format!("the Python module {module}"), how);
    }
    missing.is_none().then_some(python)
}
