"""A training written down in a YAML file: which data, how cut, which model, every setting; then its report.

    name: cxr-vit                   # of the run folder
    data:
      name: phantom/cxr             # what `open_dataset` takes: a folder, a manifest, an .npz, or a set's name
      image_size: 64                # optional, as are positive, groups and
      rendered: {n_patients: 100}   # the options of a rendered set
    split: {val: 0.2, test: 0.2, seed: 0, by: groups}
    model:
      name: vit_scratch
      weights: null                 # random numbers; "auto" if left out, or a file
      pool: mean                    # optional, as are
      options: {depth: 4}           # the settings of that one model
    train: {epochs: 20, lr: 3e-4}   # a `TrainConfig`
    evaluate: {target_recall: 0.95}

Only `name`, `data: name` and `model: name` must be there.
"""

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from medvitlib.data import Split, open_dataset, split
from medvitlib.errors import MedvitError, TrainingError, one_of
from medvitlib.evaluate import evaluate
from medvitlib.evaluation.inputs import check_share
from medvitlib.evaluation.report import Report
from medvitlib.models.zoo import build, count_parameters
from medvitlib.training import parallel
from medvitlib.training.config import TrainConfig, of_kind
from medvitlib.training.fit import fit
from medvitlib.training.run import Run, check_name, load_run

KEYS = {
    "data": {"name": str, "image_size": object, "positive": str, "groups": str, "rendered": dict},
    "split": {"val": float, "test": float, "seed": int, "by": str},
    "model": {"name": str, "weights": str, "pool": str, "options": dict},
    "train": None,  # TrainConfig knows its own
    "evaluate": {"target_recall": float},
}


def train(
    path: str | Path, *, resume: bool = False, deterministic: bool = False
) -> tuple[Run, Report] | tuple[None, None]:
    """Do what a YAML file says, and print it as it comes: the parts, the weights, the epochs.

    In processes that torchrun has started they train together (see `fit`); the first one prints, evaluates and returns
    what came out, the others return None twice.

    Args:
        resume: go on with an interrupted training of this name (see `fit`).
        deterministic: whatever the file says about it.

    Raises:
        MedvitError: before anything is trained, if the file cannot be read or says what cannot be done.
    """
    parallel.join()
    asked, config = read(path)
    if deterministic:
        config = replace(config, deterministic=True)
    try:
        with redirect_stdout(io.StringIO()) if parallel.rank() else nullcontext():
            net, parts = _made(asked, config.seed)
    except MedvitError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # an option's value, which only its constructor can judge
        raise TrainingError(f"What {path} asks for cannot be made ({type(error).__name__}: {error}).") from error
    settings = {key: asked[key] for key in ("data", "split", "model")}
    run = fit(net, parts, config, name=asked["name"], resume=resume, settings={"asked": settings})
    if run is None:
        return None, None
    return run, evaluate(run, parts.test, **asked["evaluate"])


def launch(path: str | Path, *, processes: int, resume: bool = False) -> Run:
    """Train what a YAML file says in several processes of this machine: what a notebook calls.

    It starts torchrun (see `train`) and prints what comes as it comes. Ctrl-C is passed on: the training is saved.

    Args:
        processes: one a CUDA device; on a machine without, as many as share the cores.
        resume: go on with an interrupted training of this name (see `fit`).

    Returns:
        the finished run, evaluated.

    Raises:
        TrainingError: the training failed, with the last it said.
        KeyboardInterrupt: after Ctrl-C, once the state is on disk.
    """
    asked, _ = read(path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "medvitlib.cli", "train", str(path), *(["--resume"] if resume else [])]
    environment = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600",  # seconds for the update that is under way, and to save
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONUNBUFFERED": "1",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    said: list[str] = []
    # a session of its own: Ctrl-C reaches this process alone, which passes it on once
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
        try:
            _show(process, said)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            _show(process, said)
            raise
    if process.returncode:
        reason = [line.removeprefix("medvit: ") for line in said if line.startswith("medvit: ")] or said[-20:]
        raise TrainingError("\n".join(reason) or f"The training ended with status {process.returncode}.")
    return load_run(asked["name"])


def _show(process: subprocess.Popen, said: list[str]) -> None:
    """Print a training's lines as they come and keep them, but for what torchrun has to say of an end."""
    ended = False
    for line in map(str.rstrip, process.stdout):
        ended = ended or re.match(r"[WE]\d{4} .*torch/distributed/elastic", line)
        if line and (not ended or line.startswith(("medvit: ", "Stopp"))):
            said.append(line)
            print(line, flush=True)


def _made(asked: dict[str, Any], seed: int) -> tuple[nn.Module, Split]:
    """The model and the parts of the data, with a word on each."""
    data, model = dict(asked["data"]), dict(asked["model"])
    ds = open_dataset(data.pop("name"), **data.pop("rendered", {}), **data)
    parts = split(ds, **asked["split"])
    print(ds, parts.table().to_string(), *parts.notes, sep="\n")
    options = model.pop("options", {})
    net = build(model.pop("name"), len(ds.classes), image_size=ds.image_size, seed=seed, **model, **options)
    if net.weights_info is None:
        print(f"{net.architecture['name']}: random numbers in {count_parameters(net):,} parameters.")
    return net, parts


def read(path: str | Path) -> tuple[dict[str, Any], TrainConfig]:
    """The file's content, every section there, every key known and of its kind; `train` as a TrainConfig.

    Raises:
        TrainingError: names the file, and what in it cannot be.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not text, or a date that is none
        raise TrainingError(f"{path} is no YAML: {' '.join(str(error).split())}.") from error
    try:
        content = _mapping("the file", content, ["name", *KEYS])
        asked = {name: _section(name, content.get(name), known) for name, known in KEYS.items()}
        asked["name"] = of_kind("name", content.get("name"), str)
        check_name(asked["name"])
        for name in ("data", "model"):
            if "name" not in asked[name]:
                raise TrainingError(f"{name} has no name: write `{name}: {{name: ...}}`.")
        if clash := set(asked["data"]) & set(asked["data"].get("rendered", {})):
            raise TrainingError(f"{sorted(clash)} stands in data and in its rendered options.")
        if clash := {*KEYS["model"], "image_size", "seed"} & set(asked["model"].get("options", {})):
            raise TrainingError(f"{sorted(clash)}: no options of a model; data and train say the last two.")
        if "target_recall" in asked["evaluate"]:
            check_share(asked["evaluate"]["target_recall"], "target_recall", one_allowed=True)
        return asked, TrainConfig.from_dict(asked["train"])
    except MedvitError as error:
        raise TrainingError(f"{path}: {error}") from error


def _section(name: str, content: Any, known: dict[str, type] | None) -> dict[str, Any]:
    """What stands under one key; what is left empty counts as left out, but for the weights: there it means none."""
    content = _mapping(name, {} if content is None else content, known)
    if known is None:
        return content
    given = {key: value for key, value in content.items() if value is not None or key == "weights"}
    return {key: _value(f"{name}: {key}", value, known[key]) for key, value in given.items()}


def _value(name: str, value: Any, kind: type) -> Any:
    if kind is dict:
        return _mapping(name, value, None)
    return value if value is None or kind is object else of_kind(name, value, kind)


def _mapping(name: str, content: Any, known: Iterable[str] | None) -> dict[str, Any]:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise TrainingError(f"{name} holds {content!r}: expected `key: value` pairs.")
    for key in content if known is not None else ():
        one_of(f"{name}: key" if name in KEYS else "key", key, known, TrainingError)
    return content
