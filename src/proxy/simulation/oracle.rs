//! The promises that must hold after every run.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
};

use serde_json::Value;

use super::{
    driver::Simulation,
    peers::{PeerClose, SeenRequest, SimulatedClient},
    scenario::{
        AttemptClass, ClientFault, Scenario, ScriptedEvent, ScriptedExchange, ScriptedOutput,
    },
    wire::{WireFraming, WireMessage},
};

/// The messages that the peers received, which must not depend on the splits.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RunOutcome {
    clients: Vec<(Vec<WireMessage>, Option<PeerClose>)>,
    backends: Vec<WireMessage>,
}

/// Fields that differ from run to run.
const VOLATILE_FIELDS: [&str; 2] = ["X-Request-Id", "Date"];

pub(super) fn outcome(simulation: &Simulation) -> RunOutcome {
    let plain = |message: &WireMessage| {
        let mut message = message.clone();
        message
            .fields
            .retain(|(name, _)| !VOLATILE_FIELDS.contains(&name.as_str()));
        message
    };
    let clients = simulation.clients.iter().map(|client| {
        let messages = client.reader.messages.iter().map(plain).collect();
        (messages, client.end)
    });
    let connections = simulation.backends.connections.iter();
    RunOutcome {
        clients: clients.collect(),
        backends: connections
            .flat_map(|connection| connection.reader.messages.iter().map(plain))
            .collect(),
    }
}

fn require(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Checks the messages that clients and backends received.
pub(super) fn connections(simulation: &Simulation, scenario: &Scenario) -> Result<(), String> {
    for client in &simulation.clients {
        ReceivedResponses {
            simulation,
            scenario,
            client,
        }
        .check()?;
    }
    let mut ids: HashMap<&str, usize> = HashMap::new();
    for seen in &simulation.backends.seen {
        let id = request(simulation, seen)?;
        let other = ids.entry(id).or_insert(seen.id);
        require(*other == seen.id, || {
            format!("{} and {other} have one request id", seen.id)
        })?;
    }
    for client in &simulation.clients {
        for (message, exchange) in client.reader.finals().zip(&client.plan.exchanges) {
            let id = message.field("X-Request-Id").unwrap_or_default();
            require(ids.get(id).is_none_or(|seen| *seen == exchange.id), || {
                format!("the request id of another exchange: {message:?}")
            })?;
        }
        for exchange in &client.plan.exchanges {
            let attempts = simulation.backends.attempts(exchange.id);
            let raced = simulation.backends.raced.contains(&exchange.id);
            // Two retries, and one attempt after a stale connection.
            let most = if exchange.is_idempotent() { 4 } else { 1 };
            require(
                attempts <= most || raced && exchange.is_idempotent(),
                || format!("{attempts} attempts of {} {}", exchange.method, exchange.id),
            )?;
        }
    }
    Ok(())
}

/// Checks a request that a backend received; gives its request id.
fn request<'w>(simulation: &'w Simulation, seen: &SeenRequest) -> Result<&'w str, String> {
    let connection = &simulation.backends.connections[seen.connection];
    let message = &connection.reader.messages[seen.place];
    let bad = |what: &str| Err(format!("request {}: {what}: {message:?}", seen.id));
    let of =
        |client: &&SimulatedClient| client.plan.exchanges.iter().any(|each| each.id == seen.id);
    let Some(client) = simulation.clients.iter().find(of) else {
        return bad("no client sent it");
    };
    let exchange = client.plan.exchanges.iter().find(|each| each.id == seen.id);
    let exchange = exchange.ok_or("there is one")?;
    let line = format!("{} /e/{} HTTP/1.1", exchange.method, exchange.id);
    if message.start != line || message.field("X-Id") != Some(&seen.id.to_string()) {
        return bad("another request");
    }
    if message.field("Host") != Some("sim.test") {
        return bad("another host");
    }
    if ["X-Hop", "TE", "Keep-Alive"]
        .iter()
        .any(|name| message.field(name).is_some())
    {
        return bad("a field for one hop");
    }
    if !exchange.body.starts_with(&message.body) {
        return bad("another body");
    }
    let sent_whole = client.written() >= exchange.end;
    if message.framing == WireFraming::Tunnel {
        if message.whole && sent_whole && message.body != exchange.body {
            return bad("a tunnel that lost bytes");
        }
    } else if message.whole {
        if message.body != exchange.body || message.trailers != exchange.trailers {
            return bad("whole, with another body");
        }
        if !sent_whole {
            return bad("it looks whole and is not");
        }
    } else if connection.is_open() {
        return bad("it is cut, and the connection goes on");
    }
    message
        .field("X-Request-Id")
        .map_or_else(|| bad("no request id"), Ok)
}

