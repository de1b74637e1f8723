"""`python -m tests.chaos [--seconds 300] [--every 2] [--clients 12] [--seed 1] [--keep FOLDER]`."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from ipc.logs import GATHER_SECONDS
from tests.chaos import load
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.fleet import (
    GATEWAY_PROCESSES,
    MODELS,
    NEURONS,
    START_SECONDS,
    Fleet,
    Service,
    answers,
    until,
)
from tests.chaos.network import Namespaces, Proxies, inside_namespace, permitted

LEAST_SECONDS, MOST_SECONDS = 2.0, 20.0  # that descriptors are counted
SHARED_MEMORY = Path("/dev/shm")
END_SECONDS = 40.0  # for a daemon to stop
LATE = 1.0  # seconds by which a process on a busy machine writes its lines later than it means to
# What a process of Python's says that gets no more memory.
EXPECTED = re.compile(r"^(MemoryError|.*(failed to map segment|Cannot allocate memory))", re.MULTILINE)
INSIDE = "CORTEX_CHAOS_INSIDE"  # this process is one of a namespace


class Story:
    """What was done to a fleet, and what was wrong with it."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.faults: list[tuple[float, str]] = []  # when, in seconds from the beginning
        self.wrong: list[str] = []
        self.facts: dict[str, Any] = {}
        self._chance = random.Random(options.seed)
        self._gateway_hurt: list[float] = []  # when a process of the gateway was killed
        self._gateway_still: list[tuple[float, float]] = []  # from when to when one was stopped

    async def tell(self) -> None:
        """Start a fleet, let things happen to it, and look at what is left."""
        shared = set(os.listdir(SHARED_MEMORY))
        network = Namespaces() if os.environ.get(INSIDE) else Proxies()
        self.facts["network"] = network.name
        self.fleet = fleet = Fleet(self.folder, network)
        try:
            await fleet.start()
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
            async with httpx.AsyncClient(
                base_url=fleet.base,
                headers=fleet.headers,
                timeout=load.PATIENCE,
                limits=limits,
                trust_env=False,
            ) as client:
                requests = await self._live(client)
        finally:
            codes = await fleet.end(END_SECONDS)
            for name, code in codes.items():
                self.wrong.append(f"{name} ended with {code}, and not within {END_SECONDS:g} s as it should")
        await until(lambda: not _kin(fleet), 5.0)
        self.wrong += [f"a process is left: {process}" for process in _kin(fleet)]
        self._files({SHARED_MEMORY / name for name in set(os.listdir(SHARED_MEMORY)) - shared})
        self._logs()
        self._terminal_lines(requests)

    async def _live(self, client: httpx.AsyncClient) -> load.Load:
        if not await until(lambda: self._whole(client), load.PATIENCE):
            raise RuntimeError(f"the fleet did not start; see {self.folder}")
        texts = await load.learn(client)
        await self.fleet.count()
        await self.fleet.unload()
        before = await self._settled()
        requests = load.Load(client, texts, self._excused, self.options.seed)
        running = asyncio.create_task(requests.run(self.options.clients))
        await self._hurt()
        healed = time.monotonic()
        requests.stop()
        whole = await until(lambda: self._whole(client), load.PATIENCE)
        self.facts["whole after s"] = round(time.monotonic() - healed, 1)
        if not whole or time.monotonic() - healed > self.options.whole:
            self.wrong.append(f"the fleet is not whole after {self.facts['whole after s']} s")
        await running
        self.facts["requests"] = len(requests.asked)
        self.facts["ends"] = dict(sorted(requests.ends().items()))
        self.wrong += [
            f"{each.id} {each.kind} of {each.model}: {each.wrong}" for each in requests.asked if each.wrong
        ]
        for number in range(NEURONS):
            if not await until(lambda number=number: self._idle(number), 10.0):
                self.wrong.append(f"neuron{number} has open requests: {await self.fleet.health(number)}")
        await self.fleet.unload()
        for name, held in (await self._settled(before)).items():
            for what, count in (held - before[name]).items():
                self.wrong.append(f"{name} holds {count} x {what} more than at first")
        await until(lambda: self._in_flight(client, 0.0), 5.0)
        if left := await self._in_flight(client):
            self.wrong.append(f"the gateway counts {left} requests in flight, and there are none")
        return requests

    # --- what happens -----------------------------------------------------------------------------------

    async def _hurt(self) -> None:
        """One fault every so many seconds, each kind as often as the others; they may overlap."""
        began = time.monotonic()
        bag: list[Fault] = []
        running = []
        for turn in range(int(self.options.seconds / self.options.every)):
            await asyncio.sleep(max(0.0, began + turn * self.options.every - time.monotonic()))
            if not bag:
                bag = self._chance.sample(FAULTS, len(FAULTS))
            chance = random.Random(self._chance.random())
            running.append(asyncio.create_task(self._one(bag.pop(), chance, began)))
        await asyncio.gather(*running)
        self.facts["faults"] = dict(Counter(what.partition(":")[0] for _, what in self.faults))

    async def _one(self, fault: Fault, chance: random.Random, began: float) -> None:
        at = time.monotonic()
        name = fault.__name__.replace("_", " ")
        if "gunicorn" in name:
            self._gateway_hurt.append(at)
        what = await fault(self.fleet, chance)
        if "stop" in name and what.startswith("gunicorn"):
            self._gateway_still.append((at, time.monotonic()))
        self.faults.append((round(at - began, 1), f"{name}: {what}"))
        if self.options.verbose:
            print(*self.faults[-1], file=sys.stderr)

    def _excused(self, began: float, ended: float) -> bool:
        """Whether a connection may have broken in that time: a process of the gateway was killed, or the
        gateway has yet to be back."""
        gateway = self.fleet.gateway
        back = [start + START_SECONDS for start in gateway.starts[1:]]
        away = itertools.zip_longest(gateway.ends, back, fillvalue=math.inf)
        killed = [(hurt, hurt + 1.0) for hurt in self._gateway_hurt]
        return any(self._wrote(first) <= ended and began <= last for first, last in (*away, *killed))

    def _wrote(self, killed: float) -> float:
        """Since when a process that was killed then may have written no lines of what had ended."""
        still = [since for since, until in self._gateway_still if since <= killed <= until + LATE]
        return min([killed, *still]) - GATHER_SECONDS - LATE

    # --- how it is --------------------------------------------------------------------------------------

    async def _whole(self, client: httpx.AsyncClient) -> bool:
        """Every process of the gateway sees every neuron, and every model answers."""
        if not self.fleet.is_connected:
            return False
        for _ in range(2 * GATEWAY_PROCESSES):
            if not await answers(self.fleet, client):
                return False
        body = {"messages": load.QUESTION, "max_tokens": 2}
        try:
            replies = await asyncio.gather(
                *(client.post(load.CHAT, json=body | {"model": model}) for model in MODELS)
            )
        except httpx.TransportError:
            return False
        return all(reply.status_code == 200 for reply in replies)

    async def _idle(self, number: int) -> bool:
        health = await self.fleet.health(number)
        return health is not None and not any(model.running + model.waiting for model in health.models)

    async def _in_flight(self, client: httpx.AsyncClient, wanted: float | None = None) -> Any:
        text = (await client.get(self.fleet.metrics)).text
        found = re.findall(r"^cortex_requests_in_flight\{.*\} (\S+)$", text, re.MULTILINE)
        total = sum(map(float, found))
        return total if wanted is None else total == wanted

    async def _settled(self, before: dict[str, Counter[str]] | None = None) -> dict[str, Counter[str]]:
        """What each daemon holds, the least in some seconds; where it was less before, in some more.

        Text processes wait for work on purpose, so they are ended. What is held at first counts while the
        gateway is connected to every neuron: on a busy machine a process of it may lose one for a moment.
        """
        for process in self.fleet.text_processes():
            process.kill()
        held: dict[str, Counter[str]] = {}
        began = time.monotonic()
        while (lasted := time.monotonic() - began) < MOST_SECONDS:
            now = {service.name: _held(service) for service in self.fleet.services}
            if before is None and not self.fleet.is_connected:
                held = {}
                await asyncio.sleep(0.25)
                continue
            held = {name: now[name] & held.get(name, now[name]) for name in now}
            less = before is None or not any(held[name] - before[name] for name in held)
            if lasted > LEAST_SECONDS and less:
                break
            await asyncio.sleep(0.25)
        if not held:
            raise RuntimeError(f"the gateway is not connected to every neuron in {MOST_SECONDS:g} s")
        return held

    # --- what is left -----------------------------------------------------------------------------------

    def _files(self, shared: set[Path]) -> None:
        for process in psutil.process_iter() if shared else ():
            try:
                shared -= {Path(part.path) for part in process.memory_maps()}
            except psutil.Error:
                continue
        self.wrong += [f"a file is left in shared memory: {path}" for path in shared]
        self.wrong += [f"a file is left in TMPDIR: {path}" for path in self.fleet.gateway.tmp.iterdir()]

    def _logs(self) -> None:
        for service in self.fleet.services:
            text = service.log.read_text(errors="replace")
            for found in re.finditer(r"Traceback.*(\n .*)*\n.*|.*never (retrieved|awaited).*", text):
                if not EXPECTED.search(found[0]):
                    self.wrong.append(f"{service.log.name}: {text[: found.start()][-300:]}{found[0]}")

    def _terminal_lines(self, requests: load.Load) -> None:
        """Each request has one line in the gateway's log; none, where the process that had it was killed."""
        text = self.fleet.gateway.log.read_text(errors="replace")
        lines = re.findall(r"request ended request_id=(chaos-\d+) .* status=(\d+) ", text)
        counts = Counter(name for name, _ in lines)
        statuses = Counter(status for _, status in lines)
        self.facts["statuses in the log"] = dict(statuses)
        for status in statuses.keys() - {"200", "499", "503", "529"}:
            self.wrong.append(f"the log has requests that ended with status {status}")
        for each in requests.asked:
            most = counts[each.id]
            if most > 1 or (most == 0 and each.end == "whole" and not self._excused(each.began, each.ended)):
                self.wrong.append(f"{each.id} {each.kind} ({each.end}) has {most} terminal lines in the log")


