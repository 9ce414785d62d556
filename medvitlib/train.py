"""Train and evaluate what a YAML file asks for; `EXAMPLE` has every section."""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from medvitlib.data import Split, open_dataset, same_split, split
from medvitlib.errors import MedvitError, TrainingError, one_of, printable
from medvitlib.evaluate import evaluate
from medvitlib.evaluation.inputs import check_share
from medvitlib.evaluation.report import Report
from medvitlib.models.adapt import adapt, trained_share
from medvitlib.models.zoo import build, count_parameters
from medvitlib.training import parallel
from medvitlib.training.config import TrainConfig, of_kind
from medvitlib.training.fit import fit
from medvitlib.training.run import Run, check_name

EXAMPLE = """\
# A training: which data, how they are split, which model, its settings; then its report.
# Only name, data: name and model: name must be there. Run it with: medvit train THIS_FILE

name: my-training               # of the run's folder under runs/

data:
  name: phantom/cxr             # a folder, a CSV, an .npz, or a set's name; this one is rendered
  image_size: 64                # pixels a side
  # positive: malignant         # of two classes, the one that recall and thresholds refer to
  # groups: my_images/groups.csv  # which images belong to which patient: a CSV, or a pattern of the file names
  # max_bad: 0.05               # share of the images that may be unusable
  # layout: "*/CLASS"           # of a folder that has two readings: CLASS, or */CLASS (folds or hospitals above)
  # metadata: my_images/about.csv  # what else is known of each image: a path, and columns such as sex or scanner
  # window: [0, 4095]           # of images of more than 8 bits, the values shown as black and as white
  rendered: {n_patients: 100}   # options of a rendered set only

split: {val: 0.2, test: 0.2, seed: 0, by: groups}  # by: groups, clusters (of near-duplicates) or images

model:
  name: vit_scratch             # or vit_small_patch14_dinov2, resnet18, a name of timm ...
  weights: null                 # null: random initialisation; "auto" if left out; or a file
  pool: mean                    # token, mean or token_mean
  options: {depth: 4}           # settings of that one model
  # adapter: {method: lora, rank: 8}  # head, bitfit, partial, lora or rlrr; everything is trained if left out

train:                          # any setting of TrainConfig
  epochs: 5
  lr: 3e-4
  recipe: light                 # augmentation

evaluate: {target_recall: 0.95, coverage: 0.9, alarms: 0.05}
"""
"""What `medvit train --example` prints."""
KEYS = {
    "data": {
        **{"name": str, "image_size": object, "positive": str, "groups": str},
        **{"max_bad": float, "layout": str, "metadata": str, "window": object, "rendered": dict},
    },
    "split": {"val": float, "test": float, "seed": int, "by": str},
    "model": {"name": str, "weights": str, "pool": str, "options": dict, "adapter": dict},
    "train": None,  # TrainConfig knows its own
    "evaluate": {"target_recall": float, "coverage": float, "alarms": float},
}


def train(
    path: str | Path, *, force: bool = False, deterministic: bool = False
) -> tuple[Run, Report] | tuple[None, None]:
    """Do what a YAML file says, and print it as it comes: parts, weights, epochs. What it leaves can predict.

    In processes that torchrun has started they train together (see `fit`); the first one prints, evaluates and returns
    what came out, the others return None twice.

    Args:
        force: start again. Without, an interrupted training of this name goes on, one that is complete is taken as it
            is, and a finished run that had other settings is not replaced.
        deterministic: whatever the file says about it.

    Raises:
        MedvitError: before anything is trained, if the file cannot be read or says what cannot be done.
    """
    parallel.join()
    asked, config = read(path)
    if deterministic:
        config = replace(config, deterministic=True)
    with redirect_stdout(io.StringIO()) if parallel.rank() else nullcontext():  # said once, by the first process
        parts = open_parts(asked)
        net = build_model(asked, parts, config.seed)
    settings = {key: asked[key] for key in ("data", "split", "model")}
    run = fit(net, parts, config, name=asked["name"], resume=not force, replace=force, settings={"asked": settings})
    if run is None:
        return None, None
    return run, evaluate(run, parts, **asked["evaluate"])


