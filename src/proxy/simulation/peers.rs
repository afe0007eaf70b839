//! The clients and backends: real sockets that are read and written step by step, so that the
//! order of events depends on the seed alone.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{
    scenario::{
        ClientPlan, ResponsePlan, ResponseTrigger, Scenario, ScriptedEvent, ScriptedExchange,
        ScriptedOutput,
    },
    wire::{WireFraming, WireMessage, WireReader},
};
use crate::base::address::BackendAddress;

/// The socket of a peer.
#[derive(Debug)]
pub(super) enum PeerSocket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl PeerSocket {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => (&*stream).read(buffer),
            Self::Unix(stream) => (&*stream).read(buffer),
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => (&*stream).write(bytes),
            Self::Unix(stream) => (&*stream).write(bytes),
        }
    }

    fn finish(&self) {
        // Fails only if the connection is gone.
        drop(match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        });
    }

    fn reset(self) {
        if let Self::Tcp(stream) = &self {
            let stream = socket2::SockRef::from(stream);
            stream.set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
}

/// The way in which the engine ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PeerClose {
    Fin,
    Reset,
}

/// The output of a peer, with the position in it.
#[derive(Debug, Default)]
struct ScriptedWriter {
    out: ScriptedOutput,
    at: usize,
    acts: VecDeque<(usize, ScriptedEvent)>,
    until: Option<Instant>,
    /// The engine reads nothing more.
    given_up: bool,
}

/// The result of one write step.
enum WriteStep {
    /// There was progress.
    Moved,
    /// There was no progress: nothing is left, or an event is awaited.
    Waits,
    Fin,
    Reset,
}

impl ScriptedWriter {
    fn new(out: ScriptedOutput) -> Self {
        let acts = out.acts.iter().copied().collect();
        Self {
            out,
            acts,
            ..Self::default()
        }
    }

    fn is_done(&self) -> bool {
        self.has_written() && self.acts.is_empty()
    }

    fn has_written(&self) -> bool {
        self.given_up || self.at >= self.out.bytes.len()
    }

    /// Stops writing.
    fn give_up(&mut self) {
        self.given_up = true;
        self.acts.clear();
    }

    /// Takes the next step; `may_go` is true if an awaited event has happened.
    fn turn(
        &mut self,
        socket: &PeerSocket,
        now: Instant,
        may_go: impl Fn(ScriptedEvent) -> bool,
    ) -> WriteStep {
        if self.until.is_some_and(|until| until > now) {
            return WriteStep::Waits;
        }
        if let Some((at, act)) = self.acts.front().copied()
            && at <= self.at
        {
            if matches!(act, ScriptedEvent::Stall(_)) && self.until.is_none() {
                let ScriptedEvent::Stall(time) = act else {
                    return WriteStep::Waits;
                };
                self.until = Some(now + time);
                return WriteStep::Waits;
            }
            self.until = None;
            if !may_go(act) {
                return WriteStep::Waits;
            }
            self.acts.pop_front();
            return match act {
                ScriptedEvent::Fin => WriteStep::Fin,
                ScriptedEvent::Reset => WriteStep::Reset,
                _ => WriteStep::Moved,
            };
        }
        let end = self
            .acts
            .front()
            .map_or(self.out.bytes.len(), |(at, _)| *at);
        if self.given_up || self.at >= end {
            return WriteStep::Waits;
        }
        match socket.write(&self.out.bytes[self.at..end]) {
            Ok(count) => {
                self.at += count;
                WriteStep::Moved
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => WriteStep::Waits,
            Err(_) => {
                self.give_up();
                WriteStep::Moved
            }
        }
    }
}

/// A client of the run.
#[derive(Debug)]
pub(super) struct SimulatedClient {
    pub plan: ClientPlan,
    socket: Option<PeerSocket>,
    writer: ScriptedWriter,
    pub reader: WireReader,
    pub end: Option<PeerClose>,
    /// It closed the connection itself.
    pub left: bool,
    pauses: VecDeque<(usize, Duration)>,
    paused: Option<Instant>,
}

impl SimulatedClient {
    pub(super) fn new(plan: &ClientPlan, socket: PeerSocket) -> Self {
        let methods = plan.exchanges.iter().map(|exchange| exchange.method);
        Self {
            socket: Some(socket),
            writer: ScriptedWriter::new(plan.out.clone()),
            reader: WireReader::of_responses(methods.collect()),
            end: None,
            left: false,
            pauses: plan.pauses.iter().copied().collect(),
            paused: None,
            plan: plan.clone(),
        }
    }

