"""What `fit` does to a model, and what it leaves behind."""

import json
import resource
import signal
import threading
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from medvitlib.curves import plot_history
from medvitlib.data import normalise, open_dataset, split
from medvitlib.errors import DataError, MedvitError, TrainingError
from medvitlib.evaluate import evaluate
from medvitlib.models.zoo import build
from medvitlib.training import checkpoint, loop
from medvitlib.training.config import TrainConfig
from medvitlib.training.features import forward
from medvitlib.training.fit import fit
from medvitlib.training.order import bounds_of

CPU = {"device": "cpu", "precision": None, "quiet": True}
QUICK = TrainConfig(epochs=2, batch_size=16, lr=1e-3)


@pytest.fixture(scope="module")
def parts():
    return split(open_dataset("phantom/cxr", image_size=32, n_patients=40, difficulty=0.0))


@pytest.fixture
def model():
    return build("vit_tiny_test", 2, weights=None)


def weights_of(run) -> dict[str, torch.Tensor]:
    return run.model.state_dict()


def test_one_update_is_one_step_of_plain_pytorch(parts, model, tmp_path):
    config = TrainConfig(epochs=1, batch_size=1000, lr=0.1, optimizer="sgd", momentum=0, weight_decay=0)
    config = replace(config, warmup_epochs=0, clip_norm=0)
    plain = build("vit_tiny_test", 2, weights=None)
    x = normalise(torch.from_numpy(parts.train.images.planes(slice(None))), plain.preprocessing)
    F.cross_entropy(plain(x), torch.from_numpy(parts.train.labels)).backward()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter -= 0.1 * parameter.grad
    run = fit(model, parts, config, name="plain", **CPU)
    for name, tensor in weights_of(run).items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], rtol=1e-4, atol=1e-6, msg=name)


def test_it_learns_and_the_run_is_complete(tmp_path, model):
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 40)):
        (tmp_path / name).mkdir()
        for k in range(40):
            cv2.imwrite(str(tmp_path / name / f"{k}.png"), rng.integers(low, low + 160, (32, 32), np.uint8))
    parts = split(open_dataset(tmp_path, image_size=32, positive="bright"), val=0.25, test=0.25)
    config = TrainConfig(epochs=6, batch_size=8, lr=1e-2)
    run = fit(model, parts, config, name="learns", settings={"profile": "quick"}, compared=2, **CPU)
    metrics = run.metrics
    assert metrics.train_loss.iloc[-1] < 0.2 < 0.5 < metrics.train_loss.iloc[0]
    assert list(metrics.epoch) == list(range(1, 7)) and set(metrics.phase) == {"all"}
    assert run.candidates == 2 * 6
    saved = json.loads((run.folder / "config.json").read_text())
    assert saved["train"]["lr"] == 1e-2 and saved["profile"] == "quick"
    assert not (run.folder / "last").exists()
    report = evaluate(run, parts.test, n_boot=100, device="cpu", precision=None)
    assert report.metrics["auroc"].value > 0.99


def test_the_best_epoch_is_what_is_kept(parts, model):
    config = TrainConfig(epochs=6, batch_size=8, lr=3e-2, metric="val_nll", schedule="constant", warmup_epochs=0)
    run = fit(model, parts, config, name="best", **CPU)
    best = run.metrics.val_nll.idxmin()
    assert json.loads((run.folder / "model.json").read_text())["chosen"]["epoch"] == best + 1
    assert run.metrics.best[best] == 1 and run.metrics.best[best + 1 :].sum() == 0
    logits = forward(run.model, parts.val, device="cpu", precision=None)
    np.testing.assert_allclose(logits, run.validation_logits, atol=1e-5)
    nll = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(parts.val.labels)).item()
    assert nll == pytest.approx(run.metrics.val_nll[best], abs=1e-5)


