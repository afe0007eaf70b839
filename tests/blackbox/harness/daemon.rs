//! The built program under test: started with its own configuration, watched, signalled, and killed
//! with the test.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Mutex,
        mpsc::{Receiver, channel},
    },
    thread,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{
    PATIENCE, TempDir,
    client::{HttpClient, HttpResponse, ReadError, get},
    peer::Recorder,
    poll,
    program::lines,
};

/// A running `balancer`; killed when dropped.
pub struct TestDaemon {
    child: Child,
    directory: TempDir,
    addresses: HashMap<String, SocketAddr>,
    notify: Mutex<Receiver<String>>,
    /// Standard output: the access log.
    pub stdout: Recorder<String>,
    /// Standard error: the daemon's own log.
    pub stderr: Recorder<String>,
}

impl TestDaemon {
    /// Starts with `config` and waits until the daemon says that it is ready.
    ///
    /// Words such as `@web` in `config` become free addresses on 127.0.0.1, the same one for the
    /// same word ([`TestDaemon::address`] tells which); `@dir` becomes the test's directory.
    /// `admin` and `metrics` are added where the text does not set them. If another process took a
    /// port in between, it starts again with others.
    pub fn start(config: &str) -> Self {
        Self::start_as("run", config)
    }

    /// Like [`TestDaemon::start`] with another command that becomes the daemon: `demo`.
    pub fn start_as(subcommand: &str, config: &str) -> Self {
        Self::start_by(command, subcommand, config)
    }

    /// Like [`TestDaemon::start_as`] with a program of one's own making: another environment, other
    /// limits.
    pub fn start_by(program: impl Fn() -> Command, subcommand: &str, config: &str) -> Self {
        for _ in 0..5 {
            let mut daemon = Self::launch_by(program(), subcommand, config);
            if daemon.wait_ready() {
                return daemon;
            }
            let errors = daemon.stderr.all().join("\n");
            assert!(
                is_about_a_port(&errors),
                "the daemon did not get ready:\n{errors}"
            );
        }
        panic!("every port that was free was taken a moment later");
    }

    /// Starts with `config` and waits for nothing: for configurations that do not come up.
    pub fn launch(config: &str) -> Self {
        Self::launch_as("run", config)
    }

    /// Like [`TestDaemon::launch`] with another command.
    pub fn launch_as(subcommand: &str, config: &str) -> Self {
        Self::launch_by(command(), subcommand, config)
    }

    /// Like [`TestDaemon::launch_as`] with a program of one's own making.
    pub fn launch_by(mut program: Command, subcommand: &str, config: &str) -> Self {
        let directory = TempDir::new();
        let notify = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        let mut addresses = HashMap::new();
        let text = complete(config, &directory, &mut addresses);
        let file = directory.path().join("balancer.yaml");
        fs::write(&file, text).unwrap();
        program.args([subcommand, "-c"]).arg(&file);
        let (child, stdout, stderr) = spawn(program, &directory);
        Self {
            child,
            directory,
            addresses,
            notify: Mutex::new(messages(notify)),
            stdout,
            stderr,
        }
    }

    /// Drains and ends the process, and starts another one with the same files and addresses.
    pub fn restart(&mut self) {
        self.signal(Signal::TERM);
        self.wait_notified("STOPPING=1");
        assert_eq!(self.wait_exit().code(), Some(0));
        let mut program = command();
        program
            .args(["run", "-c"])
            .arg(self.directory.path().join("balancer.yaml"));
        (self.child, self.stdout, self.stderr) = spawn(program, &self.directory);
        assert!(self.wait_ready(), "{}", self.stderr.all().join("\n"));
    }

    /// Waits for READY=1; false when the process ends instead.
    fn wait_ready(&mut self) -> bool {
        let ready = poll(|| {
            let told = self.notify.lock().unwrap().try_recv();
            if told.is_ok_and(|text| has(&text, "READY=1")) {
                return Some(true);
            }
            self.child.try_wait().unwrap().map(|_| false)
        });
        if ready == Some(false) {
            // The last words are read by threads that end with the pipes.
            poll(|| {
                self.stderr
                    .all()
                    .iter()
                    .any(|line| is_about_a_port(line))
                    .then_some(())
            });
        }
        ready.unwrap_or_else(|| {
            panic!(
                "neither ready nor ended; standard error:\n{}",
                self.stderr.all().join("\n")
            )
        })
    }

    /// The next message to the service manager, such as `READY=1`; `None` when none comes.
    pub fn notified(&self) -> Option<String> {
        self.notify.lock().unwrap().recv_timeout(PATIENCE).ok()
    }

