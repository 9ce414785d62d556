"""What a server must not be allowed to do, and what a user is told of it."""

import pytest

from medvitlib.data.sources import download as module
from medvitlib.data.sources.download import download
from medvitlib.errors import DataError


def test_a_length_that_is_never_reached_ends_in_an_error(web, tmp_path):
    url, seen = web.serve(lambda handler, n: web.send(handler, web.BODY, length=len(web.BODY) + 9))
    with pytest.raises(DataError, match=r"3 attempts: .*(ended after 3,072,000 of 3,072,009|IncompleteRead)"):
        download(url, tmp_path / "set.zip")
    assert len(seen) == 3 and not (tmp_path / "set.zip").exists()


def test_a_length_other_than_the_known_one_is_refused_at_once(web, tmp_path):
    url, seen = web.serve(lambda handler, n: web.ranged(handler))
    with pytest.raises(DataError, match="has 3,072,000 bytes, expected 5"):
        download(url, tmp_path / "set.zip", size=5)
    assert len(seen) == 1 and web.left(tmp_path) == []


@pytest.mark.parametrize("known", [{"size": 1_000_000}, {}])
def test_endless_data_is_broken_off(web, tmp_path, monkeypatch, known):
    monkeypatch.setattr(module, "UNANNOUNCED_LIMIT", 1_000_000)

    def answer(handler, n):
        web.send(handler, length=-1)
        try:
            while True:
                handler.wfile.write(web.BODY)
        except OSError:
            pass

    url, seen = web.serve(answer)
    with pytest.raises(DataError, match="sends more than the 1,000,000 bytes expected"):
        download(url, tmp_path / "set.zip", **known)
    assert len(seen) == 1 and web.left(tmp_path) == []


def test_chunks_that_end_early_are_no_file(web, tmp_path):
    def answer(handler, n):
        handler.protocol_version = "HTTP/1.1"
        handler.close_connection = True
        web.send(handler, b"a\r\n0123456789\r\nff\r\nbroken", length=-1, Transfer_Encoding="chunked")

    url, _ = web.serve(answer)
    with pytest.raises(DataError, match="3 attempts"):
        download(url, tmp_path / "set.zip")
    assert not (tmp_path / "set.zip").exists()


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/zip"])
@pytest.mark.parametrize("size", [None, 3_072_000])
def test_a_login_page_is_recognised(web, tmp_path, kind, size):
    url, seen = web.serve(lambda handler, n: web.send(handler, web.PAGE, Content_Type=kind))
    with pytest.raises(DataError, match=r"web page \(\"Sign in to the ward's Wi-Fi\"\).*browser.*set\.zip"):
        download(url, tmp_path / "set.zip", size=size)
    assert len(seen) == 1 and web.left(tmp_path) == []


def test_a_login_elsewhere_is_named(web, tmp_path):
    login, _ = web.serve(lambda handler, n: web.send(handler, web.PAGE, Content_Type="text/html"))
    url, _ = web.serve(
        lambda handler, n: web.send(handler, b"", 302, Location=login.replace("set.zip", "login?token=secret"))
    )
    with pytest.raises(DataError, match="/login instead of") as caught:
        download(url, tmp_path / "set.zip")
    assert "secret" not in str(caught.value)


def test_redirects_are_followed_but_not_for_ever(web, tmp_path):
    there, _ = web.serve(lambda handler, n: web.ranged(handler))
    url, _ = web.serve(lambda handler, n: web.send(handler, b"", 302, Location=there))
    assert download(url, tmp_path / "set.zip", digest=web.digest(web.BODY)).is_file()
    url, seen = web.serve(lambda handler, n: web.send(handler, b"", 302, Location="/set.zip"))
    with pytest.raises(DataError, match="10 redirects"):
        download(url, tmp_path / "other.zip")
    assert len(seen) == 11


@pytest.mark.parametrize(
    ("code", "requests", "says"),
    [
        (403, 1, "login, or for its terms"),
        (404, 1, "no such file"),
        (418, 1, "does not give"),
        (500, 3, "answered 500"),
    ],
)
def test_a_refusal_is_an_error_that_says_what_to_do(web, tmp_path, code, requests, says):
    url, seen = web.serve(lambda handler, n: web.send(handler, b"no", code))
    with pytest.raises(DataError, match=f"{code}.*{says}|{says}.*"):
        download(url, tmp_path / "set.zip")
    assert len(seen) == requests and web.left(tmp_path) == []


def test_a_busy_server_is_asked_again(web, tmp_path):
    url, seen = web.serve(
        lambda handler, n: web.send(handler, b"", 503, Retry_After="9999") if n < 3 else web.ranged(handler)
    )
    assert download(url, tmp_path / "set.zip", digest=web.digest(web.BODY)).is_file() and len(seen) == 3


def test_another_hash_than_expected_is_refused_and_nothing_kept(web, tmp_path):
    url, _ = web.serve(lambda handler, n: web.ranged(handler))
    with pytest.raises(DataError, match=r"md5 .*, expected 0000.*do not use it"):
        download(url, tmp_path / "set.zip", digest="md5:" + "0" * 32)
    assert web.left(tmp_path) == []


def test_a_server_that_is_not_there(web, tmp_path):
    with pytest.raises(DataError, match=r"3 attempts.*refused.*HTTPS_PROXY"):
        download("http://127.0.0.1:9/set.zip", tmp_path / "set.zip")


def test_a_disk_without_room_is_found_out_before(web, tmp_path, free_disk):
    url, _ = web.serve(lambda handler, n: web.ranged(handler))
    free_disk(1000)
    with pytest.raises(DataError, match=r"needs 3 MB more .* 0 MB free"):
        download(url, tmp_path / "set.zip")
    assert web.left(tmp_path) == []


def test_a_folder_that_cannot_be_written_to(web, tmp_path):
    url, _ = web.serve(lambda handler, n: web.ranged(handler))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written.*MEDVIT_CACHE"):
        download(url, tmp_path / "file" / "set.zip")


@pytest.mark.parametrize(
    ("url", "options", "says"),
    [
        ("set.zip", {}, "starts with https"),
        ("file:///etc/passwd", {}, "starts with https"),
        ("http://", {}, "No host"),
        ("http://[bad/x", {}, "starts with https"),
        ("http://127.0.0.1:9/x", {"digest": "abc"}, "expected 'md5:'"),
        ("http://127.0.0.1:9/x", {"digest": "sha1:" + "0" * 40}, "expected 'md5:'"),
    ],
)
def test_bad_arguments(tmp_path, url, options, says):
    with pytest.raises(DataError, match=says):
        download(url, tmp_path / "set.zip", **options)
