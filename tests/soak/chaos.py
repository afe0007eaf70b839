#!/usr/bin/env python3
"""Ten minutes of checksummed load over backends that die, hang, flap, reset and lie, with reloads under way.

    tests/soak/chaos.py [--seconds 600] [--clients 32] [--seed N] [--balancer PATH]

At least one backend is always healthy: which one changes, and the next one has some seconds to be found healthy before the
one before it goes bad. What has to hold is printed line by line. `cut` are answers that were cut in mid-body where everybody
can see it; no proxy can repair those. `may be sent again` are GET, HEAD, PUT and DELETE with a body of at most 64 KiB.
"""
import asyncio
import collections
import json
import mmap
import pathlib
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib

import common
from chaos_backend import LARGEST, PLACE, body_of, chunks_of
from common import Daemon, Verdict, decreases, quiet_port, wait_for

BACKENDS = 5
# Every request is over by then: `timeouts.total` of the configuration, and what the machine may take.
TOTAL, BOUND = 10, 13
# How long a backend is healthy before others rely on it, and after that.
SETTLE, RELIED = 6, 10
REPLAYED = 64 << 10
METHODS = ("GET",) * 5 + ("HEAD",) + ("PUT",) * 2 + ("POST",) * 2 + ("DELETE",)
RELOAD_EVERY, TICK = 0.5, 0.1
SCHEMA = json.loads((pathlib.Path(__file__).parents[2] / "balancer.schema.json").read_text())
POLICIES = SCHEMA["properties"]["pools"]["additionalProperties"]["properties"]["policy"]["enum"]
BROKEN_FILES = (
    "listeners: {web: {bind: nowhere, pool: ap}}\n",
    "listeners: [\n",
    "pools: {app: {backends: []}}\n",
    "",
)


def config(chance, port, log, members):
    """A file as an operator might write it in a hurry: each one is valid, and each one is different."""
    backends = ", ".join(f"{{address: 127.0.0.1:{one.port}, name: b{one.index}, weight: {chance.randint(1, 9)}}}" for one in members)
    policy = chance.choice(POLICIES)
    return (
        f'access_log: {{output: "file:{log}"}}\n'
        "trusted_proxies: [127.0.0.0/8]\n"  # the clients' request ids are kept
        f'listeners:\n  web: {{bind: "127.0.0.1:{port}", pool: app}}\n'
        f"pools:\n  app:\n    policy: {policy}\n    backends: [{backends}]\n"
        "    health_check: {path: /health, interval: 300ms, timeout: 1s, rise: 1, fall: 3}\n"
        f"    timeouts: {{connect: {chance.randint(900, 1100)}ms, response: {chance.randint(1000, 1500)}ms,"
        f" idle: {chance.randint(1000, 1500)}ms, total: {TOTAL}s}}\n"
        "    retries: {attempts: 10, budget: 100%, conditions: [connect, stale, terminated, timeout, invalid]}\n"
        f"    ejection: {{failures: {chance.randint(3, 8)}, eject_for: 500ms, max_eject_for: 2s}}\n"
        f"    keepalive: {{idle_timeout: {chance.randint(1, 4)}s, max_requests: {chance.randint(50, 5000)}}}\n"
    )


