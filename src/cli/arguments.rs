//! The command line: commands, options and help texts. Doc comments here are the help texts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::base::address::{AddressError, BindAddress};

const HELP_EXAMPLES: &str = "\
Examples:
  balancer demo                        try it: three backends behind one balancer
  balancer check balancer.yaml         report every error in the file, with its place
  balancer check --probe balancer.yaml ask its backends too, before it is taken
  balancer schema                      print the JSON Schema of the file, for your editor
  balancer run -c balancer.yaml        run in the foreground
  balancer reload                      reload the configuration; print what changed, or the errors
  balancer status                      who is up, who is not, why and since when

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

#[derive(Debug, Args)]
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
    pub(super) backend: Option<String>,
    #[command(flatten)]
    pub(super) admin: AdminOptions,
    /// Print the status as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Print nothing; exit with 0 if the daemon is ready, with 3 if it is not
    #[arg(long, conflicts_with = "json")]
    pub(super) ready: bool,
}

/// The name of a pool, and that of a backend or its address.
fn parse_backend(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((pool, backend)) if !pool.is_empty() && !backend.is_empty() => Ok(text.to_owned()),
        _ => Err("write the pool and the backend: `POOL/BACKEND`".to_owned()),
    }
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
