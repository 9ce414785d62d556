"""Points that are trained together end as each would alone."""

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from medvitlib.data import open_dataset, split
from medvitlib.errors import MedvitError, TrainingError
from medvitlib.models.stacked import Stacked
from medvitlib.models.zoo import build
from medvitlib.paths import runs_dir
from medvitlib.search import trial as trials
from medvitlib.search.study import read_study
from medvitlib.search.trial import Runner
from medvitlib.search.workers import run_search
from medvitlib.training.config import METRICS, TrainConfig
from medvitlib.training.fit import fit
from medvitlib.training.group import Member
from medvitlib.training.resident import Resident
from medvitlib.training.run import OtherSettings, Run
from medvitlib.training.stacked import Training, fit_together

PATCH, HEADS, DROPOUT = "model.options.patch_size", "model.options.heads", "model.options.dropout"
CONFIG = TrainConfig(epochs=3, batch_size=16, lr=1e-2, metric="val_nll")
CPU = {"device": "cpu", "precision": None}


@pytest.fixture(scope="module", autouse=True)
def no_power_cut(tmp_path_factory):
    """Many small states are written here: whether they survive one is no question, and the disk may be busy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda file: None)
        patch.setenv("MEDVIT_STORAGE", str(tmp_path_factory.mktemp("studies") / "all.journal"))  # SQLite waits itself
        yield


@pytest.fixture(scope="module")
def parts():
    return split(open_dataset("phantom/cxr", image_size=32, n_patients=24, difficulty=0.0))


def model(heads: int = 2, dropout: float = 0.0) -> torch.nn.Module:
    options = {"patch_size": 8, "dim": 16, "heads": heads, "dropout": dropout}
    return build("transformer_classifier", 2, weights=None, image_size=32, seed=0, **options)


POINTS = {
    "one": lambda: (model(1), CONFIG),
    "slow": lambda: (model(4), replace(CONFIG, lr=1e-3, weight_decay=0.0, warmup_epochs=0)),
    "dropping": lambda: (model(2, 0.5), replace(CONFIG, clip_norm=0)),
    "averaged": lambda: (model(2, 0.1), replace(CONFIG, ema=0.9, prune=0.5)),
    "longer": lambda: (model(4, 0.5), replace(CONFIG, optimizer="sgd", schedule="constant", epochs=4)),
    "patient": lambda: (model(2), replace(CONFIG, lr=1e-9, metric="val_accuracy", epochs=9, patience=1)),
    "diverging": lambda: (model(1), replace(CONFIG, lr=1e30, optimizer="sgd", clip_norm=0)),
}


def group(prefix: str, *names: str, **options) -> list[Training]:
    return [Training(*POINTS[name](), f"{prefix}/{name}", **options) for name in names]


@pytest.fixture(scope="module")
def alone(parts) -> dict[str, Run | Exception]:
    found = {}
    for name, make in POINTS.items():
        net, config = make()
        try:
            found[name] = fit(net, parts, config, name=f"alone/{name}", quiet=True, plot=False, **CPU)
        except TrainingError as error:
            found[name] = error
    return found


def assert_same(run: Run, other: Run) -> None:
    """To 1e-4; a key's bias is left out, which no softmax can see: its gradient is noise, and AdamW amplifies that."""
    assert not isinstance(run, Exception), run
    expected = other.model.state_dict()
    for name, tensor in run.model.state_dict().items():
        if not name.endswith("key.bias"):
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-4, msg=name)
    columns = ["epoch", "phase", "lr", "train_loss", "best", *METRICS]
    assert list(run.metrics) == list(other.metrics) and len(run.metrics) == len(other.metrics)
    for column in columns:
        if column != "phase":
            np.testing.assert_allclose(run.metrics[column], other.metrics[column], atol=1e-4, err_msg=column)
    np.testing.assert_allclose(run.validation_logits, other.validation_logits, atol=1e-4)


def test_each_ends_as_it_would_alone_whatever_becomes_of_the_others(parts, alone):
    """Other heads, dropout, rates, optimizers and lengths; one stops early, and one diverges."""
    found = dict(zip(POINTS, fit_together(group("together", *POINTS), parts, **CPU), strict=True))
    assert isinstance(found["diverging"], TrainingError) and isinstance(alone["diverging"], TrainingError)
    assert "update 2 of epoch 1" in str(found["diverging"])
    assert (runs_dir() / "together" / "diverging.unfinished" / "nonfinite.json").is_file()
    assert len(alone["patient"].metrics) == 2  # of 9 epochs
    for name in set(POINTS) - {"diverging"}:
        assert_same(found[name], alone[name])


