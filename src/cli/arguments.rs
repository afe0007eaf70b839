//! The command line: commands, options and help texts. Doc comments here are the help texts.

use std::{fmt, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::base::{
    address::{AddressError, BindAddress},
    units,
};

const HELP_EXAMPLES: &str = "\
Examples:
  balancer demo                        try it: three backends behind one balancer
  balancer check balancer.yaml         report every error in the file, with its place
  balancer check --probe balancer.yaml ask its backends too, before it is taken
  balancer schema                      print the JSON Schema of the file, for your editor
  balancer run -c balancer.yaml        run in the foreground
  balancer reload                      reload the configuration; print what changed, or the errors
  balancer status                      who is up, who is not, why and since when
  balancer backend drain app/b1 --wait give a backend no new work, and wait until it has none
  balancer backend ready app/b1        bring it back

Exit codes: 0 success, 1 failure, 2 wrong usage, 3 degraded or not ready, 4 daemon not reachable,
78 bad configuration at start.
Signals: HUP reloads; TERM and INT drain, a second one exits at once; QUIT drains; USR1 reopens log files.";

/// A layer-4 and layer-7 load balancer: one process, one YAML file, reload by SIGHUP
#[derive(Debug, Parser)]
#[command(name = "balancer", version, after_help = HELP_EXAMPLES, args_conflicts_with_subcommands = true)]
pub(super) struct CliArguments {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten)]
    pub(super) run: FileOption,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run in the foreground until a signal stops it (the default command)
    Run(FileOption),
    /// Check a configuration file and report every error
    Check(CheckOptions),
    /// Print the JSON Schema of the configuration file, for editors
    Schema,
    /// Try balancer: run the shipped configuration with embedded backends
    Demo(FileOption),
    /// Tell the running daemon to reload its configuration; print what changed, or the errors
    Reload(AdminOptions),
    /// Show listeners, pools and backends: who is up, who is not, why and since when
    Status(StatusOptions),
    /// Take a backend out of service and back, or change its weight
    Backend(BackendOptions),
    /// Print the version
    Version,
}

#[derive(Debug, Args)]
pub(super) struct FileOption {
    /// Configuration file [default: /etc/balancer/balancer.yaml if it exists, else balancer.yaml]
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct CheckOptions {
    /// Configuration file, `-` for standard input [default: /etc/balancer/balancer.yaml if it
    /// exists, else balancer.yaml]
    pub(super) file: Option<PathBuf>,
    /// Configuration file, as an option like that of the other commands
    #[arg(
        short = 'c',
        long = "config",
        value_name = "FILE",
        conflicts_with = "file"
    )]
    pub(super) config: Option<PathBuf>,
    /// Check with the permissions of this user, such as the user of the service; needs root
    #[arg(long, value_name = "NAME")]
    pub(super) user: Option<String>,
    /// Print the result as one JSON object
    #[arg(long)]
    pub(super) json: bool,
    /// Then ask every backend once, as its health check would; exit with 1 if a pool has none that
    /// passes
    #[arg(long)]
    pub(super) probe: bool,
}

#[derive(Debug, Clone, Args)]
pub(super) struct AdminOptions {
    /// Address of the admin API: `unix:PATH` or a loopback address [default: admin.sock in the
    /// runtime directory]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_bind)]
    pub(super) admin: Option<BindAddress>,
    /// File with the token of the admin API; required for a loopback address
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Read address and token file from this configuration file instead
    #[arg(short = 'c', long = "config", value_name = "FILE", conflicts_with_all = ["admin", "token_file"])]
    pub(super) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct StatusOptions {
    /// Show one backend, with its last checks
    #[arg(value_name = "POOL/BACKEND", value_parser = parse_backend, conflicts_with = "ready")]
    pub(super) backend: Option<BackendName>,
    #[command(flatten)]
    pub(super) admin: AdminOptions,
    /// Print the status as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Print nothing; exit with 0 if the daemon is ready, with 3 if it is not
    #[arg(long, conflicts_with = "json")]
    pub(super) ready: bool,
}

#[derive(Debug, Args)]
pub(super) struct BackendOptions {
    #[command(subcommand)]
    pub(super) action: BackendCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum BackendCommand {
    /// Give it no new work; what it has goes on, and sticky clients stay
    Drain(TakeOutOptions),
    /// Give it no work at all, also not that of sticky clients; what it has goes on
    Maintenance(TakeOutOptions),
    /// End drain, maintenance and weight: the file and the checks decide again
    Ready(ReadyOptions),
    /// Set its weight in place of that of the file
    Weight(WeightOptions),
}

/// Options of `drain` and `maintenance`.
#[derive(Debug, Args)]
pub(super) struct TakeOutOptions {
    /// Pool and backend, by its name or address
    #[arg(value_name = "POOL/BACKEND", value_parser = parse_backend)]
    pub(super) backend: BackendName,
    /// Wait until nothing is in flight on it, at most TIMEOUT such as 30s
    #[arg(long, value_name = "TIMEOUT", num_args = 0..=1, default_missing_value = "none", value_parser = parse_wait)]
    pub(super) wait: Option<WaitLimit>,
    #[command(flatten)]
    pub(super) common: OverrideOptions,
}

#[derive(Debug, Args)]
pub(super) struct ReadyOptions {
    /// Pool and backend, by its name or address
    #[arg(value_name = "POOL/BACKEND", value_parser = parse_backend)]
    pub(super) backend: BackendName,
    /// Reason, for the log
    #[arg(long, value_name = "TEXT")]
    pub(super) note: Option<String>,
    #[command(flatten)]
    pub(super) output: BackendOutput,
}

#[derive(Debug, Args)]
pub(super) struct WeightOptions {
    /// Pool and backend, by its name or address
    #[arg(value_name = "POOL/BACKEND", value_parser = parse_backend)]
    pub(super) backend: BackendName,
    /// 0 to 256; 0 gets no new work
    #[arg(value_parser = clap::value_parser!(u16).range(0..=256))]
    pub(super) weight: u16,
    #[command(flatten)]
    pub(super) common: OverrideOptions,
}

/// Options of every command that sets something.
#[derive(Debug, Args)]
pub(super) struct OverrideOptions {
    /// End it by itself after this time, such as 10m [default: never]
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    pub(super) duration: Option<String>,
    /// Reason, for `status` and the log
    #[arg(long, value_name = "TEXT")]
    pub(super) note: Option<String>,
    #[command(flatten)]
    pub(super) output: BackendOutput,
}

#[derive(Debug, Args)]
pub(super) struct BackendOutput {
    /// Print the result as JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) admin: AdminOptions,
}

/// A backend of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BackendName {
    pub(super) pool: String,
    pub(super) backend: String,
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.backend)
    }
}