class Member:
    """A backend process, what is being done to it, and since when it may be relied on."""

    def __init__(self, index, seed, board, board_path, journal):
        self.index, self.seed, self.board = index, seed, board
        self.port = quiet_port()
        self.command = [sys.executable, "-S", str(common.HERE / "chaos_backend.py"), str(index), str(self.port)]
        self.rest = [str(board_path), str(journal)]
        self.starts = 0
        self.process = None
        self.stopped = False
        self.due = 0  # when what was begun ends
        self.flaps = 0
        self.start()

    def start(self):
        self.starts += 1
        seed = f"{self.seed}/{self.index}/{self.starts}"
        self.process = subprocess.Popen([*self.command, seed, *self.rest], stderr=subprocess.DEVNULL)
        self.stopped = False

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process = None

    def set_hostile(self, hostile):
        self.board[self.index * PLACE] = int(hostile)

    def heal(self):
        """Brings it back to health, after every fault."""
        self.set_hostile(False)
        self.flaps = self.due = 0
        if self.process is None:
            self.start()
        elif self.stopped:
            self.process.send_signal(signal.SIGCONT)
            self.stopped = False

    def harm(self, chance, now, counts):
        """Ends what was begun, when it is time, or begins something with a small chance."""
        if self.due:
            if now < self.due:
                return
            self.due = 0
            if self.process is None:
                self.start()
                if self.flaps:
                    self.flaps -= 1
                    self.due = now + 0.4
                return
            if self.stopped:
                self.process.send_signal(signal.SIGCONT)
                self.stopped = False
                return
        if self.flaps:
            self.kill()
            self.due = now + 0.1
            return
        what = chance.random()
        if what < 0.02:
            counts["killed"] += 1
            self.kill()
            self.due = now + chance.choice((0.1, 0.5, 2))
        elif what < 0.04:
            counts["stopped"] += 1
            self.process.send_signal(signal.SIGSTOP)
            self.stopped, self.due = True, now + chance.choice((0.3, 1, 2, 4))
        elif what < 0.045:
            counts["flapped"] += 1
            self.flaps = 3
        elif what < 0.06:
            self.set_hostile(chance.random() < 0.8)

    def pause(self):
        """Milliseconds for which it could not run since the last call."""
        at = self.index * PLACE + 4
        found = struct.unpack_from("<I", self.board, at)[0]
        struct.pack_into("<I", self.board, at, 0)
        return found


class Director:
    """Does the harm and the reloads, in a thread of its own."""

    def __init__(self, options, daemon, members, port, log):
        self.options, self.daemon, self.members, self.port, self.log = options, daemon, members, port, log
        self.chance = random.Random(f"{options.seed}/director")
        self.relied = []  # (from, to or None, index): who could be relied on
        self.counts = collections.Counter()
        self.memory, self.down, self.threads = [], [], []
        self.children = []
        self.changed_by_broken = 0
        self.pause = 0
        self.events = []
        self.left = None

    def note(self, text):
        self.events.append((time.monotonic(), text))

    def run(self):
        began = now = time.monotonic()
        anchor, following = self.members[0], None
        turn = began + RELIED
        self.relied.append((began, None, anchor.index))
        for member in self.members[1:]:
            member.set_hostile(True)
        page, ticks = self.daemon.scrape(), 0
        while now - began < self.options.seconds:
            if following is None and now >= turn - SETTLE:
                following = self.chance.choice([one for one in self.members[:BACKENDS] if one is not anchor])
                self.note(f"b{following.index} heals")
                following.heal()
            if following and now >= turn:
                self.pause = max(self.pause, anchor.pause())
                start, _, index = self.relied[-1]
                self.relied[-1] = (start, now, index)
                anchor.set_hostile(True)
                anchor, following = following, None
                anchor.pause()
                self.relied.append((now, None, anchor.index))
                self.note(f"b{anchor.index} is relied on")
                turn = now + RELIED
            for member in self.members:
                if member not in (anchor, following):
                    before = (member.process is None, member.stopped)
                    member.harm(self.chance, now, self.counts)
                    if before != (member.process is None, member.stopped):
                        self.note(f"b{member.index} {'is dead' if member.process is None else 'hangs' if member.stopped else 'runs'}")
            if ticks % round(RELOAD_EVERY / TICK) == 0:
                self.reload(anchor, following)
                fresh = self.daemon.scrape()
                self.down += [one for one in decreases(page, fresh) if not one[0].startswith("balancer_backend_")]
                page = fresh
                self.memory.append((now - began, self.daemon.memory()))
                self.children += self.daemon.children()
            ticks += 1
            time.sleep(max(0, began + ticks * TICK - time.monotonic()))
            now = time.monotonic()
        self.pause = max(self.pause, anchor.pause())
        for member in self.members:
            member.heal()

    def reload(self, anchor, following):
        """Another file and a SIGHUP. Now and then one member is missing, never one that is relied on."""
        if self.chance.random() < 0.08:
            return self.reload_broken()
        if self.left is None and self.chance.random() < 0.1:
            self.left = self.chance.choice([one for one in self.members if one not in (anchor, following)])
            self.note(f"b{self.left.index} leaves")
        elif self.left is following or self.chance.random() < 0.2:
            self.left = None
        members = [one for one in self.members if one is not self.left]
        self.chance.shuffle(members)
        self.daemon.write(config(self.chance, self.port, self.log, members))
        self.counts["reloads"] += 1
        self.daemon.hangup()

    def reload_broken(self):
        self.note("a broken file")
        time.sleep(0.1)  # let the signals sent so far be followed
        failed = self.daemon.sum("balancer_config_reloads_total", 'result="failure"')
        generation = self.daemon.sum("balancer_config_generation")
        self.daemon.write(self.chance.choice(BROKEN_FILES))
        self.counts["broken files"] += 1
        self.daemon.hangup()
        wait_for("the broken file is refused",
                 lambda: self.daemon.sum("balancer_config_reloads_total", 'result="failure"') > failed)
        self.changed_by_broken += self.daemon.sum("balancer_config_generation") != generation

    def was_relied_upon(self, index, began, ended):
        """`index` could be relied on from before `began` until after `ended`."""
        return any(one == index and start <= began and (end is None or ended <= end) for start, end, one in self.relied)

    def around(self, moment):
        return [f"{at - moment:+.2f} s {text}" for at, text in self.events if -3 < at - moment < 1]


