"""One file from a server: resumed, verified, moved into place when whole; a failure is one message, in bounded time.

What has come so far lies beside the target as `.NAME.part`, with the server's mark of that version (ETag or date) in
`.NAME.part.json`, so that a resumed file is never made of two versions. Proxies (`HTTPS_PROXY`, `NO_PROXY`) and own
certificates (`REQUESTS_CA_BUNDLE`, `SSL_CERT_FILE`) are taken from the environment.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from medvitlib.data.sources.answers import Broken, check_status, reason, refuse_page, shown, version_of
from medvitlib.errors import DataError
from medvitlib.progress import track

ATTEMPTS = 5  # in a row that bring less than a megabyte
CONNECT_LIMIT = 15.0  # seconds until a server must have answered
STALL_LIMIT = 30.0  # seconds without data, or with less than SLOWEST bytes a second
SLOWEST = 1000
PAUSE = 1.0  # seconds before the second attempt; doubled each time
LONGEST_PAUSE = 30.0  # seconds, also where a server asks for more
LOCK_LIMIT = 3600.0  # seconds to wait for another process that fetches the same file
REDIRECTS = 10
CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
"""Variables that name a file of certificates, the first that is set being used."""
UNANNOUNCED_LIMIT = 20 * 10**9  # bytes accepted where neither caller nor server says how many there are
RESERVE = 200 * 10**6  # bytes of disk that are left free
_BLOCK = 2**18
_MB = 2**20


def download(
    url: str, target: Path, *, size: int | None = None, digest: str | None = None, description: str = ""
) -> Path:
    """Fetch `url` into the file `target`, unless it is there; progress is shown.

    Cancelled (Ctrl-C) or broken off, the next call goes on where this one stopped.

    Args:
        size: bytes the file must have.
        digest: hash it must have, "md5:..." or "sha256:..."; one that is there already is held to both.
        description: what the progress line calls it.

    Raises:
        DataError: no answer, a refusal, a web page instead of the file, another size or hash than expected, no room.
    """
    target, algorithm, wanted = Path(target), *_parse(digest)
    if not shown(url).startswith(("http://", "https://")):
        raise DataError(f"{url!r}: expected the address of a file, that starts with https:// or http://.")
    if _holds(target, size, algorithm, wanted):
        return target
    for name in CERTIFICATES:
        if os.environ.get(name) and not os.path.exists(os.environ[name]):
            raise DataError(f"{name} names {os.environ[name]}, which does not exist: correct or unset it.")
    from filelock import FileLock, Timeout

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock"), timeout=LOCK_LIMIT):
            if not _holds(target, size, algorithm, wanted):  # another process may have finished meanwhile
                part = _Part(url, target, size, bool(digest))
                try:
                    _verified(part, description or target.name, algorithm, wanted)
                finally:
                    if not part.length():
                        part.drop()
                os.replace(part.path, target)
                part.mark.unlink(missing_ok=True)
    except Timeout:
        raise DataError(f"another process has been fetching {target} for {LOCK_LIMIT / 60:.0f} minutes.") from None
    except OSError as error:
        raise DataError(
            f"{target} cannot be written: {error.strerror or error}. Free some space, or choose another folder "
            f"(MEDVIT_CACHE names the one for downloads)."
        ) from error
    return target


def check_room(what: str, folder: Path, needed: int) -> None:
    """Raise DataError unless a folder, which need not exist yet, has `needed` bytes and a reserve free."""
    free = shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if os.path.exists(p))).free
    if free < needed + RESERVE:
        raise DataError(
            f"{what} needs {needed / 1e6:,.0f} MB more in {folder}, which has {free / 1e6:,.0f} MB free "
            f"({RESERVE / 1e6:.0f} MB are left alone). Free some, or choose another folder (MEDVIT_CACHE)."
        )


def _parse(digest: str | None) -> tuple[str, str]:
    algorithm, _, wanted = (digest or "").lower().partition(":")
    if digest is not None and not re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", digest.lower()):
        raise DataError(f"digest={digest!r}: expected 'md5:' and 32 or 'sha256:' and 64 hexadecimal digits.")
    return algorithm, wanted


def _hash(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _holds(path: Path, size: int | None, algorithm: str, wanted: str) -> bool:
    """Whether the file is there, as it should be."""
    if not path.is_file() or (size is not None and path.stat().st_size != size):
        return False
    return not wanted or _hash(path, algorithm) == wanted


class _Part:
    """The part of a file that has come so far.

    Args:
        hashed: whether a hash will tell if parts of two versions were joined.
    """

    def __init__(self, url: str, target: Path, size: int | None, hashed: bool):
        self.url, self.target, self.size, self.hashed = url, target, size, hashed
        self.path = target.with_name(f".{target.name}.part")
        self.mark = target.with_name(f".{target.name}.part.json")
        self.shown = shown(url)
        self.joined = False  # of the answers to several requests

    def length(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def validator(self) -> str:
        """The server's mark of the version that the part was taken from, "" where there is none."""
        with suppress(OSError, ValueError, AttributeError):
            saved = json.loads(self.mark.read_text())
            return str(saved.get("version", "")) if saved.get("url") == self.shown else ""
        return ""

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self.mark.unlink(missing_ok=True)


def _verified(part: _Part, description: str, algorithm: str, wanted: str) -> None:
    """Fetch the part to its end and compare hashes; a resumed one that is wrong is fetched again from its start."""
    for _ in range(2):
        part.joined = False
        total = max(1, part.size >> 20) if part.size else None
        for _ in track(_megabytes(part), f"fetching {description}", total=total, unit="MB"):
            pass
        if not wanted or (found := _hash(part.path, algorithm)) == wanted:
            return
        part.drop()
        if not part.joined:
            break
    raise DataError(
        f"{part.shown} is not the expected file: {algorithm} {found}, expected {wanted}. It was deleted. Try again; "
        f"if it stays so, the file was changed by its owner or on the way here: do not use it."
    )


