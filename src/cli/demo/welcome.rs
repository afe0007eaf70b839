//! The text that the demo prints when it is ready: its addresses, and commands to try.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use super::backend::{DOWN_DURATION, DemoBackends};
use crate::{
    base::{address::BindAddress, paths::default_admin_socket},
    config::model::{Config, ListenerProtocol},
};

/// Builds the text: the backends, then one line with a command for each thing to try.
pub(super) fn welcome_text(config: &Config, file: &Path, backends: &DemoBackends) -> String {
    let mut text = format!(
        "\nbalancer is ready. It runs {} with {} demo backends in the same process.\n",
        file.display(),
        backends.len()
    );
    for backend in backends.iter() {
        add_line(
            &mut text,
            &backend.name,
            &format!("http://{}", backend.address),
        );
    }
    add_requests(&mut text, config);
    add_backend_commands(&mut text, backends);
    add_daemon_commands(&mut text, config, file);
    text.push_str("Press Ctrl-C to stop.\n");
    text
}

/// Appends a description and its command. Writing to a `String` cannot fail.
fn add_line(text: &mut String, description: &str, command: &str) {
    let _ = writeln!(text, "  {description:<54} {command}");
}

/// Requests through the listeners.
fn add_requests(text: &mut String, config: &Config) {
    let address = |protocol| {
        config
            .listeners
            .iter()
            .filter(|listener| listener.protocol == protocol)
            .find_map(|listener| listener.binds.iter().find_map(reachable))
    };
    if let Some(http) = address(ListenerProtocol::Http) {
        add_line(
            text,
            "send requests to the backends in turn:",
            &format!("curl http://{http}/"),
        );
        add_line(
            text,
            "show the request that a backend gets:",
            &format!("curl http://{http}/headers"),
        );
    }
    if let Some(tcp) = address(ListenerProtocol::Tcp) {
        add_line(
            text,
            "use the same backends over the TCP listener:",
            &format!("curl http://{tcp}/"),
        );
    }
}

/// Commands that change the behaviour of a backend.
fn add_backend_commands(text: &mut String, backends: &DemoBackends) {
    let Some(first) = backends.first() else {
        return;
    };
    add_line(
        text,
        "make a backend fail (or hang, garbage, reset, down):",
        &format!("curl -X POST http://{}/fail", first.address),
    );
    add_line(
        text,
        "make it healthy again:",
        &format!("curl -X POST http://{}/ok", first.address),
    );
    // A backend that is down has closed its port, so another one takes the command for it.
    if let Some(second) = backends.get(1) {
        let seconds = DOWN_DURATION.as_secs();
        add_line(
            text,
            &format!("bring {} up after down (or wait {seconds} s):", first.name),
            &format!("curl -X POST http://{}/ok/{}", second.address, first.name),
        );
    }
}

/// Commands of this program, and the metrics.
fn add_daemon_commands(text: &mut String, config: &Config, file: &Path) {
    // As the user has called it, so that the commands can be copied.
    let program = std::env::args()
        .next()
        .unwrap_or_else(|| "balancer".to_owned());
    let options = admin_options(config, file);
    add_line(
        text,
        "show who is up, who is not, and why:",
        &format!("{program} status{options}"),
    );
    if let Some(metrics) = config.metrics.bind {
        // A wildcard address is for listening only.
        let metrics = reachable(&BindAddress::Ip(metrics)).unwrap_or(metrics);
        add_line(
            text,
            "show the metrics:",
            &format!("curl http://{metrics}/metrics"),
        );
    }
    add_line(
        text,
        "edit the file, then reload it:",
        &format!(
            "{program} reload{options}   (or kill -HUP {})",
            std::process::id()
        ),
    );
}

/// Address for a client on this machine; a wildcard address is reachable as 127.0.0.1.
fn reachable(bind: &BindAddress) -> Option<SocketAddr> {
    match bind {
        BindAddress::Ip(address) if address.ip().is_unspecified() => Some(SocketAddr::new(
            IpAddr::from([127, 0, 0, 1]),
            address.port(),
        )),
        BindAddress::Ip(address) => Some(*address),
        BindAddress::Unix(_) => None,
    }
}

/// Options that `status` and `reload` need in another terminal, with a leading blank.
fn admin_options(config: &Config, file: &Path) -> String {
    match &config.admin.bind {
        Some(BindAddress::Unix(path)) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            format!(" --admin unix:{}", path.display())
        }
        Some(BindAddress::Ip(_)) => {
            let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
            format!(" -c {}", file.display())
        }
        // Only this process has the variable, so the other terminal has another default.
        None if std::env::var_os("RUNTIME_DIRECTORY").is_some() => {
            format!(" --admin unix:{}", default_admin_socket().display())
        }
        None => String::new(),
    }
}