class Cut(Exception):
    """The connection ended."""


class Wire(asyncio.Protocol):
    """A client's connection: everything that came, and whether more can come."""

    def __init__(self):
        self.buffer = bytearray()
        self.ended = False
        self.waiter = None
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.buffer += data
        self.wake()

    def connection_lost(self, _):
        self.ended = True
        self.wake()

    def wake(self):
        if self.waiter and not self.waiter.done():
            self.waiter.set_result(None)

    async def more(self):
        if self.ended:
            raise Cut
        self.waiter = asyncio.get_running_loop().create_future()
        await self.waiter

    async def until(self, end, most):
        at = 0
        while (found := self.buffer.find(end, at)) < 0:
            at = max(0, len(self.buffer) - len(end))
            if at > most:
                raise Wrong(f"{at} bytes without {end}")
            await self.more()
        return self.take(found + len(end))

    async def exactly(self, count):
        while len(self.buffer) < count:
            await self.more()
        return self.take(count)

    def take(self, count):
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken


class Wrong(Exception):
    """What must never happen."""


class Asked:
    """One request: what is sent, and what has to come back."""

    def __init__(self, name, chance):
        self.id = name
        self.method = chance.choice(METHODS)
        self.length = a_length(chance)
        self.leaves = chance.random() < 0.01
        self.torn = chance.random() < 0.1
        self.last = chance.random() < 0.05
        sends = self.method in ("PUT", "POST") or self.method == "DELETE" and chance.random() < 0.2
        self.body = body_of("q" + name, a_length(chance)) if sends else b""
        self.may_be_repeated = self.method != "POST" and len(self.body) <= REPLAYED
        wants = chance.choice(("length", "chunked", "close"))
        head = (
            f"{self.method} /{'torn' if self.torn else 'plain'}/{name}/{self.length} HTTP/1.1\r\nHost: chaos\r\n"
            f"X-Request-Id: {name}\r\nX-Want: {wants}\r\nX-Sum: {zlib.crc32(self.body)}\r\nX-Length: {len(self.body)}\r\n"
        )
        if self.last:
            head += "Connection: close\r\n"
        if not sends:
            self.bytes = f"{head}\r\n".encode()
        elif chance.random() < 0.5:
            self.bytes = f"{head}Content-Length: {len(self.body)}\r\n\r\n".encode() + self.body
        else:
            self.bytes = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks_of(self.body, chance)


def a_length(chance):
    """Mostly small, some at the edges of buffers, some large."""
    kind = chance.random()
    if kind < 0.1:
        return 0
    if kind < 0.65:
        return chance.randint(1, 2048)
    if kind < 0.87:
        return chance.randint(1, 32 << 10)
    if kind < 0.95:
        return chance.choice((4, 16, 64, 80, 256)) * 1024 + chance.randint(-1, 1)
    return chance.randint(1, LARGEST)


