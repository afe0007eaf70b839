//! Other programs beside the one under test: started, watched, and killed with the test.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::Mutex,
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use super::{TempDir, peer::Recorder, poll, poll_for};

/// Time limit of a program that ends by itself. Java needs ten seconds on a busy machine.
const RUN_LIMIT: Duration = Duration::from_secs(50);

/// A running program; killed when dropped.
pub struct ForeignProgram {
    child: Child,
    command: String,
    readers: Vec<JoinHandle<()>>,
    /// Lines of its standard output so far.
    pub stdout: Recorder<String>,
    /// Lines of its standard error so far.
    pub stderr: Recorder<String>,
    /// Its own files, which go away with it.
    directory: Option<TempDir>,
}

impl ForeignProgram {
    /// Starts it without input, and without a proxy that the surroundings ask for.
    pub fn start(command: &mut Command) -> Self {
        for word in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
            command.env_remove(word).env_remove(word.to_lowercase());
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (stdout, out) = lines(child.stdout.take().unwrap());
        let (stderr, err) = lines(child.stderr.take().unwrap());
        Self {
            child,
            command: format!("{command:?}"),
            readers: vec![out, err],
            stdout,
            stderr,
            directory: None,
        }
    }

    /// Starts a server with `config` as the file behind its arguments, and waits until it listens
    /// on `address`. `DIR` in `config` is a directory of its own.
    pub fn serve(command: &mut Command, config: &str, address: SocketAddr) -> Self {
        let directory = TempDir::new();
        let file = directory.path().join("config");
        let text = config.replace("DIR", &directory.path().display().to_string());
        fs::write(&file, text).unwrap();
        let mut server = Self::start(command.arg(&file));
        server.directory = Some(directory);
        poll(|| TcpStream::connect(address).ok())
            .unwrap_or_else(|| panic!("not up at {address}: {}", server.said()));
        server
    }

    /// The number that it prints as its first line: the port it listens on.
    pub fn port(&self) -> u16 {
        let first = self.stdout.wait_for(|lines| lines.first()?.parse().ok());
        first.unwrap_or_else(|| panic!("no port: {}", self.said()))
    }

    /// Waits until it ends well; gives what it wrote to its standard output.
    #[track_caller]
    pub fn finish(mut self) -> String {
        let status = poll_for(RUN_LIMIT, || self.child.try_wait().unwrap());
        if status.is_some() {
            // The last words are read by threads that end with the pipes.
            for reader in self.readers.drain(..) {
                let _ = reader.join();
            }
        }
        let ended_well = status.is_some_and(|status| status.success());
        let how = status.map_or_else(|| "takes too long".to_owned(), |status| status.to_string());
        assert!(ended_well, "{how}: {}", self.said());
        self.stdout.all().join("\n")
    }

    fn said(&self) -> String {
        let (out, err) = (self.stdout.all().join("\n"), self.stderr.all().join("\n"));
        format!("{}\n{out}\n{err}", self.command)
    }
}

impl Drop for ForeignProgram {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address for a server that cannot choose its port itself and shares it (`SO_REUSEPORT`). It
/// stays bound as long as the test runs, so that no other program gets it.
pub fn shared_address() -> SocketAddr {
    static HELD: Mutex<Vec<Socket>> = Mutex::new(Vec::new());
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    HELD.lock().unwrap().push(socket);
    address
}

/// Collects the lines of a stream in a thread, which ends with the stream.
pub fn lines(stream: impl Read + Send + 'static) -> (Recorder<String>, JoinHandle<()>) {
    let record = Recorder::default();
    let sink = record.clone();
    let reader = thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            match line {
                Ok(line) => sink.push(line),
                Err(_) => return,
            }
        }
    });
    (record, reader)
}
