//! The table of broken backends, with the reason that each must have.

use super::{HASTY_TIMEOUTS, PATIENT_TIMEOUTS};
use std::{net::SocketAddr, thread, time::Duration};

use crate::harness::peer::{Blackhole, ScriptedPeer, refused};

/// Something to connect to, alive as long as the value.
pub enum BrokenBackend {
    Peer(ScriptedPeer),
    Hole(Blackhole),
    Refusing(SocketAddr),
}

impl BrokenBackend {
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Peer(peer) => peer.address,
            Self::Hole(hole) => hole.address,
            Self::Refusing(address) => *address,
        }
    }
}

/// A broken backend and what must come of it.
pub struct FailureCase {
    pub name: &'static str,
    pub backend: BrokenBackend,
    pub reason: &'static str,
    /// Attempts that the default rules make for a GET.
    pub tries: u32,
    pub timeouts: &'static str,
    pub check: &'static str,
    pub version: &'static str,
}

fn case(
    name: &'static str,
    backend: BrokenBackend,
    reason: &'static str,
    tries: u32,
) -> FailureCase {
    FailureCase {
        name,
        backend,
        reason,
        tries,
        timeouts: PATIENT_TIMEOUTS,
        check: "none",
        version: "1.1",
    }
}

/// A backend that sends `bytes` as its whole response.
fn says(name: &'static str, bytes: impl Into<Vec<u8>>, reason: &'static str) -> FailureCase {
    case(
        name,
        BrokenBackend::Peer(ScriptedPeer::saying(bytes)),
        reason,
        3,
    )
}

/// A backend whose answer is no HTTP response.
fn invalid(name: &'static str, bytes: impl Into<Vec<u8>>) -> FailureCase {
    says(name, bytes, "proxy_protocol_error")
}

/// The promised cases and their variants.
pub fn cases() -> Vec<FailureCase> {
    let mut all = connection_cases();
    all.extend(timeout_cases());
    all.extend(status_line_cases());
    all.extend(head_cases());
    all.extend(first_chunk_cases());
    all
}

fn connection_cases() -> Vec<FailureCase> {
    let resets = ScriptedPeer::resetting_after("");
    let half_then_reset = ScriptedPeer::resetting_after("HTTP/1.1 200 OK\r\nContent-Le");
    let unread = ScriptedPeer::start(drop);
    vec![
        case(
            "refused",
            BrokenBackend::Refusing(refused()),
            "connection_refused",
            3,
        ),
        says("closed before any byte", "", "connection_terminated"),
        case(
            "closed before the request was read",
            BrokenBackend::Peer(unread),
            "connection_terminated",
            3,
        ),
        case(
            "reset before any byte",
            BrokenBackend::Peer(resets),
            "connection_terminated",
            3,
        ),
        says(
            "closed in the head",
            "HTTP/1.1 200 OK\r\nContent-Le",
            "connection_terminated",
        ),
        case(
            "reset in the head",
            BrokenBackend::Peer(half_then_reset),
            "connection_terminated",
            3,
        ),
        says(
            "closed after a 100",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "connection_terminated",
        )
        .for_old_client(),
        FailureCase {
            check: "{interval: 100ms}",
            ..case(
                "no healthy backend",
                BrokenBackend::Refusing(refused()),
                "destination_unavailable",
                0,
            )
        },
    ]
}

fn timeout_cases() -> Vec<FailureCase> {
    let drip = ScriptedPeer::start(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nX: ");
        // The pace is the fault: each byte comes well within the timeout, the head never does.
        while connection.send("a") {
            thread::sleep(Duration::from_millis(20));
        }
    });
    vec![
        FailureCase {
            timeouts: HASTY_TIMEOUTS,
            ..case(
                "connect blackhole",
                BrokenBackend::Hole(Blackhole::start()),
                "connection_timeout",
                3,
            )
        },
        FailureCase {
            timeouts: HASTY_TIMEOUTS,
            ..case(
                "silent",
                BrokenBackend::Peer(ScriptedPeer::silent()),
                "connection_read_timeout",
                1,
            )
        },
        FailureCase {
            timeouts: HASTY_TIMEOUTS,
            ..case(
                "head that never ends",
                BrokenBackend::Peer(drip),
                "connection_read_timeout",
                1,
            )
        },
        FailureCase {
            timeouts: "{connect: 200ms, response: 15s, total: 200ms}",
            ..case(
                "silent beyond the total time",
                BrokenBackend::Peer(ScriptedPeer::silent()),
                "total_timeout",
                1,
            )
        },
    ]
}

impl FailureCase {
    /// HTTP/1.0 clients get no 1xx.
    pub fn for_old_client(self) -> Self {
        Self {
            version: "1.0",
            ..self
        }
    }
}