def test_of_epochs_with_the_same_auroc_the_one_with_the_lowest_loss_is_kept(parts, model, monkeypatch):
    computed = iter([(0.9, 0.5), (1.0, 0.6), (1.0, 0.2), (1.0, 0.4), (0.9, 0.1)])
    plain = loop.validation_metrics

    def validated(*args):
        auroc, nll = next(computed)
        return plain(*args) | {"val_auroc": auroc, "val_nll": nll}

    monkeypatch.setattr(loop, "validation_metrics", validated)
    run = fit(model, parts, replace(QUICK, epochs=5), name="ties", **CPU)
    assert run.metrics.best.tolist() == [1, 1, 1, 0, 0]
    assert json.loads((run.folder / "model.json").read_text())["chosen"] == {"epoch": 3, "val_auroc": 1.0}


def test_the_weights_before_the_first_update_are_kept_where_no_epoch_is_better(parts, model):
    before = forward(model, parts.val, device="cpu", precision=None)
    harmful = TrainConfig(epochs=2, lr=3.0, warmup_epochs=0, metric="val_nll", keep_start=True, clip_norm=0)
    run = fit(model, parts, harmful, name="floor", **CPU)
    assert run.metrics.epoch.tolist() == [0, 1, 2] and run.metrics.best.tolist() == [1, 0, 0]
    assert run.candidates == 3
    np.testing.assert_allclose(forward(run.model, parts.val, device="cpu", precision=None), before, atol=1e-6)
    plot_history(run.metrics, metric="val_nll")
    better = fit(run.model, parts, replace(QUICK, keep_start=True, metric="val_nll"), name="better", **CPU)
    assert better.metrics.val_nll.min() == better.metrics.val_nll[better.metrics.best == 1].iloc[-1]


def test_patience_ends_a_training_that_gets_no_better(parts, model):
    config = TrainConfig(epochs=30, batch_size=16, lr=1e-12, metric="val_nll", patience=2, ema=0.999, clip_norm=1e-9)
    config = replace(config, optimizer="sgd", weight_decay=0)
    run = fit(model, parts, config, name="patient", **CPU)
    assert len(run.metrics) < 30
    assert len(run.metrics) - run.metrics.val_nll.idxmin() - 1 == 2


def test_parts_of_a_batch_give_the_update_of_the_whole(parts):
    runs = [
        fit(
            build("vit_tiny_test", 2, weights=None),
            parts,
            replace(QUICK, accumulate=k, optimizer="sgd", lr=0.05, balance="weights", mixup=0.3, label_smoothing=0.1),
            name=f"parts-{k}",
            **CPU,
        )
        for k in (1, 5)
    ]
    for name, tensor in weights_of(runs[0]).items():
        torch.testing.assert_close(tensor, weights_of(runs[1])[name], rtol=1e-4, atol=1e-6)


def test_workers_change_nothing(parts):
    runs = [
        fit(
            build("vit_tiny_test", 2, weights=None),
            parts,
            replace(QUICK, workers=workers, recipe="xray", cutmix=1.0, balance="sampling"),
            name=f"workers-{workers}",
            **CPU,
        )
        for workers in (0, 2)
    ]
    assert all(torch.equal(tensor, weights_of(runs[1])[name]) for name, tensor in weights_of(runs[0]).items())


