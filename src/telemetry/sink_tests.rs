//! Tests with outputs that are full, slow, moved away or broken.

use std::{io::Read as _, path::PathBuf};

use super::*;

fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("balancer-sink-{}-{name}", std::process::id()));
    drop(fs_remove(&path));
    path
}

fn fs_remove(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)
}

const FLUSH_TIMEOUT: Duration = Duration::from_secs(20);

fn pipe() -> (File, OpenOutput) {
    let (read, write) = rustix::pipe::pipe().unwrap();
    let output = OpenOutput {
        file: write.into(),
        name: LogOutput::Stdout,
    };
    (read.into(), output)
}

#[test]
fn lines_arrive_whole_and_in_order() {
    let path = scratch("order");
    let sink = LogSink::open(&LogOutput::File(path.clone()))
        .unwrap()
        .unwrap();
    for number in 0..1_000 {
        assert!(sink.write(LogName::Access, format!("{number}\n").as_bytes()));
    }
    assert!(sink.flush(FLUSH_TIMEOUT));
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(
        text.lines()
            .map(|line| line.parse::<u32>().unwrap())
            .eq(0..1_000)
    );
    fs_remove(&path).unwrap();
}

#[test]
fn a_stuck_output_drops_and_counts_lines_and_never_holds_up_the_caller() {
    let (mut reader, mut output) = pipe();
    // The pipe is full from the start, so the first write blocks.
    rustix::fs::fcntl_setfl(&output.file, rustix::fs::OFlags::NONBLOCK).unwrap();
    let mut filled = 0;
    while let Ok(written) = output.file.write(b"-") {
        filled += written;
    }
    let sink = LogSink::start(output, 10_000).unwrap();
    let line = [b'x'; 99].iter().chain(b"\n").copied().collect::<Vec<u8>>();
    // The queue holds a hundred lines, and the writer may hold as many. A caller that waits would
    // wait for ever.
    let taken = (0..20_000)
        .filter(|_| sink.write(LogName::Access, &line))
        .count();
    assert!(!sink.flush(Duration::from_millis(1)));
    assert!((100..=200).contains(&taken), "{taken}");
    assert_eq!(sink.dropped(), 20_000 - taken as u64);
    assert!(LogName::Access.lines_dropped() >= sink.dropped());
    let reading = thread::spawn(move || {
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        text
    });
    assert!(sink.flush(FLUSH_TIMEOUT));
    drop(sink);
    let text = reading.join().unwrap().split_off(filled);
    assert_eq!(text.len(), taken * line.len());
    assert!(text.chunks(line.len()).all(|chunk| chunk == line));
}

#[test]
fn a_moved_file_is_left_alone_after_reopen() {
    let (path, moved) = (scratch("rotate"), scratch("rotate.1"));
    let sinks = LogSinks::default();
    let sink = sinks.open(&LogOutput::File(path.clone())).unwrap().unwrap();
    sink.write(LogName::Access, b"old\n");
    assert!(sink.flush(FLUSH_TIMEOUT));
    std::fs::rename(&path, &moved).unwrap();
    sink.write(LogName::Access, b"still old\n");
    assert!(sink.flush(FLUSH_TIMEOUT));
    sinks.reopen_all();
    // The order is kept: reopening comes before the next line.
    sink.write(LogName::Access, b"new\n");
    assert!(sinks.flush_all(FLUSH_TIMEOUT));
    assert_eq!(std::fs::read_to_string(&moved).unwrap(), "old\nstill old\n");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "new\n");
    fs_remove(&path).unwrap();
    fs_remove(&moved).unwrap();
}

#[test]
fn an_output_that_fails_loses_its_lines_and_nothing_else() {
    let sink = LogSink::open(&LogOutput::File(PathBuf::from("/dev/full")))
        .unwrap()
        .unwrap();
    for _ in 0..5 {
        assert!(sink.write(LogName::Access, b"line\n"));
        assert!(sink.flush(FLUSH_TIMEOUT));
    }
    assert_eq!(sink.dropped(), 5);
}

#[test]
fn a_line_after_a_torn_one_starts_on_a_line_of_its_own() {
    let (mut reader, output) = pipe();
    let shared = LogSink::start(pipe().1, 100).unwrap();
    let mut writer = LogWriter {
        shared: Arc::clone(&shared.0.shared),
        output,
        torn: true,
        reported: None,
    };
    for bytes in [b"first\n", b"other\n"] {
        writer.write(&LineBatch {
            bytes: bytes.to_vec(),
            access: 1,
            daemon: 0,
        });
    }
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "\nfirst\nother\n");
}

#[test]
fn one_output_has_one_sink_over_reloads_until_its_last_user_is_gone() {
    let output = LogOutput::File(scratch("shared"));
    let sinks = LogSinks::default();
    let first = sinks.open(&output).unwrap().unwrap();
    let second = sinks.open(&output).unwrap().unwrap();
    assert!(Arc::ptr_eq(&first.0, &second.0));
    drop(first);
    assert!(Arc::ptr_eq(
        &second.0,
        &sinks.open(&output).unwrap().unwrap().0
    ));
    drop(second);
    assert_eq!(sinks.lock().len(), 0);
    assert!(sinks.open(&LogOutput::None).unwrap().is_none());
    let LogOutput::File(path) = output else {
        return;
    };
    fs_remove(&path).unwrap();
}

#[test]
fn a_missing_directory_is_an_error_at_once() {
    let output = LogOutput::File(PathBuf::from("/nonexistent/access.log"));
    assert!(LogSinks::default().open(&output).is_err());
}
