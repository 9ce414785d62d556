"""Proxies, certificates of one's own, and two processes at once."""

import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

import medvitlib
from medvitlib.data.sources.download import download
from medvitlib.errors import DataError


def test_proxies_are_used_and_exceptions_from_them(web, tmp_path, monkeypatch):
    proxy, asked = web.serve(lambda handler, n: web.ranged(handler))
    monkeypatch.setenv("HTTP_PROXY", proxy.rpartition("/")[0])
    download("http://data.example/set.zip", tmp_path / "set.zip", digest=web.digest(web.BODY))
    assert asked[0].path == "http://data.example/set.zip"
    url, direct = web.serve(lambda handler, n: web.ranged(handler))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    download(url, tmp_path / "direct.zip", digest=web.digest(web.BODY))
    assert len(asked) == len(direct) == 1


def test_a_proxy_that_asks_for_a_login(web, tmp_path, monkeypatch):
    proxy, _ = web.serve(lambda handler, n: web.send(handler, b"", 407))
    monkeypatch.setenv("HTTP_PROXY", proxy.rpartition("/")[0])
    with pytest.raises(DataError, match="proxy asks for a login"):
        download("http://data.example/set.zip", tmp_path / "set.zip")


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_certificates_of_ones_own(web, tmp_path, monkeypatch, variable):
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "own.pem"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "own.pem", tmp_path / "key.pem")
    url, _ = web.serve(lambda handler, n: web.ranged(handler), context)
    with pytest.raises(DataError, match=r"certificate is not accepted .*REQUESTS_CA_BUNDLE"):
        download(url, tmp_path / "set.zip")
    monkeypatch.setenv(variable, str(tmp_path / "own.pem"))
    assert download(url, tmp_path / "set.zip", digest=web.digest(web.BODY)).is_file()
    monkeypatch.setenv(variable, str(tmp_path / "gone.pem"))
    with pytest.raises(DataError, match=f"{variable} names .*gone.pem, which does not exist"):
        download(url, tmp_path / "other.zip")


def test_two_processes_do_not_fetch_at_once(web, tmp_path):
    url, seen = web.serve(lambda handler, n: web.ranged(handler))
    code = "from pathlib import Path; from medvitlib.data.sources.download import download; "
    code += f"download({url!r}, Path('set.zip'))"
    environment = {**os.environ, "PYTHONPATH": str(Path(medvitlib.__file__).parents[1])}
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(seen) == 1 and (tmp_path / "set.zip").read_bytes() == web.BODY