class Client:
    """Asks again and again on one connection while it lasts."""

    def __init__(self, load, number):
        self.load = load
        self.number = number
        self.chance = random.Random(f"{load.options.seed}/client/{number}")
        self.wire = None
        self.began = None
        self.hung = False

    async def run(self):
        count = 0
        while not self.load.stopping:
            count += 1
            asked = Asked(f"{self.number}-{count}", self.chance)
            self.began, self.hung = time.monotonic(), False
            try:
                if self.wire is None:
                    _, self.wire = await asyncio.get_running_loop().create_connection(Wire, "127.0.0.1", self.load.port)
                usable = await self.ask(asked)
            except OSError as error:
                self.load.wrong(asked, f"no connection: {error}")
                usable = False
            self.began = None
            if not usable and self.wire:
                self.wire.transport.abort() if self.hung else self.wire.transport.close()
                self.wire = None
        if self.wire:
            self.wire.transport.close()

    async def ask(self, asked):
        """One exchange; true if the connection can be used again."""
        load, wire, began = self.load, self.wire, self.began
        load.sent += 1
        head = None
        try:
            if asked.leaves:
                return await self.leave(asked)
            wire.transport.write(asked.bytes)
            head = await self.read_head(asked)
            usable = await self.read_answer(asked, *head)
            longest = time.monotonic() - began
            load.longest = max(load.longest, longest)
            return usable
        except Cut:
            if self.hung:
                load.hung.append((asked.id, began))
            elif head is None:
                load.wrong(asked, "the connection ended without an answer")
            else:
                load.cut(asked, head, began)
        except Wrong as wrong:
            load.wrong(asked, str(wrong))
        return False

    async def leave(self, asked):
        """Goes away at some point, as clients do."""
        self.load.left += 1
        wire, chance = self.wire, self.chance
        end = asked.bytes.index(b"\r\n\r\n") + 4
        wire.transport.write(asked.bytes[:chance.choice((end, chance.randint(end, len(asked.bytes)), len(asked.bytes)))])
        stay = chance.choice((0, 0.001, 0.01, 0.1))
        if stay:
            await asyncio.sleep(stay)
        return False

    async def read_head(self, asked):
        while True:
            first, *lines = (await self.wire.until(b"\r\n\r\n", 65536)).decode("latin-1").split("\r\n")
            words = first.split(" ", 2)
            if words[0] != "HTTP/1.1" or not (len(words[1]) == 3 and words[1].isdigit()):
                raise Wrong(f"status line {first!r}")
            status = int(words[1])
            fields = {}
            for line in lines[:-2]:
                name, found, value = line.partition(": ")
                if not found or name.lower() in fields:
                    raise Wrong(f"field {line!r}")
                fields[name.lower()] = value
            if status == 101:
                raise Wrong("a 101 that was not asked for")
            if status >= 200:
                self.load.statuses[status] += 1
                if fields.get("x-request-id") != asked.id:
                    raise Wrong(f"the answer has the request id {fields.get('x-request-id')}")
                if status == 200 and fields.get("x-id") != asked.id:
                    raise Wrong(f"the answer belongs to {fields.get('x-id')}")
                return status, fields

    async def read_body(self, asked, status, fields):
        if asked.method == "HEAD":
            return b""
        if "content-length" in fields:
            if "transfer-encoding" in fields:
                raise Wrong("two framings")
            return await self.wire.exactly(int(fields["content-length"]))
        if fields.get("transfer-encoding") != "chunked":
            raise Wrong(f"a body without framing: {fields}")
        parts = []
        while size := int(await self.wire.until(b"\r\n", 20), 16):
            parts.append(await self.wire.exactly(size))
            if await self.wire.exactly(2) != b"\r\n":
                raise Wrong("a chunk without its end")
        if await self.wire.exactly(2) != b"\r\n":
            raise Wrong("trailers that were not sent")
        return b"".join(parts)

    async def read_answer(self, asked, status, fields):
        body = await self.read_body(asked, status, fields)
        if status == 200:
            self.check_body(asked, fields, body)
            self.load.right += 1
            self.load.bytes += len(body) + len(asked.body)
        else:
            if asked.method != "HEAD":
                self.check_refusal(status, fields, body)
            self.load.refused(asked, status, fields, self.began)
        if self.wire.buffer:
            raise Wrong(f"behind the answer came {bytes(self.wire.buffer[:40])}")
        if asked.last and fields.get("connection") != "close":
            raise Wrong("the connection goes on after `close`")
        return fields.get("connection") != "close"

    def check_body(self, asked, fields, body):
        if asked.method == "HEAD":
            return
        if len(body) != asked.length:
            raise Wrong(f"looks whole with {len(body)} of {asked.length} bytes, from b{fields.get('x-backend')}")
        if str(zlib.crc32(body)) != fields["x-sum"] or body != body_of("a" + asked.id, asked.length):
            raise Wrong("another body")

    def check_refusal(self, status, fields, body):
        error = json.loads(body)["error"]
        if status != 502 or error["code"] != 502 or "proxy-status" not in fields:
            raise Wrong(f"{status} {fields} {body}")


