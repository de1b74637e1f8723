"""What a small request costs in CPU time: `python -m benchmarks.cost [--requests 300] [--rounds 20]`.

Unstreamed answers of one token, through a gateway of one process that asks for a key, which has limits, and
that chooses between two neurons by what they hold of the prompt; ten connections. Printed is what each kind
of process spent for one request in the cheapest of many short rounds: what others do on the machine makes it
more, never less. In each round three more servers take turns with it: a gateway without that choice, one
without keys as well, and gunicorn with an application that answers at once. The first two tell what keys and
choice come to, by the median of what rounds differ by, and the last one tells machines apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.gateway import CONNECTIONS, hello, request
from benchmarks.load import Connection
from ipc.messages.requests import Load
from tests.gateway.conftest import GatewayProcess, Keys
from tests.neuron.harness import PATIENCE, Neuron, simulated

WARM_UP = 300  # requests
PLAIN, KEYS, WHOLE = "gateway without keys and choice", "gateway without choice", "gateway"
BARE = "gunicorn alone"


class Counted(Connection):
    """Ends after its share."""

    def __init__(self, request: bytes, count: int, done: asyncio.Future[None]) -> None:
        super().__init__(request, streamed=False)
        self._count, self._done = count, done

    def send(self) -> None:
        if len(self.latencies) < self._count:
            super().send()
        elif not self._done.done():
            self._done.set_result(None)


async def send(port: int, key: str, count: int) -> None:
    """So many requests, over all connections.

    Args:
        key: empty: none is sent.
    """
    body = json.dumps(request(1, stream=False))
    authorization = f"authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"{authorization}content-length: {len(body)}\r\n\r\n{body}"
    ).encode()
    loop = asyncio.get_running_loop()
    ends, failures = [], []
    for _ in range(CONNECTIONS):
        ends.append(loop.create_future())
        connection = Counted(head, count // CONNECTIONS, ends[-1])
        failures.append(connection.failures)
        await loop.create_connection(lambda connection=connection: connection, "127.0.0.1", port)
    await asyncio.wait_for(asyncio.gather(*ends), 600)
    if failed := [failure for each in failures for failure in each]:
        raise SystemExit(f"{len(failed)} answers failed; the first: {failed[0]}")


def spent(pids: list[int]) -> float:
    """CPU seconds of all threads of these processes so far, by the scheduler's clock, which has no ticks."""
    files = (file for pid in pids for file in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


Round = dict[str, dict[str, float]]  # microseconds of CPU a request, by server and kind of process


def measure(folder: Path, requests: int, rounds: int) -> list[Round]:
    with ExitStack() as stack:
        models = [simulated("simulated")]
        neurons = [stack.enter_context(Neuron(folder / name, models)) for name in "ab"]
        for neuron in neurons:
            with neuron.client() as client:
                client.ask(Load(id=0, model="simulated"), PATIENCE)
        key = Keys(folder).create("bench", "--requests-per-minute", "10000000")
        behind = {
            "neuron": [neuron.process.pid for neuron in neurons],
            "worker": [pid for neuron in neurons for pid in neuron.workers("simulated")],
        }
        servers: dict[str, tuple[int, str, dict[str, list[int]]]] = {}  # port, key, processes
        for name, others, anonymous in (
            (PLAIN, {}, True),
            (KEYS, {}, False),
            (WHOLE, {"b": neurons[1].endpoint}, False),
        ):
            path = folder / f"gateway {len(servers)}"
            path.mkdir()
            access = {"anonymous": anonymous, "path": str(folder / "keys.db")}
            gateway = GatewayProcess(path, neurons[0].endpoint, neurons=others, access=access)
            stack.callback(gateway.stop)
            gateway.wait_ready()
            servers[name] = gateway.port, "" if anonymous else key, {"gateway": gateway.workers(), **behind}
        port, bare = stack.enter_context(hello(folder))
        servers[BARE] = port, "", {"gateway": [bare]}
        measured: list[Round] = []
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            for port, its_key, _ in servers.values():
                runner.run(send(port, its_key, WARM_UP))
            for _ in range(rounds):
                costs: Round = {}
                for name, (port, its_key, processes) in servers.items():
                    before = {kind: spent(pids) for kind, pids in processes.items()}
                    runner.run(send(port, its_key, requests))
                    costs[name] = {
                        kind: 1e6 * (spent(pids) - before[kind]) / requests
                        for kind, pids in processes.items()
                    }
                measured.append(costs)
        return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=300, help="of a round")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help="write the numbers of all rounds there, too"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rounds = measure(Path(folder), options.requests, options.rounds)
    whole = min((each[WHOLE] for each in rounds), key=lambda costs: sum(costs.values()))
    together = sum(whole.values())
    table = Table("", "µs of CPU", title="an unstreamed answer of one token")
    for kind, cost in (whole | {"together": together}).items():
        table.add_row(kind, f"{cost:.0f}")
    for name in (PLAIN, KEYS, BARE):
        table.add_row(name, f"{min(each[name]['gateway'] for each in rounds):.0f}")
    Console().print(table)
    keys, added = (
        median(each[name]["gateway"] - each[PLAIN]["gateway"] for each in rounds) for name in (KEYS, WHOLE)
    )
    print(f"{keys:.0f} µs for keys, {added:.0f} µs with the choice of a neuron (wanted: 30 at most)")
    print(f"{together:.0f} µs over gateway, neuron and worker together (wanted: 250 at most)")
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1) + "\n")


if __name__ == "__main__":
    main()
