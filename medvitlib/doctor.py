"""Is this machine ready, and what does it have: one row a question, each with its cure where something is wrong.

Packages are imported in a process of their own, so that a broken or crashing one is a row of the answer.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from medvitlib.machine import cores
from medvitlib.paths import cache_content, cache_dir, data_roots, runs_content, runs_dir

OLDEST_PYTHON = (3, 11)
IMPORTS = ("torch", "torchvision", "numpy", "timm", "cv2")
IMPORT_LIMIT = 60.0  # seconds; a cold disk needs them
NETWORK_LIMIT = 6.0  # seconds until "no answer"
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
COUNT_LIMIT = 1.0  # seconds of counting files in one data set
ENOUGH_DISK = 2e9  # bytes: weights, their conversion, and the decoded images of a mid-sized data set
REINSTALL = f"{sys.executable} -m pip install --upgrade --force-reinstall torch torchvision"


@dataclass(frozen=True)
class Check:
    """One row: `status` is "ok", "warn" (works, with less) or "fail" (something essential is broken)."""

    name: str
    status: str
    detail: str
    cure: str = ""


def examine() -> list[Check]:
    """All checks, in the order in which they are shown; takes up to about ten seconds."""
    weights: list[Check] = []
    network = threading.Thread(target=lambda: weights.extend(look_for_weights(probe=True)), daemon=True)
    network.start()
    begun = time.monotonic()
    rows = [check_python(), *check_imports(probe()), *check_data(), *check_folders()]
    network.join(max(0.0, begun + NETWORK_LIMIT - time.monotonic()))
    return rows + (weights or look_for_weights(probe=False))


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """The interpreter's version and place."""
    detail = f"{'.'.join(map(str, version))} at {sys.executable}"
    if version < OLDEST_PYTHON:
        return Check("Python", "fail", detail, "install Python 3.11 or later, delete .venv, run ./run_all.sh")
    return Check("Python", "ok", detail)


def probe() -> dict[str, dict]:
    """Import each package in another process: {package: {"error": ...} or {"version": ..., ...}}."""
    command = [sys.executable, "-W", "ignore", "-c", "from medvitlib.doctor import _probe; _probe()"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_LIMIT)
        output, ending = process.stdout, f"its import ended the process with status {process.returncode}"
    except subprocess.TimeoutExpired as error:
        output, ending = (error.stdout or b"").decode(), f"its import took more than {IMPORT_LIMIT:.0f} s"
    found = {}
    for line in output.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    if silent := [name for name in IMPORTS if name not in found]:
        reasons = [ending] + [f"not tried, because {silent[0]} failed"] * len(silent[1:])
        found |= {name: {"error": reason} for name, reason in zip(silent, reasons, strict=True)}
    return found


def _probe() -> None:
    for name in IMPORTS:
        try:
            module = __import__(name)
            answer = {"version": module.__version__}
            if name == "torch":
                answer |= _hardware()
        except Exception as error:  # whatever a broken package raises is the finding
            answer = {"error": f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]}
        print(json.dumps({name: answer}), flush=True)


def _hardware() -> dict[str, object]:
    import torch

    from medvitlib.precision import autocast_dtype

    names = [("cpu", f"{cores()} CPU cores")]
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        names.append((f"cuda:{i}", f"{device.name} with {device.total_memory / 1e9:.0f} GB"))
    if torch.backends.mps.is_available():
        names.append(("mps", "Apple GPU"))
    precision = {device: str(autocast_dtype(device) or "torch.float32").removeprefix("torch.") for device, _ in names}
    devices = [f"{device} ({name})" for device, name in names]
    return {"devices": devices, "threads": torch.get_num_threads(), "precision": precision}


def check_imports(found: dict[str, dict]) -> list[Check]:
    """Whether the packages work together, what torch can compute on, and in which precision."""
    torch, torchvision = found["torch"], found["torchvision"]
    rows = []
    if "error" in torch:
        rows.append(Check("torch", "fail", torch["error"], REINSTALL))
    elif "error" in torchvision:
        mismatch = "torchvision::nms" in torchvision["error"]
        why = "torchvision was built for another torch: " if mismatch else ""
        detail = f"{_version('torch')} with torchvision {_version('torchvision')}: {why}{torchvision['error']}"
        rows.append(Check("torch", "fail", detail, f"install the two together: {REINSTALL}"))
    else:
        rows.append(Check("torch", "ok", f"{torch['version']} and torchvision {torchvision['version']} match"))
    others = {name: found[name] for name in IMPORTS[2:]}
    rows += [
        Check(name, "fail", answer["error"], _cure(name, answer["error"]))
        for name, answer in others.items()
        if "error" in answer
    ]
    working = [f"{name} {answer['version']}" for name, answer in others.items() if "error" not in answer]
    versions = [f"{name} {_version(name)}" for name in ("accelerate", "scikit-learn", "pandas")]
    rows.append(Check("packages", "ok", ", ".join(working + versions)))
    if "error" not in torch:
        rows.append(Check("devices", "ok", f"{', '.join(torch['devices'])}; torch uses {torch['threads']} threads"))
        use = [f"{device}: {_advice(device, dtype)}" for device, dtype in torch["precision"].items()]
        rows.append(Check("precision", "ok", "; ".join(use)))
    return rows


