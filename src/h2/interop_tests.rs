//! Our connections against those of the h2 crate, in both roles, with random windows, bodies and
//! timing: each byte arrives on its stream and in order, or the stream is seen as reset.

mod ours;
mod theirs;

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    task::{LocalSet, spawn_local, yield_now},
    time::timeout,
};

use super::connection::Connection;
use crate::base::rng::Random;

/// Connections of each role.
const ROUNDS_PER_ROLE: u64 = 30;
/// Streams per connection, beside the last one.
const STREAMS_PER_ROUND: usize = 16;
/// Longest body.
const MAX_BODY_BYTES: usize = 200_000;
/// Body of the last stream, whose bytes need all windows to be open again.
const LAST_BODY_BYTES: usize = 1 << 20;
/// Window changes per connection; the last one is to [`LAST_WINDOW`].
const WINDOW_CHANGES: u32 = 50;
const LAST_WINDOW: u32 = 1 << 20;
/// Time after which a round is stuck.
const ROUND_TIMEOUT: Duration = Duration::from_mins(1);

/// Acting side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InteropSide {
    Client,
    Server,
}

/// Content of one direction of a stream.
#[derive(Debug, Clone, Copy)]
struct BodyPlan {
    /// Offset of its bytes.
    key: usize,
    length: usize,
    /// Its length is not declared.
    is_chunked: bool,
    /// Trailers follow it.
    has_trailers: bool,
}

/// Course of a stream.
#[derive(Debug, Clone)]
struct StreamPlan {
    up: BodyPlan,
    down: BodyPlan,
    /// Side that resets it, and the number of bytes after which it does.
    cut: Option<(InteropSide, usize)>,
    seed: u64,
}

/// End of a direction, as one side saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DirectionEnd {
    Whole,
    Broken,
    /// This side was to stop here.
    Stopped,
}

/// Outcome of a stream for one side.
#[derive(Debug, Clone, Copy)]
struct StreamOutcome {
    read: Option<DirectionEnd>,
    write: Option<DirectionEnd>,
    /// The end of its own message was sent.
    has_sent: bool,
}

/// Random timing of one side of a stream, and its progress.
struct SidePacer {
    random: RefCell<Random>,
    moved: Cell<usize>,
    stop: usize,
    has_sent: Cell<bool>,
}

impl SidePacer {
    fn new(plan: &StreamPlan, side: InteropSide) -> Self {
        let stop = plan.cut.filter(|(by, _)| *by == side);
        Self {
            random: RefCell::new(Random::seeded(plan.seed * 2 + side as u64)),
            moved: Cell::new(0),
            stop: stop.map_or(usize::MAX, |(_, at)| at),
            has_sent: Cell::new(false),
        }
    }

    fn below(&self, bound: usize) -> usize {
        self.random.borrow_mut().below(bound)
    }

    /// Random size: mostly medium, sometimes tiny or large.
    fn size(&self) -> usize {
        let most = [3, 100, 5_000, 40_000][self.below(4)];
        1 + self.below(most)
    }

    /// Counts bytes read or written. True: this side is to stop now.
    fn moves(&self, count: usize) -> bool {
        self.moved.set(self.moved.get() + count);
        self.moved.get() >= self.stop
    }

    /// Yields to other tasks, or not.
    async fn pause(&self) {
        for _ in 0..self.below(6).saturating_sub(2) {
            yield_now().await;
        }
    }

