"""Where tests find real data and weights, and what keeps every other test away from the user's folders.

Under CI with `$MEDVIT_DATA` set, a skipped `real_data` or `pretrained` test counts as a failure.
"""

import os
from pathlib import Path

import pytest

from medvitlib.paths import cache_dir

WEIGHTS_FILE = "vit_small_patch14_dinov2.safetensors"
GUARDED = ("real_data", "pretrained")
# read before `isolated` points the variables elsewhere
DATA = [Path(p).expanduser().absolute() for p in os.environ.get("MEDVIT_DATA", "").split(os.pathsep) if p]
WEIGHTS = cache_dir() / "weights"
SKIP_IS_FAILURE = bool(DATA) and os.environ.get("CI", "").lower() not in ("", "0", "false")


@pytest.fixture(scope="session", autouse=True)
def isolated(tmp_path_factory):
    """Each test session has its own cache and runs, sees no data or weights of the user, and shows no progress."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MEDVIT_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("MEDVIT_PROGRESS", os.devnull)
        patch.delenv("MEDVIT_DATA", raising=False)
        patch.delenv("MEDVIT_WEIGHTS", raising=False)
        yield


def absent(marker: str) -> str:
    """Why a test with this marker cannot run here, or an empty string."""
    if marker == "real_data" and not any(folder.is_dir() for folder in DATA):
        return "real data: MEDVIT_DATA names no existing folder"
    if marker == "pretrained" and not (WEIGHTS / WEIGHTS_FILE).is_file():
        return f"pretrained: no {WEIGHTS_FILE} in the cache; run `medvit weights fetch`"
    return ""


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds the real data sets."""
    if reason := absent("real_data"):
        pytest.skip(reason)
    return next(folder for folder in DATA if folder.is_dir())


@pytest.fixture(scope="session")
def pretrained_weights() -> Path:
    """The folder of converted pretrained weights in the user's own cache."""
    if reason := absent("pretrained"):
        pytest.skip(reason)
    return WEIGHTS


def pytest_runtest_setup(item):
    for marker in GUARDED:
        if item.get_closest_marker(marker) and (reason := absent(marker)):
            pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    guarded = any(item.get_closest_marker(marker) for marker in GUARDED)
    if SKIP_IS_FAILURE and guarded and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"may not be skipped under CI: {reason}"
    return report