def test_a_full_memory_is_answered_with_smaller_passes(parts, alone, monkeypatch):
    sizes, forward = [], Stacked.forward

    def small(self, x, seed=None):
        sizes.append(len(self.models))
        if len(self.models) > 2:
            raise RuntimeError("CUDA out of memory.")
        return forward(self, x, seed)

    monkeypatch.setattr(Stacked, "forward", small)
    names = ("one", "slow", "dropping")
    for name, run in zip(names, fit_together(group("small", *names), parts, **CPU), strict=True):
        assert_same(run, alone[name])
    assert sizes.count(3) == 1 and {1, 2} <= set(sizes)


def test_images_on_the_device_are_there_once_for_all(parts, monkeypatch):
    made, create = [], Resident.__init__
    monkeypatch.setattr(Resident, "__init__", lambda self, *args: made.append(self) or create(self, *args))
    config = replace(CONFIG, epochs=2, recipe="light", resident=True)
    expected = [fit(model(h), parts, config, name=f"held/{h}", quiet=True, plot=False, **CPU) for h in (1, 2)]
    made.clear()
    trainings = [Training(model(h), replace(config, patience=9 * h), f"shared/{h}") for h in (1, 2)]
    for run, other in zip(fit_together(trainings, parts, **CPU), expected, strict=True):
        assert_same(run, other)
    assert len(made) == 1


def test_ctrl_c_loses_no_update_and_a_training_goes_on_alone_or_together(parts, alone, monkeypatch):
    update, count = Member.update, 0

    def interrupted(self, *args):
        nonlocal count
        count += 1
        if count == 8:  # in the second epoch, with one of three to come
            signal.raise_signal(signal.SIGINT)
        return update(self, *args)

    names = ("one", "slow", "dropping")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="the same call goes on"):
        patch.setattr(Member, "update", interrupted)
        fit_together(group("stopped", *names), parts, **CPU)
    training = group("stopped", "one")[0]
    ended = fit(training.model, parts, training.config, name=training.name, resume=True, quiet=True, **CPU)
    trained = []
    monkeypatch.setattr(Member, "update", lambda self, *args: trained.append(self.number) or update(self, *args))
    runs = fit_together(group("stopped", *names), parts, resume=True, **CPU)
    assert 0 not in trained and trained.count(1) == trained.count(2) < 3 * len(range(0, len(parts.train), 16))
    for name, run in zip(names, runs, strict=True):
        assert_same(run, alone[name])
    assert ended.folder == runs[0].folder


def test_one_that_was_an_epoch_behind_catches_up(parts, alone, monkeypatch):
    class Gone(BaseException):
        """As sudden as kill -9."""

    def killed(row: dict) -> None:
        if row["epoch"] == 2:
            raise Gone

    first = Training(*POINTS["one"](), "behind/one", each_epoch=killed)
    with pytest.raises(Gone):  # its own second epoch is on disk, and no other's
        fit_together([first, *group("behind", "slow")], parts, **CPU)
    runs = fit_together(group("behind", "one", "slow"), parts, resume=True, **CPU)
    assert_same(runs[0], alone["one"])
    assert_same(runs[1], alone["slow"])


def test_what_one_was_begun_with_otherwise_ends_that_one(parts):
    def killed(row: dict) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_together(group("other", "one", each_epoch=killed), parts, **CPU)
    changed = replace(group("other", "one")[0], settings={"another": "device"})
    runs = fit_together([changed, *group("other", "slow")], parts, resume=True, **CPU)
    assert isinstance(runs[0], OtherSettings) and isinstance(runs[1], Run)


def test_what_cannot_be_trained_together_is_said(parts):
    def asked(**other) -> list[Training]:
        return [Training(model(), CONFIG, "no/1"), Training(model(), replace(CONFIG, **other), "no/2")]

    with pytest.raises(TrainingError, match="no/2: batch_size=8 among 16"):
        fit_together(asked(batch_size=8), parts, **CPU)
    with pytest.raises(TrainingError, match="no/2: mixup"):
        fit_together(asked(mixup=0.2), parts, **CPU)
    with pytest.raises(TrainingError, match="memory_gb and trackers are for `fit` alone"):
        fit_together(asked(memory_gb=1.0), parts, **CPU)
    with pytest.raises(TrainingError, match="no/2: resident=True among None"):
        fit_together(asked(resident=True), parts, **CPU)
    with pytest.raises(TrainingError, match="float16"):
        fit_together(asked(), parts, device="cpu", precision=torch.float16)
    with pytest.raises(TrainingError, match="no training"):
        fit_together([], parts, **CPU)
    with pytest.raises(MedvitError, match="cannot be stacked"):
        fit_together([Training(build("vit_tiny_test", 2, weights=None), CONFIG, "no/3")], parts, **CPU)


def study(name: str, space: dict, epochs: int = 2, **search) -> dict:
    return {
        "name": name,
        "data": {"name": "phantom/cxr", "image_size": 32, "rendered": {"n_patients": 24, "difficulty": 0.0}},
        "model": {"name": "transformer_classifier", "weights": None, "options": {"dim": 16, "depth": 1}},
        "train": {"epochs": epochs, "lr": 1e-2, "batch_size": 16, "metric": "val_nll"},
        "search": {"space": space, **search},
    }


