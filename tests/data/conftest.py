"""A server that does as it is told."""

import hashlib
import http.server
import re
import threading
import types

import pytest

from medvitlib.data.sources import download


class Web:
    """Servers on this machine, and answers for them to give."""

    BODY = bytes(range(256)) * 12_000  # 3 MB
    NEW = BODY[::-1]
    PAGE = b"\n<!DOCTYPE html><html><head><title>Sign in to the ward's Wi-Fi</title></head></html>"

    def __init__(self):
        self.servers, self.released = [], threading.Event()

    def serve(self, answer, context=None):
        """Start one that calls `answer(handler, number of the request)`: -> a file's address, the requests so far."""
        seen = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                seen.append(self)
                answer(self, len(seen))

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.handle_error = lambda *args: None  # a client that has seen enough is no news
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        self.servers.append(server)
        return f"http{'s' if context else ''}://127.0.0.1:{server.server_port}/set.zip", seen

    def close(self):
        self.released.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def stall(self):
        """Say nothing more until the test ends."""
        self.released.wait(60)

    @staticmethod
    def digest(content, algorithm="md5"):
        return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}" if algorithm else None

    @staticmethod
    def left(folder):
        """Names of what is in a folder, but for lock files."""
        return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))

    def send(self, handler, body=BODY, code=200, length=None, **headers):
        """An answer; `length` is what the header says, -1 for no such header."""
        handler.send_response(code)
        if length != -1:
            handler.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    def ranged(self, handler, body=BODY, etag='"1"', stop=None):
        """A proper answer to a request for a range; `stop` breaks off after so many bytes."""
        asked = re.match(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start = int(asked[1]) if asked and handler.headers.get("If-Range", etag) == etag else 0
        headers = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        headers |= {"ETag": etag} if etag else {}
        self.send(handler, body[start:][:stop], 206 if start else 200, length=len(body) - start, **headers)


@pytest.fixture
def web(monkeypatch):
    """A `Web`, short limits for downloads, and no proxy or certificates of the machine's."""
    for name, value in {"PAUSE": 0.01, "LONGEST_PAUSE": 0.02, "ATTEMPTS": 3, "RESERVE": 0}.items():
        monkeypatch.setattr(download, name, value)
    for name in [*download.CERTIFICATES, "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"]:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    servers = Web()
    yield servers
    servers.close()


@pytest.fixture
def free_disk(monkeypatch):
    """Say how many bytes the disk has free: (bytes)."""

    def say(count: int) -> None:
        monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=count))

    return say
