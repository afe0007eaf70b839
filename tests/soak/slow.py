#!/usr/bin/env python3
"""slowhttptest in its four modes with 4,000 connections each, while normal requests go on and must not feel it.

    tests/soak/slow.py [--connections 4000] [--seconds 30] [--rate 1000] [--balancer PATH]      (needs slowhttptest)

The configuration is the default one apart from addresses and a route: what is attacked has a backend of its own, because
a backend in Python that 4,000 connections keep busy would be slow by itself. The normal requests come from a process of their own: 200 a second
on 8 kept connections and 20 a second on a new connection each. They are sent by the clock, regardless of the earlier ones,
and their times count from when they were due. slowhttptest and what it attacks run at a low priority: attackers bring
processors of their own.
"""
import asyncio
import json
import os
import re
import resource
import selectors
import shutil
import socket
import subprocess
import sys
import threading
import time

import common
from common import Daemon, Verdict, free_port, wait_for

LIMIT = 0.1
# What a slow reader asks for, three times on each connection. The backend's side is on this machine too, and the kernel's
# memory for TCP covers all of it.
LARGE = 256 << 10
KEPT, KEPT_RATE, FRESH_RATE = 8, 200, 20
# A normal request that took longer has failed.
PATIENCE = 5
# By how much the priority of the attack is lower.
BEHIND = 10
MODES = {
    "slow headers": ["-H", "-i", "5", "-x", "24"],
    "slow body": ["-B", "-i", "5", "-s", "8192", "-x", "10"],
    "range": ["-R", "-a", "5", "-b", "2000"],
    "slow read": ["-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32", "-k", "3"],
}


