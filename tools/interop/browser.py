"""Headless Chromium through chromedriver's plain HTTP interface: no package, no network beyond this machine."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import FailedRuntimeError, MissingRuntimeError

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
_SECONDS = 120


def find_programs() -> tuple[str, str]:
    """Paths of chromium and chromedriver."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise MissingRuntimeError("chromium and chromedriver are missing: apt-get install chromium chromium-driver")
    return chromium, driver


class Browser:
    """A session of its own; a context manager.

    Args:
        profile: Folder for the profile, fresh or empty.
        width: Of the page, as on a phone of that width; the browser's own when None.
        height: Of the page, with ``width``.
        dark: Whether the page is told that dark colours are preferred.
    """

    def __init__(self, profile: Path, width: int | None = None, height: int = 800, dark: bool = False) -> None:
        chromium, driver = find_programs()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._until(lambda: self._call("GET", "/status")["ready"], 30, "chromedriver did not start")
            self._begin(_capabilities(chromium, profile, width, height), dark)
        except BaseException:
            self._process.terminate()
            raise

    def _begin(self, capabilities: dict[str, Any], dark: bool) -> None:
        made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._session = f"/session/{made['sessionId']}"
        self.open("about:blank")
        for kind in ("browser", "performance"):
            self.log(kind)  # what the browser's own start page did
        if dark:
            scheme = [{"name": "prefers-color-scheme", "value": "dark"}]
            self.devtools("Emulation.setEmulatedMedia", {"features": scheme})

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("DELETE", self._session)
        finally:
            self._process.terminate()
            self._process.wait(20)

    @staticmethod
    def _until(found: Callable[[], Any], seconds: float, otherwise: str) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                value = found()
                if value:
                    return value
            time.sleep(0.1)
        raise FailedRuntimeError(otherwise)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path | str) -> None:
        """Load a file or an address and wait until it is complete."""
        url = page.resolve().as_uri() if isinstance(page, Path) else page
        self._call("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str) -> Any:
        """The value that JavaScript returns."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": []})

    def wait_for(self, script: str, seconds: float) -> Any:
        """The value that JavaScript returns, as soon as it is true."""
        return self._until(lambda: self.run(script), seconds, f"no result after {seconds:.0f} s")

    def log(self, kind: str) -> list[dict[str, Any]]:
        """Entries of the ``browser`` (console) or ``performance`` (network) log since the last call."""
        return self._call("POST", f"{self._session}/se/log", {"type": kind})

    def requests(self) -> list[str]:
        """Addresses that were asked for, since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
        return [entry["request"]["url"] for entry in sent]

    def devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        """Run a command of the DevTools protocol."""
        return self._call("POST", f"{self._session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        made = self.devtools("Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"})
        path.write_bytes(base64.b64decode(made["data"]))

    def pdf(self) -> bytes:
        """The page as it prints."""
        return base64.b64decode(self._call("POST", f"{self._session}/print", {"background": False}))


def _capabilities(chromium: str, profile: Path, width: int | None, height: int) -> dict[str, Any]:
    options: dict[str, Any] = {"binary": chromium, "args": [*FLAGS, f"--user-data-dir={profile}"]}
    if width is not None:
        options["mobileEmulation"] = {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 1}}
    return {
        "browserName": "chrome",
        "goog:chromeOptions": options,
        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
    }