/// Splits at the first `/`: names of pools have none, addresses of backends may.
fn parse_backend(text: &str) -> Result<BackendName, String> {
    let name = text.split_once('/').map(|(pool, backend)| BackendName {
        pool: pool.to_owned(),
        backend: backend.to_owned(),
    });
    name.filter(|name| !name.pool.is_empty() && !name.backend.is_empty())
        .ok_or_else(|| "write the pool and the backend, as in `app/10.0.0.1:8080`".to_owned())
}

/// Checks a duration here, and passes it on as it is written.
fn parse_duration(text: &str) -> Result<String, String> {
    let checked = units::duration(text);
    checked
        .map(|_| text.to_owned())
        .map_err(|error| format!("{error}; write a duration such as 10m"))
}

/// Longest time that a command waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WaitLimit {
    Unlimited,
    AtMost(Duration),
}

fn parse_wait(text: &str) -> Result<WaitLimit, String> {
    if text == "none" {
        return Ok(WaitLimit::Unlimited);
    }
    let limit = units::duration(text).map_err(|error| {
        format!("{error}; write a duration such as 30s, and `--wait` behind POOL/BACKEND")
    });
    limit.map(WaitLimit::AtMost)
}

fn parse_bind(text: &str) -> Result<BindAddress, String> {
    text.parse()
        .map_err(|error: AddressError| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CliArguments::command().debug_assert();
    }

    #[test]
    fn run_is_the_default_command() {
        let arguments = CliArguments::try_parse_from(["balancer", "-c", "a.yaml"]).unwrap();
        assert!(arguments.command.is_none());
        assert_eq!(arguments.run.config.as_deref(), Some(Path::new("a.yaml")));
        let arguments = CliArguments::try_parse_from(["balancer", "run", "-c", "b.yaml"]).unwrap();
        let Some(Command::Run(options)) = arguments.command else {
            panic!("not run: {arguments:?}");
        };
        assert_eq!(options.config.as_deref(), Some(Path::new("b.yaml")));
    }

    #[test]
    fn a_backend_is_a_pool_and_a_name_or_address() {
        let parse = |words: &[&str]| {
            let words = ["balancer", "backend"].iter().chain(words);
            CliArguments::try_parse_from(words).map(|parsed| parsed.command)
        };
        let drain = parse(&["drain", "app/unix:/run/a.sock", "--wait", "--for", "10m"]);
        let Some(Command::Backend(options)) = drain.unwrap() else {
            panic!("not a command of backends");
        };
        let BackendCommand::Drain(options) = options.action else {
            panic!("not drain");
        };
        assert_eq!(options.backend.pool, "app");
        assert_eq!(options.backend.backend, "unix:/run/a.sock");
        assert_eq!(options.wait, Some(WaitLimit::Unlimited));
        for (words, part) in [
            (&["drain", "app"][..], "app/10.0.0.1:8080"),
            (&["drain", "/b"], "app/10.0.0.1:8080"),
            (&["drain", "--wait", "app/b"], "behind POOL/BACKEND"),
            (&["drain", "app/b", "--for", "10"], "such as 10m"),
            (&["weight", "app/b", "257"], "0..=256"),
            (&["weight", "app/b"], "WEIGHT"),
            (&["ready", "app/b", "--for", "1m"], "--for"),
        ] {
            let error = parse(words).unwrap_err().to_string();
            assert!(error.contains(part), "{words:?}: {error}");
        }
    }

    #[test]
    fn the_admin_address_is_a_socket_or_an_ip_address() {
        let parse = |address: &str| {
            CliArguments::try_parse_from(["balancer", "reload", "--admin", address]).is_ok()
        };
        assert!(parse("unix:/run/balancer/admin.sock"));
        assert!(parse("127.0.0.1:9901"));
        assert!(!parse("admin.sock"));
        assert!(
            CliArguments::try_parse_from(["balancer", "reload", "--admin", ":1", "-c", "a"])
                .is_err(),
            "two sources of one address"
        );
    }
}
