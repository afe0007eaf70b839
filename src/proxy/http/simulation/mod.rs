//! A simulation of the engine: clients and backends that split, stall, leave and reset wherever a seed says, around the real
//! [`serve`](super::serve) on real sockets, on one thread, in virtual time.
//!
//! Nothing happens by itself: the driver lets the engine run until it is quiet, then lets each end do one thing, and moves
//! the clock only when nobody can do anything. `script.rs` says what the ends do, `peers.rs` does it, `wire.rs` reads what
//! comes back, `judge.rs` knows what must hold. `SIMULATION_SEED=N` runs one seed again and `SIMULATION_RUNS=N` that many.

mod judge;
mod peers;
mod script;
mod wire;

use std::{
    fs::File,
    io::{Read as _, Write as _},
    path::PathBuf,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Wake, Waker},
    time::{Duration, Instant},
};

use tokio::{runtime::Runtime, sync::watch};

use self::{
    judge::Outcome,
    peers::{Backends, Client, Socket},
    script::{Act, Answer, Break, Case, Mood, Shape, Wish},
};
use crate::{
    base::{clock, rng::Random},
    config::model::{self, Config, LogOutput, LogWhenConfig, RetriesConfig},
    net::stream::Stream,
    proxy::worker::Worker,
    snapshot::{Daemon, Snapshot},
    telemetry::{access_log::AccessLog, sink::LogSink},
};

/// Virtual time after which a run hangs: many times the longest that ends of connections and timeouts can take together.
const BOUND: Duration = Duration::from_mins(50);
/// First step of the clock when nobody says when it goes on; doubled up to 64 times that.
const STEP: Duration = Duration::from_millis(25);

/// Rounds without an event after which the engine is quiet.
const CALM: usize = 2;

/// Waits until packets have arrived. A busy kernel may put loopback packets off; it does not let them overtake each other
/// on one processor, to which the thread is bound (`runtime`).
struct Barrier {
    near: std::net::TcpStream,
    far: std::net::TcpStream,
}

impl Barrier {
    fn new() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        near.set_nodelay(true).unwrap();
        let (far, _) = listener.accept().unwrap();
        Self { near, far }
    }

    fn pass(&self) {
        (&self.near).write_all(b"x").unwrap();
        (&self.far).read_exact(&mut [0]).unwrap();
    }
}

/// Set when the engine wants to run.
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// The engine's side of one client connection.
struct Server {
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    flag: Arc<Flag>,
}

impl Server {
    /// Lets it run if it wants to; true if it did.
    fn poll(&mut self) -> bool {
        let Some(future) = &mut self.future else {
            return false;
        };
        if !self.flag.0.swap(false, Relaxed) {
            return false;
        }
        let waker = Waker::from(Arc::clone(&self.flag));
        if future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_ready()
        {
            self.future = None;
        }
        true
    }
}

/// Everything that takes part in a run.
struct World {
    worker: Rc<Worker>,
    servers: Vec<Server>,
    clients: Vec<Client>,
    backends: Backends,
    /// Tunnels end with it.
    _drain: watch::Sender<bool>,
    random: Random,
    /// Over TCP, where packets may be under way.
    barrier: Option<Barrier>,
}

impl World {
    fn new(case: &Case, log: Option<&Log>) -> Self {
        let backends = Backends::new(case);
        let config = config(&backends);
        let access_log = AccessLog::new(&config.access_log, log.map(|log| log.sink.clone()));
        let snapshot = Snapshot::build(Arc::new(config), None, access_log, clock::now());
        let (drain, cut) = watch::channel(false);
        let worker = Worker::new(Arc::new(Daemon::new(snapshot, 1, 100)), cut);
        *worker.random.borrow_mut() = Random::seeded(case.seed);
        let mut world = Self {
            worker: Rc::new(worker),
            servers: Vec::new(),
            clients: Vec::new(),
            backends,
            _drain: drain,
            random: Random::seeded(case.seed),
            barrier: case.tcp.then(Barrier::new),
        };
        for plan in &case.clients {
            let (ours, theirs) = pair(case.tcp);
            world.clients.push(Client::new(plan, ours));
            world.serve(theirs);
        }
        world
    }

