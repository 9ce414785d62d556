"""What a server's answer means: to be taken, to be asked for again, or to be refused with a reason."""

import re
from pathlib import Path
from urllib.parse import urlsplit

from medvitlib.errors import DataError


class Broken(Exception):
    """What another attempt may put right."""

    wait = 0.0  # seconds the server asks for


def check_status(answer, address: str) -> None:
    """Pass what brings bytes; raise Broken for what may be better later, DataError for what will not."""
    code = answer.status_code
    if code in (200, 206):
        return
    if code in (408, 425, 429) or code >= 500:
        broken = Broken(f"the server answered {code} {answer.reason}")
        asked = answer.headers.get("Retry-After", "")
        broken.wait = float(asked) if asked.isdigit() else 0.0
        raise broken
    advice = {401: "it asks for a login", 403: "it asks for a login, or for its terms to be accepted"}
    advice |= {407: "the proxy asks for a login (HTTPS_PROXY=http://user:password@host:port)"}
    advice |= {404: "there is no such file (any more)", 410: "there is no such file (any more)"}
    why = advice.get(code, "it does not give the file out")
    raise DataError(f"{address} answered {code} {answer.reason}: {why}. Open it in a browser to see more.")


def refuse_page(answer, start: bytes, address: str, target: Path) -> None:
    """A login or a captive portal answers any address with a page, and with status 200."""
    kind = answer.headers.get("Content-Type", "").lower()
    page = re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html)", start, re.IGNORECASE) or kind.startswith("text/html")
    if page and target.suffix.lower() not in (".html", ".htm"):
        title = re.search(rb"<title[^>]*>\s*([^<]{1,80})", start, re.IGNORECASE)
        name = f" ({title[1].decode('utf-8', 'replace').strip()!r})" if title else ""
        at = "" if shown(answer.url) == address else f" at {shown(answer.url)}"
        raise DataError(
            f"{address} answered with a web page{name}{at} instead of the file: a login, or a network that must be "
            f"signed in to. Open it in a browser, download it there, and put it at {target}."
        )


def version_of(answer) -> str:
    """A mark that changes with the file: a strong ETag, else the date; a weak one says nothing about bytes."""
    etag = answer.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified", "")


def shown(url: str) -> str:
    """An address for a message: without passwords and tokens; "" where it is none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def reason(error: BaseException) -> str:
    """The innermost of the errors that network libraries wrap in each other, in a line."""
    while inner := getattr(error, "reason", None) or next((a for a in error.args if isinstance(a, Exception)), None):
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = re.sub(r"^<[^>]*>:? ?|^\w+\([^)]*\): ", "", str(error)).splitlines() or [""]
    return text[0].rstrip(".") or type(error).__name__