def raise_limit():
    """As many descriptors as we may have; what we start inherits it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


class Prober:
    """Sends requests by the clock and notes how long after their time the answers were whole."""

    def __init__(self, port, seconds):
        self.address = ("127.0.0.1", port)
        self.seconds = seconds
        self.selector = selectors.DefaultSelector()
        self.times, self.failures = [], []  # of times: (when it was due, seconds)
        self.late = []  # how long after its time each was sent: the machine is to blame for that, not balancer
        self.kept = [None] * KEPT
        self.open = {}  # socket → [due, what came, place among the kept or None]

    def run(self):
        began = time.monotonic()
        end, next_kept, next_fresh, turn = began + self.seconds, began, began, 0
        while (now := time.monotonic()) < end or self.open:
            while next_kept <= now and now < end:
                self.send(next_kept, turn % KEPT)
                turn, next_kept = turn + 1, next_kept + 1 / KEPT_RATE
            while next_fresh <= now and now < end:
                self.send(next_fresh, None)
                next_fresh += 1 / FRESH_RATE
            wait = min(next_kept, next_fresh) - time.monotonic() if now < end else 0.01
            for key, _ in self.selector.select(max(0, wait)):
                self.read(key.fileobj)
            self.give_up()
        return {"times": self.times, "failures": self.failures, "late": self.late}

    def send(self, due, place):
        self.late.append((due, time.monotonic() - due))
        stream = self.kept[place] if place is not None else None
        if stream is not None and stream in self.open:
            # The answer before is late: this request takes another connection rather than wait for its turn.
            stream = place = None
        try:
            if stream is None:
                stream = socket.create_connection(self.address, PATIENCE)
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                stream.setblocking(False)
                self.selector.register(stream, selectors.EVENT_READ)
                if place is not None:
                    self.kept[place] = stream
            stream.send(b"GET /small HTTP/1.1\r\nHost: proof\r\n%s\r\n" % (b"" if place is not None else b"Connection: close\r\n"))
            self.open[stream] = [due, b"", place]
        except OSError as error:
            self.failures.append(repr(error))
            self.drop(stream, place)

    def drop(self, stream, place):
        if place is not None:
            self.kept[place] = None
        if stream is not None:
            self.open.pop(stream, None)
            if stream in self.selector.get_map():
                self.selector.unregister(stream)
            stream.close()

    def read(self, stream):
        entry = self.open.get(stream)
        try:
            data = stream.recv(65536)
        except OSError as error:
            data = repr(error)
        if entry is None:
            # An idle connection is closed; any other byte is wrong.
            if data:
                self.failures.append(f"unasked: {data[:60]}")
            return self.drop(stream, self.kept.index(stream) if stream in self.kept else None)
        due, before, place = entry
        if not data or isinstance(data, str):
            self.failures.append(f"cut: {data or before[:60]}")
            return self.drop(stream, place)
        entry[1] = whole = before + data
        if not whole.endswith(b"\r\n\r\nsmall"):
            return None
        if whole.startswith(b"HTTP/1.1 200 "):
            self.times.append((due, time.monotonic() - due))
        else:
            self.failures.append(whole[:60].decode("latin-1"))
        del self.open[stream]
        if place is None:
            self.drop(stream, None)
        return None

    def give_up(self):
        now = time.monotonic()
        for stream, (due, came, place) in list(self.open.items()):
            if now - due > PATIENCE:
                self.failures.append(f"late: {came[:60]}")
                self.drop(stream, place)


async def backend(port):
    """Answers /attacked/large and anything else; holds no copy of what a slow reader does not take."""
    large = memoryview(bytes(LARGE))
    loop = asyncio.get_running_loop()

    async def serve(stream):
        buffer = b""
        try:
            while True:
                while b"\r\n\r\n" not in buffer:
                    data = await loop.sock_recv(stream, 65536)
                    if not data:
                        return
                    buffer += data
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n")
                               if line.startswith(b"content-length:")), 0)
                while len(buffer) < length:
                    data = await loop.sock_recv(stream, 65536)
                    if not data:
                        return
                    buffer += data
                buffer = buffer[length:]
                if b"/large " in head.split(b"\r\n")[0]:
                    await loop.sock_sendall(stream, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE)
                    await loop.sock_sendall(stream, large)
                else:
                    await loop.sock_sendall(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nsmall")
        except OSError:
            pass
        finally:
            stream.close()

    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    # What the backend's side of the kernel holds is not under test.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
    listener.setblocking(False)
    tasks = set()
    while True:
        stream, _ = await loop.sock_accept(listener)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.create_task(serve(stream))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def start(*words, behind=0):
    return subprocess.Popen([*lower(behind), sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE)


def lower(by):
    return ["nice", "-n", str(by)] if by else []


class Watch(threading.Thread):
    """The most connections and memory, and what the kernel holds for all sockets of this machine."""

    def __init__(self, daemon):
        super().__init__()
        self.daemon_under_test = daemon
        self.ended = threading.Event()
        self.connections = self.memory = self.kernel = 0
        self.most = int(open("/proc/sys/net/ipv4/tcp_mem").read().split()[2]) * resource.getpagesize() >> 20

    def run(self):
        while not self.ended.wait(0.5):
            daemon = self.daemon_under_test
            self.connections = max(self.connections, int(daemon.sum("balancer_listener_connections_active")))
            self.memory = max(self.memory, daemon.memory())
            self.kernel = max(self.kernel, kernel_pages() * resource.getpagesize() >> 20)


def kernel_pages():
    for line in open("/proc/net/sockstat"):
        if line.startswith("TCP:"):
            words = line.split()
            return int(words[words.index("mem") + 1])
    return 0


def share(times, part):
    """Milliseconds within which this part of them was answered."""
    seconds = sorted(seconds for _, seconds in times)
    return seconds[min(len(seconds) - 1, int(len(seconds) * part))] * 1000


def worst_second(times):
    """The p99 of the second that had the slowest requests."""
    first = times[0][0]
    by_second = {}
    for due, seconds in times:
        by_second.setdefault(int(due - first), []).append((due, seconds))
    return max(share(found, 0.99) for found in by_second.values())


def summary(said):
    """The numbers that slowhttptest ends with, without its colours."""
    words = re.sub(r"\x1b\[[0-9;]*m", "", said)
    return ", ".join(" ".join(line.split()) for line in words.splitlines()
                     if re.match(r"(initializing|pending|connected|error|closed|service available|Exit status):", line))[-250:]


def attack(options, daemon, port, arguments, path):
    """One mode, with normal requests all along: what became of those, and what the daemon held at most."""
    accepted = daemon.sum("balancer_listener_connections_total")
    processor = daemon.cpu()
    watch = Watch(daemon)
    watch.start()
    prober = start("prober", port, options.seconds)
    time.sleep(1)
    tool = subprocess.run(
        [*lower(BEHIND), "slowhttptest", *arguments, "-c", str(options.connections), "-r", str(options.rate),
         "-l", str(options.seconds - 2), "-p", "5", "-v", "1", "-u", f"http://127.0.0.1:{port}{path}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)
    found = json.loads(prober.communicate(timeout=options.seconds + 60)[0])
    watch.ended.set()
    watch.join()
    accepted = int(daemon.sum("balancer_listener_connections_total") - accepted)
    return found, watch, accepted, daemon.cpu() - processor, summary(tool.stdout.decode(errors="replace"))


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--connections", type=int, default=4000)
    parser.add_argument("--seconds", type=int, default=30, help="for each mode")
    parser.add_argument("--rate", type=int, default=1000, help="new connections a second")
    parser.add_argument("--only", choices=MODES, help="this mode alone")
    options = common.parse(parser)
    if not shutil.which("slowhttptest"):
        sys.exit("this proof needs slowhttptest (Debian: apt install slowhttptest): nothing was shown")
    limit = raise_limit()
    # A client and a backend connection each, and `max_connections: auto` leaves room besides.
    if limit < 2 * options.connections + 2000:
        sys.exit(f"{limit} open files are too few for {options.connections} connections (ulimit -Hn): nothing was shown")
    load = os.getloadavg()[0]
    print(f"     {limit} open files; load average {load:.1f} on {os.cpu_count()} cores"
          f"{': busy, so the times are not balancer alone' if load > 0.5 else ''}", flush=True)
    verdict = Verdict()
    port, *server_ports = free_port(), free_port(), free_port()
    servers = [start("backend", server_ports[0]), start("backend", server_ports[1], behind=BEHIND)]
    for one in server_ports:
        wait_for("the backends listen", lambda: listens(one))
    daemon = Daemon(
        f'listeners:\n  web: {{bind: "127.0.0.1:{port}", pool: app}}\n'
        "routes:\n  - {path: /attacked, pool: attacked}\n"
        f"pools:\n  app:\n    backends: [127.0.0.1:{server_ports[0]}]\n"
        f"  attacked:\n    backends: [127.0.0.1:{server_ports[1]}]\n")
    wait_for("they are up", lambda: daemon.sum("balancer_backend_up") == 2)
    for name, arguments in {"no attack": None, **MODES}.items():
        if options.only and name not in (options.only, "no attack"):
            continue
        if arguments is None:
            found = json.loads(start("prober", port, 5).communicate(timeout=60)[0])
        else:
            path = "/attacked/large" if name == "slow read" else "/attacked/small"
            found, watch, accepted, processor, said = attack(options, daemon, port, arguments, path)
        times, failures = found["times"], found["failures"]
        figures = (f"{len(times)} ok, {len(failures)} failed, p50 {share(times, 0.5):.1f} ms, p99 {share(times, 0.99):.1f} ms, "
                   f"max {share(times, 1):.1f} ms; p99 of the worst second {worst_second(times):.1f} ms; "
                   f"sent late p99 {share(found['late'], 0.99):.1f} ms") if times else f"none succeeded, {len(failures)} failed"
        if arguments is None:
            print(f"     no attack: {figures}", flush=True)
            continue
        verdict.check(f"{name}: normal requests succeed", times and not failures, f"{figures} {failures[:3] if failures else ''}")
        if times:
            verdict.check(f"{name}: p99 below {LIMIT * 1000:.0f} ms", share(times, 0.99) < LIMIT * 1000)
        verdict.check(f"{name}: the attack took place", accepted >= options.connections,
                      f"{accepted} connections{'' if accepted >= options.connections else ': ' + said}")
        print(f"     at most {watch.connections} at a time, {watch.memory >> 10} MiB, the kernel for TCP {watch.kernel} of {watch.most} MiB; "
              f"{processor:.1f} s of our processor time", flush=True)
        wait_for("the attackers are gone", lambda: daemon.sum("balancer_listener_connections_active") <= 1, 60)
    verdict.check("the end is orderly", daemon.end() == 0)
    for server in servers:
        server.kill()
    verdict.end()


if sys.argv[1:2] == ["backend"]:
    asyncio.run(backend(int(sys.argv[2])))
elif sys.argv[1:2] == ["prober"]:
    json.dump(Prober(int(sys.argv[2]), float(sys.argv[3])).run(), sys.stdout)
else:
    main()
