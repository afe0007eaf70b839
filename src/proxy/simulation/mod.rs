//! A simulation of the engine: clients and backends that split, stall, leave and reset wherever a seed says, around the real
//! [`serve`](crate::proxy::http::serve) on real sockets, on one thread, in virtual time.
//!
//! Nothing happens by itself: the driver lets the engine run until it is quiet, then lets each end do one thing, and moves
//! the clock only when nobody can do anything. `script.rs` says what the ends do, `peers.rs` does it, `wire.rs` reads what
//! comes back, `judge.rs` knows what must hold. `SIMULATION_SEED=N` runs one seed again and `SIMULATION_RUNS=N` that many.

mod generate;
mod oracle;
mod peers;
mod scenario;
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
    generate::{RequestSpec, ResponseSpec, ScenarioKind, fixed_scenario, random_scenario},
    oracle::RunOutcome,
    peers::{PeerSocket, SimulatedBackends, SimulatedClient},
    scenario::{BodyShape, FaultKind, Scenario, ScriptedEvent},
};
use crate::{
    base::{clock, rng::Random, socket_key::SocketKey},
    config::model::{self, Config, LogOutput, LogWhenConfig, RetriesConfig},
    net::stream::Stream,
    proxy::{
        http::{ClientConnection, serve},
        worker::Worker,
    },
    snapshot::{Daemon, Snapshot},
    telemetry::{access_log::AccessLog, sink::LogSink},
};

/// Virtual time after which a run hangs: many times the longest that ends of connections and timeouts can take together.
const MAX_RUN_TIME: Duration = Duration::from_mins(50);
/// First step of the clock when nobody says when it goes on; doubled up to 64 times that.
const FIRST_CLOCK_STEP: Duration = Duration::from_millis(25);

/// Rounds without an event after which the engine is quiet.
const IDLE_ROUNDS: usize = 2;

/// Waits until packets have arrived. A busy kernel may put loopback packets off; it does not let them overtake each other
/// on one processor, to which the thread is bound (`runtime`).
struct LoopbackBarrier {
    near: std::net::TcpStream,
    far: std::net::TcpStream,
}

impl LoopbackBarrier {
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
struct WakeFlag(AtomicBool);

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// The engine's side of one client connection.
struct EngineTask {
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    flag: Arc<WakeFlag>,
}

impl EngineTask {
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
struct Simulation {
    worker: Rc<Worker>,
    servers: Vec<EngineTask>,
    clients: Vec<SimulatedClient>,
    backends: SimulatedBackends,
    /// Tunnels end with it.
    _drain: watch::Sender<bool>,
    random: Random,
    /// Over TCP, where packets may be under way.
    barrier: Option<LoopbackBarrier>,
}

impl Simulation {
    fn new(scenario: &Scenario, log: Option<&SimulationLog>) -> Self {
        let backends = SimulatedBackends::new(scenario);
        let config = config(&backends);
        let access_log = AccessLog::new(&config.access_log, log.map(|log| log.sink.clone()));
        let snapshot = Snapshot::build(Arc::new(config), None, access_log, clock::now());
        let (drain, cut) = watch::channel(false);
        let worker = Worker::new(Arc::new(Daemon::new(snapshot, 1, 100)), cut);
        *worker.random.borrow_mut() = Random::seeded(scenario.seed);
        let mut simulation = Self {
            worker: Rc::new(worker),
            servers: Vec::new(),
            clients: Vec::new(),
            backends,
            _drain: drain,
            random: Random::seeded(scenario.seed),
            barrier: scenario.tcp.then(LoopbackBarrier::new),
        };
        for plan in &scenario.clients {
            let (ours, theirs) = pair(scenario.tcp);
            simulation.clients.push(SimulatedClient::new(plan, ours));
            simulation.serve(theirs);
        }
        simulation
    }

    fn serve(&mut self, stream: Stream) {
        let bind = Rc::new(SocketKey::tcp("127.0.0.1:80".parse().unwrap()));
        let entry = self.worker.connections.enter(Rc::clone(&bind));
        let header = Some(Duration::from_secs(10));
        let client = ClientConnection::new(stream, None, bind, entry, header);
        let future = Box::pin(serve(Rc::clone(&self.worker), client));
        self.servers.push(EngineTask {
            future: Some(future),
            flag: Arc::new(WakeFlag(AtomicBool::new(true))),
        });
    }