fn status_line_cases() -> Vec<FailureCase> {
    let shouts = ScriptedPeer::start(|mut connection| {
        connection.send("SSH-2.0-OpenSSH_9.2\r\n");
        connection.wait_for_end();
    });
    let ok = "\r\nContent-Length: 2\r\n\r\nok";
    let line = |name, line: &str| invalid(name, format!("{line}{ok}"));
    vec![
        case(
            "not HTTP, before any request",
            BrokenBackend::Peer(shouts),
            "proxy_protocol_error",
            3,
        ),
        invalid("not HTTP", "220 mail.example.com ESMTP ready\r\n"),
        invalid(
            "a TLS alert",
            [0x15, 0x03, 0x01, 0x00, 0x02, 0x02, 0x46].as_slice(),
        ),
        line("no status", "HTTP/1.1 OK"),
        line("two digits", "HTTP/1.1 20 OK"),
        line("four digits", "HTTP/1.1 2000 OK"),
        line("status 099", "HTTP/1.1 099 Odd"),
        line("status 600", "HTTP/1.1 600 Odd"),
        line("status 999", "HTTP/1.1 999 Odd"),
        line("HTTP/2.0", "HTTP/2.0 200 OK"),
        line("HTTP/1.2", "HTTP/1.2 200 OK"),
        line("small letters", "http/1.1 200 OK"),
        line("two blanks", "HTTP/1.1  200 OK"),
        line("blank in front", " HTTP/1.1 200 OK"),
        line("empty line in front", "\r\nHTTP/1.1 200 OK"),
        line("another protocol", "ICY 200 OK"),
        line("a control byte in the phrase", "HTTP/1.1 200 O\x01K"),
        invalid(
            "an unrequested 101",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        ),
        invalid(
            "17 interim responses",
            "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(17) + "HTTP/1.1 204 No Content\r\n\r\n",
        )
        .for_old_client(),
    ]
}

fn head_cases() -> Vec<FailureCase> {
    let field =
        |name, fields: &str| invalid(name, format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nok"));
    let old = format!("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKED_HELLO}");
    let many = "X: y\r\n".repeat(300);
    let large = format!("X: {}\r\n", "a".repeat(300_000));
    let too_large = |name, fields: String| {
        says(
            name,
            format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok"),
            "http_response_header_section_size",
        )
    };
    vec![
        too_large("a head of 300 KB", large),
        too_large("300 fields", many),
        field("two lengths", "Content-Length: 2\r\nContent-Length: 3"),
        field(
            "the same length twice",
            "Content-Length: 2\r\nContent-Length: 2",
        ),
        field("a list of lengths", "Content-Length: 2, 2"),
        field("a length with a sign", "Content-Length: +2"),
        field("a negative length", "Content-Length: -2"),
        field("a hexadecimal length", "Content-Length: 0x2"),
        field("an empty length", "Content-Length: "),
        field(
            "a length beyond all sizes",
            "Content-Length: 99999999999999999999",
        ),
        field(
            "length and chunked",
            "Content-Length: 2\r\nTransfer-Encoding: chunked",
        ),
        field("another coding", "Transfer-Encoding: gzip, chunked"),
        field(
            "chunked twice",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ),
        field(
            "chunked and then another",
            "Transfer-Encoding: chunked, identity",
        ),
        invalid("chunked in HTTP/1.0", old),
        field("NUL in a value", "X: a\0b\r\nContent-Length: 2"),
        field(
            "a carriage return in a value",
            "X: a\rb\r\nContent-Length: 2",
        ),
        field("a folded line", "X: a\r\n b\r\nContent-Length: 2"),
        field("a blank before the colon", "X : a\r\nContent-Length: 2"),
        field("a line without a colon", "X\r\nContent-Length: 2"),
        field("an empty name", ": a\r\nContent-Length: 2"),
        field("a bare line feed after a field", "X: a\nContent-Length: 2"),
        invalid(
            "bare line feeds",
            "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        ),
    ]
}

const CHUNKED_HELLO: &str = "5\r\nhello\r\n0\r\n\r\n";

fn first_chunk_cases() -> Vec<FailureCase> {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = |name, chunk: &str| invalid(name, format!("{head}{chunk}"));
    vec![
        chunk("no size", "\r\nhello\r\n0\r\n\r\n"),
        chunk("not a size", "zz\r\nhello\r\n0\r\n\r\n"),
        chunk("a negative size", "-5\r\nhello\r\n0\r\n\r\n"),
        chunk("a size with 0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        chunk("a blank before the size", " 5\r\nhello\r\n0\r\n\r\n"),
        chunk(
            "a size beyond all",
            "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        ),
        chunk("a size line with a bare line feed", "5\nhello\r\n0\r\n\r\n"),
        chunk("a chunk longer than its size", "5\r\nhello!\r\n0\r\n\r\n"),
        says(
            "closed before the first chunk",
            head,
            "connection_terminated",
        ),
    ]
}