def _advice(device: str, dtype: str) -> str:
    if dtype == "bfloat16":
        return "bfloat16, in hardware"
    if dtype == "float16":
        return "float16, since bfloat16 would be emulated"
    return "float32, since bfloat16 would be slower (no AVX512-BF16, AMX or ARM BF16)" if device == "cpu" else "float32"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _cure(name: str, error: str) -> str:
    if "torchvision::nms" in error:
        return "as for torch"
    if "libGL" in error:
        return f"apt-get install libgl1, or {sys.executable} -m pip install opencv-python-headless"
    return f"{sys.executable} -m pip install --force-reinstall {'opencv-python' if name == 'cv2' else name}"


def check_data() -> list[Check]:
    """One row for each data root, and what it holds."""
    rows = []
    for root in data_roots():
        try:
            rows.append(Check("data", "ok", f"{root}: {', '.join(holdings(root)) or 'nothing recognised'}"))
        except OSError as error:
            rows.append(Check("data", "warn", f"{root}: cannot be read ({error.strerror})", "change its permissions"))
    listed = filter(None, os.environ.get("MEDVIT_DATA", "").split(os.pathsep))
    missing = [path for path in listed if not os.path.exists(Path(path).expanduser())]
    rows += [Check("data", "warn", f"{path} does not exist", "correct MEDVIT_DATA") for path in missing]
    if not rows:
        rows.append(
            Check(
                "data", "ok", "no data root; phantom/cxr and others are rendered (set MEDVIT_DATA for your own images)"
            )
        )
    return rows


def holdings(root: Path) -> list[str]:
    """What looks like a data set directly below a folder: its name and how many files it has.

    Counting a folder ends after a second, which a + behind the number says.
    """
    found = []
    for entry in sorted(root.iterdir()) if root.is_dir() else []:
        if os.path.isdir(entry) and not entry.name.startswith("."):
            kinds, complete = _count(entry)
            sizes = [f"{n:,}{'' if complete else '+'} {kind}" for kind, n in kinds.items()]
            found += [f"{entry.name} ({' and '.join(sizes)})"] if sizes else []
        elif entry.suffix.lower() == ".npz":
            found.append(entry.name)
    return found


def _count(folder: Path) -> tuple[Counter, bool]:
    kinds, begun = Counter(), time.monotonic()
    for _, _, files in os.walk(folder):
        suffixes = Counter(os.path.splitext(name)[1].lower() for name in files)
        kinds += Counter(images=sum(suffixes[s] for s in IMAGES))
        kinds += Counter({".npz": suffixes[".npz"]})
        if time.monotonic() - begun > COUNT_LIMIT:
            return kinds, False
    return kinds, True


def check_folders() -> list[Check]:
    """Whether the cache and the runs can be written to, and the room that is left there."""
    rows = []
    for name, folder, variable in (("cache", cache_dir(), "MEDVIT_CACHE"), ("runs", runs_dir(), "MEDVIT_RUNS")):
        nearest = next(path for path in (folder, *folder.parents) if os.path.exists(path))
        try:
            with tempfile.TemporaryFile(dir=nearest):
                free = shutil.disk_usage(nearest).free
        except OSError as error:
            cure = f"set {variable} to a folder that you may write to"
            rows.append(Check(name, "fail", f"{folder}: cannot be written to ({error.strerror})", cure))
            continue
        status, cure = ("ok", "") if free > ENOUGH_DISK else ("warn", f"medvit clean, or another {variable}")
        held = cache_content() if name == "cache" else runs_content()
        rows.append(Check(name, status, f"{folder}: {free / 1e9:.1f} GB free; holds {held or 'nothing'}", cure))
    return rows


def look_for_weights(probe: bool) -> list[Check]:
    """`check_weights` of what is on disk and, with `probe`, of what answers now."""
    try:
        from medvitlib.models.weights import list_weights  # needs NumPy, which may be what is broken

        rows = list_weights(probe=probe)
    except (ImportError, OSError) as error:
        return [Check("weights", "fail", f"cannot be looked for: {error}".splitlines()[0])]
    return check_weights(rows if probe else [{**row, "reachable_from": ""} for row in rows])


def check_weights(rows: list[dict]) -> list[Check]:
    """One row for each set of pretrained weights: on disk, or which source answers.

    Args:
        rows: of `list_weights(probe=True)`.
    """
    checks = []
    for row in rows:
        if row["on_disk"]:
            detail = f"{row['name']}: on disk, {row['bytes'] / 1e6:.0f} MB"
        elif row["reachable_from"]:
            detail = f"{row['name']}: not on disk; {row['reachable_from']} answers"
        else:
            detail = f"{row['name']}: not on disk, and no source answers from here"
        checks.append(Check("weights", "ok" if row["on_disk"] or row["reachable_from"] else "warn", detail))
    if not any(row["on_disk"] for row in rows):
        checks[0] = Check("weights", "warn", checks[0].detail, "medvit weights fetch")
    return checks


def render(rows: list[Check]) -> str:
    """The table, with each cure below its row and a verdict in the last line."""
    lines, width = [], max(len(row.name) for row in rows)
    for row in rows:
        lines.append(f"{row.status.upper() if row.status != 'ok' else 'ok':<4}  {row.name:<{width}}  {row.detail}")
        lines += [f"{'':<{width + 8}}cure: {row.cure}"] if row.cure else []
    broken = sorted({row.name for row in rows if row.status == "fail"})
    lines.append(f"\nBroken: {', '.join(broken)}." if broken else "\nReady.")
    return "\n".join(lines)
