"""`cortex up`: gateway, neuron and models on this host, from one command until Ctrl-C.

Both daemons are children of this process, with configurations in a folder that goes when it goes. A child
that ends is started again, later each time; when this process ends, however it ends, so do they.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from gateway.commands.clients import KEY_VARIABLE
from gateway.commands.up_plan import LOOPBACK, Plan, UpError
from ipc import held_folder
from ipc.client import NeuronClient
from ipc.errors import CortexError
from ipc.messages.replies import Failed, Progress
from ipc.messages.requests import Hello, ListModels, Load
from ipc.messages.state import ModelState

START_SECONDS = 60.0  # for a daemon to answer, on a slow and busy host
STOP_SECONDS = 2.0  # for each daemon to end itself; what is left is killed
POLL_SECONDS = 0.1
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # before a daemon is started again
STEADY_SECONDS = 60.0  # one that lived so long had a good start


@dataclass(slots=True)
class Child:
    """One daemon and how to have it again."""

    name: str
    arguments: list[str]  # a module and what it is told
    goodbye: signal.Signals  # ends it without waiting for requests
    process: asyncio.subprocess.Process | None = None


class Narrator:
    """Says what happens: on a terminal in a line that moves, elsewhere in plain lines."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._status = console.status("") if console.is_terminal else None
        self._stage = ""

    def doing(self, stage: str, detail: str = "") -> None:
        """What is waited for now. `detail` moves too fast for plain lines."""
        if self._status is not None:
            self._status.update(f"{stage} {detail}")
            self._status.start()
        elif stage != self._stage:
            self.say(stage)
        self._stage = stage

    def say(self, *lines: str) -> None:
        for line in lines:  # never wrapped: they are there to be copied
            self.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def quiet(self) -> None:
        if self._status is not None:
            self._status.stop()


