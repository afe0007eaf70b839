#!/usr/bin/env python3
"""Backends that die: kill -9 of one of three under 64 connections, its return, then kill -9 of all.

    tests/soak/kill.py [--balancer PATH]
"""
import asyncio
import json
import re
import time

import common
from common import Backend, Daemon, Load, Verdict, free_port, wait_for

CONNECTIONS = 64

def is_promised(status, body):
    """The 502 with its shape; `details` is a fixed text per reason and names no address."""
    if status != 502:
        return False
    error = json.loads(body)["error"]
    return (error["code"], error["message"]) == (502, "Bad Gateway") and not re.search(r"[0-9]", error["details"])


def main():
    common.parse(common.arguments(__doc__))
    verdict = Verdict()
    backends = [Backend() for _ in range(3)]
    port = free_port()
    members = ", ".join(f"127.0.0.1:{one.port}" for one in backends)
    daemon = Daemon(
        f'listeners:\n  web: {{bind: "127.0.0.1:{port}", pool: app}}\n'
        f"pools:\n  app:\n    backends: [{members}]\n"
    )
    wait_for("all are up", lambda: daemon.sum("balancer_backend_up") == 3)
    victim = f'backend="127.0.0.1:{backends[0].port}"'
    figures = {}

    def state():
        page = daemon.scrape()
        names = [series for series, value in page.items()
                 if series.startswith("balancer_backend_state{") and victim in series and value == 1]
        return re.search('state="([a-z]+)"', names[0]).group(1)

    def script():
        time.sleep(2)
        backends[0].kill()
        wait_for("the first failure", lambda: daemon.sum("balancer_backend_failures_total", victim) > 0)
        first = time.monotonic()
        wait_for("it is out", lambda: state() in ("ejected", "down"))
        figures["out"] = time.monotonic() - first
        time.sleep(1)
        backends[0].start()
        back = time.monotonic()
        wait_for("it is back", lambda: state() == "up", 60)
        figures["back"] = time.monotonic() - back
        time.sleep(2)

    load = Load(port)
    asyncio.run(load.run(CONNECTIONS, 0, script))
    failures = load.failures()
    verdict.check("no client sees the death of one", not failures, f"{len(failures)} of {len(load.results)} {failures[:3]}")
    verdict.check("it is out at once", figures["out"] < 0.2, f"{figures['out'] * 1000:.0f} ms after its first failure")
    checks = daemon.sum("balancer_backend_health_checks_total", victim, 'result="ok"')
    verdict.check("it comes back by its checks", True, f"{figures['back']:.1f} s after its return, {int(checks)} good checks in all")
    served = sum(1 for end, _, _, body in load.results if body == str(backends[0].port) and end > load.results[-1][0] - 1)
    verdict.check("it serves again", served > 0, f"{served} requests in the last second")

    for one in backends:
        one.kill()
    before = daemon.scrape()
    answers = Load(port)
    asyncio.run(answers.run(CONNECTIONS, 0, lambda: time.sleep(5)))
    after = daemon.scrape()
    wrong = [result for result in answers.results if not is_promised(*result[2:])]
    verdict.check("every answer is the 502", not wrong, f"{len(answers.results)} answers, wrong: {wrong[:2]}")
    # What the client itself waits for its turn is not the daemon's: the daemon's own histogram counts.
    slow = [
        daemon.sum("balancer_http_request_duration_seconds_count", page=page)
        - daemon.sum("balancer_http_request_duration_seconds_bucket", 'le="0.05"', page=page)
        for page in (before, after)
    ]
    longest = max(seconds for _, seconds, _, _ in answers.results)
    verdict.check("within 50 ms", slow[1] - slow[0] == 0,
                  f"{int(slow[1] - slow[0])} took longer by the daemon's clock, longest by the client's {longest * 1000:.0f} ms")
    grown = lambda name: daemon.sum(name, page=after) - daemon.sum(name, page=before)
    requests, attempts = grown("balancer_http_requests_total"), grown("balancer_backend_connections_total")
    # The budget saves one second of the requests' earnings and a hundred besides, and earns ten a second.
    reserve = 0.2 * sum(1 for result in load.results if result[0] > load.results[-1][0] - 1) + 100 + 10 * 6
    verdict.check("few attempts", attempts <= 1.2 * requests + reserve,
                  f"{int(attempts)} for {int(requests)} requests, reserve {int(reserve)}")
    verdict.check("the end is orderly", daemon.end() == 0)
    verdict.end()


main()