    fn serve(&mut self, stream: Stream) {
        let bind = Rc::new("127.0.0.1:80".parse().unwrap());
        let entry = self.worker.connections.enter(Rc::clone(&bind));
        let header = Some(Duration::from_secs(10));
        let client = super::Client::new(stream, None, bind, entry, header);
        let future = Box::pin(super::serve(Rc::clone(&self.worker), client));
        self.servers.push(Server {
            future: Some(future),
            flag: Arc::new(Flag(AtomicBool::new(true))),
        });
    }

    /// Lets the engine run until nothing that has happened is left to be seen.
    async fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < CALM {
            if let Some(barrier) = &self.barrier {
                barrier.pass();
            }
            // Lets the driver look at the sockets.
            tokio::task::yield_now().await;
            let mut ran = false;
            for server in &mut self.servers {
                ran |= server.poll();
            }
            quiet = if ran { 0 } else { quiet + 1 };
        }
    }

    fn is_over(&self) -> bool {
        self.servers.iter().all(|server| server.future.is_none())
            && self.clients.iter().all(Client::is_over)
    }

    /// Runs to the end; an error is a hang, or something that must not be.
    async fn run(&mut self) -> Result<(), String> {
        let bound = clock::now() + BOUND;
        let mut rounds = 0;
        loop {
            self.settle().await;
            let now = clock::now();
            let mut moved = false;
            let first = self.random.below(self.clients.len());
            for number in 0..self.clients.len() {
                let number = (first + number) % self.clients.len();
                moved |= self.clients[number].step(now)?;
            }
            if moved && self.random.below(2) == 0 {
                self.settle().await;
            }
            moved |= self.backends.step(now)?;
            if moved {
                rounds = 0;
                continue;
            }
            if self.is_over() {
                return Ok(());
            }
            if now > bound {
                return Err("it hangs".to_owned());
            }
            let most = STEP * (1 << rounds.min(6));
            rounds += 1;
            tokio::time::advance(self.until_event(now).map_or(most, |wait| wait.min(most))).await;
        }
    }

    /// Lets the backends see what the engine has closed.
    async fn finish(&mut self) -> Result<(), String> {
        self.settle().await;
        while self.backends.step(clock::now())? {
            self.settle().await;
        }
        Ok(())
    }

    /// How long until an end goes on by itself.
    fn until_event(&self, now: Instant) -> Option<Duration> {
        let clients = self.clients.iter().filter_map(Client::wakes);
        let all = clients.chain(self.backends.wakes());
        all.filter(|at| *at > now).min().map(|at| at - now)
    }
}