    /// Reads and writes until both have ended or one of them was to stop.
    async fn both(
        &self,
        read: impl Future<Output = DirectionEnd>,
        write: impl Future<Output = DirectionEnd>,
    ) -> StreamOutcome {
        let (mut read, mut write) = (pin!(read), pin!(write));
        let (mut got_read, mut got_write) = (None, None);
        poll_fn(|cx| {
            if got_read.is_none()
                && let Poll::Ready(end) = read.as_mut().poll(cx)
            {
                got_read = Some(end);
            }
            if got_write.is_none()
                && got_read != Some(DirectionEnd::Stopped)
                && let Poll::Ready(end) = write.as_mut().poll(cx)
            {
                got_write = Some(end);
            }
            let has_stopped = [got_read, got_write].contains(&Some(DirectionEnd::Stopped));
            if has_stopped || got_read.is_some() && got_write.is_some() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        StreamOutcome {
            read: got_read,
            write: got_write,
            has_sent: self.has_sent.get(),
        }
    }
}

thread_local! {
    /// Bytes that all bodies are parts of.
    static BODY_BYTES: Vec<u8> = {
        let mut random = Random::seeded(9113);
        (0..LAST_BODY_BYTES + 100_000).map(|_| random.bits() as u8).collect()
    };
}

impl BodyPlan {
    /// At most `count` bytes of the body.
    fn part(self, from: usize, count: usize) -> Vec<u8> {
        let start = self.key * 997 + from;
        let end = start + count.min(self.length - from);
        BODY_BYTES.with(|bytes| bytes[start..end].to_vec())
    }

    /// Checks the next bytes, and counts them.
    fn check(self, place: &mut usize, bytes: &[u8]) {
        assert!(*place + bytes.len() <= self.length, "more than was sent");
        let start = self.key * 997 + *place;
        let is_same = BODY_BYTES.with(|all| all[start..start + bytes.len()] == *bytes);
        assert!(is_same, "other bytes at {place} of {self:?}");
        *place += bytes.len();
    }

    fn random(key: usize, longest: usize, random: &mut Random) -> Self {
        let most = [0, 1, 100, 20_000, MAX_BODY_BYTES][random.below(5)].min(longest);
        let is_chunked = random.below(2) == 0;
        Self {
            key,
            length: random.below(most + 1),
            is_chunked,
            has_trailers: random.below(3) == 0,
        }
    }

    /// Length that its sender declares.
    fn declared_length(self) -> Option<u64> {
        (!self.is_chunked).then_some(self.length as u64)
    }

    /// True if nothing at all is sent.
    fn is_nothing(self) -> bool {
        self.length == 0 && !self.is_chunked && !self.has_trailers
    }
}

impl StreamPlan {
    fn random(index: usize, longest: usize, random: &mut Random) -> Self {
        let up = BodyPlan::random(2 * index, longest, random);
        let down = BodyPlan::random(2 * index + 1, longest, random);
        let side = [InteropSide::Client, InteropSide::Server][random.below(2)];
        let at = random.below(up.length + down.length);
        let is_cut = at > 0 && random.below(3) == 0;
        Self {
            up,
            down,
            cut: is_cut.then_some((side, at)),
            seed: random.bits() >> 8,
        }
    }

    /// Much content in both directions.
    fn last() -> Self {
        let body = |key| BodyPlan {
            key,
            length: LAST_BODY_BYTES,
            is_chunked: false,
            has_trailers: false,
        };
        Self {
            up: body(2 * STREAMS_PER_ROUND),
            down: body(2 * STREAMS_PER_ROUND + 1),
            cut: None,
            seed: 0,
        }
    }

    /// Checks the outcome on one side against the plan and the outcome on the other.
    fn check(&self, client: StreamOutcome, server: Option<StreamOutcome>) {
        let Some((side, _)) = self.cut else {
            for seen in [client, server.expect("a request that arrives")] {
                let ends = (seen.read, seen.write);
                assert_eq!(
                    ends,
                    (Some(DirectionEnd::Whole), Some(DirectionEnd::Whole)),
                    "{self:?}"
                );
            }
            return;
        };
        let (cutter, other) = match side {
            InteropSide::Client => (client, server),
            InteropSide::Server => (server.expect("who has cut it"), Some(client)),
        };
        let has_stopped = [cutter.read, cutter.write].contains(&Some(DirectionEnd::Stopped));
        assert!(has_stopped, "{self:?}: {cutter:?}");
        // If it was reset before it arrived, the other side need not see anything.
        let Some(other) = other else { return };
        let is_whole = other.read == Some(DirectionEnd::Whole);
        assert!(
            !is_whole || cutter.has_sent,
            "{self:?}: a cut that looks like an end"
        );
        assert!(other.read.is_some() && other.write.is_some());
    }
}

/// State shared by both sides of a connection.
struct InteropRound {
    plans: Vec<StreamPlan>,
    /// Outcome on the server, by stream.
    seen: RefCell<Vec<Option<StreamOutcome>>>,
    /// Requests in progress on the server.
    busy: Cell<usize>,
    /// Number of window changes so far.
    changes: Cell<u32>,
    /// Windows are also made smaller.
    shrinks: bool,
    window: Cell<u32>,
    random: RefCell<Random>,
}

impl InteropRound {
    fn new(seed: u64) -> Rc<Self> {
        let mut random = Random::seeded(seed);
        let most = [16, 1_000, 70_000, 1_000_000][random.below(4)];
        let window = 1 + random.below(most) as u32;
        let longest = MAX_BODY_BYTES.min(window as usize * 200);
        let mut plans: Vec<StreamPlan> = (0..STREAMS_PER_ROUND)
            .map(|index| StreamPlan::random(index, longest, &mut random))
            .collect();
        plans.push(StreamPlan::last());
        Rc::new(Self {
            seen: RefCell::new(vec![None; plans.len()]),
            plans,
            busy: Cell::new(0),
            changes: Cell::new(0),
            shrinks: random.below(2) == 0,
            window: Cell::new(window),
            random: RefCell::new(random),
        })
    }

    fn below(&self, bound: usize) -> usize {
        self.random.borrow_mut().below(bound)
    }

    /// Index of the plan for a path.
    fn index(path: &str) -> usize {
        path.trim_start_matches('/').parse().unwrap()
    }

    /// Changes the windows of the h2 crate at random: `set` receives those of streams and of the
    /// connection, and tells whether they could be changed.
    fn resize(&self, cx: &Context<'_>, set: impl FnOnce(u32, u32) -> bool) {
        if self.shrinks {
            // The h2 crate sends its pending frames after a smaller window only when it is polled
            // again.
            cx.waker().wake_by_ref();
        }
        let changes = self.changes.get();
        if changes == WINDOW_CHANGES || self.below(40) > 0 {
            return;
        }
        let most = 2 * self.window.get() as usize;
        let size = || match changes + 1 {
            WINDOW_CHANGES => LAST_WINDOW,
            _ if self.shrinks => 1 + self.below(most) as u32,
            _ => self.window.get().max(self.below(most) as u32),
        };
        let (size, of_all) = (size(), size());
        if set(size, of_all) {
            self.changes.set(changes + 1);
            if !self.shrinks {
                self.window.set(size.max(of_all));
            }
        }
    }

    /// Serves a request.
    fn serve(self: &Rc<Self>, index: usize, seen: impl Future<Output = StreamOutcome> + 'static) {
        let round = Rc::clone(self);
        self.busy.set(self.busy.get() + 1);
        drop(spawn_local(async move {
            let seen = seen.await;
            round.seen.borrow_mut()[index] = Some(seen);
            round.busy.set(round.busy.get() - 1);
        }));
    }

    /// Runs all plans by `send_request`; checks the outcomes and our `connection`.
    async fn run<F>(self: &Rc<Self>, connection: &Connection, send_request: impl Fn(usize) -> F)
    where
        F: Future<Output = StreamOutcome> + 'static,
    {
        let mut clients: Vec<_> = (0..STREAMS_PER_ROUND)
            .map(|index| spawn_local(send_request(index)))
            .collect();
        let mut seen = Vec::new();
        for client in &mut clients {
            seen.push(client.await.unwrap());
        }
        self.settle(connection).await;
        self.changes.set(self.changes.get().max(WINDOW_CHANGES - 1));
        seen.push(send_request(STREAMS_PER_ROUND).await);
        self.settle(connection).await;
        for ((plan, client), server) in self.plans.iter().zip(seen).zip(&*self.seen.borrow()) {
            plan.check(client, *server);
        }
        assert!(connection.close_reason().is_none());
    }

    /// Waits until nothing is under way; then the windows must be complete.
    async fn settle(&self, connection: &Connection) {
        while self.busy.get() > 0 || connection.open_streams() > 0 || connection.has_unwritten() {
            yield_now().await;
        }
        // Frames of streams that were reset.
        for _ in 0..100 {
            yield_now().await;
        }
        assert!(connection.state.borrow().windows.connection.is_whole());
    }
}

/// Runs `round` for many seeds, each with its own runtime.
fn rounds<F: Future<Output = ()>>(first: u64, round: impl Fn(Rc<InteropRound>) -> F) {
    for seed in first..first + ROUNDS_PER_ROLE {
        eprintln!("seed {seed}");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let local = LocalSet::new();
        let round = async { timeout(ROUND_TIMEOUT, round(InteropRound::new(seed))).await };
        let done = local.block_on(&runtime, round);
        done.expect("a round that is stuck");
    }
}

#[test]
fn clients_and_we_understand_each_other() {
    rounds(1_000, |round| async move {
        let (socket, stream) = ours::sockets(&round);
        let connection = ours::serve(&round, stream);
        let sender = theirs::connect(&round, socket).await;
        let send_request = |index| theirs::send_request(Rc::clone(&round), sender.clone(), index);
        round.run(&connection, send_request).await;
    });
}

#[test]
fn backends_and_we_understand_each_other() {
    rounds(2_000, |round| async move {
        let (socket, stream) = ours::sockets(&round);
        theirs::serve(&round, socket);
        let connection = ours::connect(stream).await;
        let send_request =
            |index| ours::send_request(Rc::clone(&round), Rc::clone(&connection), index);
        round.run(connection.engine(), send_request).await;
    });
}