    /// Waits until a message to the service manager has the line `wanted`.
    pub fn wait_notified(&self, wanted: &str) {
        let mut seen = Vec::new();
        while let Some(text) = self.notified() {
            if has(&text, wanted) {
                return;
            }
            seen.push(text);
        }
        panic!("`{wanted}` was not notified; seen: {seen:?}");
    }

    /// The address that stands for `word` (`@web`) in the configuration.
    pub fn address(&self, word: &str) -> SocketAddr {
        *self
            .addresses
            .get(word)
            .unwrap_or_else(|| panic!("`{word}` is not in the configuration"))
    }

    /// Runs `balancer COMMAND` against this daemon: it finds the admin socket as the service
    /// manager's reload does.
    pub fn command(&self, arguments: &[&str]) -> Output {
        command()
            .args(arguments)
            .env("RUNTIME_DIRECTORY", self.directory.path())
            .output()
            .expect("the built program starts")
    }

    /// The test's own directory, `@dir` in the configuration.
    pub fn directory(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Connects a raw client to the address that stands for `word`.
    pub fn client(&self, word: &str) -> HttpClient {
        HttpClient::connect(self.address(word))
    }

    /// One GET on a connection of its own.
    pub fn get(&self, word: &str, target: &str) -> Result<HttpResponse, ReadError> {
        get(self.address(word), target)
    }

    /// Replaces the configuration file; words keep the addresses they have. Tells the daemon
    /// nothing.
    pub fn write_config(&mut self, config: &str) {
        let text = complete(config, &self.directory, &mut self.addresses);
        fs::write(self.directory.path().join("balancer.yaml"), text).unwrap();
    }

    /// Replaces the configuration file and asks for a reload over the admin API: its status and
    /// JSON.
    pub fn reload(&mut self, config: &str) -> HttpResponse {
        self.write_config(config);
        self.admin("POST", "/v1/reload")
    }

    /// One request to the admin API.
    pub fn admin(&self, method: &str, path: &str) -> HttpResponse {
        let mut client = HttpClient::connect_unix(&self.directory.path().join("admin.sock"));
        client.send(format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ));
        client
            .response()
            .unwrap_or_else(|cut| panic!("{method} {path}: {cut:?}"))
    }

    /// `GET /v1/status`.
    pub fn status(&self) -> serde_json::Value {
        self.admin("GET", "/v1/status").json()
    }

    /// The admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.directory.path().join("admin.sock")
    }

    /// The number after `key` in `/proc/PID/status`, in KiB if it is memory.
    pub fn proc_status(&self, key: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let words = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
        words.unwrap().parse().unwrap()
    }

    /// Targets of the open descriptors of the process.
    pub fn open_files(&self) -> Vec<String> {
        let directory = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        let links = directory.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        links.map(|path| path.display().to_string()).collect()
    }

    /// Processor time of the process so far.
    pub fn cpu_time(&self) -> std::time::Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let words = stat
            .rsplit_once(") ")
            .unwrap()
            .1
            .split(' ')
            .skip(11)
            .take(2);
        let ticks: u64 = words.map(|word| word.parse::<u64>().unwrap()).sum();
        // USER_HZ is 100 wherever Linux runs.
        std::time::Duration::from_millis(ticks * 10)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for the end of the process.
    pub fn wait_exit(&mut self) -> ExitStatus {
        poll(|| self.child.try_wait().unwrap()).unwrap_or_else(|| {
            panic!(
                "the daemon does not end; standard error:\n{}",
                self.stderr.all().join("\n")
            )
        })
    }

    /// Waits for a line of the daemon's own log.
    pub fn wait_for_log(&self, wanted: impl Fn(&str) -> bool) -> String {
        wait_for_line(&self.stderr, wanted)
    }

    /// Waits for a line of the access log and reads it as JSON.
    pub fn wait_for_access(
        &self,
        wanted: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let parse = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok();
        let line = wait_for_line(&self.stdout, |line| {
            parse(line).is_some_and(|json| wanted(&json))
        });
        parse(&line).unwrap()
    }

    /// The whole metrics page.
    pub fn scrape(&self) -> String {
        let response = get(self.address("@metrics"), "/metrics")
            .unwrap_or_else(|cut| panic!("no metrics: {cut:?}"));
        assert_eq!(response.status, 200);
        response.text()
    }

    /// The sum of all series that `selector` names: `name{label="value"}`, with as many labels as
    /// one likes; 0 for none.
    pub fn metric(&self, selector: &str) -> f64 {
        sum_of(&self.scrape(), selector)
    }

    /// Waits until the sum of the series satisfies `wanted`.
    pub fn wait_for_metric(&self, selector: &str, wanted: impl Fn(f64) -> bool) -> f64 {
        poll(|| Some(self.metric(selector)).filter(|value| wanted(*value))).unwrap_or_else(|| {
            panic!(
                "`{selector}` stays at {}:\n{}",
                self.metric(selector),
                self.scrape()
            )
        })
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!(
                "standard error of the daemon:\n{}",
                self.stderr.all().join("\n")
            );
        }
    }
}

