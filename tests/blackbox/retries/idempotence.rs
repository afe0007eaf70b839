//! Requests that a backend may have acted on: idempotent methods are sent again, all others never.

use super::{attempts, chunked, daemon, pattern, swallowing, with_length};
use std::thread;

use crate::harness::peer::ScriptedPeer;

#[test]
fn only_idempotent_methods_are_sent_again_after_they_were_sent() {
    for (method, again) in [
        ("GET", true),
        ("HEAD", true),
        ("OPTIONS", true),
        ("PUT", true),
        ("DELETE", true),
        ("POST", false),
        ("PATCH", false),
        ("PROPFIND", false),
    ] {
        let (bad, good) = (swallowing(), ScriptedPeer::answering("good"));
        let daemon = daemon(&[bad.address, good.address], "");
        let ask = || daemon.client("@web").request(method, "/").unwrap().status;
        let mut statuses = [ask(), ask()];
        statuses.sort_unstable();
        let expected = if again { [200, 200] } else { [200, 502] };
        assert_eq!(statuses, expected, "{method}");
    }
}

/// Behaviour of a backend that has read a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum RequestFault {
    Closes,
    Resets,
    ClosesInTheHead,
    ResetsInTheHead,
    SaysNonsense,
    SaysNothing,
}

/// Serves `/warm`, once a connection, and fails everything else in its own way.
fn failing(fault: RequestFault) -> ScriptedPeer {
    ScriptedPeer::start(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.target == "/warm" {
                connection.answer("warm");
                continue;
            }
            match fault {
                RequestFault::Closes => return,
                RequestFault::Resets => return connection.reset(),
                RequestFault::ClosesInTheHead => {
                    connection.send("HTTP/1.1 200 OK\r\nCon");
                    return;
                }
                RequestFault::ResetsInTheHead => {
                    connection.send("HTTP/1.1 200 OK\r\nCon");
                    return connection.reset();
                }
                RequestFault::SaysNonsense => return connection.send_last("nonsense\r\n\r\n"),
                RequestFault::SaysNothing => connection.wait_for_end(),
            }
        }
    })
}

/// A request, the method's idempotence, and its body: none, one that comes along, one that comes in
/// chunks.
fn acts() -> Vec<(bool, Vec<u8>)> {
    let mut acts = Vec::new();
    for (method, idempotent) in [
        ("GET", true),
        ("PUT", true),
        ("DELETE", true),
        ("POST", false),
        ("PATCH", false),
        ("LOCK", false),
    ] {
        let small = pattern(100);
        for request in [
            with_length(method, b""),
            with_length(method, &small),
            chunked(method, &small),
        ] {
            acts.push((idempotent, request));
        }
    }
    acts
}

#[test]
fn what_a_backend_may_have_acted_on_is_sent_once_unless_the_method_is_idempotent() {
    let faults = [
        RequestFault::Closes,
        RequestFault::Resets,
        RequestFault::ClosesInTheHead,
        RequestFault::ResetsInTheHead,
        RequestFault::SaysNonsense,
        RequestFault::SaysNothing,
    ];
    thread::scope(|scope| {
        for reused in [false, true] {
            scope.spawn(move || {
                for fault in faults {
                    acts_are_sent_as_often_as_is_safe(fault, reused);
                }
            });
        }
    });
}

/// Sends each of [`acts`] to a backend that fails; `reused`: on a connection that has carried
/// another request.
fn acts_are_sent_as_often_as_is_safe(fault: RequestFault, reused: bool) {
    let peer = failing(fault);
    let patience = if fault == RequestFault::SaysNothing {
        "100ms"
    } else {
        "15s"
    };
    // `/warm` is answered, and must not be given up when this machine is busy.
    let more = format!(
        "    ejection: none\n    timeouts: {{response: {patience}}}\nroutes: [{{path: /warm, pool: app, timeouts: {{response: 15s}}}}]\n"
    );
    let daemon = daemon(&[peer.address], &more);
    for (idempotent, request) in acts() {
        let mut client = daemon.client("@web");
        if reused {
            assert_eq!(client.request("GET", "/warm").unwrap().text(), "warm");
        }
        let (before, connections) = (peer.requests.all().len(), peer.connections());
        client.send(&request);
        let response = client.response().unwrap();
        let shown = String::from_utf8_lossy(&request);
        let what = format!("{fault:?}, reused {reused}, {shown:.20}");
        assert_eq!(response.status, 502, "{what}");
        let line = daemon.access_of(response.header("x-request-id").unwrap());
        let is_stale = reused && matches!(fault, RequestFault::Closes | RequestFault::Resets);
        // Twice more, and once before if it was the connection that was stale.
        let times = match (idempotent, fault) {
            (false, _) | (_, RequestFault::SaysNothing) => 1,
            _ => 3 + usize::from(is_stale),
        };
        assert_eq!(line["attempts"], times, "{what}: {line}");
        // The daemon may have given up before the backend has read what it was sent.
        assert_eq!(
            peer.wait_for_requests(before + times).len() - before,
            times,
            "{what}"
        );
        let made = times - usize::from(reused);
        assert_eq!(peer.connections() - connections, made, "{what}");
    }
}

#[test]
fn each_method_is_tried_again_where_it_is_named_and_only_there() {
    let peer = swallowing();
    for method in [
        "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH", "LOCK",
    ] {
        let named = format!("    retries: {{methods: [{method}]}}\n");
        assert_eq!(attempts(&peer, "15s", &named, method), 3, "{method}");
        let others = "    retries: {methods: [MERGE]}\n";
        assert_eq!(attempts(&peer, "15s", others, method), 1, "{method}");
    }
}
