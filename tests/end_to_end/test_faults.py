"""What dies under `cortex up` is told to whom it concerns, and is there again without anybody's help.

The simulated engine dies as the real one does, and starts in a tenth of the time: the demo model is there
where streams of two models run, and where it matters what a process with PyTorch leaves behind.
"""

import os
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from tests.end_to_end.harness import PATIENCE, Cortex, wait_until

MODELS = ["demo", "simulated"]
SHARED_MEMORY = Path("/dev/shm")


def up(folder: Path, *models: str) -> Cortex:
    return Cortex(folder, *(option for model in models for option in ("--model", model)))


@pytest.fixture(scope="module")
def cortex(tmp_path_factory):
    with up(tmp_path_factory.mktemp("faults"), *MODELS) as system:
        yield system


def long_stream(cortex, model):
    """A stream that is work for seconds; of the demo model, it fills the context."""
    return cortex.stream(2000, model, ignore_eos=True) if model == "demo" else cortex.stream(model=model)


def listed(cortex):
    """Ids of the models that the gateway offers."""
    response = httpx.get(f"{cortex.base}/v1/models", timeout=PATIENCE)
    assert response.status_code == 200, response.text
    return [model["id"] for model in response.json()["data"]]


def test_a_killed_worker_costs_the_streams_of_its_model_a_pause_and_others_nothing(cortex):
    paused, goes_on = cortex.stream(300, "demo", ignore_eos=True), long_stream(cortex, "simulated")
    before = {model: cortex.workers(model) for model in MODELS}
    os.kill(before["demo"][0], signal.SIGKILL)
    assert (paused.join().errors, paused.broken, paused.complete) == ([], False, True)
    for model in MODELS:
        assert cortex.chat(model=model).status_code == 200
    seen = len(goes_on.events)
    wait_until(lambda: goes_on.complete or len(goes_on.events) > seen, "the other model's stream to go on")
    goes_on.leave()
    assert (goes_on.errors, goes_on.broken) == ([], False)
    assert [model for model in MODELS if cortex.workers(model) != before[model]] == ["demo"]


def test_streams_of_a_killed_neuron_go_on_when_it_is_back(cortex):
    streams = [long_stream(cortex, "demo"), long_stream(cortex, "simulated")]
    gateway = cortex.family("gunicorn")
    daemon = cortex.family("neuron")[0]
    workers = daemon.children()
    cortex.process.send_signal(signal.SIGSTOP)  # or the neuron might be there again before we have looked
    try:
        daemon.kill()
        wait_until(lambda: listed(cortex) == [], "the loss to be seen")
        seen = [len(stream.events) for stream in streams]
        assert psutil.wait_procs(workers, PATIENCE)[1] == []
    finally:
        cortex.process.send_signal(signal.SIGCONT)
    wait_until(lambda: listed(cortex) == MODELS, "the neuron to be back with all of its models")
    for model in MODELS:
        assert cortex.chat(model=model).status_code == 200
    for stream, before in zip(streams, seen, strict=True):
        wait_until(partial(has_gone_on, stream, before), "a stream to go on, or to end")
        stream.leave()
        # What starts more slowly than streams wait is told of as a neuron that does not start.
        assert {error["code"] for error in stream.errors} <= {"neuron_lost"}
        assert not stream.broken
    assert cortex.said(r"the neuron ended \(SIGKILL\) and is started again")
    assert cortex.family("gunicorn") == gateway


def has_gone_on(stream, before):
    return stream.errors or stream.complete or len(stream.events) > before


def test_a_killed_gateway_process_is_replaced_and_what_it_asked_for_cancelled(cortex):
    before = cortex.quiet("demo").cancelled  # what other tests left has ended, too
    stream = long_stream(cortex, "demo")
    master, process = cortex.family("gunicorn")
    process.kill()
    process.wait(PATIENCE)
    for model in MODELS:
        assert cortex.chat(model=model).status_code == 200
    assert (stream.join().broken, stream.complete) == (True, False)
    assert cortex.quiet("demo").cancelled == before + 1
    assert cortex.family("gunicorn")[0] == master


def test_a_killed_gateway_is_started_again(cortex):
    daemon = cortex.family("neuron")[0]
    stream = long_stream(cortex, "demo")
    gateway = cortex.family("gunicorn")
    gateway[0].kill()
    for model in MODELS:
        cortex.serves_again(model)
    assert (stream.join().broken, stream.complete) == (True, False)
    assert psutil.wait_procs(gateway, PATIENCE)[1] == []
    assert cortex.family("neuron")[0] == daemon


def while_it_starts(cortex):
    cortex.wait_for("loading demo")


def while_streams_run(cortex):
    with_streams(cortex)


def just_after_a_worker_died(cortex):
    with_streams(cortex)
    os.kill(cortex.workers("simulated")[0], signal.SIGKILL)


def just_after_the_neuron_died(cortex):
    cortex.is_up()
    cortex.family("neuron")[0].kill()
    cortex.wait_for("the neuron ended")


def with_streams(cortex):
    """One of each model, which has a response that is kept."""
    cortex.is_up()
    models = listed(cortex)
    for model in models:
        answer = cortex.post("/v1/responses", model=model, input="Hello!", max_output_tokens=2)
        assert answer.status_code == 200
    return [long_stream(cortex, model) for model in models]


@pytest.mark.parametrize(
    ("moment", "models"),
    [
        (while_it_starts, ["demo"]),
        (while_streams_run, MODELS),
        (just_after_a_worker_died, ["simulated"]),
        (just_after_the_neuron_died, ["simulated"]),
    ],
)
def test_ctrl_c_leaves_nothing(tmp_path, moment, models):
    before = set(SHARED_MEMORY.iterdir())
    for kind in ("up", "metrics"):  # of processes that are dead
        (tmp_path / "tmp" / f"cortex-{kind}-of-1-left").mkdir(parents=True)
    cortex = up(tmp_path, *models)
    try:
        moment(cortex)
        code = cortex.end(signal.SIGINT)
    finally:
        cortex.__exit__()
    assert code == 0, cortex.everything()
    assert cortex.kin() == []
    assert list(cortex.tmp.iterdir()) == []
    assert orphans(set(SHARED_MEMORY.iterdir()) - before) == set()


def orphans(files):
    """Those that no process has mapped; what else appeared meanwhile belongs to somebody who lives."""
    for process in psutil.process_iter() if files else ():
        with suppress(psutil.Error):
            files = files - {Path(part.path) for part in process.memory_maps()}
    return files


def test_nothing_outlives_a_killed_cortex_up(tmp_path):
    with up(tmp_path, "demo") as cortex:
        long_stream(cortex, "demo")
        family = cortex.kin()
        cortex.process.kill()
        assert psutil.wait_procs(family, PATIENCE)[1] == []
        assert cortex.kin() == []