/// The responses that one client received.
struct ReceivedResponses<'a> {
    simulation: &'a Simulation,
    scenario: &'a Scenario,
    client: &'a SimulatedClient,
}

impl ReceivedResponses<'_> {
    fn check(&self) -> Result<(), String> {
        let exchanges = &self.client.plan.exchanges;
        let (mut finals, mut open) = (0, true);
        for message in &self.client.reader.messages {
            let exchange = exchanges.get(finals).filter(|_| open);
            let exchange = exchange.ok_or_else(|| format!("one response too many: {message:?}"))?;
            if message.is_interim() {
                check_marks(message, exchange)?;
                continue;
            }
            self.check_response(message, exchange)
                .map_err(|error| format!("exchange {}: {error}: {message:?}", exchange.id))?;
            finals += 1;
            open = message.whole
                && !message.closes()
                && !matches!(
                    message.framing,
                    WireFraming::UntilClose | WireFraming::Tunnel
                );
        }
        if let Some(next) = exchanges.get(finals).filter(|_| open) {
            require(
                self.client.written() < next.end || self.excuses(next),
                || {
                    format!(
                        "no response to exchange {}, the end is {:?}",
                        next.id, self.client.end
                    )
                },
            )?;
            return Ok(());
        }
        require(
            open || self.client.end.is_some() || self.client.left,
            || "the connection goes on behind its last response".to_owned(),
        )?;
        // A reset can destroy bytes that the client has not read yet.
        let all_whole = self.client.reader.finals().all(|message| message.whole);
        let reset = self.client.end == Some(PeerClose::Reset);
        require(
            !reset || !all_whole || self.client.plan.fault.is_some(),
            || "a reset behind complete responses".to_owned(),
        )
    }

    /// True if the fault of the client explains that this exchange failed.
    fn excuses(&self, exchange: &ScriptedExchange) -> bool {
        match self.client.plan.fault {
            Some(ClientFault::Reset(_)) => true,
            Some(ClientFault::Fin(at) | ClientFault::Hang(at)) => exchange.end > at,
            None => false,
        }
    }

    /// True if the plan of this exchange alone does not determine its result.
    fn is_unclear(&self, exchange: &ScriptedExchange) -> bool {
        !self.scenario.dropped.is_empty()
            || self.simulation.backends.raced.contains(&exchange.id)
            || self.excuses(exchange)
    }

    fn check_response(
        &self,
        message: &WireMessage,
        exchange: &ScriptedExchange,
    ) -> Result<(), String> {
        if message.field("Proxy-Status").is_some() {
            return self.local_reply(message, exchange);
        }
        let attempt = check_marks(message, exchange)?;
        let plan = exchange.plan(attempt);
        if message.status() != plan.status {
            return Err(format!("not the planned {}", plan.status));
        }
        if matches!(plan.class, AttemptClass::Before | AttemptClass::HangsBefore) {
            return Err("a response that was never sent".to_owned());
        }
        if !plan.body.starts_with(&message.body) {
            return Err("another body".to_owned());
        }
        // A unix socket has no reset: a cut looks like an end.
        let is_cut_invisible = !self.scenario.tcp && message.framing == WireFraming::UntilClose;
        if !message.whole {
            let planned = plan.class != AttemptClass::Whole || self.excuses(exchange);
            return require(planned, || "cut without a reason".to_owned());
        }
        if is_cut_invisible {
            return Ok(());
        }
        if plan.class != AttemptClass::Whole {
            return Err(format!("it looks whole: {:?}", plan.class));
        }
        if message.body != plan.body {
            return Err("whole, with another body".to_owned());
        }
        if message.framing == WireFraming::Chunked && message.trailers != plan.trailers {
            return Err("other trailers".to_owned());
        }
        Ok(())
    }

    /// Checks an error of balancer's own: it needs a reason, and a further attempt must not have
    /// helped.
    fn local_reply(
        &self,
        message: &WireMessage,
        exchange: &ScriptedExchange,
    ) -> Result<(), String> {
        require(message.whole || self.excuses(exchange), || "cut".to_owned())?;
        if self.is_unclear(exchange) {
            return Ok(());
        }
        let attempts = if exchange.is_idempotent() && exchange.body.len() <= 64 << 10 {
            3
        } else {
            1
        };
        let mut classes = (0..attempts).map(|attempt| exchange.plan(attempt).class);
        match classes.find(|class| *class != AttemptClass::Before) {
            Some(AttemptClass::Whole) => Err("an error, although a backend responds".to_owned()),
            _ => Ok(()),
        }
    }
}

