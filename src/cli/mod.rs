//! The commands of the `balancer` program: what they are called, what they print, and their exit codes.
//!
//! `run` and `demo` become the daemon (`runtime`); `reload` and `status` ask a running one over its admin API; `check`
//! only reads the file. docs/operations.md is the users' page.

mod check;
mod client;
mod demo;
mod output;
mod reload;
mod status;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};

use self::{
    client::{AdminEndpoint, CallError},
    output::{checked, print, print_error},
};
use crate::{
    base::{
        address::BindAddress,
        paths::{default_admin_socket, default_config},
    },
    config::{self, model::Config},
    runtime::{self, RunOptions},
};

/// Exit code: degraded or not ready.
const EXIT_DEGRADED: u8 = 3;
/// Exit code: the daemon is not reachable.
const EXIT_UNREACHABLE: u8 = 4;
/// Exit code: bad configuration at start; EX_CONFIG of sysexits.h, so that systemd does not restart us.
const EXIT_BAD_CONFIG: u8 = 78;

const HELP_EXAMPLES: &str = "\
Examples:
  balancer demo                        see it at work: three backends, one balancer
  balancer check balancer.yaml         is the file right? every mistake, with its place
  balancer run -c balancer.yaml        run in the foreground
  balancer reload                      take the changed file, or say why not
  balancer status                      who is up, who is not, why and since when

Exit codes: 0 ok, 1 no or failed, 2 usage, 3 degraded or not ready, 4 daemon not reachable,
78 bad configuration at start.
Signals: HUP reloads; TERM and INT drain, a second one stops at once; QUIT drains; USR1 reopens log files.";

/// A layer-4 and layer-7 load balancer: one process, one YAML file, SIGHUP.
#[derive(Debug, Parser)]
#[command(name = "balancer", version, after_help = HELP_EXAMPLES, args_conflicts_with_subcommands = true)]
struct CliArguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: FileOption,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run in the foreground until a signal ends it (the default command)
    Run(FileOption),
    /// Check a configuration file and say every mistake in it
    Check(CheckOptions),
    /// Run the shipped configuration with embedded backends, to try balancer out
    Demo(FileOption),
    /// Tell the running daemon to take its changed file; prints what changed, or why nothing did
    Reload(AdminOptions),
    /// Show pools and backends, who is up, who is not, why and since when
    Status(StatusOptions),
    /// Print the version
    Version,
}

#[derive(Debug, Args)]
struct FileOption {
    /// Configuration file [default: /etc/balancer/balancer.yaml if it exists, else balancer.yaml]
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct CheckOptions {
    /// Configuration file, `-` for standard input [default: /etc/balancer/balancer.yaml if it exists, else balancer.yaml]
    file: Option<PathBuf>,
    /// The same, as the other commands take it
    #[arg(
        short = 'c',
        long = "config",
        value_name = "FILE",
        conflicts_with = "file"
    )]
    config: Option<PathBuf>,
    /// Read everything with the rights of this user, as the service does; needs root
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct AdminOptions {
    /// Where the daemon's admin API is: a loopback address or `unix:PATH` [default: admin.sock in the runtime directory]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_bind)]
    admin: Option<BindAddress>,
    /// File with the token of the admin API; needed where it is a loopback address
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Read both from this configuration file instead
    #[arg(short = 'c', long = "config", value_name = "FILE", conflicts_with_all = ["admin", "token_file"])]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct StatusOptions {
    #[command(flatten)]
    admin: AdminOptions,
    /// Print the daemon's own JSON
    #[arg(long)]
    json: bool,
    /// Print nothing; exit 0 when the daemon is ready, 3 when it is not
    #[arg(long, conflicts_with = "json")]
    ready: bool,
}

fn parse_bind(text: &str) -> Result<BindAddress, String> {
    text.parse()
        .map_err(|error: crate::base::address::AddressError| error.to_string())
}

/// Reads the command line and does what it says. Wrong usage ends the process with code 2.
pub fn main() -> ExitCode {
    runtime::hold_signals();
    let arguments = match CliArguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => error.exit(),
        // The help, or the version.
        Err(error) => {
            print(&error.to_string());
            return checked(ExitCode::SUCCESS);
        }
    };
    let command = arguments.command.unwrap_or(Command::Run(arguments.run));
    if !matches!(command, Command::Run(_) | Command::Demo(_)) {
        runtime::release_signals();
    }
    checked(dispatch(command))
}

fn dispatch(command: Command) -> ExitCode {
    match command {
        Command::Run(options) => run(options.config),
        Command::Demo(options) => demo::run(options.config.as_deref()),
        Command::Check(options) => {
            let file = options.file.or(options.config);
            let file = file.unwrap_or_else(default_config);
            check::run(&file, options.json, options.user.as_deref())
        }
        Command::Reload(options) => with_admin(options, reload::run),
        Command::Status(options) => {
            let show = if options.ready {
                status::StatusFormat::Silent
            } else if options.json {
                status::StatusFormat::Json
            } else {
                status::StatusFormat::Screen
            };
            with_admin(options.admin, |admin| status::run(admin, show))
        }
        Command::Version => {
            print(&format!("balancer {}", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
    }
}

fn run(file: Option<PathBuf>) -> ExitCode {
    runtime::run(
        &file.unwrap_or_else(default_config),
        RunOptions { on_ready: None },
    )
}

/// Finds the admin API and asks; every way to not get an answer is told here.
fn with_admin(
    options: AdminOptions,
    ask: impl FnOnce(&AdminEndpoint) -> Result<ExitCode, CallError>,
) -> ExitCode {
    let admin = match find_admin(options) {
        Ok(admin) => admin,
        Err(rendered) => {
            print_error(&rendered);
            return ExitCode::FAILURE;
        }
    };
    ask(&admin).unwrap_or_else(|error| {
        print_error(&format!("error: {error}"));
        ExitCode::from(EXIT_UNREACHABLE)
    })
}

fn find_admin(options: AdminOptions) -> Result<AdminEndpoint, String> {
    let (bind, token_file) = match options.config {
        Some(file) => {
            let config = load(&file)?;
            (config.admin.bind, config.admin.token_file)
        }
        None => (options.admin, options.token_file),
    };
    Ok(AdminEndpoint {
        address: bind.unwrap_or_else(|| BindAddress::Unix(default_admin_socket())),
        token_file,
    })
}

/// Reads and checks a configuration file; the error is ready to be shown.
fn load(file: &Path) -> Result<Config, String> {
    config::load(file)
        .map(|loaded| loaded.config)
        .map_err(|problems| problems.render())
}

#[cfg(test)]
mod tests {
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
