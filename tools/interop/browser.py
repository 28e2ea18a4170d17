"""A page in headless Chromium, served from this machine alone, that posts its result back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_TYPES = {".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}


def run_in_chromium(chromium: str, places: Mapping[str, Path], page: str, seconds: float) -> dict:
    """Open ``page`` and return the JSON object that it posts to ``/result``.

    Args:
        chromium: Program.
        places: Address -> the file or folder that is served there; nothing else is.
        page: Address of the page, with its query.
        seconds: How long to wait for it.
    """
    result: dict = {"error": f"no result after {seconds:.0f} s"}
    arrived = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = _find(places, urlsplit(self.path).path)
            if path is None:
                self.send_error(404)
                return
            data = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", _TYPES.get(path.suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            result.clear()
            result.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            arrived.set()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}{page}"
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            command = [chromium, *_FLAGS, f"--user-data-dir={profile}", address]
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            try:
                arrived.wait(seconds)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait(30)
    finally:
        server.shutdown()
        server.server_close()
    return result


def _find(places: Mapping[str, Path], address: str) -> Path | None:
    if address in places:
        return places[address]
    folder, _, name = address.rpartition("/")
    place = places.get(folder)
    path = place / name if place is not None and name not in ("", ".", "..") else None
    return path if path is not None and path.is_file() else None