def test_the_same_seed_gives_the_same_weights_and_another_one_others(parts):
    def train(seed):
        config = replace(QUICK, epochs=1, seed=seed, deterministic=True)
        return weights_of(fit(build("vit_tiny_test", 2, weights=None), parts, config, name=f"seed-{seed}", **CPU))

    torch.manual_seed(5)
    state, first = torch.get_rng_state(), train(0)
    assert torch.equal(torch.get_rng_state(), state)  # PyTorch's own generator is as it was
    torch.rand(3)
    again, other = train(0), train(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_head_goes_first_over_a_backbone_that_stands_still(parts, monkeypatch):
    model, seen = build("resnet18", 2, weights=None, image_size=32), []
    end = loop.Loop._end_epoch

    def look(self, logits):
        state = {k: v.clone() for k, v in self.model.state_dict().items()}
        seen.append((state, [p.requires_grad for p in self.model.parameters()]))
        end(self, logits)

    monkeypatch.setattr(loop.Loop, "_end_epoch", look)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    run = fit(model, parts, replace(QUICK, epochs=1, head_epochs=1, head_lr=0.1), name="lp-ft", **CPU)
    (after_head, trained), (after_all, _) = seen
    moved = {name for name in before if not torch.equal(before[name], after_head[name])}
    assert moved == {"fc.weight", "fc.bias"} and sum(trained) == 2  # batch statistics stood still as well
    assert not torch.equal(after_head["conv1.weight"], after_all["conv1.weight"])
    assert list(run.metrics.phase) == ["head", "all"] and run.metrics.lr[0] == 0.1


def test_what_was_frozen_stays_so(parts, model):
    model.patch_embed.requires_grad_(False)
    before = model.patch_embed.proj.weight.clone()
    run = fit(model, parts, replace(QUICK, head_epochs=1), name="frozen", **CPU)
    assert torch.equal(weights_of(run)["patch_embed.proj.weight"], before)
    assert not model.patch_embed.proj.weight.requires_grad and model.head.weight.requires_grad


def test_the_average_is_what_is_validated_and_kept(parts, model, monkeypatch):
    steps = []
    update = loop.Loop._update

    def look(self, *args):
        loss = update(self, *args)
        steps.append({k: v.clone() for k, v in self.model.state_dict().items()})
        return loss

    monkeypatch.setattr(loop.Loop, "_update", look)
    config = replace(QUICK, epochs=1, ema=0.5, batch_size=8, lr=0.01)
    run = fit(model, parts, config, name="ema", **CPU)
    average = steps[0]["head.weight"]
    for number, state in enumerate(steps[1:], start=1):  # timm's warm-up of the decay
        decay = min(0.5, 1 - (1 + number) ** (-2 / 3))
        average = decay * average + (1 - decay) * state["head.weight"]
    torch.testing.assert_close(weights_of(run)["head.weight"], average, rtol=1e-5, atol=1e-7)


def test_balanced_sampling_shows_every_class_as_often(parts, monkeypatch, model):
    rare = np.r_[np.flatnonzero(parts.train.labels == 1)[:6], np.flatnonzero(parts.train.labels == 0)]
    uneven = replace(parts, train=parts.train.subset(rare))
    seen = []
    update = loop.Loop._update
    monkeypatch.setattr(loop.Loop, "_update", lambda self, x, y, ids: seen.append(y) or update(self, x, y, ids))
    fit(model, uneven, replace(QUICK, epochs=8, balance="sampling"), name="balanced", **CPU)
    assert 0.4 < torch.cat(seen).double().mean() < 0.6


@pytest.mark.parametrize("sizes, expected", [((33, 16), [16, 17]), ((32, 16), [16, 16]), ((1, 16), [1])])
def test_no_batch_of_one_is_left_over(sizes, expected):
    assert [b - a for a, b in bounds_of(*sizes)] == expected


def test_running_out_of_memory_halves_the_part_and_keeps_the_batch(parts, model, capsys):
    whole = fit(build("vit_tiny_test", 2, weights=None), parts, QUICK, name="roomy", **CPU)
    plain = model.forward

    def narrow(x):
        if len(x) > 5 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return plain(x)

    model.forward = narrow
    run = fit(model, parts, QUICK, name="narrow", **CPU)
    said = capsys.readouterr().out
    assert "with 16 images at a time: from here on 8" in said and "with 8 images at a time: from here on 4" in said
    assert "an update still sees 16" in said
    for name, tensor in weights_of(run).items():
        torch.testing.assert_close(tensor, weights_of(whole)[name], rtol=1e-3, atol=1e-5)


def test_one_image_that_does_not_fit_is_said(parts, model):
    def full(x):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model.forward = full
    with pytest.raises(TrainingError, match=r"one image at a time\. Take smaller images"):
        fit(model, parts, QUICK, name="full", **CPU)


def test_a_loss_that_is_not_finite_stops_with_what_a_search_needs(parts, model):
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"loss is nan.*nonfinite\.json"):
        fit(model, parts, QUICK, name="nan", **CPU)
    folder = load_folder("nan")
    found = json.loads((folder / "nonfinite.json").read_text())
    assert (found["epoch"], found["update"], found["loss"]) == (1, 1, "nan")
    assert len(found["ids"]) == 16 and set(found["ids"]) <= set(parts.train.ids) and found["learning_rate"] > 0


