//! Problems of a configuration, one per place, shown as text for people or as JSON for programs.
//!
//! Knows nothing of the keys. Shows the offending line only, never other contents of the file.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use super::yaml::SourcePlace;

/// Most problems that [`Problems::render`] writes out; more are only counted.
const MAX_PROBLEMS_SHOWN: usize = 100;

/// Error or warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is accepted, but probably does not do what its author meant.
    Warning,
}

impl Severity {
    /// `error` or `warning`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One mistake, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Error or warning.
    pub severity: Severity,
    /// The file as it was named by the caller.
    pub file: PathBuf,
    /// Place in the file; line 0 for the file as a whole.
    pub place: SourcePlace,
    /// The path of the key, such as `pools.app.backends[2].weight`; empty for the file as a whole.
    pub path: String,
    /// The mistake, or what was expected: one line without a capital and a full stop.
    pub message: String,
    /// The remedy: one line.
    pub hint: String,
    /// The offending line; empty when there is none.
    pub line_text: String,
}

impl Problem {
    fn rendered(&self, renderer: &Renderer) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let file = self.file.to_string_lossy();
        let mut group = Group::with_title(level.primary_title(self.message.as_str()));
        if self.place.line == 0 {
            group = group.element(Origin::path(file.as_ref()));
            group = group.element(Level::HELP.message(self.hint.as_str()));
            return renderer.render(&[group]);
        }
        let start = byte_of_column(&self.line_text, self.place.column);
        let width = self.place.end.saturating_sub(self.place.start);
        let mut end = (start + width).clamp(start, self.line_text.len());
        while !self.line_text.is_char_boundary(end) {
            end -= 1;
        }
        group = group.element(
            Snippet::source(self.line_text.as_str())
                .line_start(self.place.line)
                .path(file.as_ref())
                .annotation(
                    AnnotationKind::Primary
                        .span(start..end)
                        .label(self.hint.as_str()),
                ),
        );
        if !self.path.is_empty() {
            group = group.element(
                Level::NOTE
                    .with_name(Some("key"))
                    .message(self.path.as_str()),
            );
        }
        renderer.render(&[group])
    }

    /// The problem as one JSON object: severity, file, line, column, path, message, hint.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "severity": self.severity.name(),
            "file": self.file.to_string_lossy(),
            "line": self.place.line,
            "column": self.place.column,
            "path": self.path,
            "message": self.message,
            "hint": self.hint,
        })
    }
}

impl fmt::Display for Problem {
    /// One line, for logs: `balancer.yaml:22:14: listeners.web.pool: pool `ap` is not defined; did
    /// you mean `app`?`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.place.line > 0 {
            write!(f, "{}:{}:", self.place.line, self.place.column)?;
        }
        if !self.path.is_empty() {
            write!(f, " {}:", self.path)?;
        }
        write!(f, " {}; {}", self.message, self.hint)
    }
}

/// All problems of a file, in the order of their places.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// One problem about a file as a whole.
    pub fn of_file(file: &Path, message: String, hint: &str) -> Self {
        Self(vec![Problem {
            severity: Severity::Error,
            file: file.to_owned(),
            place: SourcePlace::default(),
            path: String::new(),
            message,
            hint: hint.to_owned(),
            line_text: String::new(),
        }])
    }

    /// The number of errors among them.
    pub fn errors(&self) -> usize {
        self.0
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
            .count()
    }

    /// For people, without colour; ends with a line break unless it is empty.
    pub fn render(&self) -> String {
        render(&self.0, false)
    }

    /// For people, with terminal colours.
    pub fn render_coloured(&self) -> String {
        render(&self.0, true)
    }

    /// For programs: a list of objects, see [`Problem::to_json`].
    pub fn to_json(&self) -> serde_json::Value {
        self.0.iter().map(Problem::to_json).collect()
    }
}

/// Writes out problems for people, one paragraph each.
pub fn render(problems: &[Problem], coloured: bool) -> String {
    let renderer = if coloured {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    let mut out = String::new();
    for problem in problems.iter().take(MAX_PROBLEMS_SHOWN) {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&problem.rendered(&renderer));
        out.push('\n');
    }
    if problems.len() > MAX_PROBLEMS_SHOWN {
        out.push_str("\nand ");
        out.push_str(&(problems.len() - MAX_PROBLEMS_SHOWN).to_string());
        out.push_str(" more\n");
    }
    out
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render())
    }
}

impl std::error::Error for Problems {}

fn byte_of_column(line: &str, column: usize) -> usize {
    line.char_indices()
        .nth(column.saturating_sub(1))
        .map_or(line.len(), |(offset, _)| offset)
}

/// The user's text in backticks: control characters escaped, shortened to 60 characters.
pub fn quote(text: &str) -> String {
    let mut out = String::from("`");
    for (count, c) in text.chars().enumerate() {
        if count == 60 {
            out.push('…');
            break;
        }
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out.push('`');
    out
}

/// `a`, `b` and `c`, each in backquotes.
pub(super) fn list_of_all(words: &[&str]) -> String {
    match words {
        [first @ .., last] if !first.is_empty() => format!("`{}` and `{last}`", first.join("`, `")),
        _ => word_list(words),
    }
}

/// `a`, `b` or `c`, each in backquotes.
pub(super) fn word_list(words: &[&str]) -> String {
    match words {
        [] => "nothing".to_owned(),
        [one] => format!("`{one}`"),
        [first @ .., last] => format!("`{}` or `{last}`", first.join("`, `")),
    }
}
