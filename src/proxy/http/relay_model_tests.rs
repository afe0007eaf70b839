//! Bodies from every source to every sink: in random pieces, with faults on both sides, and for one
//! sink after the other. A sink gets exactly the body, or knows that it did not.

use std::{
    cell::Cell,
    collections::BTreeMap,
    future::poll_fn,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Wake, Waker},
};

use tokio::task::yield_now;

use super::{
    super::*,
    cases::{BEHIND, BodyCase, FORBIDDEN, SinkKind, SourceKind, TRAILERS, choose, is_one_in},
    peers::{HEAD, OwnSide, Peer, ReceivedBody, STREAM_ID, request_frames},
};
use crate::{
    base::rng::Random,
    http::rules::RESPONSE_LIMITS,
    http2::frame::{ErrorCode, INITIAL_WINDOW, kind, write_u32},
};

/// Bodies of the model test.
const ROUNDS: u64 = 1_500;
/// Turns after which a relay is stuck.
const MAX_TURNS: usize = 200_000;
/// Both ends of the connection to a sink.
struct SinkEnd {
    kind: SinkKind,
    peer: Peer,
    own: OwnSide,
}

impl SinkEnd {
    /// Starts `relay` again for a new sink.
    fn new(kind: SinkKind, case: &BodyCase, relay: &mut BodyRelay, random: &mut Random) -> Self {
        let (peer, own) = if kind == SinkKind::Frames {
            Peer::of_http2_sink(case.window, random)
        } else {
            Peer::of_http1(random)
        };
        let encoding = match kind {
            SinkKind::Plain | SinkKind::Announced => BodyEncoding::Plain,
            SinkKind::Chunked => BodyEncoding::Chunked,
            SinkKind::Frames => BodyEncoding::Frames,
        };
        let length = (kind == SinkKind::Announced).then_some(case.content.len() as u64);
        let out = relay.rewind(encoding, length);
        if kind != SinkKind::Frames {
            out.extend_from_slice(HEAD);
        }
        relay.replay(true);
        Self { kind, peer, own }
    }

    /// Lets it leave: a client closes its connection, or resets its stream.
    fn leave(&mut self) {
        if self.kind == SinkKind::Frames {
            let out = &mut self.peer.out;
            write_u32(out, kind::RST_STREAM, STREAM_ID, ErrorCode::CANCEL.0);
        } else {
            self.peer.close();
        }
    }

    /// Closes our side, and receives all that is on its way.
    async fn finish(mut self) -> Peer {
        let connection = match self.own {
            OwnSide::H1(stream) => {
                drop(stream);
                None
            }
            OwnSide::H2(connection, stream) => {
                drop(stream);
                Some(connection)
            }
        };
        loop {
            if let Some(connection) = &connection {
                let polled = poll_fn(|cx| Poll::Ready(connection.poll(cx))).await;
                assert!(!matches!(polled, Poll::Ready(Some(_))), "one request");
            }
            let is_written = connection.as_ref().is_none_or(|it| !it.has_unwritten());
            if !self.peer.receive(1 << 20) && is_written {
                return self.peer;
            }
            yield_now().await;
        }
    }
}

/// Records a wake-up.
#[derive(Default)]
struct RelayWake(AtomicBool);

impl Wake for RelayWake {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// A relay between two peers. It is polled only when it was woken.
struct RelayRun<'c> {
    case: &'c BodyCase,
    random: Random,
    relay: BodyRelay,
    source: Peer,
    own_source: OwnSide,
    sink: SinkEnd,
    woken: Arc<RelayWake>,
    /// Bytes that the sink receives before it leaves.
    leaves_at: Option<usize>,
    ended: Option<Result<(), BodyRelayError>>,
    /// The sink has left.
    has_left: bool,
    has_spliced: bool,
    /// Bytes that the filter has seen.
    filtered: Rc<Cell<usize>>,
}

