"""Files for a page in a browser, served from this machine and to this machine alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

_TYPES = {".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}


@contextmanager
def serve(places: Mapping[str, Path]) -> Iterator[str]:
    """Serve files while the block runs; the value is the beginning of their addresses.

    Args:
        places: Path of an address -> the file or folder that is served there; nothing else is.
    """

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

        def log_message(self, *arguments: object) -> None:
            pass

    with listen(Handler) as address:
        yield address


@contextmanager
def listen(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """Answer requests with ``handler`` while the block runs; the value is the beginning of the addresses."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _find(places: Mapping[str, Path], address: str) -> Path | None:
    if address in places:
        return places[address]
    folder, _, name = address.rpartition("/")
    place = places.get(folder)
    path = place / name if place is not None and name not in ("", ".", "..") else None
    return path if path is not None and path.is_file() else None