class Load:
    """All clients, and what came of their requests."""

    def __init__(self, options, port, director):
        self.options, self.port, self.director = options, port, director
        self.stopping = False
        self.sent = self.left = self.right = self.bytes = 0
        self.longest = 0.0
        self.statuses = collections.Counter()
        self.reasons = collections.Counter()
        self.cuts = collections.Counter()
        self.violations, self.failed, self.hung, self.unexpected_cuts = [], [], [], []
        self.not_repeated = 0

    def wrong(self, asked, text):
        self.violations.append((asked.id, asked.method, text, time.monotonic()))

    def cut(self, asked, head, began):
        """An answer was cut. From a backend that could be relied on that must not happen."""
        status, fields = head
        self.cuts["torn" if asked.torn else "plain"] += 1
        index = int(fields.get("x-backend", -1))
        if status != 200 or self.director.was_relied_upon(index, began, time.monotonic()):
            self.unexpected_cuts.append((asked.id, f"b{index}", status, time.monotonic()))

    def refused(self, asked, status, fields, began):
        self.reasons[fields["proxy-status"]] += 1
        if asked.may_be_repeated:
            self.failed.append((asked.id, asked.method, status, fields["proxy-status"], began))
        else:
            self.not_repeated += 1

    async def run(self):
        clients = [Client(self, number) for number in range(self.options.clients)]
        tasks = [asyncio.create_task(client.run()) for client in clients]
        script = asyncio.create_task(asyncio.to_thread(self.director.run))
        while not script.done():
            await asyncio.wait([script], timeout=0.5)
            self.sweep(clients)
        await script
        self.stopping = True
        rest = asyncio.gather(*tasks)
        while not rest.done():
            await asyncio.wait([rest], timeout=0.5)
            self.sweep(clients)
        await rest

    def sweep(self, clients):
        """Ends what hangs."""
        now = time.monotonic()
        for client in clients:
            if client.began and now - client.began > BOUND and client.wire:
                client.hung = True
                client.wire.transport.abort()


def check_counters(verdict, daemon, load):
    """What was counted against what was seen. A client that leaves may or may not have been sent a status."""
    page = daemon.scrape()
    away = load.left + len(load.hung)
    counted = collections.Counter()
    for series, value in page.items():
        if series.startswith('balancer_http_requests_total{pool="app"'):
            counted[int(series.split('code="')[1][:3])] += int(value)
    differ = {
        code: (load.statuses[code], counted[code]) for code in counted | load.statuses
        if not load.statuses[code] <= counted[code] <= load.statuses[code] + away
    }
    verdict.check("requests by status are counted as seen", not differ,
                  f"seen {dict(load.statuses)}, counted {dict(counted)}, {load.left} left early")
    errors = lambda *labels: int(daemon.sum("balancer_errors_total", *labels, page=page))
    cut = errors('code="0"') - errors('reason="client_disconnected"')
    seen = sum(load.cuts.values())
    verdict.check("cuts are counted as seen", seen <= cut <= seen + away, f"seen {seen}, counted {cut}")
    gone = errors('reason="client_disconnected"')
    verdict.check("only clients that left count as gone", gone <= away, f"{gone} of {away}")
    refused = errors('code="502"')
    verdict.check("502 are counted as seen", load.statuses[502] <= refused <= load.statuses[502] + away,
                  f"seen {load.statuses[502]}, counted {refused}")
    own = errors('reason="proxy_internal_error"') + errors('pool="-"')
    verdict.check("no fault of our own", own == 0, own)
    retries = {series.split('reason="')[1].split('"')[0]: int(value)
               for series, value in page.items() if series.startswith("balancer_retries_total")}
    print(f"     retries: {retries}, forbidden by the budget: {int(daemon.sum('balancer_retry_budget_exhausted_total', page=page))}")


