"""Requests and tokens a second through every process: `python -m benchmarks.gateway [--json FILE]`.

A neuron with the simulated engine at full speed, a gateway of one gunicorn process in front of it, and ten
connections that each send the next request as soon as the last one is answered; and by turns with it the same
load on gunicorn with an application that answers at once, which is as fast as this HTTP stack goes here.
Printed are medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.gateway.conftest import ROOT
from tests.ports import free_ports

CONNECTIONS = 10
TOKENS = 64
START_SECONDS = 60.0
WHOLE, ALONE = "answers of 1 token", "gunicorn alone, one body"


def request(tokens: int, stream: bool) -> dict[str, object]:
    """A chat whose answer has exactly so many tokens."""
    body: dict[str, object] = {
        "model": "simulated",
        "max_tokens": tokens,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": "Tell me something."}],
    }
    return body | {"stream": True, "stream_options": {"include_usage": True}} if stream else body


@contextmanager
def process(log: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process in the repository that writes to `log`; ended in the end."""
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ | variables,
            stdout=output,
            stderr=output,
        )
    try:
        yield child
    except BaseException:
        sys.stderr.write(log.read_text()[-2000:])
        raise
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait_for_answer(child: subprocess.Popen[bytes], port: int) -> None:
    """Until a request is answered well."""
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    deadline = time.monotonic() + START_SECONDS
    while True:
        if child.poll() is not None:
            raise SystemExit(f"a process ended with code {child.returncode} before it served")
        try:
            body = json.dumps(request(1, stream=False)).encode()
            asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            urllib.request.urlopen(asked, timeout=START_SECONDS).read()
            return
        except (OSError, urllib.error.HTTPError) as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"no answer within {START_SECONDS:g} s: {error}") from error
            time.sleep(0.1)


def load(port: int, seconds: float, tokens: int, stream: bool) -> dict[str, float]:
    """What a load generator in a process of its own measures."""
    body = json.dumps(request(tokens, stream))
    arguments = [sys.executable, "-m", "benchmarks.load", str(port), str(CONNECTIONS), str(seconds), body]
    result = json.loads(subprocess.run(arguments, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    return result | {"tokens_per_second": result["requests_per_second"] * tokens}


@contextmanager
def gateway(folder: Path) -> Iterator[int]:
    """A neuron, and a gateway in front of it; its port."""
    api, metrics, endpoint = free_ports(3)
    neuron_config, gateway_config = folder / "neuron.yaml", folder / "cortex.yaml"
    neuron_config.write_text(
        f"listen: tcp://127.0.0.1:{endpoint}\n"
        "devices: [cpu]\n"
        "models: [{id: simulated, pin: true, simulated: {}}]\n"
    )
    gateway_config.write_text(
        f"gateway: {{listen: '127.0.0.1:{api}', metrics_listen: '127.0.0.1:{metrics}'}}\n"
        f"neurons: [{{name: local, endpoint: 'tcp://127.0.0.1:{endpoint}'}}]\n"
    )
    neuron = process(folder / "neuron.log", "-m", "neuron", "serve", "--config", str(neuron_config))
    serving = process(
        folder / "gateway.log", "-m", "gunicorn", "gateway:app", CORTEX_CONFIG=str(gateway_config)
    )
    with neuron, serving as child:
        wait_for_answer(child, api)
        yield api


@contextmanager
def hello(folder: Path) -> Iterator[tuple[int, int]]:
    """gunicorn alone: its port, and the process that serves."""
    (port,) = free_ports(1)
    arguments = ["-m", "gunicorn", "--config", os.devnull, "--worker-class", "asgi", "--no-control-socket"]
    bind = ["--bind", f"127.0.0.1:{port}", "benchmarks.hello:app"]
    with process(folder / "hello.log", *arguments, *bind) as serving:
        wait_for_answer(serving, port)
        yield port, int(Path(f"/proc/{serving.pid}/task/{serving.pid}/children").read_text())


def measure(folder: Path, seconds: float, rounds: int) -> dict[str, list[dict[str, float]]]:
    """What each load came to, in each round."""
    with gateway(folder) as ours, hello(folder) as (bare, _):
        loads = {
            WHOLE: (ours, 1, False),
            ALONE: (bare, 0, False),
            f"answers of {TOKENS} tokens": (ours, TOKENS, False),
            f"streams of {TOKENS} tokens": (ours, TOKENS, True),
            f"gunicorn alone, {TOKENS} events": (bare, TOKENS, True),
        }
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in loads}
        for _ in range(rounds):
            for name, (port, tokens, stream) in loads.items():
                measured[name].append(load(port, seconds, tokens, stream))
        return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each load in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measured = measure(Path(name), options.seconds, options.rounds)
    results = {
        name: {key: median(each[key] for each in several) for key in several[0]}
        for name, several in measured.items()
    }
    table = Table("", "requests/s", "p50 ms", "p99 ms", "tokens/s")
    for name, numbers in results.items():
        rate, p50, p99, tokens = numbers.values()
        table.add_row(name, f"{rate:,.0f}", f"{p50:.2f}", f"{p99:.2f}", f"{tokens:,.0f}")
    Console().print(table)
    whole, bare = ([each["requests_per_second"] for each in measured[name]] for name in (WHOLE, ALONE))
    share = median(ours / alone for ours, alone in zip(whole, bare, strict=True))
    print(f"{share:.1%} of the bare server (wanted: 15 % at least)")
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
