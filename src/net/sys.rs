//! System calls that no safe library wraps: the one module of the crate with `unsafe` code.
//!
//! A function for a socket is one system call on a borrowed descriptor, so it is open during the
//! call.
#![expect(
    unsafe_code,
    reason = "TCP_INFO, two socket options, watching a descriptor, malloc_trim, the signal mask and code before `main` have no safe wrapper in the libraries we keep"
)]

use std::{
    mem,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

#[cfg(target_os = "linux")]
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use tokio::io::unix::AsyncFd;

/// Returns the bytes sent on a TCP connection that the peer's kernel has acknowledged (RFC 4898
/// `tcpEStatsAppHCThruOctetsAcked`). The SYN may count as one. `None` if the kernel does not tell.
#[cfg(target_os = "linux")]
pub fn tcp_bytes_acked(socket: BorrowedFd<'_>) -> Option<u64> {
    // SAFETY: `tcp_info` is plain integers, for which all zeros is a valid value.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = mem::size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` and `length` live over the call, and `length` is the size of `info`, so the
    // kernel writes inside it.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    let needed = mem::offset_of!(libc::tcp_info, tcpi_bytes_acked) + mem::size_of::<u64>();
    (result == 0 && length as usize >= needed).then_some(info.tcpi_bytes_acked)
}

/// Returns the bytes in the send queue of a socket: on TCP those that the peer's kernel has not
/// acknowledged (tcp(7), `SIOCOUTQ`), on a unix socket the memory of those that the peer has not
/// read (unix(7)). `None` if the kernel does not tell.
#[cfg(target_os = "linux")]
pub fn unacked(socket: BorrowedFd<'_>) -> Option<u64> {
    let mut count: libc::c_int = 0;
    // SAFETY: `count` lives over the call, and is the one integer that the kernel writes.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    u64::try_from(count).ok().filter(|_| result == 0)
}

/// Lets the runtime of the calling thread watch a descriptor that becomes readable.
pub fn watch_readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and is one descriptor until it is dropped, and nothing replaces
    // the one in an `AsyncFd`.
    let watched =
        unsafe { AsyncFd::register_with_interest(descriptor, tokio::io::Interest::READABLE) };
    Ok(watched?)
}

/// Lets the kernel accept data in the SYN of known clients (RFC 7413), for at most `queue`
/// connections at a time.
#[cfg(target_os = "linux")]
pub fn set_fast_open(socket: BorrowedFd<'_>, queue: u32) -> io::Result<()> {
    set_tcp_option(socket, libc::TCP_FASTOPEN, queue)
}

/// Has the kernel keep new connections of a listening socket to itself until data arrives, for
/// about `seconds` (tcp(7), `TCP_DEFER_ACCEPT`).
#[cfg(target_os = "linux")]
pub fn set_defer_accept(socket: BorrowedFd<'_>, seconds: u32) -> io::Result<()> {
    set_tcp_option(socket, libc::TCP_DEFER_ACCEPT, seconds)
}

#[cfg(target_os = "linux")]
fn set_tcp_option(socket: BorrowedFd<'_>, option: libc::c_int, value: u32) -> io::Result<()> {
    let value = libc::c_int::try_from(value).unwrap_or(libc::c_int::MAX);
    // SAFETY: `value` lives over the call and the length is its size; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw const value).cast(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Returns whole pages of freed memory to the system, malloc_trim(3). Takes about 0.2 ms for each
/// MiB returned, during which other threads may wait for memory. Does nothing if the C library has
/// no such call.
pub fn trim_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: touches nothing but free memory, under the locks of the allocator; any thread may
    // call it.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Blocks `signals` for the calling thread and the threads that it starts from now on: they stay
/// pending. Otherwise process 1, as in a container, loses a signal without a handler.
pub fn block_signals(signals: &[libc::c_int]) {
    change_signal_mask(libc::SIG_BLOCK, signals);
}

/// Unblocks `signals` for the calling thread; pending ones are delivered at once.
pub fn unblock_signals(signals: &[libc::c_int]) {
    change_signal_mask(libc::SIG_UNBLOCK, signals);
}

fn change_signal_mask(how: libc::c_int, signals: &[libc::c_int]) {
    // SAFETY: `sigset_t` is plain integers, for which all zeros is a valid value; `set` lives over
    // all calls, which write inside it or only read it. Numbers that are no signals are refused
    // without effect.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut());
    }
}

/// Standard output was closed at the start, before Rust's runtime opened `/dev/null` in its place.
static STDOUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

// SAFETY: the C runtime calls every entry of this section once before `main`, with one thread; the
// entry has the type it expects, takes no argument, and does no more than one system call and a
// store.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array")]
static CHECK_STDOUT: extern "C" fn() = check_stdout;

#[cfg(target_os = "linux")]
extern "C" fn check_stdout() {
    // SAFETY: F_GETFD reads a flag of a descriptor, or fails if it is not open.
    let is_closed = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } == -1;
    STDOUT_WAS_CLOSED.store(is_closed, Relaxed);
}

/// True if the process was started without standard output: writes to it are lost without an error.
pub fn stdout_was_closed() -> bool {
    STDOUT_WAS_CLOSED.load(Relaxed)
}
