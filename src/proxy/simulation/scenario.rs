//! The scenario of a run: the bytes that each peer writes, where they are cut, and where a peer stalls, closes or resets.
//!
//! Complete before the run starts; `generate.rs` makes it.

use std::time::Duration;

/// Something that happens before the byte at its place is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScriptedEvent {
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
pub(super) struct ScriptedOutput {
    pub bytes: Vec<u8>,
    /// In the order of their places.
    pub acts: Vec<(usize, ScriptedEvent)>,
}

impl ScriptedOutput {
    /// Adds an act behind those at the same place.
    pub(super) fn act(&mut self, at: usize, act: ScriptedEvent) {
        let behind = self.acts.partition_point(|(place, _)| *place <= at);
        self.acts.insert(behind, (at, act));
    }

    /// Nothing is written from `at` on, but for `act`.
    pub(super) fn stop(&mut self, at: usize, act: ScriptedEvent) {
        self.bytes.truncate(at);
        self.acts.retain(|(place, _)| *place < at);
        self.acts.push((at, act));
    }

    pub(super) fn text(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
    }
}

/// When a backend begins to response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseTrigger {
    Head,
    Whole,
}

/// What can become of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttemptClass {
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
pub(super) struct ResponsePlan {
    pub when: ResponseTrigger,
    pub out: ScriptedOutput,
    pub status: u16,
    /// The method it answers.
    pub method: &'static str,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    pub class: AttemptClass,
    /// From this byte on the connection is of no use for another exchange.
    pub dirty_from: Option<usize>,
    /// The end of the final head, the first byte of the body, the end.
    pub(super) places: (usize, usize, usize),
    pub(super) shape: BodyShape,
}

/// How a body is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyShape {
    None,
    Length(usize),
    Chunked(usize),
    /// Responses only.
    UntilClose(usize),
}

/// One request, and what backends will say to it.
#[derive(Debug, Clone)]
pub(super) struct ScriptedExchange {
    pub id: usize,
    pub method: &'static str,
    pub upgrade: bool,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// Where it ends in what the client writes.
    pub end: usize,
    /// One for each try; tries beyond them get the last.
    pub plans: Vec<ResponsePlan>,
}

impl ScriptedExchange {
    /// The plan of a try.
    pub(super) fn plan(&self, attempt: usize) -> &ResponsePlan {
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
    pub exchanges: Vec<ScriptedExchange>,
    pub out: ScriptedOutput,
    pub fault: Option<ClientFault>,
    /// After so many bytes it reads nothing for a while.
    pub pauses: Vec<(usize, Duration)>,
}

/// A whole run.
#[derive(Debug, Clone)]
pub(super) struct Scenario {
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
pub(super) const HANG_TIME: Duration = Duration::from_secs(200);

impl Scenario {
    /// All that is written by anybody.
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

/// What breaks.
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
        // A unix socket knows no reset.
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
    /// The client leaves, or hangs, before the byte at `at`.
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
