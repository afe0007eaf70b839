//! `balancer reload`: asks the daemon to take its file, waits, and prints what changed or why nothing did.

use std::{process::ExitCode, time::Duration};

use serde::Deserialize;

use super::{
    client::{self, AdminEndpoint, ApiResponse, CallError},
    output::{print, print_error},
};

/// A reload reads files, resolves names and binds sockets; longer than this something is stuck.
const RELOAD_TIMEOUT: Duration = Duration::from_mins(1);

#[derive(Debug, Default, Deserialize)]
struct ReloadSuccess {
    changes: Vec<String>,
    /// Warnings as `check` prints them.
    #[serde(default)]
    rendered: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ReloadRefusal {
    rendered: Option<String>,
}

/// Exit code 0 when the daemon runs the file as it is now, 1 when it refused it and goes on as before.
pub(super) fn run(admin: &AdminEndpoint) -> Result<ExitCode, CallError> {
    let answer = client::call(admin, "POST", "/v1/reload", RELOAD_TIMEOUT)?;
    if answer.status != 200 {
        print_error(&refusal(&answer));
        return Ok(ExitCode::FAILURE);
    }
    let changed: ReloadSuccess = serde_json::from_slice(&answer.body)
        .map_err(|error| CallError::Broken(admin.address.clone(), error.to_string()))?;
    if !changed.rendered.is_empty() {
        print_error(&changed.rendered);
    }
    if changed.changes.is_empty() {
        print("nothing changed");
    } else {
        print(&changed.changes.join("\n"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The daemon's words: the rendered problems where there are some, else its error.
fn refusal(answer: &ApiResponse) -> String {
    let refused: ReloadRefusal = serde_json::from_slice(&answer.body).unwrap_or_default();
    let why = refused
        .rendered
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| client::refusal(answer));
    format!(
        "{}\nnot reloaded: the daemon goes on with the configuration it has",
        why.trim_end()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, body: &str) -> String {
        refusal(&ApiResponse {
            status,
            body: body.as_bytes().to_vec(),
        })
    }

    #[test]
    fn a_refused_reload_shows_the_problems_as_check_does() {
        let body = r#"{"error":{"code":422,"message":"m","details":"d"},"problems":[],"rendered":"error: x\n --> f:1:2\n"}"#;
        let text = refused(422, body);
        assert!(
            text.starts_with("error: x\n --> f:1:2\nnot reloaded"),
            "{text}"
        );
    }

    #[test]
    fn a_refusal_without_problems_shows_the_error_and_what_is_missing() {
        let text = refused(
            401,
            r#"{"error":{"code":401,"message":"Unauthorized","details":"the token is wrong"}}"#,
        );
        let wanted = "error: the token is wrong\nname the file with `--token-file FILE`";
        assert!(text.starts_with(wanted), "{text}");
        let text = refused(500, "<html>");
        assert!(text.starts_with("error: the daemon answered with status 500\n"));
    }
}