impl<'c> RelayRun<'c> {
    fn new(case: &'c BodyCase, mut random: Random) -> Self {
        let kind = *case.sinks.last().unwrap();
        let mut input = Vec::new();
        let (mut source, own_source, decoder) = if case.source.is_http2() {
            let mut request = Vec::new();
            let declares = case.source == SourceKind::DeclaredFrames;
            let length = declares.then_some(case.content.len());
            request_frames(&mut request, length, false);
            let (mut peer, own) = Peer::of_http2(INITIAL_WINDOW, &request, &mut random);
            (peer.out, peer.ends) = case.frames(&mut random);
            (peer, own, None)
        } else {
            let (mut peer, own) = Peer::of_http1(&mut random);
            (peer.out, peer.ends) = case.bytes(&mut random);
            // Some of it was read with the head.
            let count = random.below(peer.out.len().min(4_000) + 1);
            let with_head = if is_one_in(&mut random, 2) { count } else { 0 };
            input = [HEAD, &peer.out[..with_head]].concat();
            peer.out.drain(..with_head);
            let decoder = match case.source {
                SourceKind::Length => BodyDecoder::Length(case.content.len() as u64),
                SourceKind::Chunked => BodyDecoder::chunked(RESPONSE_LIMITS),
                _ => BodyDecoder::UntilClose,
            };
            (peer, own, Some(decoder))
        };
        source.send(0);
        let taken = input.len().min(HEAD.len());
        let mut relay = BodyRelay::new(Vec::new(), input, taken, decoder);
        relay.forbid_trailers(vec![FORBIDDEN.into()]);
        if let Some(limit) = case.limit {
            relay.limit_body(limit);
        }
        if case.may_splice {
            relay.allow_splice();
        }
        if case.sinks.len() > 1 {
            relay.keep_for_replay();
        }
        if is_one_in(&mut random, 2) {
            relay.is_last();
        }
        let filtered = Rc::default();
        if case.is_filtered {
            relay.set_filter(BodyFilter::Counting(Rc::clone(&filtered)));
        }
        Self {
            case,
            sink: SinkEnd::new(kind, case, &mut relay, &mut random),
            random,
            relay,
            source,
            own_source,
            woken: Arc::new(RelayWake(true.into())),
            leaves_at: case.leaves_at,
            ended: None,
            has_left: false,
            has_spliced: false,
            filtered,
        }
    }

    /// Moves frames on both sides.
    async fn drive(&self) {
        poll_fn(|cx| {
            self.own_source.drive(cx);
            self.sink.own.drive(cx);
            Poll::Ready(())
        })
        .await;
    }

    /// Lets the relay do what it can.
    async fn poll(&mut self) {
        self.drive().await;
        if self.ended.is_some() || !self.woken.0.swap(false, Relaxed) {
            return;
        }
        let waker = Waker::from(Arc::clone(&self.woken));
        let cx = &mut Context::from_waker(&waker);
        let (from, to) = (self.own_source.source(), self.sink.own.sink());
        if let Poll::Ready(ended) = self.relay.poll(cx, from, to) {
            self.ended = Some(ended);
        }
        self.has_spliced |= self.relay.splice.is_some();
    }

    /// Runs until the relay has ended, or for `turns`; the source sends pieces of at most `most`
    /// bytes.
    async fn run(&mut self, most: usize, turns: usize) {
        for _ in 0..turns {
            if is_one_in(&mut self.random, 2) {
                let count = self.random.below(most + 1);
                self.source.send(count);
            }
            self.poll().await;
            if self.ended.is_some() {
                return;
            }
            if is_one_in(&mut self.random, 3) {
                let count = 1 + self.random.below(20_000);
                self.sink.peer.receive(count);
                self.sink.peer.open_windows(&mut self.random);
            }
            if self
                .leaves_at
                .is_some_and(|at| self.sink.peer.received.len() >= at)
            {
                (self.leaves_at, self.has_left) = (None, true);
                self.sink.leave();
            }
            self.sink.peer.send(usize::MAX);
            yield_now().await;
        }
    }

    /// True if the message is to be sent again: nothing is wrong with its source.
    fn is_source_good(&self) -> bool {
        matches!(
            self.ended,
            None | Some(Ok(()) | Err(BodyRelayError::Write(_)))
        )
    }

