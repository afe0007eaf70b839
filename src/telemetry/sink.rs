//! Log outputs: a bounded queue in memory, and a thread that writes it.
//!
//! Traffic never waits for a log: a full disk or a stopped reader of a pipe would otherwise stop
//! all workers. A caller appends its line under a short lock. If the queue is full, the line is
//! dropped and counted. The writer takes the whole queue at once, so that a busy log costs one
//! system call for many lines. This file does not know the formats: a line is bytes that end with a
//! newline.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::{fd::AsFd as _, unix::fs::OpenOptionsExt as _},
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{base::clock, config::model::LogOutput};

/// Maximum size of a queue. With 300 bytes per line and 50,000 lines per second it is full after a
/// quarter of a second.
const QUEUE_CAPACITY_BYTES: usize = 4 << 20;

/// Time that the writer waits after the first line for more lines. It limits the number of wake-ups
/// and the delay of a line.
const BATCH_DELAY: Duration = Duration::from_millis(20);

/// Minimum interval between two reports of a failing output.
const REPORT_INTERVAL: Duration = Duration::from_mins(1);

/// Log that a line belongs to: the label `log` of `balancer_log_lines_dropped_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogName {
    /// Access log.
    Access,
    /// Daemon's own log.
    Daemon,
}

impl LogName {
    /// All logs, in the order of the metric.
    pub const ALL: [Self; 2] = [Self::Access, Self::Daemon];

    /// Value of the label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Daemon => "daemon",
        }
    }

    /// Lines that the whole process has dropped so far. A reload may close an output, but this
    /// number only grows.
    pub fn lines_dropped(self) -> u64 {
        self.counter().load(Relaxed)
    }

    fn counter(self) -> &'static AtomicU64 {
        static ACCESS_DROPPED: AtomicU64 = AtomicU64::new(0);
        static DAEMON_DROPPED: AtomicU64 = AtomicU64::new(0);
        match self {
            Self::Access => &ACCESS_DROPPED,
            Self::Daemon => &DAEMON_DROPPED,
        }
    }
}

/// Handle of one output. Clones share its queue. The writer ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct LogSink(Arc<SinkHandle>);

/// Shared part of all clones of a [`LogSink`]. Its drop closes the queue.
#[derive(Debug)]
struct SinkHandle {
    shared: Arc<SinkState>,
}

impl Drop for SinkHandle {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
    }
}

/// State that handles and writer share.
#[derive(Debug)]
struct SinkState {
    queue: Mutex<LineQueue>,
    /// Wakes the writer.
    wake: Condvar,
    /// Wakes callers of `flush`.
    written: Condvar,
    capacity: usize,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct LineQueue {
    lines: LineBatch,
    /// Lines accepted since the start.
    accepted: u64,
    /// Accepted lines that were written or lost since the start.
    finished: u64,
    /// The writer sleeps: the next line must wake it.
    asleep: bool,
    /// The writer must not wait for more lines: `flush` or `reopen` was called, or the queue fills.
    urgent: bool,
    reopen: bool,
    closed: bool,
}

#[derive(Debug, Default)]
struct LineBatch {
    bytes: Vec<u8>,
    /// Numbers of lines, by log.
    access: u64,
    daemon: u64,
}

impl SinkState {
    fn lock(&self) -> MutexGuard<'_, LineQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_lines(&self, log: LogName, lines: u64) {
        self.dropped.fetch_add(lines, Relaxed);
        log.counter().fetch_add(lines, Relaxed);
    }
}

impl LogSink {
    /// Opens `output` and starts its writer. `None` for [`LogOutput::None`].
    ///
    /// # Errors
    /// When the output cannot be opened, or the thread cannot be started.
    pub fn open(output: &LogOutput) -> io::Result<Option<Self>> {
        Ok(match output {
            LogOutput::None => None,
            LogOutput::Stderr => Some(Self::stderr()?),
            LogOutput::Stdout => Some(Self::start(OpenOutput::stdout()?, QUEUE_CAPACITY_BYTES)?),
            LogOutput::File(path) => {
                Some(Self::start(OpenOutput::file(path)?, QUEUE_CAPACITY_BYTES)?)
            }
        })
    }

    /// Returns the sink of standard error. There is only one, because an access log on standard
    /// error would otherwise mix its bytes with lines of the daemon's log.
    pub fn stderr() -> io::Result<Self> {
        static STDERR_SINK: OnceLock<LogSink> = OnceLock::new();
        if let Some(sink) = STDERR_SINK.get() {
            return Ok(sink.clone());
        }
        let sink = Self::start(OpenOutput::stderr()?, QUEUE_CAPACITY_BYTES)?;
        Ok(STDERR_SINK.get_or_init(|| sink).clone())
    }