def load_folder(name):
    from medvitlib.paths import runs_dir

    return runs_dir() / f"{name}.unfinished"


def test_too_little_space_is_said_before_the_training(parts, model, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(loop.Loop, "run", lambda self: pytest.fail("the training has begun"))
    with pytest.raises(TrainingError, match="MB free; saving this training takes up to"):
        fit(model, parts, QUICK, name="small-disk", **CPU)


def test_a_file_that_cannot_grow_leaves_the_last_state(tmp_path, model):
    position = checkpoint.Position(epoch=1)
    checkpoint.save_state(tmp_path, checkpoint.state_of(position, {"model": model}, None))
    before = (tmp_path / checkpoint.STATE).read_bytes()
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        with pytest.raises(TrainingError, match=r"could not be written.*resume=True"):
            checkpoint.save_state(tmp_path, checkpoint.state_of(replace(position, epoch=2), {"model": model}, None))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / checkpoint.STATE).read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "last").iterdir()) == ["state.pt"]


def test_a_class_that_is_absent_is_said(parts, model):
    normal = parts.train.subset(parts.train.labels == 0)
    with pytest.raises(DataError, match="training part has no image of \\['pneumonia'\\]"):
        fit(model, replace(parts, train=normal), QUICK, name="absent", **CPU)


def test_three_classes_are_judged_by_macro_averages(model):
    three = split(open_dataset("phantom/blood3", image_size=32, n_patients=30))
    run = fit(build("vit_tiny_test", 3, weights=None), three, replace(QUICK, metric="val_f1"), name="three", **CPU)
    assert run.metrics[["val_auroc", "val_f1", "val_mcc"]].notna().all(axis=None)


def test_float16_is_refused_where_gradients_cannot_be_scaled(parts, model):
    with pytest.raises(TrainingError, match="float16 on cpu"):
        fit(model, parts, QUICK, name="fp16", device="cpu", precision=torch.float16)


def test_float16_scales_its_gradients(parts, model, monkeypatch):
    class Scaling(Accelerator):
        def __init__(self, **options):
            super().__init__(**options)
            self.scaler = torch.amp.GradScaler("cpu")

    scales = []
    save = loop.save_state
    monkeypatch.setattr("medvitlib.training.fit.Accelerator", Scaling)
    monkeypatch.setattr(loop, "save_state", lambda *args: scales.append(args[1]["scaler"]["scale"]) or save(*args))
    run = fit(model, parts, QUICK, name="fp16", device="cpu", precision=torch.float16, quiet=True)
    assert min(scales) > 1 and all(torch.isfinite(tensor).all() for tensor in weights_of(run).values())


def test_bfloat16_trains_and_keeps_float32_weights(parts, model):
    run = fit(model, parts, QUICK, name="bf16", device="cpu", precision=torch.bfloat16, quiet=True)
    assert {tensor.dtype for tensor in weights_of(run).values()} == {torch.float32}
    assert json.loads((run.folder / "config.json").read_text())["precision"] == "bfloat16"


def test_an_epochs_line_says_what_counts(parts, model, capsys):
    fit(model, parts, QUICK, name="lines", device="cpu", precision=None)
    first, _ = capsys.readouterr().out.splitlines()
    assert first.startswith("epoch 1/2: train loss 0.") and "val auroc" in first and "best so far" in first


def test_tensorboard_is_told_where_it_is_asked_for(parts, model):
    pytest.importorskip("tensorboard")
    run = fit(model, parts, replace(QUICK, trackers="tensorboard"), name="board", **CPU)
    assert list(run.folder.rglob("events.out.tfevents*"))


@pytest.mark.parametrize("tracker", ["no_such_tracker", "aim"])
def test_a_tracker_that_is_not_installed_is_said(parts, model, tracker):
    with pytest.raises(TrainingError, match=tracker):
        fit(model, parts, replace(QUICK, trackers=tracker), name="untracked", **CPU)


