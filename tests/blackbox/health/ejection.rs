//! Passive ejection: failures of traffic that take a backend out for a while.

use super::{
    backends, configuration, daemon, quoted, tallied, tally, transitions, wait_for_state,
    wait_for_transitions,
};
use std::time::Duration;

use crate::harness::{
    answers::expect_error,
    daemon::sum_of,
    peer::{Gate, ScriptedPeer, refused},
    poll,
};
use balancer::base::clock;

/// Reads whole requests and closes without a response.
fn swallowing() -> ScriptedPeer {
    ScriptedPeer::start(|mut connection| drop(connection.request()))
}

#[test]
fn five_failures_in_a_row_eject_a_backend_while_others_are_up() {
    let (bad, one, other) = (
        swallowing(),
        ScriptedPeer::answering("one"),
        ScriptedPeer::answering("other"),
    );
    let pool = backends([&bad, &one, &other].map(quoted)) + "    health_check: none\n";
    let daemon = daemon(&pool);
    let bodies = tally(&daemon, 60);
    assert_eq!(
        bodies.values().sum::<usize>(),
        60,
        "no client saw a failure"
    );
    assert_eq!(bad.connections(), 5);
    let lines = wait_for_transitions(&daemon, 1);
    assert_eq!(
        lines,
        [(
            "up".to_owned(),
            "ejected".to_owned(),
            "connection_terminated 5 times in a row, out for 10s".to_owned()
        )]
    );
    let page = daemon.scrape();
    let name = bad.address;
    for series in [
        format!(
            "balancer_backend_ejections_total{{backend=\"{name}\",reason=\"connection_terminated\"}}"
        ),
        format!("balancer_backend_state{{backend=\"{name}\",state=\"ejected\"}}"),
        "balancer_pool_backends{pool=\"app\",state=\"ejected\"}".to_owned(),
    ] {
        assert_eq!(sum_of(&page, &series) as usize, 1, "{series}\n{page}");
    }
    // A further 30 bring nothing more to it.
    tally(&daemon, 30);
    assert_eq!(bad.connections(), 5);
}

