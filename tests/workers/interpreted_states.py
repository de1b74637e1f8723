"""In a process that interprets: states as GPUs compute them, on the CPU."""

from __future__ import annotations

import pytest

from ipc.worker_messages import MemoryUse


def errors() -> list[list[float]]:
    """Of each shape, how far they are from those of torch."""
    from tests.workers import state_steps
    from workers.kernels import gated_delta_chunks_triton

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gated_delta_chunks_triton, "CHUNKS", 3)  # so that sequences are cut by launches, too
        return [state_steps.errors("cpu", shape) for shape in state_steps.SHAPES]


def replayed(folder: str) -> tuple[list[list[int]], list[list[int]], int, int]:
    """What a model answers by steps that are computed as they come and by recorded ones; how many recordings
    there are, and how often they are replayed."""
    from tests.workers.engines import make_runner, request, serve
    from tests.workers.recorded import LIMITS, Recorder, record_launches
    from workers.execution import model_runner

    prompts = [[5, i, 7] * 9 + [i] for i in range(3)]  # which answers soon take into another state
    submits = [
        request(i, each, 7 + 3 * i, temperature=float(i > 1), seed=i) for i, each in enumerate(prompts)
    ]
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder()
        record_launches(patch)
        patch.setattr(model_runner, "graph_device", lambda device: recorder)
        runner = make_runner(folder, **LIMITS)
        runner._measure = lambda weights: MemoryUse(weights=weights)  # two more steps, that take the longest
        runner.load(lambda fraction, message: None)
        found = []
        for runner.graphs.paused in (True, False):
            found.append(serve(runner, submits, **LIMITS))
        runner.close()
    return *found, recorder.captured, recorder.replayed