def test_mlflow_is_not_asked_for_where_it_is_not_installed(parts, model, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///nowhere")
    monkeypatch.setattr("medvitlib.training.fit.find_spec", lambda name: None)
    run = fit(model, parts, replace(QUICK, epochs=1), name="no-mlflow", **CPU)
    assert (run.folder / "training.png").stat().st_size > 1000


def frozen_head():
    model = build("vit_tiny_test", 2, weights=None)
    model.head.requires_grad_(False)
    return model


UNFIT = {
    "another number of classes": (
        lambda: build("vit_tiny_test", 3, weights=None),
        {},
        r"gives \(16, 3\).*num_classes=2",
    ),
    "auxiliary heads": (lambda: build("googlenet", 2, weights=None, image_size=32), {}, "GoogLeNetOutputs.*auxiliary"),
    "weights in half precision": (lambda: build("vit_tiny_test", 2, weights=None).half(), {}, "not float32"),
    "a frozen head that goes first": (frozen_head, {"head_epochs": 1}, "set head_epochs=0"),
    "a model of nobody": (lambda: nn.Linear(2, 2), {}, "use `build`"),
    "one image for batch statistics": (
        lambda: build("resnet18", 2, weights=None, image_size=32),
        {"accumulate": 16},
        "Batch normalisation cannot train on one image",
    ),
}


@pytest.mark.parametrize("make, settings, message", UNFIT.values(), ids=UNFIT)
def test_a_model_that_does_not_fit_is_said(parts, make, settings, message):
    with pytest.raises(TrainingError, match=message):
        fit(make(), parts, replace(QUICK, epochs=1, **settings), name="unfit", **CPU)


@pytest.mark.parametrize("where", [{"device": "gpu"}, {"device": "meta"}, {"device": "cpu", "precision": "bf16"}])
def test_a_device_or_precision_that_is_none_is_said(parts, model, where):
    with pytest.raises(MedvitError, match=r"is not here|expected 'auto'"):
        fit(model, parts, QUICK, name="nowhere", **where)


def test_a_last_batch_of_two_is_not_cut_into_single_images(parts):
    model = build("resnet18", 2, weights=None, image_size=32)
    few = replace(parts, train=parts.train.subset(range(18)))
    fit(model, few, replace(QUICK, epochs=1, accumulate=4), name="two-left", **CPU)


def test_the_head_alone_can_be_trained(parts, model):
    run = fit(model, parts, TrainConfig(epochs=0, head_epochs=2), name="head-alone", **CPU)
    assert set(run.metrics.phase) == {"head"}


def test_a_metric_that_is_never_defined_is_saved_as_nothing(parts, model, monkeypatch):
    values = loop.validation_metrics
    monkeypatch.setattr(loop, "validation_metrics", lambda *args: values(*args) | {"val_mcc": float("nan")})
    run = fit(model, parts, replace(QUICK, metric="val_mcc"), name="undefined", **CPU)
    assert json.loads((run.folder / "model.json").read_text())["chosen"] == {"epoch": 1, "val_mcc": None}


def test_a_disk_that_is_full_is_one_sentence_wherever_it_happens(parts, model, monkeypatch):
    def full(self, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medvitlib.training.run.UnfinishedRun.log", full)
    with pytest.raises(TrainingError, match=r"cannot be written any more.*resume=True"):
        fit(model, parts, QUICK, name="full-disk", **CPU)


def test_the_users_accelerator_stays_in_use(parts, model):
    theirs = Accelerator(cpu=True, gradient_accumulation_steps=3)
    fit(model, parts, replace(QUICK, epochs=1), name="theirs", **CPU)
    assert theirs.device.type == "cpu" and theirs.gradient_accumulation_steps == 3 and theirs.mixed_precision == "no"


def test_it_trains_outside_the_main_thread(parts, model):
    done = []
    thread = threading.Thread(target=lambda: done.append(fit(model, parts, QUICK, name="thread", **CPU)))
    thread.start()
    thread.join()
    assert len(done[0].metrics) == 2
