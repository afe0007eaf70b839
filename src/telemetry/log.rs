//! The daemon's own log on standard error: one line per event, as text or as JSON.
//!
//! Lines go through a [`LogSink`], like those of the access log. So a terminal or pipe without a
//! reader never blocks a worker. Events and fields come from `tracing`. Values are escaped, so that
//! a peer cannot forge a line.

use std::{
    cell::RefCell,
    fmt,
    io::{self, IsTerminal as _},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
    subscriber::Interest,
};

use super::{
    sink::{LogName, LogSink},
    text,
};
use crate::{base::clock, config::model::LogFormat};

/// Maximum size of one value. It is large enough for the rendered errors of a configuration.
const MAX_VALUE_BYTES: usize = 64 << 10;

/// Levels in ascending detail.
const LEVEL_FILTERS: [LevelFilter; 6] = [
    LevelFilter::OFF,
    LevelFilter::ERROR,
    LevelFilter::WARN,
    LevelFilter::INFO,
    LevelFilter::DEBUG,
    LevelFilter::TRACE,
];

/// Current level, as an index into [`LEVEL_FILTERS`]. An atomic, because a reload can change it.
static LEVEL_INDEX: AtomicUsize = AtomicUsize::new(3);

/// Sink of the log, set by [`init`].
static DAEMON_SINK: OnceLock<LogSink> = OnceLock::new();

fn level() -> LevelFilter {
    LEVEL_FILTERS
        .get(LEVEL_INDEX.load(Relaxed))
        .copied()
        .unwrap_or(LevelFilter::INFO)
}

/// Starts the log of this process. A second call only sets the level.
///
/// # Errors
/// When the writer thread cannot be started.
pub fn init(level: LevelFilter, format: LogFormat) -> io::Result<()> {
    set_level(level);
    let sink = LogSink::stderr()?;
    let json = match format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !io::stderr().is_terminal(),
    };
    if DAEMON_SINK.set(sink.clone()).is_ok() {
        // Fails only if a test has set another subscriber, which then stays.
        drop(tracing::subscriber::set_global_default(DaemonLogger {
            sink,
            json,
        }));
    }
    Ok(())
}

/// Changes `log.level` while the daemon runs.
pub fn set_level(level: LevelFilter) {
    // `tracing` caches for each call site whether its level is enabled, so the caches must be
    // rebuilt.
    let position = LEVEL_FILTERS.iter().position(|known| *known == level);
    LEVEL_INDEX.store(position.unwrap_or(3), Relaxed);
    tracing::callsite::rebuild_interest_cache();
}

/// Waits until all events so far are written. Returns false after `timeout`.
pub fn flush(timeout: Duration) -> bool {
    DAEMON_SINK.get().is_none_or(|sink| sink.flush(timeout))
}

/// Subscriber of `tracing`: one line per event. There are no spans.
struct DaemonLogger {
    sink: LogSink,
    json: bool,
}

impl Subscriber for DaemonLogger {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Packets of strangers make the resolver warn, without a limit; what fails is in our own
        // lines.
        metadata.is_event()
            && *metadata.level() <= level()
            && !metadata.target().starts_with("hickory")
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(level())
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        thread_local! {
            static LINE_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        LINE_BUFFER.with(|line| {
            // An event during the formatting of another event has no buffer. It is dropped.
            let Ok(mut line) = line.try_borrow_mut() else {
                return;
            };
            line.clear();
            if self.json {
                json_line(&mut line, clock::unix_now(), event);
            } else {
                text_line(&mut line, clock::unix_now(), event);
            }
            self.sink.write(LogName::Daemon, &line);
        });
    }
}

const fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// Appends a flat object: `{"ts":…,"level":"info","message":…,"field":…}`.
fn json_line(line: &mut Vec<u8>, unix: Duration, event: &Event<'_>) {
    line.extend_from_slice(b"{\"ts\":\"");
    text::timestamp(line, unix);
    line.extend_from_slice(b"\",\"level\":\"");
    line.extend_from_slice(level_name(*event.metadata().level()).as_bytes());
    line.push(b'"');
    event.record(&mut JsonFields(line));
    line.extend_from_slice(b"}\n");
}

/// Visitor that appends fields of a JSON object.
struct JsonFields<'a>(&'a mut Vec<u8>);

impl JsonFields<'_> {
    fn name(&mut self, field: &Field) {
        self.0.extend_from_slice(b",\"");
        text::json_text(self.0, field.name().as_bytes(), MAX_VALUE_BYTES);
        self.0.extend_from_slice(b"\":");
    }

    /// Appends a value without quotes.
    fn bare(&mut self, field: &Field, value: impl fmt::Display) {
        self.name(field);
        self.0.extend_from_slice(value.to_string().as_bytes());
    }
}

impl Visit for JsonFields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.name(field);
        self.0.push(b'"');
        text::json_text(self.0, value.as_bytes(), MAX_VALUE_BYTES);
        self.0.push(b'"');
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinity and no NaN.
        if value.is_finite() {
            self.bare(field, value);
        } else {
            self.record_str(field, &value.to_string());
        }
    }
}

/// Appends a line such as
/// `2026-03-01T12:00:00.000250Z WARN  backend is down pool=web backend=10.0.0.1:80`.
fn text_line(line: &mut Vec<u8>, unix: Duration, event: &Event<'_>) {
    text::timestamp(line, unix);
    let level = level_name(*event.metadata().level()).to_ascii_uppercase();
    line.extend_from_slice(format!(" {level:<5} ").as_bytes());
    let mut fields = TextFields {
        message: String::new(),
        fields: String::new(),
    };
    event.record(&mut fields);
    message_lines(line, &fields.message);
    line.extend_from_slice(fields.fields.as_bytes());
    line.push(b'\n');
}

/// Appends a message that may have several lines, such as the errors of a configuration.
///
/// Further lines are indented, so that none of them looks like a new event. Other control
/// characters are escaped: a terminal would execute them.
fn message_lines(line: &mut Vec<u8>, message: &str) {
    for (position, part) in message.trim_end().lines().enumerate() {
        if position > 0 {
            line.extend_from_slice(b"\n    ");
        }
        for char in part.chars() {
            if char.is_control() {
                line.extend_from_slice(char.escape_default().to_string().as_bytes());
            } else {
                let mut buffer = [0_u8; 4];
                line.extend_from_slice(char.encode_utf8(&mut buffer).as_bytes());
            }
        }
    }
}

/// Visitor that collects the message and the fields of a text line.
struct TextFields {
    message: String,
    fields: String,
}

impl Visit for TextFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
            return;
        }
        // Values with blanks or quotes are quoted, so that a line can be split at blanks.
        let is_word = !value.is_empty()
            && value
                .chars()
                .all(|char| char.is_ascii_graphic() && char != '"' && char != '\\');
        self.fields.push(' ');
        self.fields.push_str(field.name());
        self.fields.push('=');
        if is_word {
            self.fields.push_str(value);
        } else {
            quote(&mut self.fields, value);
        }
    }
}

/// Appends `value` in quotes. Everything that could end the quotes or the line is escaped.
fn quote(out: &mut String, value: &str) {
    out.push('"');
    out.extend(value.chars().flat_map(char::escape_debug));
    out.push('"');
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
