"""A headless Chromium, spoken to in its DevTools protocol through a pair of pipes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PATIENCE = 150.0  # seconds: for what takes a fraction of one on a quiet machine
PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--remote-debugging-pipe",
)


class Chromium:
    """One browser with one tab.

    Args:
        folder: of its own, for its profile.

    Attributes:
        complaints: of the browser, as of what a policy forbids, and errors that nobody caught.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        here_in, their_out = os.pipe()
        their_in, here_out = os.pipe()
        self._read, self._write = here_in, here_out
        command = [PROGRAM, *_OPTIONS, f"--user-data-dir={folder}", *options, "about:blank"]
        # Chromium reads from descriptor 3 and writes to 4.
        shell = f'exec "$@" 3<&{their_in} 4>&{their_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command],
            pass_fds=(their_in, their_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": str(folder)},
        )
        os.close(their_in)
        os.close(their_out)
        self._rest, self._number, self._session = b"", 0, None
        self._loads = 0  # of pages, that are done
        self.complaints: list[str] = []
        pages = [t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """What the browser answers to a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (reply := self._next()).get("id") != self._number:
            self._note(reply)
        assert "error" not in reply, reply["error"]
        return reply["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._read, 1 << 16)
            assert piece, "the browser has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Page.loadEventFired":
                self._loads += 1
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(params["exceptionDetails"]))
            case "Log.entryAdded" if params["entry"]["source"] != "network":  # such are statuses
                self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def open(self, url: str) -> None:
        """Go there, and wait until the page and its files have come."""
        before = self._loads
        self("Page.navigate", url=url)
        while self._loads == before:
            self._note(self._next())

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str) -> Any:
        """The first true value of an expression."""
        deadline = time.monotonic() + PATIENCE
        while not (value := self.run(script)):
            body = self.run("document.body.innerText")
            assert time.monotonic() < deadline, f"it never came to be: {script}; the page says: {body}"
            time.sleep(0.05)
        return value

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """Look as on a screen of that size, with that taste."""
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, whole: bool = False) -> bytes:
        """A PNG of what is seen; `whole`: of all that can be scrolled to."""
        shot = self("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(shot["data"])

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)
