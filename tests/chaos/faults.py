"""What happens to a fleet: each fault begins, lasts a while, and is over when its function returns."""

from __future__ import annotations

import asyncio
import random
import resource
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress

import psutil

from ipc.errors import CortexError
from ipc.messages.requests import Load
from tests.chaos.fleet import ANSWER_SECONDS, Fleet, Service

Fault = Callable[[Fleet, random.Random], Awaitable[str]]
LOCK_SECONDS = 0.2  # for somebody else to let go of a file


async def kill_a_rank(fleet: Fleet, chance: random.Random) -> str:
    """Or a text process."""
    return _kill(chance, fleet.ranks() + fleet.text_processes())


async def kill_a_neuron(fleet: Fleet, chance: random.Random) -> str:
    return _kill(chance, _first(fleet.neurons, chance))


async def kill_a_gunicorn_process(fleet: Fleet, chance: random.Random) -> str:
    """One that serves; one time in four the first one, of which the others die."""
    if chance.random() < 0.25:
        return _kill(chance, _first([fleet.gateway], chance))
    return _kill(chance, fleet.gateway.children())


async def stop_and_continue_a_process(fleet: Fleet, chance: random.Random) -> str:
    """A rank for longer than a step may take, a neuron for longer than it may be silent, or less."""
    neurons, gateway = _first(fleet.neurons, chance), fleet.gateway.children()
    found = chance.choice([group for group in (fleet.ranks(), neurons, gateway) if group] or [[]])
    if not found:
        return "nobody"
    process, seconds = chance.choice(found), chance.uniform(0.2, 7.0)
    with suppress(psutil.Error):
        name = _name(process)
        process.suspend()
        try:
            await asyncio.sleep(seconds)
        finally:
            with suppress(psutil.Error):
                process.resume()
        return f"{name} for {seconds:.1f} s"
    return "nobody"


async def cut_and_heal_a_connection(fleet: Fleet, chance: random.Random) -> str:
    number, seconds = chance.randrange(len(fleet.neurons)), chance.uniform(0.2, 8.0)
    await fleet.network.cut(number)
    try:
        await asyncio.sleep(seconds)
    finally:
        await fleet.network.heal(number)
    return f"neuron{number} for {seconds:.1f} s"


async def fill_memory(fleet: Fleet, chance: random.Random) -> str:
    """Either a device's, by a load for which others have to leave, or a rank's own, which gets no more."""
    number = chance.randrange(len(fleet.neurons))
    health = await fleet.health(number) if chance.random() < 0.5 else None
    pids = [rank.pid for ranks in health.ranks.values() for rank in ranks if rank.step] if health else []
    if pids:  # of ranks that have all their code: without that, Python itself says why it ends, and not well
        with suppress(psutil.Error):
            process = psutil.Process(chance.choice(pids))
            size = process.memory_info().vms
            process.rlimit(resource.RLIMIT_AS, (size, size))
            return _name(process)
    with suppress(CortexError):
        await fleet.clients[number].ask(Load(id=0, model="large"), ANSWER_SECONDS)
    return f"neuron{number}"


async def slow_disk(fleet: Fleet, chance: random.Random) -> str:
    """One of the gateway's files is locked, as if what was written to it took so long."""
    path, seconds = chance.choice(sorted(fleet.state.glob("*.db"))), chance.uniform(0.5, 4.0)
    with closing(sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)) as database:
        with suppress(sqlite3.OperationalError):  # somebody is at it
            database.execute("BEGIN EXCLUSIVE")
        await asyncio.sleep(seconds)
    return f"{path.name} for {seconds:.1f} s"


FAULTS: tuple[Fault, ...] = (
    kill_a_rank,
    kill_a_neuron,
    kill_a_gunicorn_process,
    stop_and_continue_a_process,
    cut_and_heal_a_connection,
    fill_memory,
    slow_disk,
)


def _first(services: list[Service], chance: random.Random) -> list[psutil.Process]:
    """The daemon of one of them."""
    with suppress(psutil.Error, IndexError):
        return [psutil.Process(chance.choice([each.pid for each in services if each.pid]))]
    return []


def _kill(chance: random.Random, processes: list[psutil.Process]) -> str:
    with suppress(psutil.Error, IndexError):
        process = chance.choice(processes)
        name = _name(process)
        process.send_signal(signal.SIGKILL)
        return name
    return "nobody"


def _name(process: psutil.Process) -> str:
    words = process.cmdline()
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else process.name()
    return f"{module} ({process.pid})"
