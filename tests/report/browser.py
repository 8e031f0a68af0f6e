"""A headless Chromium driven over its own pipe: no driver, no port, no network."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def executable() -> str | None:
    """Where a Chromium is installed, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One open page, with everything that it logged and all that it asked the network for."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._ids, self._rest, self._session = itertools.count(1), b"", ""
        self.errors: list[str] = []
        self.requests: list[str] = []

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events are kept."""
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._receive], [], [], 60)
            assert ready, "the browser does not answer"
            self._rest += os.read(self._receive, 1 << 20)
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._event(message.get("method", ""), message.get("params", {}))
        return message

    def _event(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(str(params["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def open(self, path: Path, width: int = 1200, height: int = 900) -> None:
        """Open a file and wait until its script is done."""
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        attached = self.command("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")
        self.resize(width, height)
        self.command("Page.navigate", url=path.resolve().as_uri())
        for _ in range(200):
            if self.run("document.documentElement?.dataset?.ready") == "yes":
                return
            time.sleep(0.05)
        raise AssertionError(f"the page never became ready: {self.errors}")

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        """Give the page a window of this size."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )

    def scheme(self, name: str) -> None:
        """Prefer `light` or `dark`."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self.command("Emulation.setEmulatedMedia", features=[feature])

    def run(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.command("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def move(self, x: float, y: float) -> None:
        """Move the pointer."""
        self.command("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path) -> None:
        """Keep what the window shows."""
        answer = self.command("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A browser without window that leaves with the block."""
    binary = executable()
    assert binary is not None
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()

    def connect() -> None:  # the browser reads from 3 and writes to 4
        read, write = os.dup(command_read), os.dup(answer_write)
        os.dup2(read, 3)
        os.dup2(write, 4)

    process = subprocess.Popen(
        [binary, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
        preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(command_read)
    os.close(answer_write)
    try:
        yield Page(command_write, answer_read)
    finally:
        process.terminate()
        process.wait(timeout=20)
        os.close(command_write)
        os.close(answer_read)
