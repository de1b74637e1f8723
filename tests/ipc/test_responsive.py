"""A process with an event loop does not walk through its modules in search of garbage; threads make way."""

import subprocess
import sys

import pytest

CODE = """
import gc, os, sys
{makes}
# All that stands in modules is out of reach of a look, and no default counts any more.
assert gc.get_freeze_count() > 10_000, gc.get_freeze_count()
assert gc.get_threshold()[0] >= 10_000 and gc.isenabled()
assert sys.getswitchinterval() <= 0.001
os._exit(0)
"""
MAKES = {
    "by itself": "from ipc.responsive import stay_responsive; import asyncio; stay_responsive()",
    "gateway": "import gateway; gateway.app",
    "neuron": (
        "from neuron import daemon; from neuron.config import NeuronConfig; "
        "serve = lambda *_: (_ for _ in ()).throw(OSError('enough')); "
        "daemon.serve = serve; daemon.run(NeuronConfig())"
    ),
}


@pytest.mark.parametrize("process", MAKES)
def test_a_process_with_a_loop_has_its_modules_out_of_the_way(process: str) -> None:
    subprocess.run([sys.executable, "-c", CODE.format(makes=MAKES[process])], check=True, timeout=150)
