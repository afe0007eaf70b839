#!/usr/bin/env python3
"""Reloads under load forget nothing: SIGHUP every 100 ms with a changing weight, one dead backend, and broken files.

    tests/soak/reload.py [SECONDS] [--balancer PATH]      (default 60)
"""
import asyncio
import time

import common
from common import Backend, Daemon, Load, Verdict, decreases, free_port, wait_for

parser = common.arguments(__doc__)
parser.add_argument("seconds", type=int, nargs="?", default=60)
SECONDS = common.parse(parser).seconds
KEPT, FRESH = 24, 8


def config(port, backends, dead, weight):
    members = ", ".join(f"{{address: 127.0.0.1:{one.port}, weight: {weight + index}}}" for index, one in enumerate(backends))
    return (
        f'listeners:\n  web: {{bind: "127.0.0.1:{port}", pool: app}}\n'
        f"pools:\n  app:\n    backends: [{members}, 127.0.0.1:{dead}]\n"
        "    health_check: {type: tcp, interval: 500ms, fall: 1}\n"
    )


def main():
    verdict = Verdict()
    backends = [Backend() for _ in range(3)]
    port, dead = free_port(), free_port()
    daemon = Daemon(config(port, backends, dead, 1))
    wait_for("the checks have found the dead one and the others",
             lambda: daemon.sum("balancer_backend_up") == 3
             and daemon.sum("balancer_backend_state", 'state="down"') == 1)
    load = Load(port)
    seen = {"down": [], "memory": [], "reloads": 0, "broken": 0, "generation": 0, "changed by broken": 0}

    def script():
        began = time.monotonic()
        page, next_scrape, round_number = daemon.scrape(), began, 0
        while time.monotonic() - began < SECONDS:
            round_number += 1
            broken = round_number % 25 == 0
            if broken:
                generation = wait_for_quiet(daemon)
                daemon.write("listeners: {web: {bind: nowhere, pool: ap}}\n")
                failed = daemon.sum("balancer_config_reloads_total", 'result="failure"')
            else:
                daemon.write(config(port, backends, dead, 1 + round_number % 9))
            daemon.hangup()
            if broken:
                seen["broken"] += 1
                wait_for("the broken file is refused", lambda: daemon.sum(
                    "balancer_config_reloads_total", 'result="failure"') > failed)
                seen["changed by broken"] += daemon.sum("balancer_config_generation") != generation
            seen["reloads"] += 1
            if time.monotonic() >= next_scrape:
                next_scrape += 0.2
                fresh = daemon.scrape()
                seen["down"] += decreases(page, fresh)
                page = fresh
                seen["memory"].append(daemon.memory())
            time.sleep(max(0, began + round_number * 0.1 - time.monotonic()))

    asyncio.run(load.run(KEPT, FRESH, script))
    wait_for("nothing is in flight", lambda: daemon.sum("balancer_http_requests_active") == 0
             and daemon.sum("balancer_backend_connections_active") == 0, 5)
    page = daemon.scrape()
    failures = load.failures()
    verdict.check("no failed request", not failures, f"{len(failures)} of {len(load.results)} {failures[:3]}")
    tried = daemon.sum("balancer_backend_connections_total", f":{dead}", page=page)
    tried += daemon.sum("balancer_backend_requests_total", f":{dead}", page=page)
    verdict.check("no request to the dead backend", tried == 0, int(tried))
    verdict.check("no counter went down", not seen["down"], seen["down"][:3])
    generations = int(page["balancer_config_generation"])
    verdict.check("reloads took place", generations > seen["reloads"] * 0.8,
                  f"{seen['reloads']} signals, {generations} generations")
    verdict.check("broken files change nothing", seen["changed by broken"] == 0 and seen["broken"] > 0,
                  f"{seen['broken']} broken files")
    verdict.check("nothing stays in flight", True)
    verdict.check("one process", not daemon.children())
    memory = seen["memory"]
    quarter = len(memory) // 4
    early, late = max(memory[quarter:2 * quarter]), max(memory[-quarter:])
    verdict.check("memory is flat", late <= early * 1.1 + 1024, f"{early} KiB in the second quarter, {late} KiB in the last")
    verdict.check("the end is orderly", daemon.end() == 0)
    for one in backends:
        one.kill()
    verdict.end()


def wait_for_quiet(daemon):
    """The generation, once the signals sent so far have been followed."""
    last, since = daemon.sum("balancer_config_generation"), time.monotonic()
    while time.monotonic() - since < 0.05:
        now = daemon.sum("balancer_config_generation")
        if now != last:
            last, since = now, time.monotonic()
    return last


main()
