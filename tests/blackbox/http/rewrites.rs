//! Rewrites of path and host by a route, and splits over several pools.

use crate::harness::{
    daemon::TestDaemon,
    peer::{ScriptedPeer, refused},
};

/// A backend that answers with the target and the host it got.
fn mirror() -> ScriptedPeer {
    ScriptedPeer::start(|mut connection| {
        while let Some(request) = connection.request() {
            let host = request.header("host").unwrap_or("none").to_owned();
            let from = request
                .header("x-forwarded-host")
                .unwrap_or("none")
                .to_owned();
            if !connection.answer(&format!("{} {host} {from}", request.target)) {
                break;
            }
        }
    })
}

fn daemon(backend: &ScriptedPeer, routes: &str) -> TestDaemon {
    TestDaemon::start(&format!(
        "workers: 1\naccess_log: {{when: {{min_status: 100}}}}\nlisteners: {{web: {{bind: \"@web\", pool: app}}}}\npools: {{app: {{backends: [{}], health_check: none}}}}\nroutes:\n{routes}",
        backend.address
    ))
}

#[test]
fn the_backend_gets_the_rewritten_path_and_the_query_as_it_came() {
    let peer = mirror();
    let daemon = daemon(
        &peer,
        "  - {path: /api, pool: app, rewrite: {strip_prefix: /api}}
  - {path: /old, pool: app, rewrite: {path: /new/v2}}
  - {path_exact: /status, pool: app, rewrite: {path: /health}}
  - {path_regex: \"/v([0-9]+)/(?<rest>.*)\", pool: app, rewrite: {path: \"/${rest}/v$1$$\"}}
  - {path: /inner, pool: app, rewrite: {host: \"inner.example:8081\"}}
  - {host: strip.example, pool: app, rewrite: {strip_prefix: /a, host: other}}
",
    );
    let mut client = daemon.client("@web");
    for (host, target, expected) in [
        ("h", "/api", "/ h h"),
        ("h", "/api?x=/../%2f", "/?x=/../%2f h h"),
        ("h", "/api/a%20b?q", "/a%20b?q h h"),
        ("h", "/%61pi//x/./y", "/x/y h h"),
        ("h", "/api/x/../../api/evil", "/evil h h"),
        ("h", "/api//evil.example/", "/evil.example/ h h"),
        ("h", "http://h/api/x", "/x h h"),
        ("h", "http://h/x?y", "/x?y h h"),
        ("h", "/apix//y/../z", "/apix//y/../z h h"),
        ("h", "/old/x", "/new/v2/x h h"),
        ("h", "/old", "/new/v2 h h"),
        ("h", "/status?a", "/health?a h h"),
        ("h", "/v2/users/a%2Cb?c", "/users/a%2Cb/v2$?c h h"),
        ("h", "/v2//%2e%2e/v3/x", "/x/v3$ h h"),
        (
            "h:80",
            "/inner/x/../y%2f",
            "/inner/x/../y%2f inner.example:8081 h:80",
        ),
        ("strip.example", "/a/b", "/b other strip.example"),
        ("strip.example", "/b", "/b other strip.example"),
    ] {
        client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.response().unwrap().text(), expected, "{target}");
    }
    client.send("OPTIONS * HTTP/1.1\r\nHost: strip.example\r\n\r\n");
    assert_eq!(client.response().unwrap().text(), "* other strip.example");
    client.send("GET /inner HTTP/1.0\r\n\r\n");
    assert_eq!(
        client.response().unwrap().text(),
        "/inner inner.example:8081 none"
    );
}

#[test]
fn a_path_with_two_meanings_is_refused_before_any_backend_sees_it() {
    let peer = mirror();
    let daemon = daemon(
        &peer,
        "  - {host: h, pool: app, rewrite: {strip_prefix: /api}}
  - {host: r, path_regex: \"/(.*)\", pool: app, rewrite: {path: \"/in/$1\"}}
  - {host: d, path_regex: \"/a([.]*)x\", pool: app, rewrite: {path: \"/in/$1/y\"}}
",
    );
    let mut client = daemon.client("@web");
    for (host, target) in [
        ("h", "/api%2fx"),
        ("h", "/api/%2fevil"),
        ("h", "/api/x%2f..%2f..%2fadmin"),
        ("r", "/x%2f..%2f../y"),
        ("d", "/a..x"),
        ("d", "/a%2e%2ex"),
    ] {
        client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let response = client.response().unwrap();
        assert_eq!(
            (response.status, response.header("proxy-status")),
            (400, Some("balancer; error=http_request_error")),
            "{target}"
        );
    }
    client.send("GET /api/a%2Fb HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.response().unwrap().text(), "/a%2Fb h h");
    assert_eq!(peer.requests.all().len(), 1);
}

#[test]
fn a_rewritten_request_keeps_its_body_and_is_rewritten_for_every_attempt() {
    let peer = mirror();
    let daemon = TestDaemon::start(&format!(
        "access_log: {{when: {{min_status: 100}}}}\nlisteners: {{web: {{bind: \"@web\"}}}}\npools: {{app: {{backends: [{}, {}], health_check: none, ejection: none}}}}\nroutes: [{{path: /api, pool: app, rewrite: {{path: /, host: inner}}}}]\n",
        refused(),
        peer.address
    ));
    for _ in 0..4 {
        let mut client = daemon.client("@web");
        client.send("POST /api/x?y HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody");
        assert_eq!(client.response().unwrap().text(), "/x?y inner h");
    }
    assert!(
        peer.wait_for_requests(4)
            .iter()
            .all(|request| request.body == b"body")
    );
    let line = daemon.wait_for_access(|line| line["attempts"] == 2);
    assert_eq!(
        (line["path"].as_str(), line["host"].as_str()),
        (Some("/api/x"), Some("h")),
        "the log has what the client sent"
    );
}

#[test]
fn a_split_sends_every_pool_its_share_and_counts_by_pool() {
    let (stable, canary, idle) = (
        ScriptedPeer::answering("stable"),
        ScriptedPeer::answering("canary"),
        ScriptedPeer::answering("idle"),
    );
    let file = |split: &str| {
        format!(
            "workers: 1\naccess_log: {{when: {{min_status: 100}}}}\nlisteners: {{web: {{bind: \"@web\"}}}}\npools:
  stable: {{backends: [{}], health_check: none}}
  canary: {{backends: [{}], health_check: none}}
  idle: {{backends: [{}], health_check: none}}
routes: [{{split: {{{split}}}}}]\n",
            stable.address, canary.address, idle.address
        )
    };
    let mut daemon = TestDaemon::start(&file("stable: 3, canary: 1, idle: 0"));
    let mut client = daemon.client("@web");
    let mut ask = |count: usize| {
        let mut canaries = 0;
        for _ in 0..count {
            let text = client.request("GET", "/").unwrap().text();
            assert!(text == "stable" || text == "canary", "{text}");
            canaries += usize::from(text == "canary");
        }
        canaries
    };
    let canaries = ask(400);
    // Chance: 100 is expected, and outside of this by less than one in 10^9.
    assert!((45..=160).contains(&canaries), "{canaries}");
    for (pool, count) in [
        ("stable", 400 - canaries),
        ("canary", canaries),
        ("idle", 0),
    ] {
        let series = format!("balancer_http_requests_total{{pool=\"{pool}\"}}");
        daemon.wait_for_metric(&series, |value| value as usize == count);
    }
    for pool in ["stable", "canary"] {
        daemon.wait_for_access(|line| line["pool"] == pool);
    }
    let answer = daemon.reload(&file("canary: 1"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        ask(50),
        50,
        "weights change with a reload, on the same connection"
    );
    assert_eq!(idle.requests.all().len(), 0);
}

#[test]
fn retries_stay_in_the_pool_that_was_picked() {
    let good = ScriptedPeer::answering("good");
    let daemon = TestDaemon::start(&format!(
        "access_log: {{when: {{min_status: 100}}}}\nlisteners: {{web: {{bind: \"@web\"}}}}\npools:
  broken: {{backends: [{}, {}], health_check: none, ejection: none}}
  good: {{backends: [{}], health_check: none}}
routes:
  - {{path: /a, split: {{broken: 1, good: 0}}}}
  - {{path: /b, split: {{good: 0, broken: 1}}, retries: none}}
",
        refused(),
        refused(),
        good.address
    ));
    for (target, attempts) in [("/a", 3), ("/b", 1)] {
        assert_eq!(daemon.get("@web", target).unwrap().status, 502, "{target}");
        let line = daemon.wait_for_access(|line| line["path"] == target);
        assert_eq!(
            (line["pool"].as_str(), line["attempts"].as_u64()),
            (Some("broken"), Some(attempts)),
            "{target}"
        );
    }
    assert_eq!(good.connections(), 0);
}

#[test]
fn overrides_of_a_route_hold_for_whichever_pool_is_picked() {
    let (one, two) = (ScriptedPeer::silent(), ScriptedPeer::silent());
    let daemon = TestDaemon::start(&format!(
        "access_log: {{when: {{min_status: 100}}}}\nlisteners: {{web: {{bind: \"@web\"}}}}\npools:
  one: {{backends: [{}], health_check: none, ejection: none, retries: {{attempts: 3, conditions: [timeout]}}}}
  two: {{backends: [{}], health_check: none, ejection: none, retries: none}}
routes:
  - {{path: /one, split: {{one: 1, two: 0}}, timeouts: {{response: 50ms}}, retries: {{attempts: 1}}}}
  - {{path: /two, split: {{one: 0, two: 1}}, timeouts: {{response: 50ms}}, retries: {{attempts: 1}}}}
",
        one.address, two.address
    ));
    // The override says how many; which failures may be tried again stays with each pool.
    for (target, attempts) in [("/one", 2), ("/two", 1)] {
        let response = daemon.get("@web", target).unwrap();
        assert_eq!(
            (response.status, response.header("proxy-status")),
            (502, Some("balancer; error=http_response_timeout")),
            "{target}"
        );
        let line = daemon.wait_for_access(|line| line["path"] == target);
        assert_eq!(line["attempts"].as_u64(), Some(attempts), "{target}");
    }
}