    /// Lets the engine run until nothing that has happened is left to be seen.
    async fn settle(&mut self) {
        let mut idle_rounds = 0;
        while idle_rounds < IDLE_ROUNDS {
            if let Some(barrier) = &self.barrier {
                barrier.pass();
            }
            // Lets the driver look at the sockets.
            tokio::task::yield_now().await;
            let mut ran = false;
            for server in &mut self.servers {
                ran |= server.poll();
            }
            idle_rounds = if ran { 0 } else { idle_rounds + 1 };
        }
    }

    fn is_over(&self) -> bool {
        self.servers.iter().all(|server| server.future.is_none())
            && self.clients.iter().all(SimulatedClient::is_over)
    }

    /// Runs to the end; an error is a hang, or something that must not be.
    async fn run(&mut self) -> Result<(), String> {
        let bound = clock::now() + MAX_RUN_TIME;
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
            let most = FIRST_CLOCK_STEP * (1 << rounds.min(6));
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
        let clients = self.clients.iter().filter_map(SimulatedClient::wakes);
        let all = clients.chain(self.backends.wakes());
        all.filter(|at| *at > now).min().map(|at| at - now)
    }
}

/// A connection: what the simulation holds, and what the engine gets.
fn pair(tcp: bool) -> (PeerSocket, Stream) {
    if !tcp {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let theirs = tokio::net::UnixStream::from_std(theirs).unwrap();
        return (PeerSocket::Unix(ours), Stream::Unix(theirs));
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    for socket in [&ours, &theirs] {
        socket.set_nonblocking(true).unwrap();
        socket.set_nodelay(true).unwrap();
    }
    let theirs = tokio::net::TcpStream::from_std(theirs).unwrap();
    (PeerSocket::Tcp(ours), Stream::Tcp(theirs))
}

/// One listener, one pool; every exchange is logged.
fn config(backends: &SimulatedBackends) -> Config {
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
struct SimulationLog {
    path: PathBuf,
    sink: LogSink,
    reader: File,
}

impl SimulationLog {
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

impl Drop for SimulationLog {
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
fn run(
    runtime: &Runtime,
    log: Option<&SimulationLog>,
    scenario: &Scenario,
) -> Result<RunOutcome, String> {
    runtime.block_on(async {
        let mut simulation = Simulation::new(scenario, log);
        let mut ran = simulation.run().await;
        let lines = log.map(SimulationLog::lines);
        if ran.is_ok() {
            // Idle connections that a backend has ended are closed.
            simulation.worker.tick();
            ran = simulation.finish().await;
        }
        let judged = ran
            .and_then(|()| oracle::connections(&simulation, scenario))
            .and_then(|()| oracle::records(&simulation, lines.as_deref()))
            .and_then(|()| oracle::leftovers(&simulation));
        simulation.worker.idle.borrow_mut().clear();
        let finished = simulation.finish().await;
        judged
            .and(finished)
            .and_then(|()| oracle::nothing_is_open(&simulation))
            .map(|()| oracle::outcome(&simulation))
            .map_err(|error| {
                format!(
                    "{error}\nlog: {}",
                    oracle::show_log(&lines.unwrap_or_default())
                )
            })
    })
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Runs the seeds of a mood: one, many, or `usual`.
fn seeds(name: &str, kind: ScenarioKind, usual: u64) {
    let (runtime, log) = (runtime(), SimulationLog::new(name));
    let seeds = match number_from("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number_from("SIMULATION_RUNS").unwrap_or(usual),
    };
    for seed in seeds {
        let scenario = random_scenario(seed, kind);
        if let Err(error) = run(&runtime, Some(&log), &scenario) {
            panic!(
                "SIMULATION_SEED={seed} ({kind:?}): {error}\n{}",
                scenario.describe()
            );
        }
    }
}

#[test]
fn clients_and_backends_that_keep_the_rules_get_every_byte_however_it_is_split() {
    seeds("calm", ScenarioKind::Orderly, 80);
}

#[test]
fn whoever_stalls_leaves_or_resets_wherever_nothing_is_mixed_up_or_looks_whole_that_is_not() {
    seeds("wild", ScenarioKind::Wild, 200);
}

/// Exchanges of every kind, each small, the answers of each connection after one another.
fn typical() -> Vec<(&'static str, Scenario)> {
    use BodyShape::{Chunked, Length, None, UntilClose};
    let get = RequestSpec::new("GET", None);
    let ok = ResponseSpec::new(200, Length(5));
    let hints = ResponseSpec {
        interims: 1,
        ..ResponseSpec::new(200, Chunked(9))
    };
    let waits = RequestSpec {
        expects: true,
        ..RequestSpec::new("POST", Length(7))
    };
    let continues = ResponseSpec {
        interims: 1,
        continues: true,
        ..ok
    };
    let old = RequestSpec { old: true, ..get };
    let long = ResponseSpec {
        padding: 450,
        ..ResponseSpec::new(200, Length(3))
    };
    let closes = RequestSpec {
        closes: true,
        ..get
    };
    let upgrade = RequestSpec {
        upgrade: true,
        ..get
    };
    let posts = [
        (
            RequestSpec::new("POST", Length(9)),
            ResponseSpec::new(200, Chunked(12)),
        ),
        (
            RequestSpec::new("PUT", Chunked(11)),
            ResponseSpec::new(200, Chunked(6)),
        ),
    ];
    vec![
        ("lengths", plain(&[(get, ok), (get, ok)])),
        ("bodies", plain(&posts)),
        (
            "until close",
            plain(&[(get, ResponseSpec::new(200, UntilClose(8)))]),
        ),
        (
            "no body",
            plain(&[
                (get, ResponseSpec::new(204, None)),
                (get, ResponseSpec::new(304, None)),
            ]),
        ),
        (
            "head",
            plain(&[
                (
                    RequestSpec::new("HEAD", None),
                    ResponseSpec::new(200, Chunked(4)),
                ),
                (get, ok),
            ]),
        ),
        ("behind a close", plain(&[(closes, ok), (get, ok)])),
        ("hints", plain(&[(get, hints), (closes, ok)])),
        ("expect", plain(&[(waits, continues), (get, ok)])),
        (
            "old",
            plain(&[(old, ok), (old, ResponseSpec::new(200, Chunked(5)))]),
        ),
        ("long head", plain(&[(get, long)])),
        ("upgrade", plain(&[(get, ok), (upgrade, ok)])),
    ]
}

fn plain(exchanges: &[(RequestSpec, ResponseSpec)]) -> Scenario {
    fixed_scenario(false, exchanges)
}

#[test]
fn every_single_split_of_typical_exchanges_changes_nothing() {
    let (runtime, log) = (runtime(), SimulationLog::new("splits"));
    for (name, scenario) in typical() {
        let check = |log, scenario: &Scenario| {
            run(&runtime, log, scenario)
                .unwrap_or_else(|error| panic!("{name}: {error}\n{}", scenario.describe()))
        };
        let wanted = check(Some(&log), &scenario);
        let mut bytewise = scenario.clone();
        for out in bytewise.outputs() {
            for at in 1..out.bytes.len() {
                out.act(at, ScriptedEvent::Split);
            }
        }
        assert_eq!(
            check(Some(&log), &bytewise),
            wanted,
            "{name}: a byte at a time"
        );
        let lengths: Vec<usize> = scenario
            .clone()
            .outputs()
            .iter()
            .map(|out| out.bytes.len())
            .collect();
        for (output, length) in lengths.into_iter().enumerate() {
            for at in 1..length {
                let mut split = scenario.clone();
                split.outputs()[output].act(at, ScriptedEvent::Split);
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
    for (name, mut scenario) in typical() {
        if name == "upgrade" {
            continue;
        }
        let lengths: Vec<usize> = scenario
            .outputs()
            .iter()
            .map(|out| out.bytes.len())
            .collect();
        for (output, length) in lengths.into_iter().enumerate() {
            for at in (random.below(every)..=length).step_by(every) {
                let what = [FaultKind::Fin, FaultKind::Reset, FaultKind::Hang][random.below(3)];
                let mut broken = scenario.clone();
                broken.tcp = random.below(2) == 0;
                let tcp = broken.tcp;
                let client = &mut broken.clients[0];
                match output.checked_sub(1) {
                    None => client.break_at(at, what),
                    Some(exchange) => client.exchanges[exchange].plans[0].break_at(at, what, tcp),
                }
                if let Err(error) = run(&runtime, None, &broken) {
                    let scenario = broken.describe();
                    panic!("{name}: output {output}, {what:?} at {at}: {error}\n{scenario}");
                }
            }
        }
    }
}
