//! The commands of the `balancer` program: their options, their output and their exit codes.
//!
//! `run` and `demo` become the daemon (`runtime`). `reload`, `status` and `backend` use the admin
//! API of a running daemon. `check` only reads the file. docs/operations.md describes the commands
//! for users. Read next: `arguments.rs`, the command line.

mod arguments;
mod backend;
mod backend_screen;
mod check;
mod client;
mod config_file;
mod demo;
mod exit_code;
mod output;
mod override_text;
mod probe;
mod reload;
mod status;
mod table;
mod usage;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser as _;

use self::{
    arguments::{AdminOptions, CliArguments, Command},
    backend::BackendOrder,
    client::{AdminEndpoint, CallError},
    exit_code::EXIT_UNREACHABLE,
    output::{checked, print, print_error},
    status::StatusFormat,
};
use crate::{
    base::{
        address::BindAddress,
        paths::{default_admin_socket, default_config, state_directory},
    },
    config::schema,
    runtime::{self, RunOptions},
};

/// Reads the command line and runs its command. Wrong usage ends the process with code 2.
pub fn main() -> ExitCode {
    // First of all: a signal during the start must not kill a daemon that is about to serve.
    runtime::hold_signals();
    let arguments = match CliArguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => usage::with_tip(error).exit(),
        // clap returns the help text and the version as errors too.
        Err(error) => {
            print(&error.to_string());
            return checked(ExitCode::SUCCESS);
        }
    };
    let command = arguments.command.unwrap_or(Command::Run(arguments.run));
    if !matches!(command, Command::Run(_) | Command::Demo(_)) {
        // Ctrl-C must end the other commands.
        runtime::release_signals();
    }
    checked(dispatch(command))
}

/// Runs one command.
fn dispatch(command: Command) -> ExitCode {
    match command {
        Command::Run(options) => run(options.config),
        Command::Demo(options) => demo::run(options.config.as_deref()),
        Command::Check(options) => {
            let file = options.file.or(options.config);
            let file = file.unwrap_or_else(default_config);
            let user = options.user.as_deref();
            check::run(&file, options.json, user, options.probe)
        }
        Command::Reload(options) => with_admin(options, reload::run),
        Command::Status(options) => {
            let format = if options.ready {
                StatusFormat::Silent
            } else if options.json {
                StatusFormat::Json
            } else {
                StatusFormat::Screen
            };
            let backend = options.backend;
            with_admin(options.admin, |admin| match &backend {
                Some(name) => status::run_backend(admin, &name.to_string(), options.json),
                None => status::run(admin, format),
            })
        }
        Command::Backend(options) => {
            let order = BackendOrder::new(options.action);
            with_admin(order.admin.clone(), |admin| backend::run(admin, &order))
        }
        Command::Schema => {
            print(&format!("{:#}", schema::document()));
            ExitCode::SUCCESS
        }
        Command::Version => {
            print(&format!("balancer {}", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
    }
}

/// Becomes the daemon.
fn run(file: Option<PathBuf>) -> ExitCode {
    runtime::run(
        &file.unwrap_or_else(default_config),
        RunOptions {
            on_ready: None,
            state_directory: state_directory(),
            is_temporary: false,
        },
    )
}

/// Finds the admin API and runs a command with it. Prints every failure to get a response.
fn with_admin(
    options: AdminOptions,
    command: impl FnOnce(&AdminEndpoint) -> Result<ExitCode, CallError>,
) -> ExitCode {
    let admin = match find_admin(options) {
        Ok(admin) => admin,
        Err(rendered) => {
            print_error(&rendered);
            return ExitCode::FAILURE;
        }
    };
    command(&admin).unwrap_or_else(|error| {
        print_error(&format!("error: {error}"));
        ExitCode::from(EXIT_UNREACHABLE)
    })
}

/// Endpoint from the options or from the configuration file; otherwise the default socket.
fn find_admin(options: AdminOptions) -> Result<AdminEndpoint, String> {
    let (bind, token_file) = match options.config {
        Some(file) => {
            let config = config_file::load(&file)?;
            (config.admin.bind, config.admin.token_file)
        }
        None => (options.admin, options.token_file),
    };
    Ok(AdminEndpoint {
        address: bind.unwrap_or_else(|| BindAddress::Unix(default_admin_socket())),
        token_file,
    })
}