    /// Count of bytes written.
    pub(super) fn written(&self) -> usize {
        self.writer.at
    }

    /// Time of the next event that it has planned.
    pub(super) fn wakes(&self) -> Option<Instant> {
        self.writer.until.into_iter().chain(self.paused).min()
    }

    pub(super) fn is_over(&self) -> bool {
        self.socket.is_none()
    }

    /// Reads and writes as far as it can; true if there was progress.
    pub(super) fn step(&mut self, now: Instant) -> Result<bool, String> {
        let read = self.read(now)?;
        Ok(self.write(now) || read)
    }

    fn read(&mut self, now: Instant) -> Result<bool, String> {
        let mut buffer = [0; 16 << 10];
        let mut moved = false;
        while let Some(socket) = &self.socket {
            if self.paused.is_some_and(|until| until > now) || self.end.is_some() {
                break;
            }
            self.paused = None;
            let most = match self.pauses.front().copied() {
                Some((at, time)) if at <= self.reader.bytes => {
                    self.pauses.pop_front();
                    self.paused = Some(now + time);
                    break;
                }
                Some((at, _)) => (at - self.reader.bytes).min(buffer.len()),
                None => buffer.len(),
            };
            match socket.read(&mut buffer[..most]) {
                Ok(0) => {
                    self.reader.finished();
                    self.ended(PeerClose::Fin);
                }
                Ok(count) => self.reader.feed(&buffer[..count])?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.ended(PeerClose::Reset),
            }
            moved = true;
        }
        Ok(moved)
    }

    /// Takes the end of the connection. A tunnel may have ended in one direction only.
    fn ended(&mut self, end: PeerClose) {
        self.end = Some(end);
        let last = self.reader.messages.last();
        let is_tunnel = last.is_some_and(|last| last.framing == WireFraming::Tunnel);
        if !is_tunnel || end == PeerClose::Reset || self.writer.is_done() {
            self.socket = None;
            self.writer.until = None;
        }
    }

    fn write(&mut self, now: Instant) -> bool {
        let Some(socket) = &self.socket else {
            return false;
        };
        let reader = &self.reader;
        let turn = self.writer.turn(socket, now, |act| match act {
            ScriptedEvent::Await(number) => reader.whole_finals() >= number,
            ScriptedEvent::AwaitInterim(number) => {
                let finals = reader.finals().count();
                finals > number
                    || finals == number
                        && reader.messages.last().is_some_and(WireMessage::is_interim)
            }
            _ => true,
        });
        match turn {
            WriteStep::Moved => return true,
            WriteStep::Fin => socket.finish(),
            WriteStep::Reset => self.leave(true),
            WriteStep::Waits => {
                let responded = self.reader.whole_finals() >= self.plan.exchanges.len();
                if !(self.writer.is_done() && (responded || self.end.is_some())) {
                    return false;
                }
                self.leave(false);
            }
        }
        true
    }

