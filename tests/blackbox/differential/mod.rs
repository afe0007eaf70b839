//! Odd messages, one by one, through the built program: what is refused, what is forwarded and in
//! which form, and that neither side gets bytes that another reader could understand differently.
//!
//! The corpus is data (`requests.txt`, `responses.txt`) and families built by loops; `corpus.rs`
//! says how to read it. `fixture.rs` plays a case, `oracle.rs` says what it came to, `wire.rs` is a
//! strict reader of its own. The same corpus goes through other proxies in `peers.rs`, which writes
//! docs/comparison.md.

mod corpus;
mod fixture;
mod generators;
mod oracle;
mod peers;
mod wire;

use std::{collections::BTreeSet, fs, net::SocketAddr, path::PathBuf};

use crate::harness::{PATIENCE, daemon::TestDaemon};
use corpus::CorpusCase;
use fixture::ProxyFixture;

/// Every odd request.
fn requests() -> Vec<CorpusCase> {
    let mut cases = corpus::read(include_str!("requests.txt"));
    cases.extend(generators::requests());
    corpus::check_names(&cases);
    cases
}

/// Every odd response.
fn responses() -> Vec<CorpusCase> {
    let mut cases = corpus::read(include_str!("responses.txt"));
    cases.extend(generators::responses());
    corpus::check_names(&cases);
    cases
}

/// One daemon for all cases; nothing is tried again, so that each case has one outcome.
fn daemon(backend: SocketAddr) -> TestDaemon {
    let pool = format!("backends: [{backend}], health_check: none, ejection: none, retries: none");
    TestDaemon::start(&format!(
        "workers: 1\naccess_log: {{when: {{min_status: 100}}}}\nlisteners: {{web: {{bind: \"@web\", http: {{h2c: false}}, pool: app}}}}\nroutes: [{{path: /slow, pool: slow}}]\npools:\n  app: {{{pool}}}\n  slow: {{{pool}, timeouts: {{response: 300ms, idle: 300ms}}}}\n"
    ))
}

/// Cases of which only some are wanted: `CASE=part-of-a-name`.
fn is_wanted(case: &CorpusCase) -> bool {
    std::env::var("CASE").map_or(true, |part| case.id().contains(&part))
}

#[track_caller]
fn assert_none(failures: &[String], of: usize) {
    assert!(
        failures.is_empty(),
        "{} of {of} cases:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn an_odd_request_is_refused_or_forwarded_in_a_form_that_all_readers_read_alike() {
    play_requests(1);
}

#[test]
fn an_odd_request_that_comes_in_pieces_is_judged_as_one_that_comes_at_once() {
    play_requests(40);
}

/// Plays every case of the corpus, each sent in `pieces` pieces.
fn play_requests(pieces: usize) {
    let cases = requests();
    assert!(cases.len() >= 300, "only {} requests", cases.len());
    let stage = ProxyFixture::new(Vec::new(), PATIENCE);
    let daemon = daemon(stage.backend);
    let front = daemon.address("@web");
    let mut failures = Vec::new();
    for case in cases.iter().filter(|case| is_wanted(case)) {
        let (seen, events) = stage.play_request(front, case, pieces);
        let judgement = oracle::of_request(case, &seen, &events);
        let broken = oracle::broken_promise(case, &seen, &events);
        for problem in judgement.dangers.into_iter().chain(broken) {
            failures.push(format!("{}: {problem}", case.id()));
        }
    }
    assert_none(&failures, cases.len());
}

#[test]
fn an_odd_response_is_a_502_or_a_cut_or_forwarded_in_a_form_that_all_readers_read_alike() {
    let cases = responses();
    assert!(cases.len() >= 150, "only {} responses", cases.len());
    let stage = ProxyFixture::new(cases.clone(), PATIENCE);
    let daemon = daemon(stage.backend);
    let front = daemon.address("@web");
    let mut failures = Vec::new();
    for (number, case) in cases.iter().enumerate().filter(|(_, case)| is_wanted(case)) {
        let (first, second, events) = stage.play_response(front, number, case);
        let judgement = oracle::of_response(case, number, &first, second.as_ref(), &events);
        let broken = oracle::broken_answer(case, number, &first, second.as_ref(), &events);
        for problem in judgement.dangers.into_iter().chain(broken) {
            failures.push(format!("{}: {problem}", case.id()));
        }
        if case.promises("cut") {
            // A cut is never logged as a plain success.
            let place = if case.is("slow") { "/slow" } else { "/r" };
            let path = format!("{place}/{number}");
            let reason = case
                .parts("reason ")
                .next()
                .unwrap_or("http_response_incomplete");
            let line = daemon.wait_for_access(|line| line["path"] == path.as_str());
            if line["reason"] != reason {
                failures.push(format!("{}: logged as {}", case.id(), line["reason"]));
            }
        }
    }
    assert_none(&failures, cases.len());
}

#[test]
fn every_class_of_the_corpus_has_its_row_in_the_docs_and_no_row_is_without_cases() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/http.md");
    let page = fs::read_to_string(path).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let documented: BTreeSet<String> = rows
        .filter_map(|row| Some(row.split_once('`')?.0.to_owned()))
        .collect();
    let classes: BTreeSet<String> = requests()
        .into_iter()
        .chain(responses())
        .map(|case| case.class)
        .collect();
    assert_eq!(documented, classes);
}
