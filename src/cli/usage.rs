//! Tips for command lines of other products: `balancer -t`, `balancer FILE`, `balancer -s reload`.

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

/// Arguments and commands of other products, and the command of ours that does the same.
const OTHER_WORDS: &[(&[&str], &str)] = &[
    (
        &[
            "-t",
            "-T",
            "--test",
            "test",
            "configtest",
            "validate",
            "verify",
        ],
        "`balancer check FILE` checks a configuration file",
    ),
    (
        &["-f", "--conf", "--configfile", "--config-file"],
        "`balancer run -c FILE` runs with a configuration file",
    ),
    (
        &["-s", "signal"],
        "`balancer reload` reloads the configuration; `kill -TERM` drains and stops",
    ),
    (
        &["start", "serve", "daemon"],
        "`balancer run` runs in the foreground; `systemctl start balancer` starts the service",
    ),
    (
        &["stop", "quit", "shutdown"],
        "`systemctl stop balancer`, or `kill -TERM`, drains and stops",
    ),
    (
        &["-D", "-d", "--daemon"],
        "balancer runs in the foreground; `systemctl start balancer` starts the service",
    ),
    (
        &[
            "drain",
            "maintenance",
            "ready",
            "weight",
            "disable",
            "enable",
        ],
        "`balancer backend drain POOL/BACKEND` takes a backend out of service; see `balancer backend --help`",
    ),
    (
        &["-v", "--v", "-vv"],
        "`balancer version` prints the version",
    ),
];

/// Adds a tip to a usage error that another product's habit explains.
pub(super) fn with_tip(mut error: Error) -> Error {
    let (context, is_command) = match error.kind() {
        ErrorKind::UnknownArgument => (ContextKind::InvalidArg, false),
        ErrorKind::InvalidSubcommand => (ContextKind::InvalidSubcommand, true),
        _ => return error,
    };
    let Some(ContextValue::String(word)) = error.get(context) else {
        return error;
    };
    if let Some(tip) = tip(word, is_command) {
        let tips = ContextValue::StyledStrs(vec![tip.into()]);
        error.insert(ContextKind::Suggested, tips);
    }
    error
}

/// The tip for an unknown argument, or an unknown command.
fn tip(word: &str, is_command: bool) -> Option<String> {
    let known = OTHER_WORDS.iter().find(|(words, _)| words.contains(&word));
    if let Some((_, tip)) = known {
        return Some((*tip).to_owned());
    }
    let is_file = word.contains(['/', '.']) && !word.starts_with('-');
    let run = format!("`balancer run -c {word}` runs with this file");
    match (is_file, is_command) {
        (true, true) => Some(format!("{run}, `balancer check {word}` checks it")),
        (true, false) => Some(format!("name a configuration file with `-c {word}`")),
        (false, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tip_names_the_command_that_was_meant() {
        for (word, is_command, part) in [
            ("-t", false, "balancer check FILE"),
            ("balancer.yaml", true, "balancer run -c balancer.yaml"),
            ("/etc/haproxy.cfg", true, "balancer check /etc/haproxy.cfg"),
            ("dur.yaml", false, "-c dur.yaml"),
            ("configtest", true, "balancer check"),
            ("stop", true, "systemctl stop"),
        ] {
            let tip = tip(word, is_command).unwrap_or_default();
            assert!(tip.contains(part), "{word}: {tip}");
        }
        assert_eq!(tip("statsu", true), None);
        assert_eq!(tip("--tokens", false), None);
    }
}
