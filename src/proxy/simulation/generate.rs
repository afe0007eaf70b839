//! Makes scenarios: random ones from a seed, or fixed ones from a list of requests and responses.

use std::time::Duration;

use super::scenario::{
    AttemptClass, BodyShape, ClientPlan, FaultKind, ResponsePlan, ResponseTrigger, Scenario,
    ScriptedEvent, ScriptedExchange, ScriptedOutput,
};
use crate::base::rng::Random;

/// A body of which each part identifies its message.
pub(super) fn pattern(who: usize, length: usize) -> Vec<u8> {
    let step =
        |place: u32| place.wrapping_mul(2_654_435_761) ^ (who as u32).wrapping_mul(0x9e37_79b1);
    let letter = |place: u32| b'a' + (step(place) >> 20) as u8 % 26;
    (0..length as u32).map(letter).collect()
}

/// True with a probability of one in `of`.
pub(super) fn once_in(random: &mut Random, of: usize) -> bool {
    random.below(of) == 0
}

fn of<T: Copy>(random: &mut Random, from: &[T]) -> T {
    from[random.below(from.len())]
}

/// A random length. Over TCP it stays below any window: the kernel handles a full one in real time.
fn length(random: &mut Random, tcp: bool) -> usize {
    match random.below(50) {
        0..35 => 1 + random.below(60),
        35..47 => 1 + random.below(3_000),
        _ if tcp => 1 + random.below(6_000),
        47 | 48 => 1 + random.below(60_000),
        _ => 1 + random.below(700_000),
    }
}

/// Writes `body` in this shape; gives the trailers, and the offset of the first byte of the body.
fn write_body(
    out: &mut ScriptedOutput,
    shape: BodyShape,
    body: &[u8],
    id: usize,
    random: &mut Random,
) -> (Vec<(String, String)>, usize) {
    let BodyShape::Chunked(_) = shape else {
        let first = out.bytes.len();
        out.bytes.extend_from_slice(body);
        return (Vec::new(), first);
    };
    let (mut at, mut first) = (0, None);
    while at < body.len() {
        let most = if once_in(random, 3) { 8 } else { body.len() };
        let size = (1 + random.below(most)).min(body.len() - at);
        let extension = if once_in(random, 4) { ";ext=\"1\"" } else { "" };
        match random.below(3) {
            0 => out.text(&format!("{size:X}{extension}\r\n")),
            1 => out.text(&format!("000{size:x}{extension}\r\n")),
            _ => out.text(&format!("{size:x}{extension}\r\n")),
        }
        first.get_or_insert(out.bytes.len());
        out.bytes.extend_from_slice(&body[at..at + size]);
        out.text("\r\n");
        at += size;
    }
    let mut trailers = Vec::new();
    out.text("0\r\n");
    if once_in(random, 3) {
        out.text(&format!("X-Trail: {id}\r\nContent-Length: 7\r\n"));
        trailers.push(("X-Trail".to_owned(), id.to_string()));
    }
    out.text("\r\n");
    (trailers, first.unwrap_or(out.bytes.len()))
}

/// Splits the output between `from` and `to` into pieces.
fn split(out: &mut ScriptedOutput, from: usize, to: usize, random: &mut Random) {
    if to <= from + 1 {
        return;
    }
    if once_in(random, 4) {
        // Within the line ends of a head or a last chunk.
        out.act(
            to - 1 - random.below(3.min(to - from - 1)),
            ScriptedEvent::Split,
        );
    }
    match random.below(6) {
        0 if to - from < 600 => {
            for at in from + 1..to {
                out.act(at, ScriptedEvent::Split);
            }
        }
        0..4 => {
            for _ in 0..=random.below(5) {
                let at = from + 1 + random.below(to - from - 1);
                let stall = Duration::from_millis(1 + random.below(400) as u64);
                let act = if once_in(random, 4) {
                    ScriptedEvent::Stall(stall)
                } else {
                    ScriptedEvent::Split
                };
                out.act(at, act);
            }
        }
        _ => {}
    }
}

/// The kind of a random scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScenarioKind {
    /// All peers keep the rules; only the splits are random.
    Orderly,
    Wild,
}

