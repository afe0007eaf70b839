//! What the ends of the connections will do: bytes, where they are cut, where somebody stalls, leaves or resets. Made from
//! one seed, before anything runs.

use std::time::Duration;

use crate::base::rng::Random;

/// Something that happens before the byte at its place is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// The bytes before are delivered first.
    Split,
    Stall(Duration),
    /// Ends its direction.
    Fin,
    /// Ends both, at once.
    Reset,
    /// A client waits until so many of its responses are whole.
    Await(usize),
    /// A client waits for a 1xx to its exchange of this number, or for the final response.
    AwaitInterim(usize),
    /// A backend waits for the whole request.
    AwaitRequest,
}

/// What one end writes.
#[derive(Debug, Clone, Default)]
pub(super) struct Output {
    pub bytes: Vec<u8>,
    /// In the order of their places.
    pub acts: Vec<(usize, Act)>,
}

impl Output {
    /// Adds an act behind those at the same place.
    pub(super) fn act(&mut self, at: usize, act: Act) {
        let behind = self.acts.partition_point(|(place, _)| *place <= at);
        self.acts.insert(behind, (at, act));
    }

    /// Nothing is written from `at` on, but for `act`.
    fn stop(&mut self, at: usize, act: Act) {
        self.bytes.truncate(at);
        self.acts.retain(|(place, _)| *place < at);
        self.acts.push((at, act));
    }

    fn text(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
    }
}

/// When a backend begins to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    Head,
    Whole,
}

/// What can become of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Whole,
    /// Fails before a response head is whole and valid.
    Before,
    /// Chunked, and fails before the first byte of the body: a failure or a cut.
    Early,
    /// Fails in its body.
    Within,
    /// Hangs before the head is whole.
    HangsBefore,
    /// Hangs in its body.
    HangsWithin,
}

/// What a backend does with one try.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub when: When,
    pub out: Output,
    pub status: u16,
    /// The method it answers.
    pub method: &'static str,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    pub class: Class,
    /// From this byte on the connection is of no use for another exchange.
    pub dirty_from: Option<usize>,
    /// The end of the final head, the first byte of the body, the end.
    places: (usize, usize, usize),
    shape: Shape,
}

/// How a body is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    None,
    Length(usize),
    Chunked(usize),
    /// Responses only.
    UntilClose(usize),
}

/// One request, and what backends will say to it.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    pub id: usize,
    pub method: &'static str,
    pub upgrade: bool,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// Where it ends in what the client writes.
    pub end: usize,
    /// One for each try; tries beyond them get the last.
    pub plans: Vec<Plan>,
}

impl Exchange {
    /// The plan of a try.
    pub(super) fn plan(&self, attempt: usize) -> &Plan {
        &self.plans[attempt.min(self.plans.len() - 1)]
    }

    pub(super) fn is_idempotent(&self) -> bool {
        !matches!(self.method, "POST" | "PATCH")
    }
}

/// What is wrong with a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientFault {
    /// It ends its direction at this byte.
    Fin(usize),
    Reset(usize),
    /// It says nothing for longer than any timeout.
    Hang(usize),
}

/// One client connection.
#[derive(Debug, Clone)]
pub(super) struct ClientPlan {
    pub exchanges: Vec<Exchange>,
    pub out: Output,
    pub fault: Option<ClientFault>,
    /// After so many bytes it reads nothing for a while.
    pub pauses: Vec<(usize, Duration)>,
}

/// A whole run.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub clients: Vec<ClientPlan>,
    /// 1 or 2.
    pub backends: usize,
    /// Over TCP; else over unix sockets, which know no reset.
    pub tcp: bool,
    /// New connections that backends drop without reading, by their order.
    pub dropped: Vec<usize>,
    /// Who goes first is drawn from this.
    pub seed: u64,
}

/// Longer than any timeout.
pub(super) const HANG: Duration = Duration::from_secs(200);

/// A body whose every part says whose it is.
pub(super) fn pattern(who: usize, length: usize) -> Vec<u8> {
    let step =
        |place: u32| place.wrapping_mul(2_654_435_761) ^ (who as u32).wrapping_mul(0x9e37_79b1);
    let letter = |place: u32| b'a' + (step(place) >> 20) as u8 % 26;
    (0..length as u32).map(letter).collect()
}