    /// Sends the message again, to another sink; checks what the last one has.
    async fn restart(&mut self, kind: SinkKind) {
        let sink = SinkEnd::new(kind, self.case, &mut self.relay, &mut self.random);
        let old = std::mem::replace(&mut self.sink, sink);
        let (kind, ended) = (old.kind, self.ended.take());
        let body = old.finish().await.body(kind == SinkKind::Chunked);
        assert!(self.case.content.starts_with(&body.content));
        if !matches!(ended, Some(Ok(()))) {
            assert!(!body.has_end, "a cut that looks like an end");
        }
        self.woken.0.store(true, Relaxed);
        (self.leaves_at, self.has_left) = (None, false);
    }

    /// Checks the relay, and what its last sink has; returns what has happened.
    async fn check(self) -> &'static str {
        let (case, kind, relay) = (self.case, self.sink.kind, &self.relay);
        let peer = self.sink.finish().await;
        let body = peer.body(kind == SinkKind::Chunked);
        assert!(case.content.starts_with(&body.content), "other content");
        let length = case.content.len();
        let error = match self.ended.expect("a relay that is not stuck") {
            Ok(()) => {
                check_whole(case, kind, relay, &body, self.has_left);
                let sent = relay.moved().1;
                let is_counted = kind == SinkKind::Frames || sent == peer.received.len() as u64;
                assert!(is_counted || self.has_left);
                let is_seen = case.sinks.len() > 1 || self.filtered.get() == length;
                assert!(is_seen || !case.is_filtered, "{}", self.filtered.get());
                return "whole";
            }
            Err(error) => error,
        };
        assert!(!body.has_end, "a cut that looks like an end");
        let is_delimited = kind == SinkKind::Announced || case.source == SourceKind::Length;
        let is_good = self.has_left || !is_delimited || body.content.len() < length;
        assert!(is_good, "all of it: {error:?}");
        match error {
            BodyRelayError::Write(_) if self.has_left => "left",
            BodyRelayError::TooLarge if case.is_too_large() => "too large",
            error => {
                let fault = case.fault.expect("a good source");
                assert!(case.source.is_error(fault, &error), "{fault:?}: {error:?}");
                "fault"
            }
        }
    }
}

/// Checks a relay that has ended well, and the body that its sink has.
fn check_whole(
    case: &BodyCase,
    kind: SinkKind,
    relay: &BodyRelay,
    body: &ReceivedBody,
    has_left: bool,
) {
    assert!(!case.is_too_large(), "more than the limit");
    assert!(relay.is_done() && relay.has_read_all());
    assert_eq!(relay.body(), case.content.len() as u64);
    // The length that was announced may be there before the fault.
    assert!(case.fault.is_none() || kind == SinkKind::Announced);
    assert!(BEHIND.starts_with(relay.unread()));
    assert_eq!(relay.is_drained(), relay.unread().is_empty());
    if !has_left {
        assert!(body.content == case.content, "{} bytes", body.content.len());
        assert_eq!(body.trailers, case.passed_trailers(kind));
        let has_mark = matches!(kind, SinkKind::Chunked | SinkKind::Frames);
        assert_eq!(body.has_end, has_mark);
    }
}

/// Runs one case to its end; returns its last sink, and what has happened.
async fn run(case: &BodyCase, random: Random) -> (SinkKind, &'static str) {
    let mut run = RelayRun::new(case, random);
    let most = choose(&mut run.random, &[10, 3_000, 100_000]).max(case.content.len() / 500);
    for kind in case.sinks.iter().rev().skip(1) {
        let turns = run.random.below(200);
        run.run(most, turns).await;
        if run.relay.can_replay() && run.is_source_good() {
            run.restart(*kind).await;
        }
    }
    run.run(most, MAX_TURNS).await;
    (run.sink.kind, run.check().await)
}

#[test]
fn a_sink_gets_exactly_the_body_or_knows_that_it_did_not() {
    let mut seen: BTreeMap<(SourceKind, SinkKind, &str), usize> = BTreeMap::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    for seed in first_seed()..first_seed() + ROUNDS {
        let mut random = Random::seeded(seed);
        let case = BodyCase::random(&mut random);
        let run = std::panic::AssertUnwindSafe(|| runtime.block_on(run(&case, random)));
        let Ok((kind, outcome)) = std::panic::catch_unwind(run) else {
            let short = BodyCase {
                content: Vec::new(),
                ..case
            };
            panic!("seed {seed}: {short:?}");
        };
        *seen.entry((case.source, kind, outcome)).or_default() += 1;
    }
    for source in SourceKind::ALL {
        for kind in source.sinks() {
            let count = |outcome| seen.get(&(source, *kind, outcome)).copied().unwrap_or(0);
            assert!(count("whole") > 40, "{source:?} {kind:?}: {seen:?}");
            let failed = count("left") + count("too large") + count("fault");
            assert!(failed > 5, "{source:?} {kind:?}: {seen:?}");
        }
    }
}

