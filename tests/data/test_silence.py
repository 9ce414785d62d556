"""What OpenCV, libjpeg, libpng, libtiff, Pillow and pydicom remark on damaged files does not reach the terminal."""

import io
import os
import random
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medvitlib.data.dicom import save_dicom

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def saved(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


def flipped(data: bytes, start: int, seed: int) -> bytes:
    rng, damaged = random.Random(seed), bytearray(data)
    for _ in range(rng.choice((1, 3, 6))):
        damaged[rng.randrange(start, len(data))] = rng.randrange(256)
    return bytes(damaged)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 64 x 64 pixels of those chunks, with right checksums."""
    head = (b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in (head, *chunks, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def damaged() -> dict[str, bytes]:
    """Files by name, on each of which one of the libraries has something to say."""
    found = {}
    for name, kind, options in (
        ("plain.jpg", "JPEG", {}),
        ("progressive.jpg", "JPEG", {"progressive": True}),
        ("raw.tif", "TIFF", {}),
        ("lzw.tif", "TIFF", {"compression": "tiff_lzw"}),
        ("zip.tif", "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("jpeg.tif", "TIFF", {"compression": "jpeg"}),
        ("packbits.tif", "TIFF", {"compression": "packbits"}),
    ):
        data = saved(kind, **options)
        stem, ending = name.split(".")
        found |= {f"{stem}{seed}.{ending}": flipped(data, 4 if seed % 2 else len(data) // 2, seed) for seed in range(8)}
        found[f"{stem}-cut.{ending}"] = data[: len(data) // 2]
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in PIXELS))
    wrong = bytearray(rows)
    wrong[len(wrong) // 2] ^= 255
    found["stream.png"] = png((b"IDAT", bytes(wrong)))
    found["short.png"] = png((b"IDAT", zlib.compress(bytes(100))))
    found["long.png"] = png((b"IDAT", zlib.compress(bytes(10**5))))
    found["filter.png"] = png((b"IDAT", zlib.compress(b"\x09" * 193 * 64)))
    found["profile.png"] = png((b"iCCP", b"x\0\0junk"), (b"IDAT", rows))
    found["palette.png"] = png((b"PLTE", b"12"), (b"IDAT", rows))
    found["exif.png"] = png((b"eXIf", b"12333"), (b"IDAT", rows))
    found["unknown.png"] = png((b"ABCD", b"1"), (b"IDAT", rows))
    deep = cv2.imencode(".png", PIXELS.astype(np.uint16) * 200)[1].tobytes()
    found["deep.png"] = deep[:33] + png((b"iCCP", b"x\0\0junk"))[33:52] + deep[33:]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of whole images, with the damaged ones among the first."""
    folder = tmp_path_factory.mktemp("damaged")
    for name in ("a", "b"):
        (folder / name).mkdir()
        for number in range(40):
            pixels = np.random.default_rng(number + 100 * (name == "b")).integers(0, 256, (64, 64), dtype=np.uint8)
            cv2.imwrite(str(folder / name / f"whole{number}.png"), pixels)
    for name, data in damaged().items():
        (folder / "a" / name).write_bytes(data)
    return folder


def run(arguments: list[str], tmp_path) -> list[str]:
    """What a process of Python that shows every warning writes to its standard error, line by line."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "MEDVIT_CACHE": str(tmp_path / "cache"),
        "MEDVIT_RUNS": str(tmp_path / "runs"),
    }
    environment.pop("OPENCV_LOG_LEVEL", None)
    command = [sys.executable, "-W", "default", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_the_files_are_such_that_the_libraries_do_remark_on_them(folder, tmp_path):
    script = (
        "import cv2, pathlib, sys, warnings; from PIL import Image\n"
        "for path in pathlib.Path(sys.argv[1]).glob('*'):\n"
        "    cv2.imread(str(path))\n"
        "    try: Image.open(path).load()\n"
        "    except Exception: pass"
    )
    said = "\n".join(run(["-c", script, str(folder / "a")], tmp_path))
    for words in ("Corrupt JPEG data", "libpng error", "libpng warning", "TIFF_Error", "ZIPDecode", "UserWarning"):
        assert words in said, words


def left_out(line: str) -> bool:
    return "UserWarning" in line and "files in" in line and "are left out" in line


def test_opening_a_data_set_says_in_one_warning_what_is_left_out(folder, tmp_path):
    script = (
        "import sys; from medvitlib.data import open_dataset; open_dataset(sys.argv[1], image_size=32, max_bad=0.9)"
    )
    (warning,) = run(["-c", script, str(folder)], tmp_path)
    assert left_out(warning)


def test_an_audit_says_no_more(folder, tmp_path):
    command = ["-m", "medvitlib.cli", "audit", str(folder), "--no-network", "--size", "32", "--out", str(tmp_path)]
    for _ in range(2):  # the second time from the cache: nothing is decoded but the headers
        warning, *source = run(command, tmp_path)
        assert left_out(warning) and not source


def test_predicting_says_nothing_but_its_answers(folder, tmp_path):
    save_dicom(tmp_path / "a.dcm", PIXELS[..., 0])
    whole = (tmp_path / "a.dcm").read_bytes()
    for seed in range(20):
        (folder / "a" / f"x{seed}.dcm").write_bytes(flipped(whole, 132, seed))
    table = tmp_path / "answers.csv"
    command = ["-m", "medvitlib.cli", "predict", "teaching", str(folder / "a"), "--out", str(table), "--device", "cpu"]
    assert run(command, tmp_path) == []
    answers = pd.read_csv(table, keep_default_na=False)
    failed = answers["error"] != ""
    assert len(answers) == 40 + len(damaged()) + 20 and failed.sum() > 40 and (~failed).sum() >= 40