/// True once in `of`.
pub(super) fn once_in(random: &mut Random, of: usize) -> bool {
    random.below(of) == 0
}

fn of<T: Copy>(random: &mut Random, from: &[T]) -> T {
    from[random.below(from.len())]
}

/// Over TCP bodies stay below any window: what the kernel does about a full one happens in real time.
fn length(random: &mut Random, tcp: bool) -> usize {
    match random.below(50) {
        0..35 => 1 + random.below(60),
        35..47 => 1 + random.below(3_000),
        _ if tcp => 1 + random.below(6_000),
        47 | 48 => 1 + random.below(60_000),
        _ => 1 + random.below(700_000),
    }
}

/// Writes `body` in this shape; gives the trailers, and where the first byte of the body is.
fn write_body(
    out: &mut Output,
    shape: Shape,
    body: &[u8],
    id: usize,
    random: &mut Random,
) -> (Vec<(String, String)>, usize) {
    let Shape::Chunked(_) = shape else {
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

/// Cuts what is written from `from` to `to` into pieces.
fn split(out: &mut Output, from: usize, to: usize, random: &mut Random) {
    if to <= from + 1 {
        return;
    }
    if once_in(random, 4) {
        // Within the line ends of a head or a last chunk.
        out.act(to - 1 - random.below(3.min(to - from - 1)), Act::Split);
    }
    match random.below(6) {
        0 if to - from < 600 => {
            for at in from + 1..to {
                out.act(at, Act::Split);
            }
        }
        0..4 => {
            for _ in 0..=random.below(5) {
                let at = from + 1 + random.below(to - from - 1);
                let stall = Duration::from_millis(1 + random.below(400) as u64);
                let act = if once_in(random, 4) {
                    Act::Stall(stall)
                } else {
                    Act::Split
                };
                out.act(at, act);
            }
        }
        _ => {}
    }
}

/// How wild a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    /// Everybody keeps to the rules; only the splits are random.
    Calm,
    Wild,
}

/// The run of a seed.
pub(super) fn case(seed: u64, mood: Mood) -> Case {
    let mut random = Random::seeded(seed);
    let random = &mut random;
    let tcp = once_in(random, 3);
    let mut id = 0;
    let clients = (0..=random.below(2))
        .map(|_| client(random, &mut id, mood, tcp))
        .collect();
    let drops = if mood == Mood::Wild && once_in(random, 4) {
        (0..4).filter(|_| once_in(random, 3)).collect()
    } else {
        Vec::new()
    };
    Case {
        clients,
        backends: 1 + random.below(2),
        tcp,
        dropped: drops,
        seed: random.bits(),
    }
}

fn client(random: &mut Random, id: &mut usize, mood: Mood, tcp: bool) -> ClientPlan {
    let mut out = Output::default();
    let mut exchanges: Vec<Exchange> = Vec::new();
    let mut pipelined = once_in(random, 3);
    let wanted = 1 + random.below(4);
    if *id > 0 && once_in(random, 2) {
        out.act(
            0,
            Act::Stall(Duration::from_millis(1 + random.below(5_000) as u64)),
        );
    }
    while exchanges.len() < wanted {
        *id += 1;
        if exchanges.last().is_some_and(|last| last.upgrade) {
            break;
        }
        let number = exchanges.len();
        if number > 0 && !pipelined {
            out.act(out.bytes.len(), Act::Await(number));
            if once_in(random, 3) {
                let wait = Duration::from_millis(1 + random.below(6_000) as u64);
                out.act(out.bytes.len(), Act::Stall(wait));
            }
        }
        pipelined ^= once_in(random, 5);
        exchanges.push(exchange(random, &mut out, number, *id, mood, tcp));
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
    if mood == Mood::Wild && once_in(random, 4) {
        let at = random.below(plan.out.bytes.len() + 1);
        plan.break_at(at, of(random, &[Break::Fin, Break::Reset, Break::Hang]));
    }
    plan
}

/// What a request is to look like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub method: &'static str,
    pub old: bool,
    pub closes: bool,
    pub upgrade: bool,
    pub expects: bool,
    pub shape: Shape,
}

impl Wish {
    /// Nothing special.
    pub(super) fn new(method: &'static str, shape: Shape) -> Self {
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
            ("POST" | "PUT", 0 | 1) | (_, 0) if !old => Shape::Chunked(length(random, tcp)),
            ("POST" | "PUT", _) => Shape::Length(length(random, tcp)),
            _ => Shape::None,
        };
        if once_in(random, 12) {
            return Self {
                upgrade: true,
                ..Self::new("GET", Shape::None)
            };
        }
        Self {
            method,
            old,
            closes: once_in(random, 8) || old && once_in(random, 2),
            upgrade: false,
            expects: shape != Shape::None && !old && once_in(random, 4),
            shape,
        }
    }
}

