//! Tests of the access log: golden lines, and attempts to forge a line.

use std::{net::IpAddr, sync::Arc};

use super::*;
use crate::config::model::{LogOutput, LogWhenConfig};

fn rules(format: AccessFormat) -> model::AccessLogConfig {
    model::AccessLogConfig {
        output: LogOutput::None,
        format,
        when: LogWhenConfig {
            min_status: 500,
            slower_than: None,
            sample: 0.0,
        },
        headers: Vec::new(),
    }
}

fn record() -> AccessRecord {
    AccessRecord {
        began: clock::now(),
        listener: Arc::from("web"),
        client: Some(IpAddr::from([192, 0, 2, 7])),
        tls: "TLSv1.3",
        status: 502,
        bytes_in: 12,
        bytes_out: 154,
        route: Some(Arc::from("routes[0]")),
        pool: Some(Arc::from("app")),
        backend: Some(Arc::from("127.0.0.1:9001")),
        attempts: 2,
        reused: true,
        request: Some(Duration::from_micros(80)),
        queue: Some(Duration::from_micros(900)),
        connect: Some(Duration::from_micros(250)),
        first_byte: Some(Duration::from_millis(12)),
        reason: Some(Reason::ConnectionTerminated),
    }
}

fn request() -> RequestText<'static> {
    RequestText {
        protocol: "HTTP/1.1",
        method: b"GET",
        host: b"example.com",
        path: b"/a/b?token=secret",
        request_id: b"0123456789abcdef",
        traceparent: b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        user_agent: b"curl/8.5.0",
        referer: b"https://example.com/",
    }
}

const BEGAN_AT: Duration = Duration::new(1_772_366_400, 250_000);
const TOTAL_TIME: Duration = Duration::from_micros(12_345);

fn json(record: &AccessRecord, request: &RequestText<'_>, headers: &[(&str, &[u8])]) -> String {
    let mut line = Vec::new();
    json_line(&mut line, BEGAN_AT, record, request, headers, TOTAL_TIME);
    String::from_utf8(line).unwrap()
}

fn combined(record: &AccessRecord, request: &RequestText<'_>) -> String {
    let mut line = Vec::new();
    combined_line(&mut line, BEGAN_AT, record, request);
    String::from_utf8(line).unwrap()
}

fn value(line: &str) -> serde_json::Value {
    assert_eq!(line.matches('\n').count(), 1, "{line}");
    serde_json::from_str(line).unwrap()
}

#[test]
fn an_exchange_is_one_flat_object_with_the_promised_fields_in_order() {
    let expected = concat!(
        r#"{"ts":"2026-03-01T12:00:00.000250Z","listener":"web","client":"192.0.2.7","protocol":"HTTP/1.1","#,
        r#""tls":"TLSv1.3","method":"GET","host":"example.com","path":"/a/b","status":502,"bytes_in":12,"bytes_out":154,"#,
        r#""route":"routes[0]","pool":"app","backend":"127.0.0.1:9001","attempts":2,"reused":true,"#,
        r#""t_request":0.000080,"t_queue":0.000900,"t_connect":0.000250,"t_first_byte":0.012000,"t_total":0.012345,"#,
        r#""reason":"connection_terminated","request_id":"0123456789abcdef","#,
        r#""trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","user_agent":"curl/8.5.0","referer":"https://example.com/"}"#,
        "\n"
    );
    assert_eq!(json(&record(), &request(), &[]), expected);
    let page = include_str!("../../docs/access-log.md");
    assert!(page.contains(expected), "the example in docs/access-log.md");
}

#[test]
fn a_session_leaves_out_what_only_http_has() {
    let session = AccessRecord {
        tls: "",
        status: 0,
        route: None,
        request: None,
        queue: None,
        first_byte: None,
        reason: None,
        ..record()
    };
    let expected = concat!(
        r#"{"ts":"2026-03-01T12:00:00.000250Z","listener":"web","client":"192.0.2.7","protocol":"TCP","#,
        r#""bytes_in":12,"bytes_out":154,"pool":"app","backend":"127.0.0.1:9001","attempts":2,"reused":true,"#,
        r#""t_connect":0.000250,"t_total":0.012345}"#,
        "\n"
    );
    assert_eq!(json(&session, &RequestText::default(), &[]), expected);
    assert_eq!(
        combined(&session, &RequestText::default()),
        "192.0.2.7 - - [01/Mar/2026:12:00:00 +0000] \"TCP web\" 000 154 \"-\" \"-\"\n"
    );
}

#[test]
fn the_combined_format_is_what_its_readers_parse() {
    assert_eq!(
        combined(&record(), &request()),
        "192.0.2.7 - - [01/Mar/2026:12:00:00 +0000] \"GET /a/b HTTP/1.1\" 502 154 \"https://example.com/\" \"curl/8.5.0\"\n"
    );
}

