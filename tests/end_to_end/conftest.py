"""One system for all tests that only talk to it; those that break things start their own."""

import pytest

from tests.end_to_end.harness import Cortex


@pytest.fixture(scope="package")
def cortex(tmp_path_factory):
    """`cortex up` with the demo model and the simulated engine."""
    folder = tmp_path_factory.mktemp("cortex")
    with Cortex(folder, "--model", "demo", "--model", "simulated") as system:
        yield system