def check_journal(verdict, journal):
    posts, wrong = collections.Counter(), []
    for line in journal.read_text().splitlines():
        kind, name, *rest = line.split(" ", 2)
        if kind == "post":
            posts[name] += 1
        else:
            wrong.append(line)
    twice = [name for name, count in posts.items() if count > 1]
    verdict.check("no request body arrived wrong", not wrong, f"{len(wrong)} {wrong[:3]}")
    verdict.check("no POST reached two backends", not twice, f"{len(twice)} of {len(posts)} {twice[:3]}")


def check_memory(verdict, memory):
    settled = [kib for at, kib in memory if at >= memory[-1][0] * 0.25]
    half = len(settled) // 3
    early, late = max(settled[:half]), max(settled[-half:])
    verdict.check("memory is flat", late <= early * 1.1 + 2048,
                  f"{memory[0][1]} KiB at the start, {early} KiB after warming up, {late} KiB at the end")


def explain(load, director, log):
    """For what went wrong: the access log's lines and what was being done at the time."""
    found = [(one[0], one[-1], one) for one in load.violations + load.failed + load.hung + load.unexpected_cuts][:5]
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    for name, moment, what in found:
        print(f"     {what}")
        for line in lines:
            if f'"request_id":"{name}"' in line:
                print(f"       {line}")
        print(f"       {director.around(moment)}")


def judge(load, director, daemon, journal, log):
    verdict = Verdict()
    seconds = load.options.seconds
    print(f"     {load.sent} requests in {seconds} s, {load.right} right, {load.bytes >> 20} MiB of bodies, {load.left} left early; "
          f"{dict(director.counts)}")
    print(f"     cut {dict(load.cuts)}; refused {dict(load.reasons)}; longest pause of a healthy backend {director.pause} ms")
    verdict.check("no mixed-up and no fake answer", not load.violations and load.right > 0,
                  f"{len(load.violations)} {load.violations[:3]}")
    verdict.check("no request hung", not load.hung, f"{len(load.hung)}, longest {load.longest:.1f} s, bound {BOUND} s")
    verdict.check("no request failed that may be sent again", not load.failed,
                  f"{len(load.failed)}; others: {load.not_repeated} {load.failed[:3]}")
    verdict.check("no healthy backend's answer was cut", not load.unexpected_cuts,
                  f"{len(load.unexpected_cuts)} {load.unexpected_cuts[:3]}")
    check_journal(verdict, journal)
    check_counters(verdict, daemon, load)
    verdict.check("no counter went down", not director.down, director.down[:3])
    broken = director.counts["broken files"]
    verdict.check("broken files change nothing", director.changed_by_broken == 0, f"{broken} broken files")
    good = int(daemon.sum("balancer_config_reloads_total", 'result="success"'))
    verdict.check("reloads took place", good >= director.counts["reloads"] * 0.8, f"{good} of {director.counts['reloads']}")
    check_memory(verdict, director.memory)
    verdict.check("one process", not director.children)
    explain(load, director, log)
    return verdict


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = common.parse(parser)
    print(f"     seed {options.seed}", flush=True)
    directory = tempfile.TemporaryDirectory(prefix="balancer-proof-")
    root = pathlib.Path(directory.name)
    board_path, journal, log = root / "board", root / "journal", root / "access.log"
    board_path.write_bytes(bytes(PLACE * (BACKENDS + 1)))
    journal.touch()
    with open(board_path, "r+b") as file:
        board = mmap.mmap(file.fileno(), 0)
    # The last one is only a guest: the checks never rely on it.
    members = [Member(index, options.seed, board, board_path, journal) for index in range(BACKENDS + 1)]
    port = common.free_port()
    try:
        daemon = Daemon(config(random.Random(options.seed), port, log, members))
        wait_for("all are up", lambda: daemon.sum("balancer_backend_up") == len(members), 60)
        director = Director(options, daemon, members, port, log)
        load = Load(options, port, director)
        asyncio.run(load.run())
        idle = lambda: all(daemon.sum(name) == 0 for name in (
            "balancer_http_requests_active", "balancer_backend_connections_active", "balancer_listener_connections_active"))
        wait_for("nothing is in flight", idle, BOUND)
        time.sleep(0.1)  # lines are at most 20 ms in memory
        verdict = judge(load, director, daemon, journal, log)
        verdict.check("the end is orderly", daemon.end() == 0)
    finally:
        for member in members:
            if member.process:
                member.kill()
    directory.cleanup()
    verdict.end()


main()