/// The scenario of a seed.
pub(super) fn random_scenario(seed: u64, kind: ScenarioKind) -> Scenario {
    let mut random = Random::seeded(seed);
    let random = &mut random;
    let tcp = once_in(random, 3);
    let mut id = 0;
    let clients = (0..=random.below(2))
        .map(|_| client(random, &mut id, kind, tcp))
        .collect();
    let drops = if kind == ScenarioKind::Wild && once_in(random, 4) {
        (0..4).filter(|_| once_in(random, 3)).collect()
    } else {
        Vec::new()
    };
    Scenario {
        clients,
        backends: 1 + random.below(2),
        tcp,
        dropped: drops,
        seed: random.bits(),
    }
}

fn client(random: &mut Random, id: &mut usize, kind: ScenarioKind, tcp: bool) -> ClientPlan {
    let mut out = ScriptedOutput::default();
    let mut exchanges: Vec<ScriptedExchange> = Vec::new();
    let mut pipelined = once_in(random, 3);
    let wanted = 1 + random.below(4);
    if *id > 0 && once_in(random, 2) {
        out.act(
            0,
            ScriptedEvent::Stall(Duration::from_millis(1 + random.below(5_000) as u64)),
        );
    }
    while exchanges.len() < wanted {
        *id += 1;
        if exchanges.last().is_some_and(|last| last.upgrade) {
            break;
        }
        let number = exchanges.len();
        if number > 0 && !pipelined {
            out.act(out.bytes.len(), ScriptedEvent::Await(number));
            if once_in(random, 3) {
                let wait = Duration::from_millis(1 + random.below(6_000) as u64);
                out.act(out.bytes.len(), ScriptedEvent::Stall(wait));
            }
        }
        pipelined ^= once_in(random, 5);
        exchanges.push(exchange(random, &mut out, number, *id, kind, tcp));
    }
    let mut pauses = Vec::new();
    if once_in(random, 6) {
        let at = random.below(20_000);
        pauses.push((at, Duration::from_millis(1 + random.below(8_000) as u64)));
    }
    let mut plan = ClientPlan {
        exchanges,
        out,
        fault: None,
        pauses,
    };
    if kind == ScenarioKind::Wild && once_in(random, 4) {
        let at = random.below(plan.out.bytes.len() + 1);
        plan.break_at(
            at,
            of(random, &[FaultKind::Fin, FaultKind::Reset, FaultKind::Hang]),
        );
    }
    plan
}

/// Properties of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestSpec {
    pub method: &'static str,
    pub old: bool,
    pub closes: bool,
    pub upgrade: bool,
    pub expects: bool,
    pub shape: BodyShape,
}

impl RequestSpec {
    /// The plainest kind.
    pub(super) fn new(method: &'static str, shape: BodyShape) -> Self {
        Self {
            method,
            old: false,
            closes: false,
            upgrade: false,
            expects: false,
            shape,
        }
    }

    fn draw(random: &mut Random, tcp: bool) -> Self {
        let methods = [
            "GET", "GET", "GET", "HEAD", "POST", "POST", "PUT", "DELETE", "OPTIONS",
        ];
        let method = of(random, &methods);
        let old = once_in(random, 6);
        let shape = match (method, random.below(5)) {
            ("POST" | "PUT", 0 | 1) | (_, 0) if !old => BodyShape::Chunked(length(random, tcp)),
            ("POST" | "PUT", _) => BodyShape::Length(length(random, tcp)),
            _ => BodyShape::None,
        };
        if once_in(random, 12) {
            return Self {
                upgrade: true,
                ..Self::new("GET", BodyShape::None)
            };
        }
        Self {
            method,
            old,
            closes: once_in(random, 8) || old && once_in(random, 2),
            upgrade: false,
            expects: shape != BodyShape::None && !old && once_in(random, 4),
            shape,
        }
    }
}

