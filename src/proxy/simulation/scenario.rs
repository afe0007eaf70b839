//! The scenario of a run: the bytes that each peer writes, where they are split, and where a peer
//! stalls, closes or resets.
//!
//! Complete before the run starts; `generate.rs` makes it.

use std::time::Duration;

/// An event before the byte at its offset is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScriptedEvent {
    /// The bytes before it are delivered first.
    Split,
    Stall(Duration),
    /// The peer ends its direction.
    Fin,
    /// The peer resets the connection.
    Reset,
    /// A client waits for this count of complete responses.
    Await(usize),
    /// A client waits for a 1xx to its exchange of this number, or for the final response.
    AwaitInterim(usize),
    /// A backend waits for the complete request.
    AwaitRequest,
}

/// The output of one peer.
#[derive(Debug, Clone, Default)]
pub(super) struct ScriptedOutput {
    pub bytes: Vec<u8>,
    /// Events with their offsets, in this order.
    pub acts: Vec<(usize, ScriptedEvent)>,
}

impl ScriptedOutput {
    /// Adds an event behind those at the same offset.
    pub(super) fn act(&mut self, at: usize, act: ScriptedEvent) {
        let behind = self.acts.partition_point(|(place, _)| *place <= at);
        self.acts.insert(behind, (at, act));
    }

    /// Drops everything from `at` on, and adds `act` there.
    pub(super) fn stop(&mut self, at: usize, act: ScriptedEvent) {
        self.bytes.truncate(at);
        self.acts.retain(|(place, _)| *place < at);
        self.acts.push((at, act));
    }

    pub(super) fn text(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
    }
}

/// The event that starts a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseTrigger {
    Head,
    Whole,
}

/// The possible result of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttemptClass {
    Whole,
    /// Fails before there is a complete, valid response head.
    Before,
    /// Chunked, and fails before the first byte of the body: an error or a cut.
    Early,
    /// Fails in its body.
    Within,
    /// Hangs before the head is complete.
    HangsBefore,
    /// Hangs in its body.
    HangsWithin,
}

/// The plan of a backend for one attempt.
#[derive(Debug, Clone)]
pub(super) struct ResponsePlan {
    pub when: ResponseTrigger,
    pub out: ScriptedOutput,
    pub status: u16,
    /// Method of the request.
    pub method: &'static str,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    pub class: AttemptClass,
    /// Offset from which on the connection is unusable for another exchange.
    pub dirty_from: Option<usize>,
    /// Offsets of the end of the final head, of the first byte of the body, and of the end.
    pub(super) places: (usize, usize, usize),
    pub(super) shape: BodyShape,
}

/// The framing and length of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyShape {
    None,
    Length(usize),
    Chunked(usize),
    /// Until the connection ends; responses only.
    UntilClose(usize),
}

/// One request, and the responses of the backends to it.
#[derive(Debug, Clone)]
pub(super) struct ScriptedExchange {
    pub id: usize,
    pub method: &'static str,
    pub upgrade: bool,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// Offset of its end in the client's output.
    pub end: usize,
    /// One plan per attempt; further attempts get the last one.
    pub plans: Vec<ResponsePlan>,
}

impl ScriptedExchange {
    /// The plan of an attempt.
    pub(super) fn plan(&self, attempt: usize) -> &ResponsePlan {
        &self.plans[attempt.min(self.plans.len() - 1)]
    }

    pub(super) fn is_idempotent(&self) -> bool {
        !matches!(self.method, "POST" | "PATCH")
    }
}

/// A fault of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientFault {
    /// It ends its direction at this offset.
    Fin(usize),
    Reset(usize),
    /// It is silent for longer than any timeout.
    Hang(usize),
}

/// One client connection.
#[derive(Debug, Clone)]
pub(super) struct ClientPlan {
    pub exchanges: Vec<ScriptedExchange>,
    pub out: ScriptedOutput,
    pub fault: Option<ClientFault>,
    /// Counts of received bytes after which it stops reading for a while.
    pub pauses: Vec<(usize, Duration)>,
}

/// The plan of a run.
#[derive(Debug, Clone)]
pub(super) struct Scenario {
    pub clients: Vec<ClientPlan>,
    /// Count of backends, 1 or 2.
    pub backends: usize,
    /// Runs over TCP; else over unix sockets, which have no reset.
    pub tcp: bool,
    /// Numbers of the new connections that backends drop without reading.
    pub dropped: Vec<usize>,
    /// Seed of the order in which peers take their steps.
    pub seed: u64,
}

/// Time longer than any timeout.
pub(super) const HANG_TIME: Duration = Duration::from_secs(200);

impl Scenario {
    /// The outputs of all peers.
    pub(super) fn outputs(&mut self) -> Vec<&mut ScriptedOutput> {
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

/// The kind of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FaultKind {
    Fin,
    Reset,
    Hang,
}

impl ResponsePlan {
    fn class_at(&self, at: usize) -> AttemptClass {
        let (head_end, first, end) = self.places;
        if at < head_end {
            AttemptClass::Before
        } else if at >= end && !self.is_until_close() {
            AttemptClass::Whole
        } else if self.is_chunked() && at <= first {
            AttemptClass::Early
        } else {
            AttemptClass::Within
        }
    }

    pub(super) fn is_chunked(&self) -> bool {
        matches!(self.shape, BodyShape::Chunked(_)) && self.places.2 > self.places.0
    }

    fn is_until_close(&self) -> bool {
        matches!(self.shape, BodyShape::UntilClose(_)) && self.method != "HEAD"
    }

    /// The response ends or hangs before the byte at `at`.
    pub(super) fn break_at(&mut self, at: usize, what: FaultKind, tcp: bool) {
        let class = self.class_at(at);
        let head_end = self.places.0;
        if what == FaultKind::Hang {
            if class != AttemptClass::Whole {
                self.out.act(at, ScriptedEvent::Stall(HANG_TIME));
                self.dirty_from = Some(0);
                self.class = match class {
                    AttemptClass::Before => AttemptClass::HangsBefore,
                    _ => AttemptClass::HangsWithin,
                };
            }
            return;
        }
        let is_fin = what == FaultKind::Fin;
        self.out.stop(
            at,
            if is_fin {
                ScriptedEvent::Fin
            } else {
                ScriptedEvent::Reset
            },
        );
        self.class = class;
        // A unix socket has no reset.
        if self.is_until_close() && at >= head_end && (is_fin || !tcp) {
            self.body.truncate(at - head_end);
            self.class = AttemptClass::Whole;
        }
        if self.class != AttemptClass::Whole {
            self.dirty_from = Some(0);
        }
    }
}

impl ClientPlan {
    /// The client closes, resets or hangs before the byte at `at`.
    pub(super) fn break_at(&mut self, at: usize, what: FaultKind) {
        self.fault = Some(match what {
            FaultKind::Fin => {
                self.out.stop(at, ScriptedEvent::Fin);
                ClientFault::Fin(at)
            }
            FaultKind::Reset => {
                self.out.stop(at, ScriptedEvent::Reset);
                ClientFault::Reset(at)
            }
            FaultKind::Hang => {
                self.out.act(at, ScriptedEvent::Stall(HANG_TIME));
                ClientFault::Hang(at)
            }
        });
    }
}