/// Checks that the response belongs to this exchange; gives the number of the attempt.
fn check_marks(message: &WireMessage, exchange: &ScriptedExchange) -> Result<usize, String> {
    let id = message.field("X-Id");
    if id != Some(&exchange.id.to_string()) {
        return Err(format!(
            "the response to another request than {}: {message:?}",
            exchange.id
        ));
    }
    if ["X-Hop", "Keep-Alive"]
        .iter()
        .any(|name| message.field(name).is_some())
    {
        return Err(format!("a field for one hop: {message:?}"));
    }
    let attempt = message
        .field("X-Attempt")
        .and_then(|attempt| attempt.parse().ok());
    attempt.ok_or_else(|| "no number of the attempt".to_owned())
}

/// Checks that every exchange is counted and logged once, with the response that the client
/// received.
pub(super) fn records(simulation: &Simulation, lines: Option<&[Value]>) -> Result<(), String> {
    if let Some(lines) = lines {
        log(simulation, lines)?;
    }
    counters(simulation)
}

fn log(simulation: &Simulation, lines: &[Value]) -> Result<(), String> {
    let mut by_id: BTreeMap<usize, &Value> = BTreeMap::new();
    for line in lines {
        let path = line["path"].as_str().unwrap_or_default();
        let Some(id) = path.strip_prefix("/e/").and_then(|id| id.parse().ok()) else {
            continue;
        };
        require(by_id.insert(id, line).is_none(), || {
            format!("{id} is logged twice")
        })?;
    }
    for seen in &simulation.backends.seen {
        require(by_id.contains_key(&seen.id), || {
            format!("{} is not logged", seen.id)
        })?;
    }
    for client in &simulation.clients {
        for (message, exchange) in client.reader.finals().zip(&client.plan.exchanges) {
            let Some(line) = by_id.get(&exchange.id) else {
                let refused = message.field("Proxy-Status").is_some();
                require(refused, || format!("{} is not logged", exchange.id))?;
                continue;
            };
            record(simulation, client, line, (message, exchange))
                .map_err(|error| format!("{}: {error}: {message:?} {line}", exchange.id))?;
        }
    }
    let responded = |line: &&Value| line["status"].as_u64().is_some_and(|status| status != 499);
    let logged = lines.iter().filter(responded).count() as u64;
    let failed = lines
        .iter()
        .filter(|line| !line["reason"].is_null())
        .count() as u64;
    let counted = counted(simulation);
    require(counted == (logged, failed), || {
        format!("counted responses and errors {counted:?}, logged {logged} and {failed}")
    })
}

fn record(
    simulation: &Simulation,
    client: &SimulatedClient,
    line: &Value,
    (message, exchange): (&WireMessage, &ScriptedExchange),
) -> Result<(), String> {
    require(line["status"] == message.status(), || {
        "another status is logged".to_owned()
    })?;
    let own = message.field("Proxy-Status").is_some();
    let failed = !line["reason"].is_null();
    if own || !message.whole && message.framing != WireFraming::Tunnel {
        return require(failed, || "a failure without a reason".to_owned());
    }
    if failed {
        return Ok(());
    }
    let out = message.body.len();
    require(line["bytes_out"] == out, || {
        "another length of the response".to_owned()
    })?;
    let whole = |seen: &&SeenRequest| {
        let messages = &simulation.backends.connections[seen.connection]
            .reader
            .messages;
        seen.id == exchange.id && messages[seen.place].whole
    };
    let sent_whole = client.written() >= exchange.end;
    if sent_whole && simulation.backends.seen.iter().any(|seen| whole(&seen)) {
        let length = exchange.body.len();
        require(line["bytes_in"] == length, || {
            "another length of the request".to_owned()
        })?;
    }
    let attempts = simulation.backends.attempts(exchange.id);
    require(line["attempts"].as_u64() >= Some(attempts as u64), || {
        "another count of attempts".to_owned()
    })
}

/// Counts of responses and errors.
fn counted(simulation: &Simulation) -> (u64, u64) {
    let snapshot = simulation.worker.generation();
    let slots = [&*snapshot.unrouted, &snapshot.pools[0].state.metrics];
    let (mut responses, mut errors) = (0, 0);
    for slot in slots.iter().flat_map(|slots| slots.each()) {
        responses += slot.requests.each().map(|(_, _, count)| count).sum::<u64>();
        errors += slot.errors.lock().unwrap().values().sum::<u64>();
    }
    (responses, errors)
}

