"""Addresses: what is fetched, what is not, and how much; against a server of this machine."""

import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from medvitlib.data import remote
from medvitlib.data.decode import Unreadable


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/image":
            self.answer(200, b"x" * 1000)
        elif self.path == "/large":
            self.answer(200, b"x" * 5000)
        elif self.path == "/round":
            self.answer(302, b"", Location="/round")
        elif self.path == "/on":
            self.answer(302, b"", Location="/image")
        elif self.path == "/file":
            self.answer(302, b"", Location="file:///etc/passwd")
        else:
            self.answer(404, b"")

    def answer(self, code: int, body: bytes, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_an_image_comes_also_where_it_has_moved(server):
    assert remote.fetch(f"{server}/image", allow_private=True) == b"x" * 1000
    assert remote.fetch(f"{server}/on", allow_private=True) == b"x" * 1000


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x",
        "http://localhost:80/x",
        "http://10.0.0.1/x",
        "http://192.168.1.1/x",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/x",
        "http://[::ffff:127.0.0.1]/x",
        "http://0.0.0.0/x",
    ],
)
def test_this_machine_and_its_neighbours_are_not_asked(url):
    with pytest.raises(Unreadable, match=r"private network.*--allow-private"):
        remote.fetch(url)


def test_what_is_not_fetched_is_said(server, monkeypatch):
    monkeypatch.setattr(remote, "LIMIT", 2000)
    for path, words in (
        ("/large", "larger than"),
        ("/round", "leads on to other addresses more than 3 times"),
        ("/file", "only http:// and https://"),
        ("/none", "answered 404"),
    ):
        with pytest.raises(Unreadable, match=words):
            remote.fetch(server + path, allow_private=True)
    for url in ("file:///etc/passwd", "ftp://example.org/x", "https://"):
        with pytest.raises(Unreadable, match="only http:// and https://"):
            remote.fetch(url)
    with pytest.raises(Unreadable, match="cannot be fetched"):
        remote.fetch("http://127.0.0.1:1/x", allow_private=True)


def test_a_name_that_means_another_host_when_it_is_asked_is_refused(server, monkeypatch):
    monkeypatch.setattr(remote, "_check", lambda url, allow: None)  # as if it had been public a moment ago
    with pytest.raises(Unreadable, match="private network"):
        remote.fetch(f"{server}/image")


@pytest.mark.parametrize("slow", ["head", "body"])
def test_a_server_that_sends_a_byte_at_a_time_is_given_one_deadline(monkeypatch, slow):
    monkeypatch.setattr(remote, "WHOLE_LIMIT", 0.5)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"

    def serve(listener):
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.recv(1000)
            connection.sendall(head if slow == "body" else b"")
            for byte in (head + bytes(500)) if slow == "head" else bytes(500):
                connection.sendall(bytes([byte]))
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        start = time.monotonic()
        with pytest.raises(Unreadable, match=r"took longer than"):
            remote.fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/a.png", allow_private=True)
        assert time.monotonic() - start < 5
