"""The bytes of one image from an address, with everything about it limited: who is asked, how much, how long.

A program that fetches what it is told can be told to ask the machine it runs on, or its neighbours, for what is meant
for them alone. So only public addresses are asked, at every redirect anew, unless it is said that others may be.
"""

import ipaddress
import socket
import threading
import time
from urllib.parse import urljoin, urlsplit

from medvitlib.data.decode import Unreadable
from medvitlib.data.sources.answers import shown

LIMIT = 64 * 2**20  # bytes
CONNECT_LIMIT, READ_LIMIT, WHOLE_LIMIT = 10.0, 15.0, 60.0  # seconds
REDIRECTS = 3
_BLOCK = 2**16


def is_address(source: object) -> bool:
    """Whether this is meant as an address of the web, not as a path."""
    return isinstance(source, str) and "://" in source


def fetch(url: str, *, allow_private: bool = False) -> bytes:
    """What is at an http(s) address, at most `LIMIT` bytes, within `WHOLE_LIMIT` seconds.

    Args:
        allow_private: ask this machine and private networks, too.

    Raises:
        Unreadable: another scheme, a private address, no answer in time, a refusal, too many redirects or bytes.
    """
    found: list[bytes | Exception] = []

    def ask() -> None:
        try:
            found.append(_fetched(url, allow_private))
        except Exception as error:  # raised below, in the thread that asked
            found.append(error)

    # a server that sends a byte at a time meets no limit of the connection's, so that somebody else watches the clock
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(WHOLE_LIMIT)
    if not found:
        raise Unreadable(f"{shown(url)} took longer than {WHOLE_LIMIT:.0f} s")
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _fetched(url: str, allow_private: bool) -> bytes:
    import requests

    start, asked = time.monotonic(), url
    with requests.Session() as session:
        if not allow_private:
            for scheme in ("http://", "https://"):
                session.mount(scheme, _adapter())
        for _ in range(REDIRECTS + 1):
            _check(asked, allow_private)
            try:
                with session.get(
                    asked, stream=True, allow_redirects=False, timeout=(CONNECT_LIMIT, READ_LIMIT)
                ) as answer:
                    if answer.is_redirect:
                        asked = urljoin(asked, answer.headers["location"])
                        continue
                    if not answer.ok:
                        raise Unreadable(f"{shown(asked)} answered {answer.status_code} {answer.reason}")
                    return _read(answer, asked, start)
            except requests.RequestException as error:
                raise Unreadable(f"{shown(asked)} cannot be fetched ({type(error).__name__})") from None
    raise Unreadable(f"{shown(url)} leads on to other addresses more than {REDIRECTS} times")


def _read(answer, url: str, start: float) -> bytes:
    """The body, counted as it comes: what a server announces need not be so."""
    parts, length = [], 0
    for block in answer.iter_content(_BLOCK):
        parts.append(block)
        length += len(block)
        if length > LIMIT:
            raise Unreadable(f"{shown(url)} is larger than {LIMIT / 2**20:.0f} MB")
        if time.monotonic() - start > WHOLE_LIMIT:
            raise Unreadable(f"{shown(url)} took longer than {WHOLE_LIMIT:.0f} s")
    return b"".join(parts)


def _check(url: str, allow_private: bool) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Unreadable(f"{shown(url)}: only http:// and https:// addresses are fetched")
    if allow_private:
        return
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except (OSError, ValueError, UnicodeError) as error:
        raise Unreadable(f"{shown(url)}: the host has no address ({error})") from None
    for *_, place in found:
        _check_public(place[0], url)


def _check_public(host: str, url: str) -> None:
    address = ipaddress.ip_address(host.split("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    if not (mapped or address).is_global or (mapped or address).is_multicast:
        raise Unreadable(
            f"{shown(url)} is at {host}, on this machine or in a private network: download it yourself, or allow it "
            "(allow_private=True, --allow-private)"
        )


def _adapter():
    """What `requests` connects by: once more the host's address is looked at, before anything is said to it.

    By then the name may mean another host than when it was checked. (A proxy looks names up itself.)
    """
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

    def guarded(pool: type) -> type:
        class Connection(pool.ConnectionCls):
            def connect(self) -> None:
                super().connect()
                _check_public(self.sock.getpeername()[0], f"{pool.scheme}://{self.host}")

        return type("Guarded", (pool,), {"ConnectionCls": Connection})

    adapter = HTTPAdapter()
    pools = {pool.scheme: guarded(pool) for pool in (HTTPConnectionPool, HTTPSConnectionPool)}
    adapter.poolmanager.pool_classes_by_scheme = pools
    return adapter