def _held(service: Service) -> Counter[str]:
    """Descriptors of all processes of a service that live, by kind, and the processes; without the files of
    counts and of what clients keep, which each process opens when it first needs them."""
    held: Counter[str] = Counter()
    for pid in [service.pid, *(child.pid for child in service.children())] if service.pid else ():
        try:
            opened = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        held["processes"] += 1
        for name in opened:
            path = f"/proc/{pid}/fd/{name}"
            with suppress(OSError):
                target = os.readlink(path)
                if not re.search(r"cortex-metrics-|\.db", target):
                    held[re.sub(r"(gunicorn)-\w+|\d+", r"\1", target)] += 1
    return held


def _kin(fleet: Fleet) -> list[str]:
    """Processes that began with our TMPDIR."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(fleet.gateway.tmp) and process.status() != "zombie":
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="A fleet to which things happen."
    )
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two faults")
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--whole", type=float, default=10.0, help="seconds until the fleet has to be whole again"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder for logs, which is kept")
    parser.add_argument("--proxies", action="store_true", help="no network namespaces")
    parser.add_argument("--verbose", action="store_true", help="say what happens when it happens")
    options = parser.parse_args()
    if not options.proxies and not os.environ.get(INSIDE) and permitted():
        command = inside_namespace([sys.executable, "-m", "tests.chaos", *sys.argv[1:]])
        os.execvpe(command[0], command, os.environ | {INSIDE: "1"})
    folder = options.keep or Path(tempfile.mkdtemp(prefix="cortex-chaos-"))
    story = Story(options, folder)
    try:
        asyncio.run(story.tell())
    finally:
        if options.keep is None:
            shutil.rmtree(folder)
    print(json.dumps(story.facts | {"wrong": story.wrong}, indent=1))
    sys.exit(1 if story.wrong else 0)


if __name__ == "__main__":
    main()