/// Writes one request to `out`; gives it without plans, and the offset of the end of its head.
fn write_request(
    random: &mut Random,
    out: &mut ScriptedOutput,
    request: RequestSpec,
    id: usize,
) -> (ScriptedExchange, usize) {
    let RequestSpec {
        method,
        old,
        closes,
        upgrade,
        shape,
        ..
    } = request;
    let start = out.bytes.len();
    let version = if old { "1.0" } else { "1.1" };
    out.text(&format!(
        "{method} /e/{id} HTTP/{version}\r\nHost: sim.test\r\nX-Id: {id}\r\n"
    ));
    match (closes, old) {
        (true, false) => out.text("Connection: close\r\n"),
        (false, true) => out.text("Connection: keep-alive\r\n"),
        (false, false) if !upgrade && once_in(random, 5) => {
            out.text("Connection: X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\n");
        }
        _ => {}
    }
    if upgrade {
        out.text("Connection: Upgrade\r\nUpgrade: sim\r\n");
    }
    let body = match shape {
        BodyShape::Length(length) | BodyShape::Chunked(length) => pattern(id * 2, length),
        _ => Vec::new(),
    };
    match shape {
        BodyShape::Length(length) => out.text(&format!("Content-Length: {length}\r\n")),
        BodyShape::Chunked(_) => out.text("Transfer-Encoding: chunked\r\n"),
        _ => {}
    }
    if request.expects {
        out.text("Expect: 100-continue\r\n");
    }
    out.text("\r\n");
    let head_end = out.bytes.len();
    let (trailers, _) = write_body(out, shape, &body, id, random);
    let exchange = ScriptedExchange {
        id,
        method,
        upgrade,
        body,
        trailers,
        end: out.bytes.len(),
        plans: Vec::new(),
    };
    split(out, start, head_end, random);
    split(out, head_end, exchange.end, random);
    (exchange, head_end)
}

/// Writes one request to `out`, and plans the responses to it.
fn exchange(
    random: &mut Random,
    out: &mut ScriptedOutput,
    number: usize,
    id: usize,
    kind: ScenarioKind,
    tcp: bool,
) -> ScriptedExchange {
    let request = RequestSpec::draw(random, tcp);
    let (mut exchange, head_end) = write_request(random, out, request, id);
    if request.upgrade {
        return switch(random, out, exchange, (number, 4_000));
    }
    let attempts = if kind == ScenarioKind::Wild { 3 } else { 1 };
    for attempt in 0..attempts {
        let response = ResponseSpec::draw(random, request.expects, tcp);
        let mut plan = plan(random, &exchange, attempt, response);
        if kind == ScenarioKind::Wild && once_in(random, 3) {
            spoil(random, &mut plan, tcp);
        }
        exchange.plans.push(plan);
    }
    if request.expects {
        // Some wait for 100, some only for a while, some not at all.
        match random.below(3) {
            0 => out.act(head_end, ScriptedEvent::AwaitInterim(number)),
            1 => out.act(head_end, ScriptedEvent::Stall(Duration::from_secs(1))),
            _ => {}
        }
    }
    exchange
}

/// A switch of protocols: fewer than `most` bytes in each direction after the 101, then both end.
fn switch(
    random: &mut Random,
    out: &mut ScriptedOutput,
    mut exchange: ScriptedExchange,
    (number, most): (usize, usize),
) -> ScriptedExchange {
    let id = exchange.id;
    let head_end = out.bytes.len();
    exchange.body = pattern(id * 2, random.below(most));
    out.bytes.extend_from_slice(&exchange.body);
    if once_in(random, 2) {
        out.act(head_end, ScriptedEvent::AwaitInterim(number));
    }
    split(out, head_end, out.bytes.len(), random);
    exchange.end = out.bytes.len();
    out.act(exchange.end, ScriptedEvent::Fin);
    let mut response = ScriptedOutput::default();
    response.text(&format!(
        "HTTP/1.1 101 Switching Protocols\r\nX-Id: {id}\r\nX-Attempt: 0\r\nConnection: Upgrade\r\nUpgrade: sim\r\n\r\n"
    ));
    let body = pattern(id * 2 + 1, random.below(most));
    response.bytes.extend_from_slice(&body);
    let length = response.bytes.len();
    split(&mut response, 0, length, random);
    response.act(length, ScriptedEvent::Fin);
    exchange.plans.push(ResponsePlan {
        when: ResponseTrigger::Head,
        out: response,
        status: 101,
        method: "GET",
        body,
        trailers: Vec::new(),
        class: AttemptClass::Whole,
        dirty_from: Some(0),
        places: (0, 0, length),
        shape: BodyShape::None,
    });
    exchange
}