/// A connection: what the simulation holds, and what the engine gets.
fn pair(tcp: bool) -> (Socket, Stream) {
    if !tcp {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let theirs = tokio::net::UnixStream::from_std(theirs).unwrap();
        return (Socket::Unix(ours), Stream::Unix(theirs));
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    for socket in [&ours, &theirs] {
        socket.set_nonblocking(true).unwrap();
        socket.set_nodelay(true).unwrap();
    }
    let theirs = tokio::net::TcpStream::from_std(theirs).unwrap();
    (Socket::Tcp(ours), Stream::Tcp(theirs))
}

/// One listener, one pool; every exchange is logged.
fn config(backends: &Backends) -> Config {
    let pool = model::PoolConfig {
        backends: backends
            .addresses()
            .into_iter()
            .map(model::BackendConfig::at)
            .collect(),
        health_check: None,
        ejection: None,
        retries: Some(RetriesConfig {
            budget: 10.0,
            ..RetriesConfig::default()
        }),
        ..model::PoolConfig::named("app")
    };
    let mut config = Config {
        listeners: vec![model::ListenerConfig {
            binds: vec!["127.0.0.1:80".parse().unwrap()],
            pool: Some(0),
            ..model::ListenerConfig::named("web")
        }],
        pools: vec![pool],
        ..Config::default()
    };
    config.access_log.when = LogWhenConfig {
        min_status: 100,
        ..LogWhenConfig::default()
    };
    config
}

/// The access log of a test, in a file of its own.
struct Log {
    path: PathBuf,
    sink: LogSink,
    reader: File,
}

impl Log {
    fn new(name: &str) -> Self {
        let name = format!("balancer-simulation-{}-{name}.log", std::process::id());
        let path = std::env::temp_dir().join(name);
        drop(std::fs::remove_file(&path));
        let sink = LogSink::open(&LogOutput::File(path.clone()))
            .unwrap()
            .unwrap();
        let reader = File::open(&path).unwrap();
        Self { path, sink, reader }
    }

    /// What was written since the last time.
    fn lines(&self) -> Vec<serde_json::Value> {
        assert!(self.sink.flush(Duration::from_mins(1)));
        let mut text = String::new();
        (&self.reader).read_to_string(&mut text).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
    }
}

/// A runtime whose clock stands still, on a thread that stays on its processor.
fn runtime() -> Runtime {
    #[cfg(target_os = "linux")]
    {
        let mut here = rustix::thread::CpuSet::new();
        here.set(rustix::thread::sched_getcpu());
        rustix::thread::sched_setaffinity(None, &here).unwrap();
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
}

/// Runs `case` and judges it, and what was logged if it was.
fn run(runtime: &Runtime, log: Option<&Log>, case: &Case) -> Result<Outcome, String> {
    runtime.block_on(async {
        let mut world = World::new(case, log);
        let mut ran = world.run().await;
        let lines = log.map(Log::lines);
        if ran.is_ok() {
            // Idle connections that a backend has ended are closed.
            world.worker.tick();
            ran = world.finish().await;
        }
        let judged = ran
            .and_then(|()| judge::connections(&world, case))
            .and_then(|()| judge::records(&world, lines.as_deref()))
            .and_then(|()| judge::leftovers(&world));
        world.worker.idle.borrow_mut().clear();
        let finished = world.finish().await;
        judged
            .and(finished)
            .and_then(|()| judge::nothing_is_open(&world))
            .map(|()| judge::outcome(&world))
            .map_err(|error| {
                format!(
                    "{error}\nlog: {}",
                    judge::show_log(&lines.unwrap_or_default())
                )
            })
    })
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Runs the seeds of a mood: one, many, or `usual`.
fn seeds(name: &str, mood: Mood, usual: u64) {
    let (runtime, log) = (runtime(), Log::new(name));
    let seeds = match number_from("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number_from("SIMULATION_RUNS").unwrap_or(usual),
    };
    for seed in seeds {
        let case = script::case(seed, mood);
        if let Err(error) = run(&runtime, Some(&log), &case) {
            panic!(
                "SIMULATION_SEED={seed} ({mood:?}): {error}\n{}",
                case.describe()
            );
        }
    }
}

#[test]
fn clients_and_backends_that_keep_the_rules_get_every_byte_however_it_is_split() {
    seeds("calm", Mood::Calm, 80);
}

#[test]
fn whoever_stalls_leaves_or_resets_wherever_nothing_is_mixed_up_or_looks_whole_that_is_not() {
    seeds("wild", Mood::Wild, 200);
}

/// Exchanges of every kind, each small, the answers of each connection after one another.
fn typical() -> Vec<(&'static str, Case)> {
    use Shape::{Chunked, Length, None, UntilClose};
    let get = Wish::new("GET", None);
    let ok = Answer::new(200, Length(5));
    let hints = Answer {
        interims: 1,
        ..Answer::new(200, Chunked(9))
    };
    let waits = Wish {
        expects: true,
        ..Wish::new("POST", Length(7))
    };
    let continues = Answer {
        interims: 1,
        continues: true,
        ..ok
    };
    let old = Wish { old: true, ..get };
    let long = Answer {
        padding: 450,
        ..Answer::new(200, Length(3))
    };
    let closes = Wish {
        closes: true,
        ..get
    };
    let upgrade = Wish {
        upgrade: true,
        ..get
    };
    let posts = [
        (Wish::new("POST", Length(9)), Answer::new(200, Chunked(12))),
        (Wish::new("PUT", Chunked(11)), Answer::new(200, Chunked(6))),
    ];
    vec![
        ("lengths", plain(&[(get, ok), (get, ok)])),
        ("bodies", plain(&posts)),
        (
            "until close",
            plain(&[(get, Answer::new(200, UntilClose(8)))]),
        ),
        (
            "no body",
            plain(&[(get, Answer::new(204, None)), (get, Answer::new(304, None))]),
        ),
        (
            "head",
            plain(&[
                (Wish::new("HEAD", None), Answer::new(200, Chunked(4))),
                (get, ok),
            ]),
        ),
        ("behind a close", plain(&[(closes, ok), (get, ok)])),
        ("hints", plain(&[(get, hints), (closes, ok)])),
        ("expect", plain(&[(waits, continues), (get, ok)])),
        (
            "old",
            plain(&[(old, ok), (old, Answer::new(200, Chunked(5)))]),
        ),
        ("long head", plain(&[(get, long)])),
        ("upgrade", plain(&[(get, ok), (upgrade, ok)])),
    ]
}

fn plain(exchanges: &[(Wish, Answer)]) -> Case {
    script::plain(false, exchanges)
}

#[test]
fn every_single_split_of_typical_exchanges_changes_nothing() {
    let (runtime, log) = (runtime(), Log::new("splits"));
    for (name, case) in typical() {
        let check = |log, case: &Case| {
            run(&runtime, log, case)
                .unwrap_or_else(|error| panic!("{name}: {error}\n{}", case.describe()))
        };
        let wanted = check(Some(&log), &case);
        let mut bytewise = case.clone();
        for out in bytewise.outputs() {
            for at in 1..out.bytes.len() {
                out.act(at, Act::Split);
            }
        }
        assert_eq!(
            check(Some(&log), &bytewise),
            wanted,
            "{name}: a byte at a time"
        );
        let lengths: Vec<usize> = case
            .clone()
            .outputs()
            .iter()
            .map(|out| out.bytes.len())
            .collect();
        for (output, length) in lengths.into_iter().enumerate() {
            for at in 1..length {
                let mut split = case.clone();
                split.outputs()[output].act(at, Act::Split);
                assert_eq!(
                    check(None, &split),
                    wanted,
                    "{name}: output {output} split at {at}"
                );
            }
        }
    }
}

#[test]
fn an_end_a_reset_or_a_stall_at_any_byte_is_never_taken_for_a_good_end() {
    let (runtime, mut random) = (runtime(), Random::seeded(5));
    // Each place is broken in one way; a full run breaks all places.
    let every = if number_from("SIMULATION_RUNS").is_some() {
        1
    } else {
        3
    };
    for (name, mut case) in typical() {
        if name == "upgrade" {
            continue;
        }
        let lengths: Vec<usize> = case.outputs().iter().map(|out| out.bytes.len()).collect();
        for (output, length) in lengths.into_iter().enumerate() {
            for at in (random.below(every)..=length).step_by(every) {
                let what = [Break::Fin, Break::Reset, Break::Hang][random.below(3)];
                let mut broken = case.clone();
                broken.tcp = random.below(2) == 0;
                let tcp = broken.tcp;
                let client = &mut broken.clients[0];
                match output.checked_sub(1) {
                    None => client.break_at(at, what),
                    Some(exchange) => client.exchanges[exchange].plans[0].break_at(at, what, tcp),
                }
                if let Err(error) = run(&runtime, None, &broken) {
                    let case = broken.describe();
                    panic!("{name}: output {output}, {what:?} at {at}: {error}\n{case}");
                }
            }
        }
    }
}