    fn start(output: OpenOutput, capacity: usize) -> io::Result<Self> {
        let shared = Arc::new(SinkState {
            queue: Mutex::default(),
            wake: Condvar::new(),
            written: Condvar::new(),
            capacity,
            dropped: AtomicU64::new(0),
        });
        let writer = LogWriter {
            shared: Arc::clone(&shared),
            output,
            torn: false,
            reported: None,
        };
        thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer.run())?;
        Ok(Self(Arc::new(SinkHandle { shared })))
    }

    /// Queues one line, which ends with a newline. Returns false if the queue is full and the line
    /// is lost. Never waits for the output.
    pub fn write(&self, log: LogName, line: &[u8]) -> bool {
        let shared = &self.0.shared;
        let mut queue = shared.lock();
        let before = queue.lines.bytes.len();
        let after = before + line.len();
        if after > shared.capacity {
            drop(queue);
            shared.drop_lines(log, 1);
            return false;
        }
        queue.lines.bytes.extend_from_slice(line);
        match log {
            LogName::Access => queue.lines.access += 1,
            LogName::Daemon => queue.lines.daemon += 1,
        }
        queue.accepted += 1;
        // Wake the writer early when half of the queue is full: within the delay the rest could
        // fill.
        let half = shared.capacity / 2;
        let half_full = before < half && after >= half;
        let wake = std::mem::take(&mut queue.asleep) || half_full;
        queue.urgent |= half_full;
        drop(queue);
        if wake {
            shared.wake.notify_one();
        }
        true
    }

    /// Makes the writer open its file again before the next line, for logrotate.
    pub fn reopen(&self) {
        let mut queue = self.0.shared.lock();
        queue.reopen = true;
        queue.urgent = true;
        drop(queue);
        self.0.shared.wake.notify_one();
    }

    /// Waits until all lines so far are written or lost. Returns false after `timeout`.
    pub fn flush(&self, timeout: Duration) -> bool {
        let mut queue = self.0.shared.lock();
        let goal = queue.accepted;
        queue.urgent = true;
        self.0.shared.wake.notify_one();
        let (queue, _) = self
            .0
            .shared
            .written
            .wait_timeout_while(queue, timeout, |queue| queue.finished < goal)
            .unwrap_or_else(PoisonError::into_inner);
        queue.finished >= goal
    }

    /// Lines that this output has dropped so far.
    pub fn dropped(&self) -> u64 {
        self.0.shared.dropped.load(Relaxed)
    }
}

/// Sinks of all outputs in use.
///
/// A reload that keeps an output keeps its queue and its open file. An output is closed when the
/// last snapshot that uses it is dropped, which is after the last exchange of that snapshot.
#[derive(Debug, Default)]
pub struct LogSinks {
    open: Mutex<Vec<(LogOutput, Weak<SinkHandle>)>>,
}

impl LogSinks {
    fn lock(&self) -> MutexGuard<'_, Vec<(LogOutput, Weak<SinkHandle>)>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(_, sink)| sink.strong_count() > 0);
        open
    }

    fn all(&self) -> Vec<LogSink> {
        let open = self.lock();
        let sinks = open.iter().filter_map(|(_, sink)| sink.upgrade());
        sinks.map(LogSink).collect()
    }

    /// Returns the sink of `output`, and opens it if no snapshot uses it. `None` for
    /// [`LogOutput::None`].
    ///
    /// # Errors
    /// As [`LogSink::open`].
    pub fn open(&self, output: &LogOutput) -> io::Result<Option<LogSink>> {
        let mut open = self.lock();
        let known = open.iter().find(|(known, _)| known == output);
        if let Some(sink) = known.and_then(|(_, sink)| sink.upgrade()) {
            return Ok(Some(LogSink(sink)));
        }
        let sink = LogSink::open(output)?;
        if let Some(sink) = &sink {
            open.push((output.clone(), Arc::downgrade(&sink.0)));
        }
        Ok(sink)
    }

    /// Makes all writers open their files again (SIGUSR1).
    pub fn reopen_all(&self) {
        for sink in self.all() {
            sink.reopen();
        }
    }

    /// Waits until all sinks, including standard error, have written their lines. Returns false if
    /// that takes longer than `timeout` in total.
    pub fn flush_all(&self, timeout: Duration) -> bool {
        let end = clock::now() + timeout;
        let mut sinks = self.all();
        sinks.extend(LogSink::stderr());
        let mut all = true;
        for sink in sinks {
            all &= sink.flush(end.saturating_duration_since(clock::now()));
        }
        all
    }
}

/// Open output. For a file it knows the path, to open it again.
#[derive(Debug)]
struct OpenOutput {
    file: File,
    name: LogOutput,
}

impl OpenOutput {
    fn stdout() -> io::Result<Self> {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok(Self {
            file,
            name: LogOutput::Stdout,
        })
    }

