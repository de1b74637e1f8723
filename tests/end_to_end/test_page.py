"""The page changes the fleet, and shows what comes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chromium import PROGRAM, Chromium
from tests.end_to_end.harness import Services, wait_until
from tests.neuron.harness import simulated

MODELS = [simulated("one", memory="600MiB"), simulated("two", memory="600MiB")]

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")


def press(page: Chromium, label: str) -> None:
    """A button, once it can be pressed."""
    page.wait(f"document.querySelector('button[aria-label=\"{label}\"]:enabled')?.checkVisibility()")
    page.run(f"document.querySelector('button[aria-label=\"{label}\"]').click()")


def test_models_are_loaded_swapped_pinned_and_unloaded_by_its_buttons(tmp_path: Path) -> None:
    neuron = {"models": MODELS, "only_configured": True, "cpu": {"memory": "1GiB"}, "standby": False}
    with Services(tmp_path, neuron, {}) as system:
        wait_until(system.ready, "the gateway")
        page = Chromium(tmp_path / "chromium")
        try:
            page.size(390, 844)
            page.open(f"{system.base}/")
            press(page, "Load one on beast")
            page.wait("document.getElementById('events').innerText.includes('one on beast: ')")
            wait_until(lambda: system.model("one").status == "ready", "it is loaded")
            press(page, "Load two on beast")  # one has to leave
            page.wait("document.getElementById('events').innerText.includes('unloaded, for another model')")
            press(page, "Pin two on beast")
            wait_until(lambda: system.model("two").pinned, "it is pinned")
            press(page, "Unpin two on beast")
            press(page, "Unload two on beast")
            wait_until(lambda: system.model("two").status == "unloaded", "it is unloaded")
            press(page, "Drain beast")
            page.wait("document.getElementById('events').innerText.includes('beast takes no new work')")
            press(page, "Resume beast")
            page.wait("document.getElementById('events').innerText.includes('beast takes work again')")
            assert page.complaints == []
        finally:
            page.close()