#[test]
fn a_success_in_between_restarts_the_count() {
    // Every fifth answer is good, so that there are never five failures in a row.
    let flaky = ScriptedPeer::start(move |mut connection| {
        if connection.request().is_some() && connection.number() % 5 == 4 {
            connection
                .send_last("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let good = ScriptedPeer::answering("ok");
    let pool = backends([&flaky, &good].map(quoted)) + "    health_check: none\n";
    let daemon = daemon(&pool);
    tally(&daemon, 60);
    assert_eq!(transitions(&daemon), []);
    assert!(flaky.connections() >= 25, "{}", flaky.connections());
}

#[test]
fn responses_of_the_application_eject_no_backend() {
    let angry = ScriptedPeer::start(|mut connection| {
        while connection.request().is_some() {
            connection.send("HTTP/1.1 500 Own Fault\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let good = ScriptedPeer::answering("ok");
    let pool = backends([&angry, &good].map(quoted)) + "    health_check: none\n";
    let daemon = daemon(&pool);
    let mut client = daemon.client("@web");
    let statuses: Vec<u16> = (0..40)
        .map(|_| client.request("GET", "/").unwrap().status)
        .collect();
    assert_eq!(statuses.iter().filter(|status| **status == 500).count(), 20);
    assert_eq!(transitions(&daemon), []);
}

#[test]
fn the_only_backend_is_never_ejected() {
    let bad = swallowing();
    let pool = backends([quoted(&bad)]) + "    health_check: none\n    retries: none\n";
    let daemon = daemon(&pool);
    let mut client = daemon.client("@web");
    for _ in 0..30 {
        let response = client.request("GET", "/").unwrap();
        expect_error(&response, 502, "connection_terminated");
    }
    assert_eq!(bad.connections(), 30);
    assert_eq!(transitions(&daemon), []);
}

#[test]
fn of_a_pool_that_fails_whole_only_the_allowed_share_is_ejected() {
    for (count, most) in [(2, 1), (3, 1), (4, 2)] {
        let peers: Vec<ScriptedPeer> = (0..count).map(|_| swallowing()).collect();
        let pool = backends(peers.iter().map(quoted)) + "    health_check: none\n";
        let daemon = daemon(&pool);
        let mut client = daemon.client("@web");
        for _ in 0..40 {
            let response = client.request("GET", "/").unwrap();
            expect_error(&response, 502, "connection_terminated");
        }
        assert_eq!(transitions(&daemon).len(), most, "of {count}");
        wait_for_state(&daemon, "ejected", most);
    }
}

#[test]
fn an_ejected_backend_comes_back_after_its_ejection_and_the_next_one_is_longer() {
    let healed = Gate::new();
    let door = healed.clone();
    let moody = ScriptedPeer::start(move |mut connection| {
        while connection.request().is_some() && door.is_open() && connection.answer("moody") {}
    });
    let steady = ScriptedPeer::answering("steady");
    let pool = backends([&moody, &steady].map(quoted))
        + "    health_check: none\n    ejection: {failures: 3, eject_for: 500ms}\n";
    let daemon = daemon(&pool);
    tally(&daemon, 10);
    let began = clock::now();
    assert_eq!(moody.connections(), 3);
    wait_for_transitions(&daemon, 2);
    let took = clock::now() - began;
    assert!(took > Duration::from_millis(100), "back after {took:?}");
    // Still broken: the trial fails, and it is out again, for twice as long.
    tally(&daemon, 10);
    assert_eq!(moody.connections(), 4);
    let lines = wait_for_transitions(&daemon, 4);
    healed.open();
    tally(&daemon, 1);
    let back = wait_for_transitions(&daemon, 5);
    let text = |(from, to, cause): &(String, String, String)| format!("{from} > {to}: {cause}");
    assert_eq!(
        lines.iter().chain(&back[4..]).map(text).collect::<Vec<_>>(),
        [
            "up > ejected: connection_terminated 3 times in a row, out for 500ms",
            "ejected > ejected: the ejection is over, the next request is a trial",
            "ejected > ejected: the trial request failed: connection_terminated, out for 1s",
            "ejected > ejected: the ejection is over, the next request is a trial",
            "ejected > up: the trial request succeeded",
        ]
    );
    for (result, count) in [("passed", 1), ("failed", 1)] {
        let trials = format!("balancer_ejection_trials_total{{pool=\"app\",result=\"{result}\"}}");
        assert_eq!(daemon.metric(&trials) as usize, count, "{result}");
    }
    assert_eq!(tally(&daemon, 20), tallied([("steady", 10), ("moody", 10)]));
}

#[test]
fn a_reload_that_switches_ejection_off_frees_at_once() {
    for off in ["none", "{max_ejected: 0%}"] {
        let (bad, steady) = (swallowing(), ScriptedPeer::answering("steady"));
        let pool = |ejection: &str| {
            backends([&bad, &steady].map(quoted))
                + &format!("    health_check: none\n    ejection: {ejection}\n")
        };
        let mut daemon = daemon(&pool("{eject_for: 24h}"));
        tally(&daemon, 20);
        wait_for_state(&daemon, "ejected", 1);
        let reloaded = daemon.reload(&configuration(&pool(off)));
        assert_eq!(reloaded.status, 200, "{reloaded:?}");
        wait_for_state(&daemon, "up", 2);
        let before = bad.connections();
        tally(&daemon, 20);
        assert!(bad.connections() >= before + 10);
        wait_for_state(&daemon, "up", 2);
    }
}

#[test]
fn an_ejected_backend_is_back_when_its_checks_have_passed_rise_times() {
    // It accepts, which is enough for the check, and answers after the ejection.
    let healed = Gate::new();
    let door = healed.clone();
    let moody = ScriptedPeer::start(move |mut connection| {
        while connection.request().is_some() && door.is_open() && connection.answer("moody") {}
    });
    let steady = ScriptedPeer::answering("steady");
    let pool = backends([&moody, &steady].map(quoted))
        + "    health_check: {interval: 100ms, rise: 2}\n    ejection: {eject_for: 24h}\n";
    let daemon = daemon(&pool);
    wait_for_state(&daemon, "up", 2);
    let mut client = daemon.client("@web");
    poll(|| {
        assert_eq!(client.request("GET", "/").unwrap().status, 200);
        let out = transitions(&daemon).iter().any(|line| line.1 == "ejected");
        out.then_some(())
    })
    .unwrap();
    healed.open();
    let back = poll(|| {
        let mut lines = transitions(&daemon).into_iter();
        lines.find(|line| line.0 == "ejected")
    })
    .unwrap();
    assert_eq!(back.1, "up");
    assert_eq!(back.2, "2 checks in a row passed since the ejection");
    wait_for_state(&daemon, "up", 2);
    assert_eq!(tally(&daemon, 20), tallied([("steady", 10), ("moody", 10)]));
}

#[test]
fn a_backend_that_fails_three_of_five_requests_is_ejected_by_the_rate() {
    // Never three failures in a row.
    let flaky = ScriptedPeer::start(move |mut connection| {
        if connection.request().is_some() && [0, 2].contains(&(connection.number() % 5)) {
            connection
                .send_last("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let good = ScriptedPeer::answering("ok");
    let pool = backends([&flaky, &good].map(quoted))
        + "    health_check: none\n    ejection: {failure_rate: 50%, min_requests: 20}\n";
    let daemon = daemon(&pool);
    tally(&daemon, 80);
    let lines = wait_for_transitions(&daemon, 1);
    assert_eq!(lines.len(), 1, "{lines:?}");
    let (from, to, cause) = &lines[0];
    assert_eq!((&**from, &**to), ("up", "ejected"));
    let rate = " of 20 requests failed in 10s, at last connection_terminated, out for 10s";
    assert!(cause.ends_with(rate), "{cause}");
    assert_eq!(flaky.connections(), 20);
}

#[test]
fn chosen_statuses_eject_a_backend_and_reach_the_client_as_they_are() {
    let angry = ScriptedPeer::start(|mut connection| {
        while connection.request().is_some() {
            connection.send("HTTP/1.1 503 Worn Out\r\nX-Own: yes\r\nContent-Length: 4\r\n\r\nbusy");
        }
    });
    let other = ScriptedPeer::start(|mut connection| {
        while connection.request().is_some() {
            connection.send("HTTP/1.1 500 Own Fault\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let pool = backends([&angry, &other].map(quoted))
        + "    health_check: none\n    ejection: {failures: 3, status: [502-504]}\n";
    let daemon = daemon(&pool);
    let mut client = daemon.client("@web");
    let responses: Vec<_> = (0..20)
        .map(|_| client.request("GET", "/").unwrap())
        .collect();
    let busy: Vec<_> = responses.iter().filter(|one| one.status == 503).collect();
    assert_eq!(busy.len(), 3, "then it is ejected");
    for response in &busy {
        assert_eq!(
            (response.header("x-own"), response.text()),
            (Some("yes"), "busy".to_owned())
        );
        assert_eq!(response.header("proxy-status"), None);
    }
    assert_eq!(responses.iter().filter(|one| one.status == 500).count(), 17);
    let lines = wait_for_transitions(&daemon, 1);
    assert_eq!(
        lines[0].2,
        "http_response_status 3 times in a row, out for 10s"
    );
    let failures = format!(
        "balancer_backend_failures_total{{backend=\"{}\",reason=\"http_response_status\"}}",
        angry.address
    );
    assert_eq!(daemon.metric(&failures) as usize, 3);
}

#[test]
fn one_request_is_the_trial_and_others_wait_for_no_verdict() {
    // The first requests fail; then it answers when the gate opens.
    let gate = Gate::new();
    let door = gate.clone();
    let moody = ScriptedPeer::start(move |mut connection| {
        if connection.number() < 3 {
            return drop(connection.request());
        }
        while connection.request().is_some() {
            door.wait();
            if !connection.answer("moody") {
                return;
            }
        }
    });
    let steady = ScriptedPeer::answering("steady");
    let pool = backends([&moody, &steady].map(quoted))
        + "    health_check: none\n    ejection: {failures: 3, eject_for: 300ms}\n";
    let daemon = daemon(&pool);
    tally(&daemon, 10);
    wait_for_transitions(&daemon, 2);
    let trial = |daemon: &crate::harness::daemon::TestDaemon| {
        daemon.status()["pools"][0]["backends"][0]["trial"].clone()
    };
    assert_eq!(trial(&daemon), "next");
    let screen = daemon.command(&["status"]);
    let screen = String::from_utf8_lossy(&screen.stdout).into_owned();
    assert!(screen.contains("trial request next"), "{screen}");
    let mut held = daemon.client("@web");
    held.send("GET /trial HTTP/1.1\r\nHost: test\r\n\r\n");
    let requests = moody.wait_for_requests(4);
    assert_eq!(requests[3].target, "/trial");
    assert_eq!(trial(&daemon), "running");
    assert_eq!(tally(&daemon, 30), tallied([("steady", 30)]));
    assert_eq!(moody.connections(), 4);
    // The client leaves: no verdict, and the next request is the next trial.
    held.reset();
    poll(|| (trial(&daemon) == "next").then_some(())).unwrap();
    let mut next = daemon.client("@web");
    next.send("GET /next HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(moody.wait_for_requests(5)[4].target, "/next");
    gate.open();
    assert_eq!(next.response().unwrap().text(), "moody");
    let lines = wait_for_transitions(&daemon, 3);
    assert_eq!(lines[2].2, "the trial request succeeded");
    wait_for_state(&daemon, "up", 2);
}

#[test]
fn a_failed_trial_costs_no_client_a_request() {
    let bad = swallowing();
    let steady = ScriptedPeer::answering("steady");
    let pool = backends([&bad, &steady].map(quoted))
        + "    health_check: none\n    ejection: {failures: 3, eject_for: 50ms, max_eject_for: 50ms}\n";
    let daemon = daemon(&pool);
    let failed = "balancer_ejection_trials_total{pool=\"app\",result=\"failed\"}";
    let mut client = daemon.client("@web");
    poll(|| {
        let response = client.request("GET", "/").unwrap();
        assert_eq!(
            (response.status, response.text()),
            (200, "steady".to_owned())
        );
        (daemon.metric(failed) as usize >= 5).then_some(())
    })
    .unwrap();
}

#[test]
fn a_tcp_session_is_the_trial_of_a_backend_and_its_connect_the_verdict() {
    let refusing = refused();
    let steady = ScriptedPeer::answering("steady");
    let daemon = crate::harness::daemon::TestDaemon::start(&format!(
        "log: {{format: json}}\nlisteners:\n  web: {{bind: \"@web\", protocol: tcp, pool: app}}\npools:\n  app:\n    \
         backends: [\"{refusing}\", {}]\n    health_check: none\n    \
         ejection: {{failures: 2, eject_for: 100ms}}\n",
        quoted(&steady)
    ));
    poll(|| {
        assert_eq!(daemon.get("@web", "/").unwrap().text(), "steady");
        (transitions(&daemon).len() >= 3).then_some(())
    })
    .unwrap();
    let healed = ScriptedPeer::start_at(refusing, |mut connection| {
        while connection.request().is_some() && connection.answer("healed") {}
    });
    poll(|| {
        daemon.get("@web", "/").unwrap();
        let passed = transitions(&daemon).iter().any(|line| line.1 == "up");
        passed.then_some(())
    })
    .unwrap();
    assert!(healed.connections() > 0);
    let lines = transitions(&daemon);
    assert_eq!(lines.last().unwrap().2, "the trial request succeeded");
}