/// Writes one request to `out`, without plans for it; gives the end of its head too.
fn write_request(
    random: &mut Random,
    out: &mut Output,
    wish: Wish,
    id: usize,
) -> (Exchange, usize) {
    let Wish {
        method,
        old,
        closes,
        upgrade,
        shape,
        ..
    } = wish;
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
        Shape::Length(length) | Shape::Chunked(length) => pattern(id * 2, length),
        _ => Vec::new(),
    };
    match shape {
        Shape::Length(length) => out.text(&format!("Content-Length: {length}\r\n")),
        Shape::Chunked(_) => out.text("Transfer-Encoding: chunked\r\n"),
        _ => {}
    }
    if wish.expects {
        out.text("Expect: 100-continue\r\n");
    }
    out.text("\r\n");
    let head_end = out.bytes.len();
    let (trailers, _) = write_body(out, shape, &body, id, random);
    let exchange = Exchange {
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

/// Writes one request to `out`, and makes the plans for it.
fn exchange(
    random: &mut Random,
    out: &mut Output,
    number: usize,
    id: usize,
    mood: Mood,
    tcp: bool,
) -> Exchange {
    let wish = Wish::draw(random, tcp);
    let (mut exchange, head_end) = write_request(random, out, wish, id);
    if wish.upgrade {
        return switch(random, out, exchange, (number, 4_000));
    }
    let tries = if mood == Mood::Wild { 3 } else { 1 };
    for attempt in 0..tries {
        let answer = Answer::draw(random, wish.expects, tcp);
        let mut plan = plan(random, &exchange, attempt, answer);
        if mood == Mood::Wild && once_in(random, 3) {
            spoil(random, &mut plan, tcp);
        }
        exchange.plans.push(plan);
    }
    if wish.expects {
        // Some wait for 100, some only for a while, some not at all.
        match random.below(3) {
            0 => out.act(head_end, Act::AwaitInterim(number)),
            1 => out.act(head_end, Act::Stall(Duration::from_secs(1))),
            _ => {}
        }
    }
    exchange
}

/// A switch of protocols: fewer than `most` bytes both ways after the 101, then both ends.
fn switch(
    random: &mut Random,
    out: &mut Output,
    mut exchange: Exchange,
    (number, most): (usize, usize),
) -> Exchange {
    let id = exchange.id;
    let head_end = out.bytes.len();
    exchange.body = pattern(id * 2, random.below(most));
    out.bytes.extend_from_slice(&exchange.body);
    if once_in(random, 2) {
        out.act(head_end, Act::AwaitInterim(number));
    }
    split(out, head_end, out.bytes.len(), random);
    exchange.end = out.bytes.len();
    out.act(exchange.end, Act::Fin);
    let mut answer = Output::default();
    answer.text(&format!(
        "HTTP/1.1 101 Switching Protocols\r\nX-Id: {id}\r\nX-Attempt: 0\r\nConnection: Upgrade\r\nUpgrade: sim\r\n\r\n"
    ));
    let body = pattern(id * 2 + 1, random.below(most));
    answer.bytes.extend_from_slice(&body);
    let length = answer.bytes.len();
    split(&mut answer, 0, length, random);
    answer.act(length, Act::Fin);
    exchange.plans.push(Plan {
        when: When::Head,
        out: answer,
        status: 101,
        method: "GET",
        body,
        trailers: Vec::new(),
        class: Class::Whole,
        dirty_from: Some(0),
        places: (0, 0, length),
        shape: Shape::None,
    });
    exchange
}

/// What a response is to look like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    pub status: u16,
    pub shape: Shape,
    pub interims: usize,
    /// The first 1xx is a 100, and the final response waits for the body.
    pub continues: bool,
    pub closes: bool,
    /// It does not wait for the request.
    pub early: bool,
    /// Bytes of a field that only makes the head longer.
    pub padding: usize,
}