class Up:
    """A running `cortex up`."""

    def __init__(self, plan: Plan, narrator: Narrator, folder: Path) -> None:
        self._plan = plan
        self._narrator = narrator
        self._folder = folder  # for configurations, and as TMPDIR for whatever the children keep in files
        self._announced = False  # everything has been there once
        (folder / "neuron.yaml").write_text(json.dumps(plan.neuron_settings()))
        (folder / "cortex.yaml").write_text(json.dumps(plan.gateway_settings(folder)))
        neuron = ["neuron", "serve", "--config", str(folder / "neuron.yaml")]
        gunicorn = ["gunicorn", "--config", "python:gateway.gunicorn_conf", "gateway:app"]
        self._children = [
            Child("neuron", neuron, signal.SIGTERM),
            Child("gateway", gunicorn, signal.SIGINT),
        ]

    async def run(self, enough: asyncio.Event) -> None:
        """Until `enough` is set; UpError when it could not start."""
        work, end = asyncio.create_task(self._work()), asyncio.create_task(enough.wait())
        try:
            await asyncio.wait({work, end}, return_when=asyncio.FIRST_COMPLETED)
            if enough.is_set():
                self._narrator.doing("stopping")
            else:
                await work
        finally:
            for task in (work, end):
                task.cancel()
            await asyncio.gather(work, end, return_exceptions=True)
            await self._end_children()
            self._narrator.quiet()

    async def _work(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for child in self._children:
                    group.create_task(self._keep(child))
                await self._announce()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _keep(self, child: Child) -> None:
        """Start `child`, and again whenever it ends; before everything was there once, its end is ours."""
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE
        while True:
            started = loop.time()
            child.process = await self._start(child)
            code = await child.process.wait()
            _kill_group(child)  # what it left holds its port
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            if not self._announced:
                raise UpError(f"the {child.name} ended while it started ({how}); what it said stands above")
            if loop.time() - started > STEADY_SECONDS:
                pause = FIRST_PAUSE
            self._narrator.say(f"the {child.name} ended ({how}) and is started again in {pause:g} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _start(self, child: Child) -> asyncio.subprocess.Process:
        # A group of its own: the terminal's Ctrl-C is for us, and we end the children in order.
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "ipc.lifeline", str(os.getpid())),
            *child.arguments,
            cwd=self._folder,
            env=os.environ
            | {"CORTEX_CONFIG": str(self._folder / "cortex.yaml"), "TMPDIR": str(self._folder)},
            stdin=asyncio.subprocess.DEVNULL,
            process_group=0,
        )

    async def _announce(self) -> None:
        """Say what is being waited for until all is there, then how to use it."""
        self._narrator.doing("starting the neuron")
        # A neuron that ends is known by its process; one that is only slow, on a busy host, is waited for.
        client = NeuronClient(self._plan.neuron_endpoint, silence=START_SECONDS)
        client.start()
        try:
            await client.ask(Hello(id=0, client="cortex up"), START_SECONDS)
            for entry in self._plan.models:
                await self._load(client, entry["id"])
            listed = await client.ask(ListModels(id=0), START_SECONDS)
        except CortexError as error:
            raise UpError(error.message) from error
        finally:
            client.close()
        self._narrator.doing("starting the gateway")
        await self._gateway_is_ready()
        self._announced = True
        self._narrator.quiet()
        self._explain({model.id: model for model in listed.models})

    async def _load(self, client: NeuronClient, model: str) -> None:
        stage = f"loading {model}"
        self._narrator.doing(stage)
        async for reply in client.open(Load(id=0, model=model)):
            if isinstance(reply, Progress):
                done = "" if reply.fraction is None else f"{reply.fraction:.0%}"
                left = "" if reply.seconds_left is None else f", {reply.seconds_left:.0f} s left"
                self._narrator.doing(stage, f"{done} {reply.message}{left}".strip())
            elif isinstance(reply, Failed):
                raise reply.error()

    async def _gateway_is_ready(self) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    if await self._ask_gateway("/ready") == 200:
                        return
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise UpError(
                f"the gateway at {self._plan.base} is not ready after {START_SECONDS:g} s"
            ) from None

    async def _ask_gateway(self, path: str) -> int:
        """The HTTP status of a GET; 0 when nothing answers."""
        host, port = self._plan.base.removeprefix("http://").rsplit(":", 1)
        try:
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except OSError:
            return 0
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answer = re.match(rb"HTTP/1\.1 (\d{3})", await reader.readline())
            return int(answer[1]) if answer else 0
        except OSError:
            return 0
        finally:
            writer.close()

    def _explain(self, known: dict[str, ModelState]) -> None:
        models = [entry["id"] for entry in self._plan.models]
        path, body = example(known.get(models[0], ModelState(id=models[0], status="ready")))
        self._narrator.say(
            f"cortex is up at {self._plan.base}/v1 with {', '.join(models)}; "
            f"metrics at http://{LOOPBACK}:{self._plan.metrics_port}/metrics",
            f"Ask it something{f', with a key in {KEY_VARIABLE}' if self._plan.wants_key else ''}:",
            f"  {self._plan.curl(path, body)}",
            "Ctrl-C ends it.",
        )

    async def _end_children(self) -> None:
        """The gateway first, so that it does not complain of a lost neuron."""
        for child in reversed(self._children):
            if child.process is None or child.process.returncode is not None:
                continue
            with suppress(ProcessLookupError):
                child.process.send_signal(child.goodbye)
            with suppress(TimeoutError):
                await asyncio.wait_for(child.process.wait(), STOP_SECONDS)
            _kill_group(child)
            await child.process.wait()


def _kill_group(child: Child) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.process.pid, signal.SIGKILL)


async def _run(plan: Plan, console: Console) -> None:
    enough = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, enough.set)
    held_folder.remove_left("metrics")  # of a gateway alone: the one below looks in `folder`
    folder = held_folder.make("up")
    try:
        await Up(plan, Narrator(console), folder).run(enough)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what cleans up after days may have had it


def run(plan: Plan, console: Console) -> None:
    """Start everything and stay until SIGINT, SIGTERM or SIGHUP; UpError when it could not start."""
    asyncio.run(_run(plan, console))


def example(model: ModelState) -> tuple[str, dict[str, Any]]:
    """A path and a body to begin with, for what the model can do."""
    if model.completion and not model.chat:  # it goes on with a text, and knows no turns
        return "/v1/completions", {"model": model.id, "prompt": "Three plus four is", "max_tokens": 20}
    if model.completion:
        question = {"role": "user", "content": "What is 3 plus 4?"}
        return "/v1/chat/completions", {"model": model.id, "messages": [question], "max_tokens": 100}
    if model.rerank:
        documents = ["It is 7.", "Paris is in France."]
        return "/v1/rerank", {"model": model.id, "query": "What is 3 plus 4?", "documents": documents}
    return "/v1/embeddings", {"model": model.id, "input": "What is 3 plus 4?"}
