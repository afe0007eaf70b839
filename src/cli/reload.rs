//! `balancer reload`: requests a reload, waits for it, and prints what changed or the errors.

use std::{process::ExitCode, time::Duration};

use serde::Deserialize;

use super::{
    client::{self, AdminEndpoint, ApiResponse, CallError},
    output::{print, print_error},
};

/// Time for a reload: it reads files, resolves names and binds sockets. If it takes longer, it
/// hangs.
const RELOAD_TIMEOUT: Duration = Duration::from_mins(1);

/// Document of a reload that succeeded.
#[derive(Debug, Default, Deserialize)]
struct ReloadSuccess {
    changes: Vec<String>,
    /// Warnings as `check` prints them; older daemons do not send them.
    #[serde(default)]
    rendered: String,
}

/// Document of a reload that failed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ReloadRefusal {
    rendered: Option<String>,
}

/// Exits with 0 if the daemon runs the current file, with 1 if it refused the file.
pub(super) fn run(admin: &AdminEndpoint) -> Result<ExitCode, CallError> {
    let response = client::call(admin, "POST", "/v1/reload", RELOAD_TIMEOUT)?;
    if response.status != 200 {
        print_error(&error_text(&response));
        return Ok(ExitCode::FAILURE);
    }
    let changed: ReloadSuccess = serde_json::from_slice(&response.body)
        .map_err(|error| CallError::Broken(admin.address.clone(), error.to_string()))?;
    // Warnings go to standard error, so that scripts can read the changes from standard output.
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

/// Text of a failed reload: the problems of the file if there are any, otherwise the error.
fn error_text(response: &ApiResponse) -> String {
    let refused: ReloadRefusal = serde_json::from_slice(&response.body).unwrap_or_default();
    let problems = refused
        .rendered
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| client::error_text(response));
    format!(
        "{}\nreload failed: the daemon keeps its running configuration",
        problems.trim_end()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, body: &str) -> String {
        error_text(&ApiResponse {
            status,
            body: body.as_bytes().to_vec(),
        })
    }

    #[test]
    fn a_refused_reload_shows_the_problems_as_check_does() {
        let body = r#"{"error":{"code":422,"message":"m","details":"d"},"problems":[],"rendered":"error: x\n --> f:1:2\n"}"#;
        let text = refused(422, body);
        assert!(
            text.starts_with("error: x\n --> f:1:2\nreload failed"),
            "{text}"
        );
    }

    #[test]
    fn a_failure_without_problems_shows_the_error_and_a_hint() {
        let text = refused(
            401,
            r#"{"error":{"code":401,"message":"Unauthorized","details":"the token is wrong"}}"#,
        );
        let wanted = "error: the token is wrong\ngive the token with `--token-file FILE`";
        assert!(text.starts_with(wanted), "{text}");
        let text = refused(500, "<html>");
        assert!(text.starts_with("error: the daemon responded with status 500\n"));
    }
}