impl Answer {
    /// Nothing special.
    pub(super) fn new(status: u16, shape: Shape) -> Self {
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
            _ if matches!(status, 204 | 304) => Shape::None,
            0 | 1 => Shape::Length(size),
            2 | 3 => Shape::Chunked(size),
            _ => Shape::UntilClose(size),
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

/// A response by the rules.
fn plan(random: &mut Random, exchange: &Exchange, attempt: usize, answer: Answer) -> Plan {
    let Exchange { id, method, .. } = *exchange;
    let Answer { status, shape, .. } = answer;
    let mut out = Output::default();
    for number in 0..answer.interims {
        let line = if number == 0 && answer.continues {
            "100 Continue"
        } else {
            "103 Early Hints"
        };
        out.text(&format!(
            "HTTP/1.1 {line}\r\nX-Id: {id}\r\nX-Attempt: {attempt}\r\n\r\n"
        ));
    }
    let interims_end = out.bytes.len();
    out.text(&format!(
        "HTTP/1.1 {status} As Planned\r\nX-Id: {id}\r\nX-Attempt: {attempt}\r\n"
    ));
    if answer.padding > 0 {
        out.text(&format!("X-Padding: {}\r\n", "x".repeat(answer.padding)));
    }
    if answer.closes {
        out.text("Connection: close\r\n");
    } else if once_in(random, 6) {
        out.text("Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n");
    }
    match shape {
        Shape::None if status == 304 => out.text("Content-Length: 77\r\n"),
        Shape::Length(length) => out.text(&format!("Content-Length: {length}\r\n")),
        Shape::Chunked(_) => out.text("Transfer-Encoding: chunked\r\n"),
        Shape::None | Shape::UntilClose(_) => {}
    }
    out.text("\r\n");
    let head_end = out.bytes.len();
    let (mut body, mut trailers, mut first) = (Vec::new(), Vec::new(), head_end);
    if method != "HEAD"
        && let Shape::Length(size) | Shape::Chunked(size) | Shape::UntilClose(size) = shape
    {
        body = pattern(id * 2 + 1 + attempt * 100_000, size);
        (trailers, first) = write_body(&mut out, shape, &body, id, random);
    }
    let end = out.bytes.len();
    if answer.continues && !answer.early {
        out.act(interims_end, Act::AwaitRequest);
    }
    split(&mut out, 0, head_end, random);
    split(&mut out, head_end, end, random);
    let ends = answer.closes || method != "HEAD" && matches!(shape, Shape::UntilClose(_));
    if ends {
        out.act(end, Act::Fin);
    }
    let at_once = answer.continues || answer.early;
    Plan {
        when: if at_once { When::Head } else { When::Whole },
        out,
        status,
        method,
        body,
        trailers,
        class: Class::Whole,
        dirty_from: ends.then_some(0),
        places: (head_end, first, end),
        shape,
    }
}

/// A run of one client that sends these requests without waiting, and gets these answers; nothing is split.
pub(super) fn plain(tcp: bool, exchanges: &[(Wish, Answer)]) -> Case {
    let random = &mut Random::seeded(9);
    let mut out = Output::default();
    let mut made = Vec::new();
    for (number, (wish, answer)) in exchanges.iter().enumerate() {
        let (mut exchange, head_end) = write_request(random, &mut out, *wish, number + 1);
        if wish.upgrade {
            made.push(switch(random, &mut out, exchange, (number, 30)));
            continue;
        }
        if wish.expects {
            out.act(head_end, Act::AwaitInterim(number));
        }
        exchange.plans.push(plan(random, &exchange, 0, *answer));
        made.push(exchange);
    }
    let mut case = Case {
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
    for out in case.outputs() {
        let is_cut = |act: &Act| matches!(act, Act::Split | Act::Stall(_));
        out.acts.retain(|(_, act)| !is_cut(act));
    }
    case
}

impl Case {
    /// All that is written by anybody.
    pub(super) fn outputs(&mut self) -> Vec<&mut Output> {
        let clients = self.clients.iter_mut();
        clients
            .flat_map(|client| {
                let plans = client.exchanges.iter_mut().flat_map(|each| &mut each.plans);
                let outputs = plans.map(|plan| &mut plan.out);
                std::iter::once(&mut client.out).chain(outputs)
            })
            .collect()
    }
}

/// What breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Break {
    Fin,
    Reset,
    Hang,
}

impl Plan {
    fn class_at(&self, at: usize) -> Class {
        let (head_end, first, end) = self.places;
        if at < head_end {
            Class::Before
        } else if at >= end && !self.is_until_close() {
            Class::Whole
        } else if self.is_chunked() && at <= first {
            Class::Early
        } else {
            Class::Within
        }
    }

    fn is_chunked(&self) -> bool {
        matches!(self.shape, Shape::Chunked(_)) && self.places.2 > self.places.0
    }

    fn is_until_close(&self) -> bool {
        matches!(self.shape, Shape::UntilClose(_)) && self.method != "HEAD"
    }

    /// The response ends or hangs before the byte at `at`.
    pub(super) fn break_at(&mut self, at: usize, what: Break, tcp: bool) {
        let class = self.class_at(at);
        let head_end = self.places.0;
        if what == Break::Hang {
            if class != Class::Whole {
                self.out.act(at, Act::Stall(HANG));
                self.dirty_from = Some(0);
                self.class = match class {
                    Class::Before => Class::HangsBefore,
                    _ => Class::HangsWithin,
                };
            }
            return;
        }
        let is_fin = what == Break::Fin;
        self.out
            .stop(at, if is_fin { Act::Fin } else { Act::Reset });
        self.class = class;
        // A unix socket knows no reset.
        if self.is_until_close() && at >= head_end && (is_fin || !tcp) {
            self.body.truncate(at - head_end);
            self.class = Class::Whole;
        }
        if self.class != Class::Whole {
            self.dirty_from = Some(0);
        }
    }
}

impl ClientPlan {
    /// The client leaves, or hangs, before the byte at `at`.
    pub(super) fn break_at(&mut self, at: usize, what: Break) {
        self.fault = Some(match what {
            Break::Fin => {
                self.out.stop(at, Act::Fin);
                ClientFault::Fin(at)
            }
            Break::Reset => {
                self.out.stop(at, Act::Reset);
                ClientFault::Reset(at)
            }
            Break::Hang => {
                self.out.act(at, Act::Stall(HANG));
                ClientFault::Hang(at)
            }
        });
    }
}

/// Breaks a response somewhere, or makes it worse than broken.
fn spoil(random: &mut Random, plan: &mut Plan, tcp: bool) {
    let (head_end, first, end) = plan.places;
    let at = match random.below(4) {
        0 => random.below(head_end),
        1 => 0,
        _ => random.below(end + 1),
    };
    match random.below(6) {
        0 => plan.break_at(at, Break::Fin, tcp),
        1 => plan.break_at(at, Break::Reset, tcp),
        2 => plan.break_at(at, Break::Hang, tcp),
        // Bytes nobody asked for, in one write with the end.
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
            plan.out = Output {
                bytes: garbage.to_vec(),
                acts: Vec::new(),
            };
            plan.class = Class::Before;
            plan.dirty_from = Some(0);
        }
        // A bad byte where a size should be, or where the last line should end.
        5 if plan.is_chunked() => {
            let at = if once_in(random, 2) {
                head_end
            } else {
                end - 2
            };
            plan.out.stop(at, Act::Split);
            plan.out.bytes.extend_from_slice(b"zz\r\n");
            plan.dirty_from = Some(0);
            plan.class = if at <= first {
                Class::Early
            } else {
                Class::Within
            };
        }
        _ => {}
    }
}
