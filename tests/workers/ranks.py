"""All ranks of a group, over several checkpoints: `run` starts `python -m tests.workers.ranks` for each rank.

Every rank drives its own scheduler with the same seed, so that they make the same plans and need no rings.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.workers.engines import make_spec, prompt_of, serve, some_requests
from workers.config import read_config
from workers.runner import Runner

PATIENCE = 120.0  # seconds


def run(folders: list[Path], world_size: int) -> list[dict[str, Any]]:
    """Serve random requests from every folder with `world_size` processes.

    Returns:
        For each folder `prompts`, `outputs` and `all_reduce`, the sum of ones over the ranks.
    """
    with ExitStack() as stack:
        stores = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in folders]
        processes = []
        for rank in range(world_size):
            work = [
                {"folder": str(folder), "fd": store.fileno(), "port": store.getsockname()[1]}
                for folder, store in zip(folders, stores, strict=True)
            ]
            command = [
                sys.executable,
                "-m",
                "tests.workers.ranks",
                str(rank),
                str(world_size),
                json.dumps(work),
            ]
            fds = [store.fileno() for store in stores] if rank == 0 else []
            process = subprocess.Popen(command, pass_fds=fds, stdout=subprocess.PIPE)
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * world_size
    results = [json.loads(output) for output in outputs]
    assert all(result == results[0] for result in results), "the ranks sampled different tokens"
    return results[0]


def main() -> None:
    rank, world_size = map(int, sys.argv[1:3])
    results = []
    for work in json.loads(sys.argv[3]):
        store = {"store_fd": work["fd"] if rank == 0 else None, "store_port": work["port"]}
        runner = Runner(make_spec(work["folder"], rank=rank, world_size=world_size, **store))
        runner.load(lambda fraction, message: None)
        requests = some_requests(8, read_config(work["folder"]).vocab_size, seed=world_size, longest=16)
        all_reduce = runner.prove()
        outputs = serve(runner, requests, seed=world_size)
        results.append({"prompts": [*map(prompt_of, requests)], "outputs": outputs, "all_reduce": all_reduce})
        runner.close()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