#[test]
fn a_hostile_user_agent_cannot_forge_a_line_or_a_field() {
    let hostile: [&[u8]; 6] = [
        b"x\",\"status\":200,\"y\":\"",
        b"x\"}\r\n{\"ts\":\"2026-01-01T00:00:00Z\",\"status\":200}\n",
        b"x\\",
        b"x\0\x1b[2J\x7f",
        b"\xff\xfe\"\xc3",
        "x\u{2028}{\"status\":200}\u{85}\u{202e}".as_bytes(),
    ];
    for agent in hostile {
        let request = RequestText {
            user_agent: agent,
            referer: agent,
            host: agent,
            path: agent,
            method: agent,
            request_id: agent,
            ..request()
        };
        let object = value(&json(&record(), &request, &[("x-a", agent)]));
        assert_eq!(object["status"], 502);
        assert_eq!(object["header_x_a"], object["user_agent"]);
        assert!(object.get("y").is_none());
        let expected: String = match std::str::from_utf8(agent) {
            Ok(text) => text.to_owned(),
            Err(_) => agent.iter().map(|byte| char::from(*byte)).collect(),
        };
        assert_eq!(object["user_agent"], expected);
        let line = combined(&record(), &request);
        assert_eq!(line.matches('\n').count(), 1);
        assert_eq!(line.matches('"').count(), 6, "{line}");
        assert!(line.is_ascii() && !line.trim_end().bytes().any(|byte| byte < b' '));
    }
}

#[test]
fn no_line_is_longer_than_eight_kibibytes() {
    let long = vec![b'"'; 100_000];
    let request = RequestText {
        protocol: "HTTP/1.1",
        method: &long,
        host: &long,
        path: &long,
        request_id: &long,
        traceparent: &long,
        user_agent: &long,
        referer: &long,
    };
    let record = AccessRecord {
        client: Some(IpAddr::from([0xffff_u16; 8])),
        listener: "l".repeat(1_000).into(),
        route: Some("r".repeat(1_000).into()),
        pool: Some("p".repeat(1_000).into()),
        backend: Some("b".repeat(1_000).into()),
        ..record()
    };
    let headers: Vec<(&str, &[u8])> = (0..100).map(|_| ("x-long", &*long)).collect();
    let line = json(&record, &request, &headers);
    assert!(line.len() <= MAX_LINE_BYTES, "{}", line.len());
    assert!(line.ends_with("\"}\n"));
    assert!(line.contains("header_x_long"));
    assert!(combined(&record, &request).len() <= MAX_LINE_BYTES);
}

#[test]
fn a_client_that_disconnects_before_the_response_is_shown_as_499() {
    let left = AccessRecord {
        status: 0,
        reason: Some(Reason::ClientDisconnected),
        ..record()
    };
    assert_eq!(value(&json(&left, &request(), &[]))["status"], 499);
    assert!(combined(&left, &request()).contains("\" 499 154 "));
    let begun = AccessRecord {
        status: 200,
        ..left
    };
    assert_eq!(value(&json(&begun, &request(), &[]))["status"], 200);
}

#[test]
fn only_a_real_trace_id_is_logged() {
    assert!(trace_id(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").is_some());
    for bad in [
        &b""[..],
        b"00",
        b"00-4bf9-1-1",
        b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        b"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        b"0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ] {
        assert_eq!(trace_id(bad), None, "{bad:?}");
    }
}

fn wanted(when: LogWhenConfig, status: u16, reason: Option<Reason>, took: Duration) -> u32 {
    let config = model::AccessLogConfig {
        when,
        ..rules(AccessFormat::Json)
    };
    let log = AccessLog::new(&config, Some(LogSink::stderr().unwrap()));
    let mut random = Random::seeded(3);
    (0..1_000)
        .filter(|_| log.wants(status, reason, took, &mut random))
        .count() as u32
}

#[test]
fn a_line_is_wanted_for_a_bad_status_a_reason_slowness_or_by_sampling() {
    let failures = || rules(AccessFormat::Json).when;
    let short = Duration::from_millis(1);
    assert_eq!(wanted(failures(), 200, None, short), 0);
    assert_eq!(wanted(failures(), 499, None, short), 0);
    assert_eq!(wanted(failures(), 500, None, short), 1_000);
    assert_eq!(
        wanted(failures(), 200, Some(Reason::ResponseIncomplete), short),
        1_000
    );
    let slow = || LogWhenConfig {
        slower_than: Some(Duration::from_secs(1)),
        ..failures()
    };
    assert_eq!(wanted(slow(), 200, None, Duration::from_secs(1)), 0);
    assert_eq!(
        wanted(slow(), 200, None, Duration::from_millis(1_001)),
        1_000
    );
    let sampled = |sample| LogWhenConfig {
        sample,
        ..failures()
    };
    assert!((60..140).contains(&wanted(sampled(0.1), 200, None, short)));
    assert_eq!(wanted(sampled(1.0), 200, None, short), 1_000);
}

#[test]
fn without_an_output_nothing_is_wanted() {
    let log = AccessLog::new(&rules(AccessFormat::Json), None);
    let mut random = Random::seeded(1);
    assert!(!log.wants(502, Some(Reason::Overload), TOTAL_TIME, &mut random));
}
