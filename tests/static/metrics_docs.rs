//! The reference pages name every metric, reason and log field that the code has, and none that it
//! has not.

use std::{collections::BTreeMap, fs, path::PathBuf};

use balancer::{
    admin::families::{self, MetricKind},
    reason::{Reason, StatusProfile},
    telemetry::handshakes::HandshakeFailure,
};

fn docs(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(name)
}

/// Cells of the table rows of `page` whose first cell is code.
fn rows(page: &str) -> Vec<Vec<String>> {
    page.lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().replace('`', "")).collect()
        })
        .collect()
}

#[test]
fn every_metric_in_code_is_documented_and_the_other_way_round() {
    let page = fs::read_to_string(docs("metrics.md")).unwrap();
    let documented: BTreeMap<String, (String, String)> = rows(&page)
        .into_iter()
        .map(|cells| (cells[0].clone(), (cells[1].clone(), cells[2].clone())))
        .collect();
    let in_code: BTreeMap<String, (String, String)> = families::ALL_METRICS
        .iter()
        .map(|family| {
            let kind = match family.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
                MetricKind::Histogram => "histogram",
            };
            let labels = match family.labels {
                [] => "–".to_owned(),
                labels => labels.join(", "),
            };
            (family.name.to_owned(), (kind.to_owned(), labels))
        })
        .collect();
    assert_eq!(documented, in_code);
}

#[test]
fn every_documented_log_field_is_written_and_the_other_way_round() {
    let page = fs::read_to_string(docs("access-log.md")).unwrap();
    let documented: Vec<String> = rows(&page)
        .into_iter()
        .map(|cells| cells[0].clone())
        .collect();
    // The example is the golden line of access_log_tests.rs, which has every field; that test looks
    // for it in the page.
    let example = page
        .lines()
        .find(|line| line.starts_with("{\"ts\""))
        .unwrap();
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(example).unwrap();
    let mut written: Vec<String> = object.keys().cloned().collect();
    written.sort_by_key(|field| example.find(&format!("\"{field}\":")));
    assert_eq!(documented, written);
}

#[test]
fn every_cause_of_failed_handshakes_is_documented_and_the_other_way_round() {
    let page = fs::read_to_string(docs("operations.md")).unwrap();
    let table = page.split("**Failed handshakes**").nth(1).unwrap();
    let table = table.split("\n## ").next().unwrap();
    let documented: Vec<String> = rows(table)
        .into_iter()
        .map(|cells| cells[0].clone())
        .collect();
    let names: Vec<&str> = HandshakeFailure::ALL.iter().map(|it| it.name()).collect();
    assert_eq!(documented, names);
}

fn reasons_page() -> String {
    let mut page = String::from(
        "# Reasons\n\n\
         A reason says why balancer sent its own response or cut a connection. The access log (`reason`), the metric label `reason` and\n\
         `errors.override` use its name. The `Proxy-Status` field uses its token (RFC 9209). The status `–` means that no response can be\n\
         sent any more, so the client's connection is cut.\n\n\
         This page is generated from `src/reason.rs`: `UPDATE_DOCS=1 cargo test --test static metrics_docs` writes it again.\n\n\
         | reason | when | unified | split | Retry-After | Proxy-Status token | detail for the client |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for reason in Reason::ALL {
        let status = |profile| match reason.status(profile) {
            0 => "–".to_owned(),
            status => status.to_string(),
        };
        let retry_after = match reason.retry_after() {
            0 => "–".to_owned(),
            seconds => format!("{seconds} s"),
        };
        let row = format!(
            "| `{}` | {} | {} | {} | {retry_after} | `{}` | {} |\n",
            reason.name(),
            reason.when().trim(),
            status(StatusProfile::Unified),
            status(StatusProfile::Split),
            reason.token(),
            reason.detail(),
        );
        page.push_str(&row);
    }
    page
}

#[test]
fn the_page_of_reasons_is_the_list_in_code() {
    let expected = reasons_page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(docs("reasons.md"), &expected).unwrap();
    }
    let page = fs::read_to_string(docs("reasons.md")).unwrap_or_default();
    assert!(
        page == expected,
        "docs/reasons.md is out of date: run UPDATE_DOCS=1 cargo test --test static metrics_docs"
    );
}
