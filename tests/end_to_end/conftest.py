"""One system for all tests that only talk to it; those that break things start their own."""

import openai
import pytest

from tests.end_to_end.harness import PATIENCE, Cortex


@pytest.fixture(scope="package")
def cortex(tmp_path_factory):
    """`cortex up` with the demo model and the simulated engine."""
    folder = tmp_path_factory.mktemp("cortex")
    with Cortex(folder, "--model", "demo", "--model", "simulated") as system:
        yield system


@pytest.fixture
def sdk(cortex):
    """A client of it that does not ask again by itself."""
    with openai.OpenAI(
        base_url=f"{cortex.base}/v1", api_key="none", timeout=PATIENCE, max_retries=0
    ) as client:
        yield client
