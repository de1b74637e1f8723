"""What a small request costs in CPU time: `python -m benchmarks.cost [--requests 2000] [--rounds 3]`.

Unstreamed answers of one token, through a gateway of one process that asks for a key, which has limits, and
that chooses between two neurons by what they hold of the prompt; ten connections. Printed is what each kind
of process spent for one request, the least of some rounds: what others do on the machine makes it more, never
less. Two more gateways take turns with it, one without that choice and one without keys as well, and so tell
what each comes to.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.gateway import CONNECTIONS, request
from benchmarks.load import Connection
from ipc.messages.requests import Load
from tests.gateway.conftest import GatewayProcess, Keys
from tests.neuron.harness import PATIENCE, Neuron, simulated

WARM_UP = 300  # requests
PLAIN, KEYS, WHOLE = "without keys and choice", "without choice", "with both"


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


def measure(folder: Path, requests: int, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Microseconds of CPU a request: by kind of process, and of each of the gateways."""
    with ExitStack() as stack:
        models = [simulated("simulated")]
        neurons = [stack.enter_context(Neuron(folder / name, models)) for name in "ab"]
        for neuron in neurons:
            with neuron.client() as client:
                client.ask(Load(id=0, model="simulated"), PATIENCE)
        key = Keys(folder).create("bench", "--requests-per-minute", "10000000")
        gateways = {}
        for name, others, anonymous in (
            (PLAIN, {}, True),
            (KEYS, {}, False),
            (WHOLE, {"b": neurons[1].endpoint}, False),
        ):
            path = folder / f"gateway {len(gateways)}"
            path.mkdir()
            access = {"anonymous": anonymous, "path": str(folder / "keys.db")}
            gateways[name] = GatewayProcess(path, neurons[0].endpoint, neurons=others, access=access)
            stack.callback(gateways[name].stop)
        kinds = {
            "neuron": [neuron.process.pid for neuron in neurons],
            "worker": [pid for neuron in neurons for pid in neuron.workers("simulated")],
        }
        least: dict[str, dict[str, float]] = {name: {} for name in gateways}
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            for name, gateway in gateways.items():
                runner.run(send(gateway.wait_ready().port, key if name != PLAIN else "", WARM_UP))
            for _ in range(rounds):
                for name, gateway in gateways.items():
                    pids_of = {"gateway": gateway.workers(), **kinds}
                    before = {kind: spent(pids) for kind, pids in pids_of.items()}
                    runner.run(send(gateway.port, key if name != PLAIN else "", requests))
                    for kind, pids in pids_of.items():
                        each = 1e6 * (spent(pids) - before[kind]) / requests
                        least[name][kind] = min(each, least[name].get(kind, each))
        whole = least[WHOLE]
        return whole | {"together": sum(whole.values())}, {
            name: costs["gateway"] for name, costs in least.items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers there, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result, gateways = measure(Path(folder), options.requests, options.rounds)
    table = Table("", "µs of CPU", title="an unstreamed answer of one token")
    for kind, cost in result.items():
        table.add_row(kind, f"{cost:.0f}")
    for name in (PLAIN, KEYS):
        table.add_row(f"gateway {name}", f"{gateways[name]:.0f}")
    Console().print(table)
    added, keys = gateways[WHOLE] - gateways[PLAIN], gateways[KEYS] - gateways[PLAIN]
    print(f"{keys:.0f} µs for keys, {added:.0f} µs with the choice of a neuron (wanted: 30 at most)")
    print(f"{result['together']:.0f} µs over gateway, neuron and worker together (wanted: 250 at most)")
    if options.json:
        options.json.write_text(json.dumps(result | {"gateways": gateways}, indent=1) + "\n")


if __name__ == "__main__":
    main()