SPACE = {HEADS: [1, 2], PATCH: [8, 16], DROPOUT: [0.0, 0.5]}


def watched(monkeypatch) -> list[int]:
    """How many points each call trained."""
    sizes, fit_together, fit = [], trials.fit_together, trials.fit
    monkeypatch.setattr(trials, "fit_together", lambda t, *a, **o: sizes.append(len(t)) or fit_together(t, *a, **o))
    monkeypatch.setattr(trials, "fit", lambda *a, **o: sizes.append(1) or fit(*a, **o))
    return sizes


def test_a_study_is_the_same_together(monkeypatch):
    space = {HEADS: [1, 2, 4], PATCH: [8, 16]}
    alone = run_search(study("apart", space, epochs=1, seeds=[0, 1]), quiet=True, **CPU)
    sizes = watched(monkeypatch)
    found = run_search(study("stacked", space, epochs=1, seeds=[0, 1]), together=2, quiet=True, **CPU)
    assert sizes == [2, 2, 2, 2, 1, 1, 1, 1]  # of each patch size two and one, with two seeds
    assert set(found.table["state"]) == {"complete"}
    columns = [name for name in found.table if name not in ("seconds", "state", "error")]
    np.testing.assert_allclose(found.table[columns], alone.table[columns], atol=1e-4)
    for point in found.table.index:
        np.testing.assert_allclose(found.logits[point], alone.logits[point], atol=1e-4)
        for seed in (0, 1):
            names = {path.name for path in alone.folder_of(point, seed).iterdir()}
            assert {path.name for path in found.folder_of(point, seed).iterdir()} == names
    sizes.clear()
    run_search(study("stacked", space, epochs=1, seeds=[0, 1]), together=2, quiet=True, **CPU)
    assert not sizes  # it is finished


def test_points_of_other_shapes_or_models_are_kept_apart():
    shared = {"train.batch_size": [8, 16], "train.resident": [False, True]}
    never = {"train.mixup": [0.0, 0.1], "train.memory_gb": [0.0, 1.0], "train.compile": [False, True]}
    space = SPACE | shared | never | {"train.lr": [0.1, 0.01]}
    content = study("kinds", space)
    runner = Runner(read_study(content), CPU, quiet=True)
    plan = runner.study.plan
    kinds = [runner.kind(number) for number in range(len(plan))]
    for number, point in enumerate(plan):
        same = [other for other, kind in zip(plan, kinds, strict=True) if kind == kinds[number]]
        alike = [o for o in plan if all(o[k] == point[k] for k in (PATCH, *shared, *never))]
        assert same == ([point] if any(point[k] for k in never) else alike)
    content["model"] = {"name": "vit_scratch", "weights": None, "options": {"dim": 16, "depth": 1}}
    content["search"]["space"] = {HEADS: [1, 2]}
    runner = Runner(read_study(content), CPU, quiet=True)
    assert [runner.kind(0), runner.kind(1)] == [0, 1]
    half = Runner(read_study(study("half", {HEADS: [1, 2]})), {"device": "cpu", "precision": torch.float16}, quiet=True)
    assert half.kind(0) != half.kind(1)


def test_a_failing_point_is_recorded_and_its_group_goes_on():
    content = study("failing", {"train.lr": [1e30, 1e-2, 1e-3], HEADS: [1, 2]})
    content["train"] |= {"optimizer": "sgd", "clip_norm": 0}
    found = run_search(content, together=6, quiet=True, **CPU)
    assert found.table["state"].tolist() == ["failed"] * 2 + ["complete"] * 4
    assert found.table["error"][0].startswith("The loss is nan")


def test_an_interrupted_study_goes_on_together(monkeypatch):
    """The first group was done, the second is cut short."""
    content, update = study("cut", SPACE), Member.update

    def interrupted(self, *args):
        if self.folder.target.name.startswith("002"):  # the first of the other patch size
            signal.raise_signal(signal.SIGINT)
        return update(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Member, "update", interrupted)
        run_search(content, together=4, quiet=True, **CPU)
    done = list((runs_dir() / "cut").glob("*/model.safetensors"))
    times = [path.stat().st_mtime_ns for path in done]
    assert len(done) == 4
    sizes = watched(monkeypatch)
    found = run_search(content, together=4, quiet=True, **CPU)
    assert sizes == [4] and set(found.table["state"]) == {"complete"}
    assert [path.stat().st_mtime_ns for path in done] == times


def test_what_cannot_be_asked_together_is_said():
    with pytest.raises(TrainingError, match="together=0: expected 1 or more"):
        run_search(study("none", SPACE), together=0, quiet=True)
    with pytest.raises(TrainingError, match="tpe proposes each point from those before it"):
        run_search(study("tpe", SPACE, method="tpe"), together=2, quiet=True)