/// Properties of a response.
#[derive(Debug, Clone, Copy)]
pub(super) struct ResponseSpec {
    pub status: u16,
    pub shape: BodyShape,
    pub interims: usize,
    /// The first 1xx is a 100, and the final response waits for the body.
    pub continues: bool,
    pub closes: bool,
    /// It is sent before the request is complete.
    pub early: bool,
    /// Length of a field that only makes the head longer.
    pub padding: usize,
}

impl ResponseSpec {
    /// The plainest kind.
    pub(super) fn new(status: u16, shape: BodyShape) -> Self {
        Self {
            status,
            shape,
            interims: 0,
            continues: false,
            closes: false,
            early: false,
            padding: 0,
        }
    }

    fn draw(random: &mut Random, continues: bool, tcp: bool) -> Self {
        let status = of(random, &[200, 200, 200, 200, 404, 500, 204, 304]);
        let size = if once_in(random, 8) {
            0
        } else {
            length(random, tcp)
        };
        let shape = match random.below(5) {
            _ if matches!(status, 204 | 304) => BodyShape::None,
            0 | 1 => BodyShape::Length(size),
            2 | 3 => BodyShape::Chunked(size),
            _ => BodyShape::UntilClose(size),
        };
        Self {
            status,
            shape,
            interims: usize::from(continues) + usize::from(once_in(random, 8)),
            continues,
            closes: once_in(random, 8),
            early: once_in(random, 6),
            padding: if once_in(random, 5) { 500 } else { 0 },
        }
    }
}

/// Writes the 1xx responses before a final one.
fn write_interims(out: &mut ScriptedOutput, id: usize, attempt: usize, response: ResponseSpec) {
    for number in 0..response.interims {
        let line = if number == 0 && response.continues {
            "100 Continue"
        } else {
            "103 Early Hints"
        };
        out.text(&format!(
            "HTTP/1.1 {line}\r\nX-Id: {id}\r\nX-Attempt: {attempt}\r\n\r\n"
        ));
    }
}

/// Writes the head of a final response.
fn write_response_head(
    random: &mut Random,
    out: &mut ScriptedOutput,
    (id, attempt): (usize, usize),
    response: ResponseSpec,
) {
    let status = response.status;
    out.text(&format!(
        "HTTP/1.1 {status} As Planned\r\nX-Id: {id}\r\nX-Attempt: {attempt}\r\n"
    ));
    if response.padding > 0 {
        out.text(&format!("X-Padding: {}\r\n", "x".repeat(response.padding)));
    }
    if response.closes {
        out.text("Connection: close\r\n");
    } else if once_in(random, 6) {
        out.text("Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n");
    }
    match response.shape {
        BodyShape::None if status == 304 => out.text("Content-Length: 77\r\n"),
        BodyShape::Length(length) => out.text(&format!("Content-Length: {length}\r\n")),
        BodyShape::Chunked(_) => out.text("Transfer-Encoding: chunked\r\n"),
        BodyShape::None | BodyShape::UntilClose(_) => {}
    }
    out.text("\r\n");
}

/// A response that keeps the rules.
fn plan(
    random: &mut Random,
    exchange: &ScriptedExchange,
    attempt: usize,
    response: ResponseSpec,
) -> ResponsePlan {
    let ScriptedExchange { id, method, .. } = *exchange;
    let ResponseSpec { status, shape, .. } = response;
    let mut out = ScriptedOutput::default();
    write_interims(&mut out, id, attempt, response);
    let interims_end = out.bytes.len();
    write_response_head(random, &mut out, (id, attempt), response);
    let head_end = out.bytes.len();
    let (mut body, mut trailers, mut first) = (Vec::new(), Vec::new(), head_end);
    if method != "HEAD"
        && let BodyShape::Length(size) | BodyShape::Chunked(size) | BodyShape::UntilClose(size) =
            shape
    {
        body = pattern(id * 2 + 1 + attempt * 100_000, size);
        (trailers, first) = write_body(&mut out, shape, &body, id, random);
    }
    let end = out.bytes.len();
    if response.continues && !response.early {
        out.act(interims_end, ScriptedEvent::AwaitRequest);
    }
    split(&mut out, 0, head_end, random);
    split(&mut out, head_end, end, random);
    let ends = response.closes || method != "HEAD" && matches!(shape, BodyShape::UntilClose(_));
    if ends {
        out.act(end, ScriptedEvent::Fin);
    }
    let at_once = response.continues || response.early;
    ResponsePlan {
        when: if at_once {
            ResponseTrigger::Head
        } else {
            ResponseTrigger::Whole
        },
        out,
        status,
        method,
        body,
        trailers,
        class: AttemptClass::Whole,
        dirty_from: ends.then_some(0),
        places: (head_end, first, end),
        shape,
    }
}