def _megabytes(part: _Part) -> Iterator[int]:
    """Attempts until the file is whole; yields each megabyte when it is reached for the first time."""
    import requests
    from urllib3.exceptions import HTTPError

    reached, failures, pause = 0, 0, PAUSE
    while True:
        before = part.length()
        try:
            with requests.Session() as session:
                session.max_redirects = REDIRECTS
                session.verify = (
                    os.environ.get("SSL_CERT_FILE") or True
                )  # requests itself looks at the other two, first
                for length in _attempt(session, part):
                    yield from range(reached, length >> 20)
                    reached = max(reached, length >> 20)
            return
        except requests.exceptions.SSLError as error:
            raise DataError(
                f"{part.shown}: its certificate is not accepted ({reason(error)}). Behind a company's proxy, set "
                f"REQUESTS_CA_BUNDLE or SSL_CERT_FILE to the file with the company's certificates."
            ) from error
        except (requests.TooManyRedirects, requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
            raise DataError(f"{part.shown}: {reason(error)}. Open the address in a browser to see why.") from error
        except (Broken, requests.RequestException, HTTPError, HTTPException, ConnectionError, TimeoutError) as error:
            failures = 1 if part.length() - before >= _MB else failures + 1
            pause = PAUSE if failures == 1 else min(2 * pause, LONGEST_PAUSE)
            if failures >= ATTEMPTS:
                have = f"{part.length():,} bytes are kept, and the next call goes on from there" * bool(part.length())
                raise DataError(
                    f"{part.shown} could not be fetched in {ATTEMPTS} attempts: {reason(error)}. Check the network "
                    f"and, behind a proxy, HTTPS_PROXY and NO_PROXY; then try again{'; ' * bool(have)}{have}."
                ) from error
            time.sleep(min(max(pause, getattr(error, "wait", 0.0)), LONGEST_PAUSE))


def _attempt(session, part: _Part) -> Iterator[int]:
    """One request; yields the length of the part as it grows, and ends when the file is whole."""
    have, version = part.length(), part.validator()
    if have and (not (version or part.hashed) or (part.size is not None and have > part.size)):
        part.drop()  # nothing would tell whether the rest belongs to it
        have = 0
    if have and have == part.size:
        return
    headers = {"Accept-Encoding": "identity"}  # a range of a compressed answer would be of other bytes
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": version} if version else {})
    with session.get(part.url, headers=headers, stream=True, timeout=(CONNECT_LIMIT, STALL_LIMIT)) as answer:
        if answer.status_code == 416:
            part.drop()
            raise Broken("the server has no more bytes than those that came, and they are not the whole file")
        check_status(answer, part.shown)
        # Range, and even If-Range, may be ignored: what follows belongs to the part only if all of this holds
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
        going_on = answer.status_code == 206 and span and int(span[1]) == have
        if answer.status_code == 206 and (not going_on or (version and version_of(answer) not in ("", version))):
            part.drop()
            raise Broken("the server sent another range than asked for, or of a file that has changed")
        if answer.status_code == 206:
            total, part.joined = int(span[2]) if span[2] != "*" else None, True
        else:
            have, announced = 0, answer.headers.get("Content-Length", "")
            total = int(announced) if announced.isdigit() else None
        if total is not None and part.size is not None and total != part.size:
            refuse_page(answer, answer.raw.read(_BLOCK, decode_content=False), part.shown, part.target)
            part.drop()
            raise DataError(
                f"{part.shown} has {total:,} bytes, expected {part.size:,}: it is another file, or was changed by its "
                f"owner. Nothing was kept. Look at the address in a browser."
            )
        check_room(part.shown, part.target.parent, (part.size or total or 0) - have)
        if not have:
            part.drop()  # first, so that no old bytes are ever beside a new mark
            part.mark.write_text(json.dumps({"url": part.shown, "version": version_of(answer)}))
        yield from _receive(answer, part, have, part.size if total is None else total)


def _receive(answer, part: _Part, have: int, total: int | None) -> Iterator[int]:
    read = getattr(answer.raw, "read1", answer.raw.read)  # urllib3 1 has no read1: it waits for a whole block
    since, brought = time.monotonic(), 0
    with part.path.open("ab" if have else "wb") as file:
        while block := read(_BLOCK, decode_content=False):
            if not have:
                refuse_page(answer, block, part.shown, part.target)
            have, brought = have + len(block), brought + len(block)
            if have > (UNANNOUNCED_LIMIT if total is None else total):
                part.drop()
                raise DataError(
                    f"{part.shown} sends more than the {total or UNANNOUNCED_LIMIT:,} bytes expected; it was broken "
                    f"off and nothing kept. Look at the address in a browser."
                )
            if have >> 26 != (have - len(block)) >> 26:  # every 64 MB
                check_room(part.shown, part.target.parent, 0)
            file.write(block)
            file.flush()
            yield have
            if (passed := time.monotonic() - since) > STALL_LIMIT:
                if brought < SLOWEST * passed:
                    raise Broken(f"less than {SLOWEST} bytes a second came")
                since, brought = time.monotonic(), 0
    if have == 0 or (total is not None and have < total):
        raise Broken(f"the connection ended after {have:,} of {'?' if total is None else f'{total:,}'} bytes")
