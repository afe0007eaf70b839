//! Drives a run: polls the engine until it is idle, lets each peer take one step, and moves the
//! clock only when no peer can.

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

use tokio::runtime::Runtime;

use super::{
    peers::{PeerSocket, SimulatedBackends, SimulatedClient},
    scenario::Scenario,
};
use crate::{
    base::{clock, rng::Random, socket_key::SocketKey},
    config::model::{self, Config, LogOutput, LogWhenConfig, RetriesConfig},
    net::{fixture::paused_runtime, stream::Stream},
    proxy::{
        http::{ClientConnection, serve},
        worker::Worker,
    },
    snapshot::{Daemon, Snapshot},
    telemetry::{access_log::AccessLog, sink::LogSink},
};

/// Virtual time after which a run has failed by hanging: many times the sum of the timeouts.
const MAX_RUN_TIME: Duration = Duration::from_mins(50);
/// First step of the clock when no peer has a time of its own; doubled up to 64 times.
const FIRST_CLOCK_STEP: Duration = Duration::from_millis(25);

/// Rounds without an event after which the engine is idle.
const IDLE_ROUNDS: usize = 2;

/// Waits until packets have arrived. A busy kernel may delay loopback packets, but keeps their
/// order on one processor, to which the thread is bound (`runtime`).
pub(super) struct LoopbackBarrier {
    near: std::net::TcpStream,
    far: std::net::TcpStream,
}

impl LoopbackBarrier {
    pub(super) fn new() -> Self {
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

/// Set when the engine must be polled.
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
    /// Polls it if it was woken; true if it was.
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

/// All participants of a run.
pub(super) struct Simulation {
    pub worker: Rc<Worker>,
    servers: Vec<EngineTask>,
    pub clients: Vec<SimulatedClient>,
    pub backends: SimulatedBackends,
    random: Random,
    /// Needed over TCP, where packets may be under way.
    barrier: Option<LoopbackBarrier>,
}

impl Simulation {
    pub(super) fn new(scenario: &Scenario, log: Option<&SimulationLog>) -> Self {
        let backends = SimulatedBackends::new(scenario);
        let config = config(&backends);
        let access_log = AccessLog::new(&config.access_log, log.map(|log| log.sink.clone()));
        let snapshot = Snapshot::build(Arc::new(config), None, access_log, clock::now());
        let worker = Worker::new(Arc::new(Daemon::new(snapshot, 1, 100)));
        *worker.random.borrow_mut() = Random::seeded(scenario.seed);
        let mut simulation = Self {
            worker: Rc::new(worker),
            servers: Vec::new(),
            clients: Vec::new(),
            backends,
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

    /// Runs the engine until it has seen every event.
    async fn settle(&mut self) {
        let mut idle_rounds = 0;
        while idle_rounds < IDLE_ROUNDS {
            if let Some(barrier) = &self.barrier {
                barrier.pass();
            }
            // Lets tokio's driver poll the sockets.
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

    /// Runs to the end; an error is a hang, or a broken promise.
    pub(super) async fn run(&mut self) -> Result<(), String> {
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

    /// Lets the backends see the connections that the engine has closed.
    pub(super) async fn finish(&mut self) -> Result<(), String> {
        self.settle().await;
        while self.backends.step(clock::now())? {
            self.settle().await;
        }
        Ok(())
    }

    /// Time until the next event that a peer has planned.
    fn until_event(&self, now: Instant) -> Option<Duration> {
        let clients = self.clients.iter().filter_map(SimulatedClient::wakes);
        let all = clients.chain(self.backends.wakes());
        all.filter(|at| *at > now).min().map(|at| at - now)
    }
}

/// A connection: the socket of the simulation and the stream of the engine.
fn pair(tcp: bool) -> (PeerSocket, Stream) {
    if !tcp {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        return (PeerSocket::Unix(ours), Stream::from_unix(theirs).unwrap());
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    for socket in [&ours, &theirs] {
        socket.set_nodelay(true).unwrap();
    }
    (PeerSocket::Tcp(ours), Stream::from_tcp(theirs).unwrap())
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
            budget: 1.0,
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
pub(super) struct SimulationLog {
    path: PathBuf,
    sink: LogSink,
    reader: File,
}

impl SimulationLog {
    pub(super) fn new(name: &str) -> Self {
        let name = format!("balancer-simulation-{}-{name}.log", std::process::id());
        let path = std::env::temp_dir().join(name);
        drop(std::fs::remove_file(&path));
        let sink = LogSink::open(&LogOutput::File(path.clone()))
            .unwrap()
            .unwrap();
        let reader = File::open(&path).unwrap();
        Self { path, sink, reader }
    }

    /// Lines written since the last call.
    pub(super) fn lines(&self) -> Vec<serde_json::Value> {
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

/// A runtime with a paused clock, on a thread that is bound to its processor.
pub(super) fn runtime() -> Runtime {
    #[cfg(target_os = "linux")]
    {
        let mut here = rustix::thread::CpuSet::new();
        here.set(rustix::thread::sched_getcpu());
        rustix::thread::sched_setaffinity(None, &here).unwrap();
    }
    paused_runtime()
}