#[tokio::test]
async fn the_end_of_a_body_that_is_known_comes_with_its_last_frame() {
    use SourceKind::{Chunked, DeclaredFrames, Frames, Length};
    for (index, (source, length)) in [Length, Chunked, Frames, DeclaredFrames]
        .into_iter()
        .flat_map(|source| [0, 1, 100, 5_000, 15_000].map(|length| (source, length)))
        .enumerate()
    {
        for window in [100, 4_000, INITIAL_WINDOW] {
            for has_trailers in [false, !matches!(source, Length)] {
                let mut case = BodyCase::plain(source, SinkKind::Frames, length);
                case.window = window;
                case.trailers
                    .extend(TRAILERS.first().filter(|_| has_trailers));
                let mut run = RelayRun::new(&case, Random::seeded(index as u64));
                // All of it has arrived before the first of it is read.
                while !run.source.out.is_empty() {
                    run.source.send(usize::MAX);
                    run.drive().await;
                    yield_now().await;
                }
                run.drive().await;
                run.run(0, MAX_TURNS).await;
                let data = run.sink.finish().await.frames.unwrap().data;
                let row = format!("{source:?} {length} {window} {has_trailers}: {data:?}");
                let ends = data.iter().map(|(_, ends)| *ends).collect::<Vec<_>>();
                let is_alone = length == 0 && !has_trailers;
                assert_eq!(
                    data.iter().any(|(length, _)| *length == 0),
                    is_alone,
                    "{row}"
                );
                let in_last = data.len().saturating_sub(1);
                let end = (!has_trailers).then_some(in_last);
                assert_eq!(ends.iter().position(|ends| *ends), end, "{row}");
                assert!(window != 100 || data.len() >= length / 100, "{row}");
            }
        }
    }
}

#[tokio::test]
async fn a_body_is_spliced_only_between_plain_sockets_and_as_it_is() {
    use SinkKind::{Announced, Plain};
    use SourceKind::{DeclaredFrames, Frames, Length, UntilClose};
    let long = 300_000;
    let case = |source, sink, length| BodyCase {
        may_splice: true,
        ..BodyCase::plain(source, sink, length)
    };
    let filtered = BodyCase {
        is_filtered: true,
        ..case(Length, Plain, long)
    };
    let limited = |limit| BodyCase {
        limit: Some(limit),
        ..case(Length, Plain, long)
    };
    for (case, expected) in [
        (case(Length, Plain, long), true),
        (limited(long as u64), true),
        (limited(long as u64 - 1), false),
        (filtered, false),
        (case(Length, Plain, 30_000), false),
        (BodyCase::plain(Length, Plain, long), false),
        (case(Length, SinkKind::Chunked, long), false),
        (case(Length, SinkKind::Frames, long), false),
        (case(UntilClose, Plain, long), false),
        (case(SourceKind::Chunked, Plain, long), false),
        (case(Frames, Plain, 100_000), false),
        (case(DeclaredFrames, Announced, 100_000), false),
    ] {
        let mut run = RelayRun::new(&case, Random::seeded(1));
        run.run(50_000, MAX_TURNS).await;
        let row = format!("{:?} {:?}", case.source, case.sinks);
        assert_eq!(run.has_spliced, expected, "{row}");
        let outcome = if case.is_too_large() {
            "too large"
        } else {
            "whole"
        };
        assert_eq!(run.check().await, outcome, "{row}");
    }
}

/// First seed of the model test: `RELAY_SEED` runs other cases.
fn first_seed() -> u64 {
    let seed = std::env::var("RELAY_SEED").ok();
    seed.map_or(0, |seed| seed.parse().unwrap())
}
