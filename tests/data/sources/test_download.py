"""Downloads that go on where they stopped, from a server on this machine."""

import time

import pytest

from medvitlib.data.sources import download as module
from medvitlib.data.sources.download import download
from medvitlib.errors import DataError


def test_a_file_arrives_whole_and_is_not_fetched_again(web, tmp_path):
    url, seen = web.serve(lambda handler, n: web.ranged(handler))
    target = tmp_path / "new" / "set.zip"
    for _ in range(2):
        assert download(url, target, size=len(web.BODY), digest=web.digest(web.BODY)) == target
    assert target.read_bytes() == web.BODY and len(seen) == 1 and web.left(target.parent) == ["set.zip"]


def test_one_that_is_there_but_wrong_is_replaced(web, tmp_path):
    url, _ = web.serve(lambda handler, n: web.ranged(handler))
    (tmp_path / "set.zip").write_bytes(b"old")
    assert download(url, tmp_path / "set.zip", digest=web.digest(web.BODY).upper()).read_bytes() == web.BODY


@pytest.mark.parametrize("known", ["size", "digest", ""])
def test_a_broken_connection_is_taken_up_where_it_ended(web, tmp_path, known):
    url, seen = web.serve(lambda handler, n: web.ranged(handler, stop=1_100_000 if n < 3 else None))
    options = {"size": {"size": len(web.BODY)}, "digest": {"digest": web.digest(web.BODY)}}.get(known, {})
    assert download(url, tmp_path / "set.zip", **options).read_bytes() == web.BODY
    assert [handler.headers.get("Range") for handler in seen] == [
        None,
        "bytes=1100000-",
        "bytes=2200000-",
    ]
    assert {handler.headers["If-Range"] for handler in seen[1:]} == {'"1"'}


def test_a_cancelled_download_is_resumed_by_the_next_call(web, tmp_path, monkeypatch):
    url, seen = web.serve(lambda handler, n: web.ranged(handler))

    def cancelled(items, *args, **kwargs):
        next(iter(items))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "track", cancelled)
        download(url, tmp_path / "set.zip")
    had = (tmp_path / ".set.zip.part").stat().st_size
    assert 0 < had < len(web.BODY) and not (tmp_path / "set.zip").exists()
    assert download(url, tmp_path / "set.zip").read_bytes() == web.BODY
    assert seen[1].headers["Range"] == f"bytes={had}-" and web.left(tmp_path) == ["set.zip"]


def test_a_stall_is_noticed_and_the_rest_fetched(web, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STALL_LIMIT", 0.3)

    def answer(handler, n):
        web.ranged(handler, stop=1_500_000 if n == 1 else None)
        if n == 1:
            web.stall()

    url, _ = web.serve(answer)
    assert download(url, tmp_path / "set.zip").read_bytes() == web.BODY


def test_a_server_that_stalls_for_ever_ends_in_an_error(web, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STALL_LIMIT", 0.3)
    url, seen = web.serve(lambda handler, n: (web.ranged(handler, stop=1000), web.stall()))
    with pytest.raises(DataError, match=r"3 attempts: .*[Rr]ead timed out.*\d,000 bytes are kept"):
        download(url, tmp_path / "set.zip")
    assert len(seen) == 3


def test_a_trickle_is_a_stall(web, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STALL_LIMIT", 0.3)

    def answer(handler, n):
        web.ranged(handler, stop=10)
        for _ in range(100):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.05)

    url, _ = web.serve(answer)
    with pytest.raises(DataError, match=r"less than 1000 bytes a second|timed out"):
        download(url, tmp_path / "set.zip")


def test_a_range_that_is_ignored_starts_again_from_the_first_byte(web, tmp_path):
    url, _ = web.serve(
        lambda handler, n: web.send(handler, web.BODY if n > 1 else web.BODY[:10_000], length=len(web.BODY), ETag='"1"')
    )
    assert download(url, tmp_path / "set.zip").read_bytes() == web.BODY


def test_a_range_other_than_the_one_asked_for_is_not_joined(web, tmp_path):
    def answer(handler, n):
        if n == 1:
            web.ranged(handler, stop=10_000)
        elif n == 2:
            web.send(
                handler, web.BODY[500:], 206, Content_Range=f"bytes 500-{len(web.BODY) - 1}/{len(web.BODY)}", ETag='"1"'
            )
        else:
            web.ranged(handler)

    url, _ = web.serve(answer)
    assert download(url, tmp_path / "set.zip").read_bytes() == web.BODY


@pytest.mark.parametrize("algorithm", ["", "sha256"])
def test_two_versions_of_a_file_are_never_joined(web, tmp_path, algorithm):
    def answer(handler, n):
        web.ranged(
            handler, web.BODY if n == 1 else web.NEW, '"1"' if n == 1 else '"2"', stop=10_000 if n == 1 else None
        )

    url, _ = web.serve(answer)
    assert download(url, tmp_path / "set.zip", digest=web.digest(web.NEW, algorithm)).read_bytes() == web.NEW


def test_a_server_that_ignores_if_range_does_not_get_two_versions_joined_either(web, tmp_path):
    def answer(handler, n):
        del handler.headers["If-Range"]
        web.ranged(
            handler, web.BODY if n == 1 else web.NEW, '"1"' if n == 1 else '"2"', stop=10_000 if n == 1 else None
        )

    url, _ = web.serve(answer)
    assert download(url, tmp_path / "set.zip").read_bytes() == web.NEW


@pytest.mark.parametrize(("algorithm", "requests"), [("", 2), ("md5", 3)])
def test_without_a_version_only_a_hash_allows_to_resume(web, tmp_path, algorithm, requests):
    url, seen = web.serve(
        lambda handler, n: web.ranged(handler, web.BODY if n == 1 else web.NEW, None, stop=99 if n == 1 else None)
    )
    assert download(url, tmp_path / "set.zip", digest=web.digest(web.NEW, algorithm)).read_bytes() == web.NEW
    assert len(seen) == requests  # with a hash: broken off, resumed and found to be wrong, fetched again