    fn stderr() -> io::Result<Self> {
        let file = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        Ok(Self {
            file,
            name: LogOutput::Stderr,
        })
    }

    fn file(path: &Path) -> io::Result<Self> {
        // Without O_NONBLOCK, opening a FIFO without a reader would block the reload for ever.
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        Ok(Self {
            file,
            name: LogOutput::File(path.to_path_buf()),
        })
    }

    fn describe(&self) -> String {
        match &self.name {
            LogOutput::File(path) => format!("file:{}", path.display()),
            LogOutput::Stderr => "stderr".to_owned(),
            LogOutput::Stdout | LogOutput::None => "stdout".to_owned(),
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let LogOutput::File(path) = &self.name {
            *self = Self::file(path)?;
        }
        Ok(())
    }
}

/// Writes all of `bytes`. An error comes with the number of bytes that were written before it.
fn write_all(mut output: &File, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match output.write(rest) {
            Ok(0) => return Err((done, io::ErrorKind::WriteZero.into())),
            Ok(written) => done += written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process can make a shared pipe non-blocking. This thread may wait.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err((done, error)),
        }
    }
    Ok(())
}

/// Thread that writes the lines of a sink.
struct LogWriter {
    shared: Arc<SinkState>,
    output: OpenOutput,
    /// The last write ended inside a line: the next write starts with a newline.
    torn: bool,
    /// Time of the last report of a failure.
    reported: Option<Instant>,
}

/// Content of the queue that the writer took.
struct PendingWork {
    lines: LineBatch,
    reopen: bool,
    closed: bool,
}

impl LogWriter {
    fn run(mut self) {
        let mut spare = LineBatch::default();
        loop {
            let work = self.wait(spare);
            if work.reopen
                && let Err(error) = self.output.reopen()
            {
                self.report("cannot be reopened; the old file stays in use", &error);
            }
            self.write(&work.lines);
            self.finish(work.lines.access + work.lines.daemon);
            if work.closed {
                return;
            }
            spare = work.lines;
            spare.bytes.clear();
            (spare.access, spare.daemon) = (0, 0);
        }
    }

    /// Waits for work, then for more lines, and replaces the queue with the empty `spare`.
    ///
    /// The two buffers swap places, so that a steady log allocates nothing.
    fn wait(&self, spare: LineBatch) -> PendingWork {
        let mut queue = self.shared.lock();
        queue.asleep = true;
        let idle =
            |queue: &mut LineQueue| queue.lines.bytes.is_empty() && !queue.reopen && !queue.closed;
        let queue = self
            .shared
            .wake
            .wait_while(queue, idle)
            .unwrap_or_else(PoisonError::into_inner);
        let (mut queue, _) = self
            .shared
            .wake
            .wait_timeout_while(queue, BATCH_DELAY, |queue| !queue.urgent && !queue.closed)
            .unwrap_or_else(PoisonError::into_inner);
        queue.asleep = false;
        queue.urgent = false;
        PendingWork {
            lines: std::mem::replace(&mut queue.lines, spare),
            reopen: std::mem::take(&mut queue.reopen),
            closed: queue.closed,
        }
    }

    fn write(&mut self, lines: &LineBatch) {
        let torn = if self.torn { &b"\n"[..] } else { &[] };
        let result = write_all(&self.output.file, torn)
            .map_err(|(_, error)| (0, error))
            .and_then(|()| {
                self.torn = false;
                write_all(&self.output.file, &lines.bytes)
            });
        if let Err((done, error)) = result {
            let (out, lost) = lines.bytes.split_at(done.min(lines.bytes.len()));
            self.torn |= out.last().is_some_and(|last| *last != b'\n');
            let lost = memchr::memchr_iter(b'\n', lost).count() as u64;
            // If both logs share the output, it is unknown which lines are lost. Count them for the
            // access log first: it has most of the lines.
            let access = lost.min(lines.access);
            self.shared.drop_lines(LogName::Access, access);
            self.shared
                .drop_lines(LogName::Daemon, (lost - access).min(lines.daemon));
            self.report("cannot be written; lines are lost", &error);
        }
    }

    /// Counts lines as finished and wakes callers of `flush`.
    fn finish(&self, lines: u64) {
        self.shared.lock().finished += lines;
        self.shared.written.notify_all();
    }

    /// Logs a failure, at most once per [`REPORT_INTERVAL`]. The log may be the failing output
    /// itself.
    fn report(&mut self, what: &str, error: &io::Error) {
        let now = clock::now();
        if self
            .reported
            .is_none_or(|last| now.duration_since(last) >= REPORT_INTERVAL)
        {
            self.reported = Some(now);
            tracing::warn!(output = self.output.describe(), %error, "log output {what}");
        }
    }
}

#[cfg(test)]
#[path = "sink_tests.rs"]
mod tests;
