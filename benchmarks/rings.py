"""How fast records go from one process to another: `python -m benchmarks.rings [--json PATH]`.

Our ring beside what else there is: a pipe, ZeroMQ over ipc://, multiprocessing's queue, in the same run.

* records/s: the parent writes records of 64 bytes as fast as it can, the child reads them all.
* round trip: the parent writes one record, the child sends it back; both block while they wait.
* asleep: the same with a pause before each, so that both sides are surely asleep when the record comes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from abc import ABC, abstractmethod

import zmq
from rich.console import Console
from rich.table import Table

from ipc.ring import Ring

RECORD = bytes(range(64))
END = b"e" * 64
BOUND = 60.0  # seconds that any wait may take
PAUSE = 0.001

fork = multiprocessing.get_context("fork")


class Channel(ABC):
    """One direction between parent and child."""

    @abstractmethod
    def send(self, record: bytes) -> None: ...

    @abstractmethod
    def receive(self) -> bytes:
        """The next record; blocks."""

    def receive_some(self) -> list[bytes]:
        """At least one record, at best all that are there."""
        return [self.receive()]

    @abstractmethod
    def close(self) -> None:
        """Leave nothing behind; the parent's part."""


class RingChannel(Channel):
    def __init__(self) -> None:
        self.ring = Ring.create()

    def send(self, record: bytes) -> None:
        self.ring.write(record, BOUND)

    def receive(self) -> bytes:
        record = self.ring.read(BOUND)
        if record is None:
            raise TimeoutError("no record")
        return record

    def receive_some(self) -> list[bytes]:
        return [self.receive(), *self.ring.read_all()]

    def close(self) -> None:
        self.ring.close()


class PipeChannel(Channel):
    """Bare: no framing, since all records have one size."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def send(self, record: bytes) -> None:
        os.write(self.writing, record)

    def receive(self) -> bytes:
        return os.read(self.reading, len(RECORD))

    def receive_some(self) -> list[bytes]:
        data = os.read(self.reading, len(RECORD) * 512)
        return [data[start : start + len(RECORD)] for start in range(0, len(data), len(RECORD))]

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.writing)


class ZmqChannel(Channel):
    """PUSH to PULL; each process makes its own socket, at its first record."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="cortex-benchmark-")
        self.socket: zmq.Socket | None = None

    def _open(self, kind: int) -> zmq.Socket:
        self.socket = zmq.Context.instance().socket(kind)
        self.socket.linger = 1000
        self.socket.rcvtimeo = int(BOUND * 1000)
        (self.socket.bind if kind == zmq.PULL else self.socket.connect)(f"ipc://{self.folder.name}/socket")
        return self.socket

    def send(self, record: bytes) -> None:
        (self.socket or self._open(zmq.PUSH)).send(record)

    def receive(self) -> bytes:
        return (self.socket or self._open(zmq.PULL)).recv()

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.folder.cleanup()


class QueueChannel(Channel):
    def __init__(self) -> None:
        self.queue = fork.Queue()

    def send(self, record: bytes) -> None:
        self.queue.put(record)

    def receive(self) -> bytes:
        return self.queue.get(timeout=BOUND)

    def close(self) -> None:
        self.queue.close()


CHANNELS: dict[str, type[Channel]] = {
    "ring": RingChannel,
    "os.pipe": PipeChannel,
    "zmq ipc": ZmqChannel,
    "multiprocessing.Queue": QueueChannel,
}


def child(there: Channel, back: Channel, records: int) -> None:
    """Count `records` records, then echo until the end."""
    back.send(there.receive())  # both are up
    seen = 0
    while seen < records:
        seen += len(there.receive_some())
    back.send(RECORD)
    while (record := there.receive()) != END:
        back.send(record)


def measure(channel: type[Channel], records: int, trips: int) -> dict[str, float]:
    there, back = channel(), channel()
    process = fork.Process(target=child, args=(there, back, records))
    process.start()
    there.send(RECORD)
    back.receive()
    start = time.perf_counter()
    for _ in range(records):
        there.send(RECORD)
    back.receive()
    rate = records / (time.perf_counter() - start)
    awake = [trip(there, back) for _ in range(trips)]
    asleep = [trip(there, back, PAUSE) for _ in range(trips // 20)]
    there.send(END)
    process.join(BOUND)
    there.close()
    back.close()
    return {
        "records_per_second": rate,
        "round_trip_p50_us": percentile(awake, 50),
        "round_trip_p99_us": percentile(awake, 99),
        "asleep_p50_us": percentile(asleep, 50),
        "asleep_p99_us": percentile(asleep, 99),
    }


def trip(there: Channel, back: Channel, pause: float = 0.0) -> float:
    """Microseconds of one round trip."""
    if pause:
        time.sleep(pause)
    start = time.perf_counter_ns()
    there.send(RECORD)
    back.receive()
    return (time.perf_counter_ns() - start) / 1e3


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=300_000, help="of 64 bytes, for the rate")
    parser.add_argument("--trips", type=int, default=20_000, help="round trips")
    parser.add_argument("--repeats", type=int, default=3, help="the median of so many runs is shown")
    parser.add_argument("--json", metavar="PATH", help="write the results there, too")
    arguments = parser.parse_args()

    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CHANNELS}
    for _ in range(arguments.repeats):  # in turn, so that a busy moment of the machine hits all of them
        for name, channel in CHANNELS.items():
            runs[name].append(measure(channel, arguments.records, arguments.trips))
    results = {
        name: {key: statistics.median(run[key] for run in several) for key in several[0]}
        for name, several in runs.items()
    }

    table = Table(
        title=f"64-byte records between two processes, {len(os.sched_getaffinity(0))} cores, "
        f"Python {platform.python_version()}"
    )
    table.add_column()
    for heading in ("records/s", "round trip\np50, µs", "\np99", "asleep\np50, µs", "\np99"):
        table.add_column(heading, justify="right")
    for name, result in results.items():
        rate, *times = result.values()
        table.add_row(name, f"{rate:,.0f}", *(f"{microseconds:,.1f}" for microseconds in times))
    Console().print(table)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"cores": len(os.sched_getaffinity(0)), "results": results}, file, indent=2)


if __name__ == "__main__":
    main()
