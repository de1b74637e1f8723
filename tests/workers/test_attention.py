"""Every token attends over what it may see, wherever that lies and however the step is cut."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.workers.attention_steps import attend_in_any_cut
from tests.workers.engines import DEVICES
from workers.attention import cpu
from workers.attention.registry import attention_over


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("block_pages", [cpu.BLOCK_PAGES, 2])
@pytest.mark.parametrize(("seed", "kind"), [*enumerate(["plain", "sinks", "latent"])])
def test_steps_of_any_cut_attend_as_whole_sequences_do(device, seed, kind, block_pages, exact, monkeypatch):
    monkeypatch.setattr(cpu, "BLOCK_PAGES", block_pages)
    monkeypatch.setattr(cpu, "BLOCK_SCORES", dict.fromkeys(cpu.BLOCK_SCORES, 1))
    attend_in_any_cut(attention_over, device, seed, kind, exact=exact)


@pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton")
@pytest.mark.parametrize("what", ["attention", "steps"])
def test_what_is_interpreted_computes_what_torch_does(what):
    command = [sys.executable, "-m", f"tests.workers.interpreted_{what}"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