def open_parts(asked: dict[str, Any], quiet: bool = False, like: Split | None = None) -> Split:
    """The data that a file asks for, cut as it says, or as `like` is, with a word on it."""
    data = dict(asked["data"])
    with _judged("data"):
        ds = open_dataset(data.pop("name"), quiet=quiet, **data.pop("rendered", {}), **data)
        parts = same_split(like, ds) if like else split(ds, quiet=quiet, **asked["split"])
    if not quiet:
        if not ds.about:  # else `open_dataset` has said what it is
            print(ds)
        print(printable(parts.table().to_string(), keep="\n"), *parts.notes, sep="\n")
    return parts


def build_model(asked: dict[str, Any], parts: Split, seed: int, quiet: bool = False) -> nn.Module:
    """The model that a file asks for, for these data, with a word on its weights."""
    model, ds = dict(asked["model"]), parts.train
    options, adapter = model.pop("options", {}), model.pop("adapter", None)
    with _judged("model"):
        options = {**options, "image_size": ds.image_size, "seed": seed, "quiet": quiet}
        net = build(model.pop("name"), len(ds.classes), **model, **options)
        if adapter is not None:
            adapt(net, **{"seed": seed, **adapter})
    if net.weights_info is None and not quiet:
        print(f"{net.architecture['name']}: random numbers in {count_parameters(net):,} parameters.")
    if adapter is not None and not quiet:
        print(trained_share(net))
    return net


@contextmanager
def _judged(section: str) -> Iterator[None]:
    """An option's value, which only its constructor can judge, answered in a sentence."""
    try:
        yield
    except MedvitError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise TrainingError(f"What {section} asks for cannot be made ({type(error).__name__}: {error}).") from error


def read(path: str | Path) -> tuple[dict[str, Any], TrainConfig]:
    """A file's content as `understand` returns it.

    Raises:
        TrainingError: names the file, and what in it cannot be.
    """
    try:
        return understand(load(path))
    except TrainingError as error:
        raise TrainingError(f"{path}: {error}") from error


class _OnceEach(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := [key for key in keys if keys.count(key) > 1]:
            line = next(key for key, _ in node.value if key.value == twice[0]).start_mark.line + 1
            raise ValueError(f"{twice[0]} is given twice (first in line {line}): keep one")
        return super().construct_mapping(node, deep)


def load(path: str | Path) -> Any:
    """What a YAML file holds.

    Raises:
        TrainingError: it cannot be read.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_OnceEach)
    except OSError as error:
        raise TrainingError(f"cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not text, or a date that is none
        raise TrainingError(f"is no YAML: {' '.join(str(error).split())}.") from error


def understand(content: Any) -> tuple[dict[str, Any], TrainConfig]:
    """Every section there, every key known and of its kind; `train` as a TrainConfig.

    Raises:
        TrainingError: what cannot be.
    """
    try:
        content = mapping("the file", content, ["name", *KEYS])
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
        for key, share in asked["evaluate"].items():
            check_share(share, key, one_allowed=key == "target_recall")
        return asked, TrainConfig.from_dict(asked["train"])
    except MedvitError as error:
        raise TrainingError(str(error)) from error


def _section(name: str, content: Any, known: dict[str, type] | None) -> dict[str, Any]:
    """What stands under one key; what is left empty counts as left out, but for the weights: there it means none."""
    content = mapping(name, {} if content is None else content, known)
    if known is None:
        return content
    given = {key: value for key, value in content.items() if value is not None or key == "weights"}
    return {key: _value(f"{name}: {key}", value, known[key]) for key, value in given.items()}


def _value(name: str, value: Any, kind: type) -> Any:
    if kind is dict:
        return mapping(name, value, None)
    return value if value is None or kind is object else of_kind(name, value, kind)


def mapping(name: str, content: Any, known: Iterable[str] | None) -> dict[str, Any]:
    """The content, if it is `key: value` pairs of known keys (None: of any); TrainingError otherwise."""
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise TrainingError(f"{name} holds {content!r}: expected `key: value` pairs.")
    for key in content if known is not None else ():
        one_of(f"{name}: key" if name in KEYS else "key", key, known, TrainingError)
    return content
