"""The neuron as a process: put together, served until a signal, taken apart within bounds."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
from pathlib import Path

import uvloop

from ipc.errors import CortexError
from ipc.notify import sd_notify
from ipc.responsive import stay_responsive
from ipc.server import Server
from ipc.structs import learn_structs
from ipc.version import version
from neuron.config import NeuronConfig
from neuron.keys import read_keys
from neuron.memory.devices import Inventory
from neuron.models.manager import ModelManager
from neuron.preparation.preparation import Preparation
from neuron.processes.backoff import Backoff
from neuron.recent_log import RecentLog
from neuron.reload import Reload
from neuron.service import Service
from neuron.trace import log_to_stderr

log = logging.getLogger("neuron.daemon")

GRACE_SECONDS = 1.0  # for running requests, after a signal
FAREWELL_SECONDS = 0.05  # for the last replies to be read
STOP_SECONDS = 4.5  # for everything, after a signal


def run(config: NeuronConfig, path: str | Path | None = None, backoff: Backoff | None = None) -> int:
    """Serve until SIGTERM or SIGINT, or until the terminal closes that it was started from.

    Args:
        path: the file that `config` was read from, to be read again when it changes, and at SIGHUP.

    Returns:
        The exit code: 0, or 1 when the neuron could not start, of which one line tells.
    """
    faulthandler.enable()
    log_to_stderr(config.log_level, config.log_format)
    learn_structs()
    stay_responsive()
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(serve(config, path, backoff))
    except (CortexError, OSError) as error:
        log.error("neuron cannot start reason=%s", error)
        return 1
    return 0


async def serve(config: NeuronConfig, path: str | Path | None = None, backoff: Backoff | None = None) -> None:
    """Start all parts, wait for a signal, and end them. The arguments are those of `run`.

    Raises:
        OSError: the port is in use.
        ConfigError: a key cannot be read, a device is not here, or the listener would be open to other hosts
            without keys.
    """
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, stopping)
    at_terminal = os.isatty(0)  # which closes with this signal
    loop.add_signal_handler(signal.SIGHUP, *((_stop, stopping) if at_terminal else (_nothing_to_read,)))
    secret, allowed = read_keys(config, path or "")
    inventory = Inventory(config)
    if inventory.cuda_unavailable:
        log.warning("a GPU is not used reason=%s", inventory.cuda_unavailable)
    preparation = Preparation(config.log_level)
    models = ModelManager(config, inventory, lambda now=False: service.changed(now), preparation, backoff)
    service = Service(config, version(), models, preparation, RecentLog.of_this_process())
    server = Server(
        config.listen,
        service.handle,
        service.on_gone,
        secret=secret,
        allowed=allowed,
        insecure=config.insecure,
    )
    reload = Reload(config, path, models.finder.configure) if path is not None else None
    if reload is not None and not at_terminal:
        loop.add_signal_handler(signal.SIGHUP, reload.at_once)
    server.start()  # before any model is loaded: who waits for one shall see how it goes
    log.info(
        "neuron listens name=%s endpoint=%s devices=%s",
        config.name,
        server.endpoint,
        ",".join(device.id for device in inventory.devices),
    )
    sd_notify("READY=1")
    starting = asyncio.create_task(models.start())
    starting.add_done_callback(_report)
    await stopping.wait()
    sd_notify("STOPPING=1")
    log.info("neuron stops name=%s", config.name)
    starting.cancel()
    if reload is not None:
        reload.close()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await service.close(GRACE_SECONDS)
            await models.close()
            await preparation.close()
            # A socket closed over unread data resets the connection, and the last replies would be lost.
            await asyncio.sleep(FAREWELL_SECONDS)
            server.close()
    except TimeoutError:
        log.error("neuron did not stop in time; the kernel ends its workers seconds=%g", STOP_SECONDS)


def _report(starting: asyncio.Task[None]) -> None:
    """A fault while models are looked for is no reason to end, and none to be silent."""
    if not starting.cancelled() and (error := starting.exception()) is not None:
        log.error("models cannot be looked for", exc_info=error)


def _nothing_to_read() -> None:
    log.warning("SIGHUP changes nothing: there is no configuration file, or it has just been read")


def _stop(stopping: asyncio.Event) -> None:
    """The first signal asks, the second one does not wait: workers die with this process."""
    if stopping.is_set():
        os._exit(1)
    stopping.set()