/// Starts the program as the service manager would, with the files in `directory`.
fn spawn(mut program: Command, directory: &TempDir) -> (Child, Recorder<String>, Recorder<String>) {
    let mut environment = program.get_envs();
    if !environment.any(|(name, value)| name == "STATE_DIRECTORY" && value.is_some()) {
        program.env("STATE_DIRECTORY", directory.path().join("state"));
    }
    let mut child = program
        .env("NOTIFY_SOCKET", directory.path().join("notify"))
        .env("RUNTIME_DIRECTORY", directory.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the built program starts");
    let stdout = lines(child.stdout.take().unwrap()).0;
    let stderr = lines(child.stderr.take().unwrap()).0;
    (child, stdout, stderr)
}

/// The built program, ready for arguments, without the variables of the test's own surroundings.
pub fn command() -> Command {
    alone(Command::new(env!("CARGO_BIN_EXE_balancer")))
}

/// The built program with at most `files` open files.
pub fn command_with_files(files: u32) -> Command {
    let mut shell = Command::new("sh");
    let limit = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
    shell.args(["-c", &limit, env!("CARGO_BIN_EXE_balancer")]);
    alone(shell)
}

fn alone(mut command: Command) -> Command {
    command
        .stdin(Stdio::null())
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .env_remove("RUNTIME_DIRECTORY")
        .env_remove("STATE_DIRECTORY");
    command
}

/// Runs the built program to its end.
pub fn balancer(arguments: &[&str]) -> Output {
    command()
        .args(arguments)
        .output()
        .expect("the built program starts")
}

/// Adds up the series of a metrics page that have the selector's name and at least its labels.
pub fn sum_of(page: &str, selector: &str) -> f64 {
    let (name, labels) = split_series(selector);
    page.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(series, _)| {
            let (known, has) = split_series(series);
            known == name && labels.iter().all(|label| has.contains(label))
        })
        .map(|(_, value)| value.parse::<f64>().expect("a number ends the line"))
        .sum()
}

fn split_series(series: &str) -> (&str, Vec<&str>) {
    match series.split_once('{') {
        None => (series, Vec::new()),
        Some((name, labels)) => (name, labels.trim_end_matches('}').split(',').collect()),
    }
}

fn wait_for_line(lines: &Recorder<String>, wanted: impl Fn(&str) -> bool) -> String {
    lines
        .wait_for(|all| all.iter().find(|line| wanted(line)).cloned())
        .unwrap_or_else(|| {
            panic!(
                "the line did not come; all lines:\n{}",
                lines.all().join("\n")
            )
        })
}

/// Takes messages as a service manager does: at once, because the daemon waits where they are not
/// taken.
fn messages(socket: UnixDatagram) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Another process got the port in between: listeners and the admin server word it differently.
fn is_about_a_port(error: &str) -> bool {
    error.contains("is taken by another process") || error.contains("in use")
}

fn has(message: &str, wanted: &str) -> bool {
    message.lines().any(|line| line == wanted)
}

/// Fills in the words and the sections that every test needs.
fn complete(
    config: &str,
    directory: &TempDir,
    addresses: &mut HashMap<String, SocketAddr>,
) -> String {
    let mut text = config.to_owned();
    let lacks = |text: &str, key: &str| !text.lines().any(|line| line.starts_with(key));
    if lacks(&text, "admin:") {
        text.push_str("\nadmin: {bind: \"unix:@dir/admin.sock\"}\n");
    }
    if lacks(&text, "metrics:") {
        text.push_str("\nmetrics: {bind: \"@metrics\"}\n");
    }
    text = text.replace("@dir", &directory.path().display().to_string());
    let mut result = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find('@') {
        let (before, word) = rest.split_at(at);
        let end = word[1..]
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .map_or(word.len(), |end| end + 1);
        let (word, after) = word.split_at(end);
        let address = addresses
            .entry(word.to_owned())
            .or_insert_with(free_address);
        result.push_str(before);
        result.push_str(&address.to_string());
        rest = after;
    }
    result + rest
}

/// An address that is free now and that no other test of this process gets: sharing a port would
/// not even fail, because the daemon binds with `SO_REUSEPORT`.
fn free_address() -> SocketAddr {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut guard = GIVEN.lock().unwrap();
    let given = guard.get_or_insert_default();
    loop {
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        if given.insert(address.port()) {
            return address;
        }
    }
}
