//! Loads the configuration file of a command.

use std::path::Path;

use crate::config::{self, model::Config};

/// Reads and checks a configuration file. The error is text for the terminal.
pub(super) fn load(file: &Path) -> Result<Config, String> {
    config::load(file)
        .map(|loaded| loaded.config)
        .map_err(|problems| problems.render())
}