/// A scenario of one client that pipelines these requests and gets these responses, without splits.
pub(super) fn fixed_scenario(tcp: bool, exchanges: &[(RequestSpec, ResponseSpec)]) -> Scenario {
    let random = &mut Random::seeded(9);
    let mut out = ScriptedOutput::default();
    let mut made = Vec::new();
    for (number, (request, response)) in exchanges.iter().enumerate() {
        let (mut exchange, head_end) = write_request(random, &mut out, *request, number + 1);
        if request.upgrade {
            made.push(switch(random, &mut out, exchange, (number, 30)));
            continue;
        }
        if request.expects {
            out.act(head_end, ScriptedEvent::AwaitInterim(number));
        }
        exchange.plans.push(plan(random, &exchange, 0, *response));
        made.push(exchange);
    }
    let mut scenario = Scenario {
        clients: vec![ClientPlan {
            exchanges: made,
            out,
            fault: None,
            pauses: Vec::new(),
        }],
        backends: 1,
        tcp,
        dropped: Vec::new(),
        seed: 1,
    };
    for out in scenario.outputs() {
        let is_cut =
            |act: &ScriptedEvent| matches!(act, ScriptedEvent::Split | ScriptedEvent::Stall(_));
        out.acts.retain(|(_, act)| !is_cut(act));
    }
    scenario
}

/// Breaks a response at a random offset, or replaces a part of it by garbage.
fn spoil(random: &mut Random, plan: &mut ResponsePlan, tcp: bool) {
    let (head_end, first, end) = plan.places;
    let at = match random.below(4) {
        0 => random.below(head_end),
        1 => 0,
        _ => random.below(end + 1),
    };
    match random.below(6) {
        0 => plan.break_at(at, FaultKind::Fin, tcp),
        1 => plan.break_at(at, FaultKind::Reset, tcp),
        2 => plan.break_at(at, FaultKind::Hang, tcp),
        // Bytes of no response, in one write with the end.
        3 if plan.dirty_from.is_none() && end < 50_000 => {
            let extra: &[u8] = match random.below(3) {
                0 => b"x",
                1 => b"\r\n",
                _ => b"HTTP/1.1 200 OK\r\nX-Id: 0\r\nX-Attempt: 0\r\nContent-Length: 2\r\n\r\nno",
            };
            plan.out.bytes.extend_from_slice(extra);
            plan.dirty_from = Some(0);
        }
        4 => {
            let garbage: &[u8] = match random.below(4) {
                0 => b"SSH-2.0-Nothing\r\n",
                1 => b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
                2 => b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nx",
                _ => b"HTTP/1.1 200 OK\r\nBad Name: 1\r\n\r\n",
            };
            plan.out = ScriptedOutput {
                bytes: garbage.to_vec(),
                acts: Vec::new(),
            };
            plan.class = AttemptClass::Before;
            plan.dirty_from = Some(0);
        }
        // A bad byte in place of a chunk size, or of the last line end.
        5 if plan.is_chunked() => {
            let at = if once_in(random, 2) {
                head_end
            } else {
                end - 2
            };
            plan.out.stop(at, ScriptedEvent::Split);
            plan.out.bytes.extend_from_slice(b"zz\r\n");
            plan.dirty_from = Some(0);
            plan.class = if at <= first {
                AttemptClass::Early
            } else {
                AttemptClass::Within
            };
        }
        _ => {}
    }
}