fn counters(simulation: &Simulation) -> Result<(), String> {
    let (responses, _) = counted(simulation);
    let got: usize = simulation
        .clients
        .iter()
        .map(|client| client.reader.finals().count())
        .sum();
    require(responses >= got as u64, || {
        format!("counted {responses} responses of {got}")
    })?;
    let snapshot = simulation.worker.generation();
    let active = snapshot.pools[0]
        .state
        .metrics
        .sum(|slot| &slot.requests_active);
    require(active == 0, || {
        format!("{active} requests are still counted as active")
    })?;
    let slots = &snapshot.listeners[0].state.metrics;
    let (received, sent) = (
        slots.sum(|slot| &slot.received),
        slots.sum(|slot| &slot.sent),
    );
    let written: usize = simulation
        .clients
        .iter()
        .map(SimulatedClient::written)
        .sum();
    let got: usize = simulation
        .clients
        .iter()
        .map(|client| client.reader.bytes)
        .sum();
    let whole =
        |client: &SimulatedClient| client.reader.whole_finals() == client.plan.exchanges.len();
    require(received <= written as u64, || {
        format!("{received} of {written} bytes received")
    })?;
    let none_left = simulation
        .clients
        .iter()
        .all(|client| client.end != Some(PeerClose::Reset) && (!client.left || whole(client)));
    require(!none_left || sent == got as u64, || {
        format!("{sent} bytes sent, {got} arrived")
    })
}

/// Checks that a finished run leaves only idle connections and free memory.
pub(super) fn leftovers(simulation: &Simulation) -> Result<(), String> {
    let snapshot = simulation.worker.generation();
    let (mut active, mut idle, mut in_flight) = (0, 0, 0);
    for backend in &snapshot.pools[0].backends {
        active += backend.state.metrics.sum(|slot| &slot.connections_active);
        idle += backend.state.metrics.sum(|slot| &slot.connections_idle);
        in_flight += backend.state.in_flight();
    }
    require((active, in_flight) == (0, 0), || {
        format!("{active} in use, {in_flight} in flight")
    })?;
    let open = simulation
        .backends
        .connections
        .iter()
        .filter(|each| each.is_open())
        .count();
    require(idle == open as u64, || {
        format!("{idle} idle connections, {open} open ones")
    })?;
    let worker = &simulation.worker;
    require(worker.connections.count() == 0, || {
        "a connection is still counted".to_owned()
    })?;
    require(worker.lingering.get() == 0, || {
        "a connection is still lingering".to_owned()
    })?;
    let kept = worker.free_buffers();
    // A client that never sends a byte needs no buffers.
    let least = usize::from(simulation.clients.iter().any(|client| client.written() > 0));
    require((least..=simulation.clients.len()).contains(&kept), || {
        format!("{kept} buffers were given back")
    })
}

/// Checks that no connection is left after the idle ones were closed.
pub(super) fn nothing_is_open(simulation: &Simulation) -> Result<(), String> {
    let open = simulation
        .backends
        .connections
        .iter()
        .filter(|each| each.is_open())
        .count();
    require(open == 0, || format!("{open} connections to backends leak"))
}

impl Scenario {
    /// A description of the run for the message of a failed test.
    pub(super) fn describe(&self) -> String {
        let mut text = format!("tcp {}, dropped {:?}\n", self.tcp, self.dropped);
        for client in &self.clients {
            let pauses = &client.pauses;
            let (fault, out) = (client.fault, show(&client.out));
            let _ = writeln!(text, "client {fault:?} {pauses:?}: {out}");
            for exchange in &client.exchanges {
                let (id, method, end) = (exchange.id, exchange.method, exchange.end);
                let _ = writeln!(text, " {method} {id}, ends at {end}");
                for plan in &exchange.plans {
                    let (class, when, out) = (plan.class, plan.when, show(&plan.out));
                    let dirty = plan.dirty_from;
                    let _ = writeln!(text, "  {class:?} {when:?} dirty {dirty:?}: {out}");
                }
            }
        }
        text
    }
}

/// The start of an output, and its events.
fn show(out: &ScriptedOutput) -> String {
    let start = &out.bytes[..out.bytes.len().min(400)];
    let acts: Vec<&(usize, ScriptedEvent)> = out.acts.iter().collect();
    let kinds: HashSet<String> = acts.iter().map(|(_, act)| format!("{act:?}")).collect();
    let acts = if acts.len() > 20 {
        format!("{} acts {kinds:?}", acts.len())
    } else {
        format!("{acts:?}")
    };
    format!(
        "{} bytes {acts} {:?}",
        out.bytes.len(),
        String::from_utf8_lossy(start)
    )
}

/// One line per exchange.
pub(super) fn show_log(lines: &[Value]) -> String {
    let keys = [
        "path",
        "status",
        "reason",
        "attempts",
        "reused",
        "bytes_in",
        "bytes_out",
        "t_total",
    ];
    let line = |line: &Value| keys.map(|key| format!("{key} {}", line[key])).join(", ");
    let lines: Vec<String> = lines.iter().map(line).collect();
    format!("\n  {}", lines.join("\n  "))
}
