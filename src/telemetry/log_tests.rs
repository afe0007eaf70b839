//! Tests of the lines of the daemon's log in both formats.

use std::path::PathBuf;

use super::*;
use crate::config::model::LogOutput;

/// Lines that `log` writes.
fn written(name: &str, json: bool, log: impl FnOnce()) -> String {
    let file = format!("balancer-log-{}-{name}", std::process::id());
    let path: PathBuf = std::env::temp_dir().join(file);
    drop(std::fs::remove_file(&path));
    let sink = LogSink::open(&LogOutput::File(path.clone()))
        .unwrap()
        .unwrap();
    let logger = DaemonLogger {
        sink: sink.clone(),
        json,
    };
    tracing::subscriber::with_default(logger, log);
    assert!(sink.flush(Duration::from_secs(20)));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    text
}

#[test]
fn text_is_one_readable_line_per_event() {
    let text = written("text", false, || {
        tracing::error!(
            pool = "app",
            backend = %"10.0.0.1:80",
            streak = 3,
            cause = "no route\nto host",
            "backend is down"
        );
    });
    let (time, rest) = text.split_once(' ').unwrap();
    assert_eq!(time.len(), "2026-03-01T12:00:00.000250Z".len());
    assert_eq!(
        rest,
        "ERROR backend is down pool=app backend=10.0.0.1:80 streak=3 cause=\"no route\\nto host\"\n"
    );
}

#[test]
fn further_lines_of_a_message_cannot_pass_for_events() {
    let text = written("lines", false, || {
        tracing::error!("bad configuration\n2026-03-01T00:00:00Z INFO all is well\x1b[2J");
    });
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(
        lines[1],
        "    2026-03-01T00:00:00Z INFO all is well\\u{1b}[2J"
    );
}

#[test]
fn json_is_flat_and_keeps_the_type_of_each_value() {
    let text = written("json", true, || {
        tracing::error!(
            streak = 3,
            share = 0.5,
            bad = f64::NAN,
            up = false,
            cause = "a\"\n{",
            "back\\end"
        );
    });
    let mut object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&text).unwrap();
    assert_eq!(text.matches('\n').count(), 1);
    assert!(
        object
            .remove("ts")
            .unwrap()
            .as_str()
            .unwrap()
            .ends_with('Z')
    );
    let expected = serde_json::json!({
        "level": "error", "message": "back\\end", "streak": 3, "share": 0.5, "bad": "NaN", "up": false, "cause": "a\"\n{",
    });
    assert_eq!(serde_json::Value::Object(object), expected);
}

#[test]
fn the_level_can_be_changed_while_running() {
    let text = written("level", false, || {
        for level in [
            LevelFilter::INFO,
            LevelFilter::DEBUG,
            LevelFilter::ERROR,
            LevelFilter::INFO,
        ] {
            set_level(level);
            tracing::debug!("debug at {level}");
            tracing::info!("info at {level}");
        }
    });
    let messages: Vec<&str> = text.lines().map(|line| &line[34..]).collect();
    assert_eq!(
        messages,
        [
            "info at info",
            "debug at debug",
            "info at debug",
            "info at info"
        ]
    );
}
