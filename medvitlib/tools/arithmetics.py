"""Run a command with fewer vector instructions or other numbers of threads than this processor would choose.

    python -m medvitlib.tools.arithmetics sse python -m pytest --nbval notebooks

Sums of floating-point numbers depend on the order of their terms, and that order on the instructions and threads
of a machine. A test that passes with all of these can be expected to pass on other processors. Each command has run
folders and a cache of its own, because results of one arithmetic must not be read back in another.
"""

import os
import platform
import re
import subprocess
import sys
import tempfile

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "MKL_CBWR": "AVX2",
}
SSE = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Nehalem",
    "MKL_CBWR": "COMPATIBLE",
}
ABOVE_AVX2 = re.compile("AVX512|X86_V4")
"""Instruction sets of NumPy and OpenCV, whose names differ between versions, that are more than AVX2."""


def names() -> list[str]:
    """The arithmetics that can be chosen on this machine; the least capable one is the last."""
    threads = ["native", "1-thread", "4-threads"]
    return [*threads, "avx2", "sse"] if platform.machine() in ("x86_64", "AMD64") else threads


def environment(name: str) -> dict[str, str]:
    """Environment variables that choose an arithmetic; they must be set before torch and NumPy are imported.

    Args:
        name: one of `names()`.

    Raises:
        ValueError: another name.
    """
    if name not in names():
        raise ValueError(f"{name!r} is no arithmetic of this machine. There are: {', '.join(names())}.")
    if name.endswith(("-thread", "-threads")):
        # MKL would cap them at the cores, and more threads than cores must not wait in loops
        return {**dict.fromkeys(THREADS, name.split("-")[0]), "MKL_DYNAMIC": "FALSE", "OMP_WAIT_POLICY": "PASSIVE"}
    if name == "native":
        return {}
    numpy_features, opencv_features = _optional_features()
    unwanted = ABOVE_AVX2.search if name == "avx2" else bool
    wanted = dict(AVX2 if name == "avx2" else SSE)
    if not _multiplies(wanted["OPENBLAS_CORETYPE"]):
        wanted["OPENBLAS_CORETYPE"] = "Sandybridge"
    return {
        **wanted,
        "NPY_DISABLE_CPU_FEATURES": " ".join(filter(unwanted, numpy_features)),
        "OPENCV_CPU_DISABLE": ",".join(filter(unwanted, opencv_features)),
    }


def _multiplies(coretype: str) -> bool:
    """Whether OpenBLAS survives a product with the code of another processor: 0.3.34 does not with Haswell's on Zen 4
    (https://github.com/OpenMathLib/OpenBLAS/issues/6021), where a Haswell does."""
    script = "import numpy as np; a = np.ones((384, 2000)); [a @ a.T for _ in range(5)]"
    chosen = {**os.environ, "OPENBLAS_CORETYPE": coretype}
    return subprocess.run([sys.executable, "-c", script], env=chosen, capture_output=True).returncode == 0


def _optional_features() -> tuple[list[str], list[str]]:
    """Instruction sets that NumPy and OpenCV use where the processor has them, in each one's own words."""
    import cv2
    import numpy

    umath = (numpy._core if hasattr(numpy, "_core") else numpy.core)._multiarray_umath
    available = [feature for feature in umath.__cpu_dispatch__ if umath.__cpu_features__.get(feature)]
    return available, re.findall(r"\*([^\s?]+)(?!\S)", cv2.getCPUFeaturesLine())


def selected() -> str:
    """What this process computes with: the instruction sets that each library chose, and the number of threads."""
    import torch
    from threadpoolctl import threadpool_info

    blas = sorted({found["architecture"] for found in threadpool_info() if found.get("architecture")})
    numpy_features, opencv_features = _optional_features()
    parts = {
        "torch": torch.backends.cpu.get_cpu_capability(),
        "oneDNN": _onednn(),
        "OpenBLAS": ", ".join(blas) or "none",
        "NumPy": numpy_features[-1] if numpy_features else "its baseline",
        "OpenCV": opencv_features[-1] if opencv_features else "its baseline",
        "threads": str(torch.get_num_threads()),
    }
    return "; ".join(f"{library} {choice}" for library, choice in parts.items())


def _onednn() -> str:
    """The instruction set that oneDNN names when it first computes something; it can only be read from its output."""
    script = "import torch; torch.nn.Conv2d(16, 32, 3)(torch.ones(1, 16, 64, 64))"
    run = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "ONEDNN_VERBOSE": "1"}, capture_output=True, text=True
    )
    found = re.search(r"cpu,isa:(.*)", run.stdout)
    return found[1] if found else "unknown"


def main(arguments: list[str]) -> int:
    """`--names` lists the arithmetics; `NAME` says what it selects; `NAME COMMAND...` runs the command with it."""
    if arguments == ["--names"]:
        print(*names(), sep="\n")
        return 0
    name, *command = arguments
    command = command or [sys.executable, "-c", "from medvitlib.tools.arithmetics import selected; print(selected())"]
    try:
        chosen = environment(name)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="medvitlib-") as scratch:
        own = {"MEDVIT_RUNS": f"{scratch}/runs", "MEDVIT_CACHE": f"{scratch}/cache", "MEDVIT_WEIGHTS": _weights()}
        return subprocess.run(command, env={**os.environ, **chosen, **own}).returncode


def _weights() -> str:
    """A path list by which converted weights of the user's cache are found from a cache that is empty."""
    from medvitlib.paths import cache_dir

    given = os.environ.get("MEDVIT_WEIGHTS", "")
    return os.pathsep.join(filter(None, (given, str(cache_dir() / "weights"))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
