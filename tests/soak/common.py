"""What the proofs share: the daemon under test, backends as processes, a load of raw asyncio clients, and verdicts.

Standard library only. The program is target/release/balancer, or what BALANCER or `--balancer` names.
"""
import argparse
import asyncio
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = os.environ.get("BALANCER", str(HERE.parent.parent / "target" / "release" / "balancer"))


def arguments(doc):
    """A parser with the options that all proofs have; `doc` is the script's own."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--balancer", default=PROGRAM, metavar="PATH", help="the program under test")
    return parser


def parse(parser):
    """The arguments; daemons are of the program they name from here on."""
    global PROGRAM
    options = parser.parse_args()
    PROGRAM = options.balancer
    if not os.access(PROGRAM, os.X_OK):
        sys.exit(f"there is no program {PROGRAM}: build it, or name another with --balancer")
    return options


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def quiet_port(taken=set()):
    """A port that the kernel never gives to a connection: one that may be without its listener for a while. A client
    that connects to such a port within the ephemeral range can end up connected to itself."""
    for port in range(20000, 32000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if port not in taken and probe.connect_ex(("127.0.0.1", port)) != 0:
                taken.add(port)
                return port
    sys.exit("no port is free")


def wait_for(what, probe, seconds=20):
    """Asks `probe` until it gives something true; fails the proof after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = probe()
        if found:
            return found
        time.sleep(0.01)
    sys.exit(f"waited {seconds} s in vain: {what}")


class Daemon:
    """balancer with a configuration of its own in a directory of its own."""

    def __init__(self, config):
        self.directory = tempfile.TemporaryDirectory(prefix="balancer-proof-")
        self.path = pathlib.Path(self.directory.name)
        self.metrics_port = free_port()
        self.write(config)
        self.log = open(self.path / "log", "w+")
        environment = dict(os.environ, RUNTIME_DIRECTORY=str(self.path), STATE_DIRECTORY=str(self.path / "state"))
        self.process = subprocess.Popen(
            [PROGRAM, "run", "-c", str(self.path / "balancer.yaml")],
            env=environment, stdout=subprocess.DEVNULL, stderr=self.log,
        )
        wait_for("the daemon is ready", self.is_ready)

    def write(self, config):
        """Replaces the file in one step, so that a reload never reads half of it."""
        text = f'metrics: {{bind: "127.0.0.1:{self.metrics_port}"}}\n{config}'
        fresh = self.path / "fresh"
        fresh.write_text(text)
        fresh.rename(self.path / "balancer.yaml")

    def is_ready(self):
        if self.process.poll() is not None:
            sys.exit(f"the daemon ended: {(self.path / 'log').read_text()}")
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/readyz").status == 200
        except OSError:
            return False

    def hangup(self):
        self.process.send_signal(signal.SIGHUP)

    def scrape(self):
        """All series with their values."""
        page = urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics").read().decode()
        lines = (line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        return {series: float(value) for series, value in lines}

    def sum(self, name, *labels, page=None):
        page = page or self.scrape()
        return sum(
            value for series, value in page.items()
            if series.split("{")[0] == name and all(label in series for label in labels)
        )

    def memory(self):
        """Resident KiB."""
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith("VmRSS:"):
                return int(line.split()[1])

    def cpu(self):
        """Seconds of processor time so far."""
        words = open(f"/proc/{self.process.pid}/stat").read().rsplit(") ", 1)[1].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def children(self):
        return open(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read().split()

    def end(self):
        self.process.terminate()
        code = self.process.wait(60)
        self.directory.cleanup()
        return code


class Backend:
    """A backend in a process of its own that answers every request with its port."""

    def __init__(self, port=None):
        self.port = port or free_port()
        self.process = None
        self.start()

    def start(self):
        self.process = subprocess.Popen([sys.executable, __file__, str(self.port)])
        wait_for("the backend listens", self.listens)

    def listens(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Load:
    """Clients that ask again and again; every answer, or the lack of one, is kept."""

    def __init__(self, port):
        self.port = port
        self.results = []  # (end, seconds, status or None, body or error)
        self.stopping = False

    async def one(self, reader, writer, keep):
        began = time.monotonic()
        connection = "" if keep else "Connection: close\r\n"
        try:
            writer.write(f"GET / HTTP/1.1\r\nHost: proof\r\n{connection}\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status = int(head.split(" ", 2)[1])
            fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            body = await reader.readexactly(int(fields["content-length"]))
            self.results.append((time.monotonic(), time.monotonic() - began, status, body.decode()))
            return fields.get("connection") != "close"
        except (OSError, asyncio.IncompleteReadError) as error:
            self.results.append((time.monotonic(), time.monotonic() - began, None, repr(error)))
            return False

    async def client(self, keep):
        reader = writer = None
        while not self.stopping:
            if writer is None:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError as error:
                    self.results.append((time.monotonic(), 0.0, None, repr(error)))
                    await asyncio.sleep(0.01)
                    continue
            usable = await self.one(reader, writer, keep)
            if not (usable and keep):
                writer.close()
                writer = None
        if writer:
            writer.close()

    async def run(self, kept, fresh, script):
        """Runs `kept` keepalive clients and `fresh` with a connection per request for as long as `script` (a function, in
        a thread) takes."""
        clients = [asyncio.create_task(self.client(True)) for _ in range(kept)]
        clients += [asyncio.create_task(self.client(False)) for _ in range(fresh)]
        await asyncio.to_thread(script)
        self.stopping = True
        await asyncio.gather(*clients)

    def failures(self):
        return [result for result in self.results if result[2] != 200]


class Verdict:
    """Prints one line per promise and gives the exit code."""

    def __init__(self):
        self.broken = 0

    def check(self, promise, kept, figures=""):
        self.broken += not kept
        print(f"{'ok  ' if kept else 'FAIL'} {promise}{': ' if figures != '' else ''}{figures}", flush=True)

    def end(self):
        sys.exit(1 if self.broken else 0)


def decreases(before, after):
    """Counters that both pages have and that went down."""
    counters = ("_total", "_count", "_sum", "_bucket")
    return [
        (series, value, after[series]) for series, value in before.items()
        if series.split("{")[0].endswith(counters) and series in after and after[series] < value
    ]


async def backend(port):
    async def serve(reader, writer):
        body = str(port).encode()
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(backend(int(sys.argv[1])))