    fn leave(&mut self, reset: bool) {
        self.left = true;
        if let Some(socket) = self.socket.take()
            && reset
        {
            socket.reset();
        }
    }
}

/// A request as a backend saw it.
#[derive(Debug)]
pub(super) struct SeenRequest {
    pub id: usize,
    pub connection: usize,
    /// Its index among the messages of the connection.
    pub place: usize,
}

/// A connection of a backend.
#[derive(Debug)]
pub(super) struct SimulatedConnection {
    socket: Option<PeerSocket>,
    pub reader: WireReader,
    /// The plan for the last request.
    plan: Option<(ResponsePlan, ScriptedWriter)>,
    /// Count of requests that have a plan.
    looked_at: usize,
    /// No further request may come.
    dirty: bool,
}

impl SimulatedConnection {
    pub(super) fn is_open(&self) -> bool {
        self.socket.is_some()
    }
}

enum SimulatedListener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl SimulatedListener {
    fn new(tcp: bool) -> Self {
        use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
        static NEXT_SOCKET_NUMBER: AtomicUsize = AtomicUsize::new(0);
        if tcp {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            return Self::Tcp(listener);
        }
        let name = format!(
            "balancer-simulation-{}-{}",
            std::process::id(),
            NEXT_SOCKET_NUMBER.fetch_add(1, Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self::Unix(listener, path)
    }

    fn accept(&self) -> Option<PeerSocket> {
        let accepted = match self {
            Self::Tcp(listener) => listener.accept().map(|(stream, _)| {
                stream.set_nonblocking(true).unwrap();
                stream.set_nodelay(true).unwrap();
                PeerSocket::Tcp(stream)
            }),
            Self::Unix(listener, _) => listener.accept().map(|(stream, _)| {
                stream.set_nonblocking(true).unwrap();
                PeerSocket::Unix(stream)
            }),
        };
        match accepted {
            Ok(socket) => Some(socket),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }
}

impl Drop for SimulatedListener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            drop(std::fs::remove_file(path));
        }
    }
}

/// All backends of the run.
pub(super) struct SimulatedBackends {
    listeners: Vec<SimulatedListener>,
    exchanges: HashMap<usize, ScriptedExchange>,
    pub connections: Vec<SimulatedConnection>,
    pub seen: Vec<SeenRequest>,
    dropped: HashSet<usize>,
    accepted: usize,
    /// Requests that arrived when their connection was about to be closed by the backend.
    pub raced: HashSet<usize>,
}

impl SimulatedBackends {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let exchanges = scenario.clients.iter().flat_map(|client| &client.exchanges);
        Self {
            listeners: (0..scenario.backends)
                .map(|_| SimulatedListener::new(scenario.tcp))
                .collect(),
            exchanges: exchanges
                .map(|exchange| (exchange.id, exchange.clone()))
                .collect(),
            connections: Vec::new(),
            seen: Vec::new(),
            dropped: scenario.dropped.iter().copied().collect(),
            accepted: 0,
            raced: HashSet::new(),
        }
    }

    pub(super) fn addresses(&self) -> Vec<BackendAddress> {
        let address = |listener: &SimulatedListener| match listener {
            SimulatedListener::Tcp(listener) => BackendAddress::Ip(listener.local_addr().unwrap()),
            SimulatedListener::Unix(_, path) => BackendAddress::Unix(path.clone()),
        };
        self.listeners.iter().map(address).collect()
    }

    /// Count of attempts of this exchange.
    pub(super) fn attempts(&self, id: usize) -> usize {
        self.seen.iter().filter(|seen| seen.id == id).count()
    }

    pub(super) fn wakes(&self) -> Option<Instant> {
        let plans = self.connections.iter().filter(|open| open.is_open());
        let writers = plans.filter_map(|connection| connection.plan.as_ref());
        writers.filter_map(|(_, writer)| writer.until).min()
    }

    pub(super) fn step(&mut self, now: Instant) -> Result<bool, String> {
        let mut moved = false;
        for listener in &self.listeners {
            while let Some(socket) = listener.accept() {
                moved = true;
                self.accepted += 1;
                if self.dropped.contains(&(self.accepted - 1)) {
                    socket.reset();
                    continue;
                }
                self.connections.push(SimulatedConnection {
                    socket: Some(socket),
                    reader: WireReader::of_requests(),
                    plan: None,
                    looked_at: 0,
                    dirty: false,
                });
            }
        }
        for number in 0..self.connections.len() {
            moved |= self.read(number)?;
            moved |= self.connections[number].write(now);
        }
        Ok(moved)
    }

