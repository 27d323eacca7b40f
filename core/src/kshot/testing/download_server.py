"""A server of this machine for tests of downloads, of the standard library alone."""

from __future__ import annotations

import contextlib
import functools
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class DownloadServer:
    """Store the address of a running server and the requests that it received.

    Attributes:
        url: its address, without a slash at the end.
        asked: the requested paths in their order, each with a slash at its beginning.
    """

    url: str
    asked: list[str] = field(default_factory=list)


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[DownloadServer]:
    """Serve the files of a folder over HTTP on 127.0.0.1 until the block ends.

    A path that contains ``short`` is answered by a broken connection: 1000 bytes are promised and 10 are sent. A file
    that does not exist is answered by status 404.

    Args:
        folder: the folder that has the files.

    Example:
        >>> import tempfile, urllib.request
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_text("hello")
        ...     with serve(Path(folder)) as server, urllib.request.urlopen(f"{server.url}/a.txt") as answer:
        ...         answer.read(), server.asked
        (b'hello', ['/a.txt'])
    """
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if "short" not in self.path:
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)

        def log_message(self, *_: object) -> None:
            """Print nothing: a test's output is its own."""

    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)  # port 0: any that is free
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield DownloadServer(f"http://127.0.0.1:{server.server_port}", asked)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