    fn read(&mut self, number: usize) -> Result<bool, String> {
        let mut buffer = [0; 16 << 10];
        let mut moved = false;
        loop {
            let connection = &mut self.connections[number];
            let Some(socket) = &connection.socket else {
                return Ok(moved);
            };
            match socket.read(&mut buffer) {
                Ok(0) => {
                    connection.reader.finished();
                    let is_tunnel =
                        matches!(&connection.plan, Some((plan, _)) if plan.status == 101);
                    if !is_tunnel {
                        connection.socket = None;
                        return Ok(true);
                    }
                    return Ok(connection.end_of_tunnel() || moved);
                }
                Ok(count) => connection.reader.feed(&buffer[..count])?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(moved),
                Err(_) => {
                    connection.socket = None;
                    return Ok(true);
                }
            }
            moved = true;
            self.look(number)?;
        }
    }

    /// Identifies a new request, and takes the plan for it.
    fn look(&mut self, number: usize) -> Result<(), String> {
        let connection = &mut self.connections[number];
        let begun = connection.reader.messages.len() + usize::from(connection.reader.is_in_head());
        if begun > connection.looked_at && connection.looked_at > 0 {
            if connection.dirty {
                return Err(format!("connection {number} was used again"));
            }
            if let Some((_, writer)) = &connection.plan
                && !writer.has_written()
            {
                return Err(format!(
                    "connection {number} was used before its response ended"
                ));
            }
        }
        let Some(message) = connection.reader.messages.get(connection.looked_at) else {
            return Ok(());
        };
        let id: usize = message
            .start
            .split('/')
            .nth(2)
            .and_then(|rest| rest.split(' ').next()?.parse().ok())
            .ok_or_else(|| format!("a request that no client sent: {message:?}"))?;
        let place = connection.looked_at;
        connection.looked_at += 1;
        if let Some((_, writer)) = &connection.plan
            && writer
                .acts
                .iter()
                .any(|(_, act)| matches!(act, ScriptedEvent::Fin | ScriptedEvent::Reset))
        {
            self.raced.insert(id);
        }
        let attempt = self.attempts(id);
        let exchange = self
            .exchanges
            .get(&id)
            .ok_or_else(|| format!("a request that no client sent: {id}"))?;
        let connection = &mut self.connections[number];
        let plan = exchange.plan(attempt).clone();
        if plan.status != 101 {
            connection.reader.no_switch();
        }
        if !self.raced.contains(&id) || connection.plan.is_none() {
            connection.plan = Some((plan.clone(), ScriptedWriter::new(plan.out)));
        }
        self.seen.push(SeenRequest {
            id,
            connection: number,
            place,
        });
        Ok(())
    }
}

impl SimulatedConnection {
    /// Takes the end of the client's direction of a tunnel; the backend's may go on.
    fn end_of_tunnel(&mut self) -> bool {
        let over = self
            .plan
            .as_ref()
            .is_none_or(|(_, writer)| writer.is_done());
        if over {
            self.socket = None;
        }
        over
    }

    fn write(&mut self, now: Instant) -> bool {
        let (Some(socket), Some((plan, writer))) = (&self.socket, &mut self.plan) else {
            return false;
        };
        let whole = self
            .reader
            .messages
            .last()
            .is_some_and(|message| message.whole);
        if plan.when == ResponseTrigger::Whole && !whole {
            return false;
        }
        if plan.dirty_from.is_some_and(|from| writer.at >= from) && !writer.is_done() {
            self.dirty = true;
        }
        let turn = writer.turn(socket, now, |act| {
            act != ScriptedEvent::AwaitRequest || whole
        });
        match turn {
            WriteStep::Moved => true,
            WriteStep::Waits => false,
            WriteStep::Fin => {
                self.dirty = true;
                socket.finish();
                true
            }
            WriteStep::Reset => {
                self.dirty = true;
                if let Some(socket) = self.socket.take() {
                    socket.reset();
                }
                true
            }
        }
    }
}
