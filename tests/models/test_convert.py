"""Every kind of checkpoint that people publish becomes a file `build` loads, or one sentence says what blocks it."""

import argparse
import collections
import os
import pickle

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from medvitlib.cli import main
from medvitlib.data import normalise, open_dataset
from medvitlib.errors import MedvitError, WeightsError
from medvitlib.evaluation import Report
from medvitlib.models.builders import published
from medvitlib.models.checkpoint import read_checkpoint
from medvitlib.models.convert import convert
from medvitlib.models.foreign import read_foreign
from medvitlib.models.zoo import build
from medvitlib.predict import Predictor

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """The smallest of torchvision's residual nets, with a head of three classes."""
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=3).eval()


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    return build("vit_tiny_test", 5, weights=None, quiet=True)


@pytest.fixture
def saved(tmp_path):
    """Saves something as old.pth and returns its path."""

    def save(content, name="old.pth", **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return save


def equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in right)


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + name: value for name, value in state.items()}


def test_a_converted_file_gives_the_same_logits(net, saved):
    done = convert(saved(net.state_dict()), name="resnet18")
    assert done.path.name == "old.safetensors" and equal(load_file(done.path), net.state_dict())
    assert done.fits == {"resnet18": 3}
    assert done.parameters == sum(p.numel() for p in net.parameters()) and done.tensors == len(net.state_dict())
    again = build("resnet18", 3, weights=done.path, quiet=True).eval()
    with torch.no_grad():
        assert torch.equal(again(IMAGES), net(IMAGES))


def test_files_of_the_format_before_zip_are_read(tiny, saved):
    done = convert(saved(tiny.state_dict(), _use_new_zipfile_serialization=False))
    assert equal(load_file(done.path), tiny.state_dict()) and done.fits == {"vit_tiny_test": 5}


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "network"])
def test_weights_are_found_under_the_usual_names_and_what_lay_beside_them_is_listed(tiny, saved, key):
    optimizer = torch.optim.AdamW(tiny.parameters())
    tiny(IMAGES).sum().backward()
    optimizer.step()
    content = {"epoch": 12, "arch": "vit", key: tiny.state_dict(), "optimizer": optimizer.state_dict()}
    done = convert(saved({**content, "loss": torch.tensor(0.5)}))
    assert equal(load_file(done.path), tiny.state_dict())
    assert f"Read the weights under {key}." in done.notes
    (dropped,) = [note for note in done.notes if note.startswith("Dropped")]
    for expected in ("epoch = 12", "arch = 'vit'", "optimizer (dict of 2)", "loss (Tensor)"):
        assert expected in dropped


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "backbone.", "_orig_mod.module.", "model._orig_mod.net."]
)
def test_prefixes_that_all_names_share_are_removed_and_named(tiny, saved, prefix):
    done = convert(saved(prefixed(tiny.state_dict(), prefix)))
    assert equal(load_file(done.path), tiny.state_dict())
    assert f"Prefix {prefix} removed from every name." in done.notes


def test_a_prefix_that_some_names_lack_stays(saved):
    state = {"backbone.a": torch.ones(2), "head.weight": torch.ones(2)}
    assert read_foreign(saved(state)).state.keys() == state.keys()


def test_a_compiled_part_loses_its_infix(saved):
    assert [*read_foreign(saved({"a._orig_mod.w": torch.ones(2), "b": torch.ones(2)})).state] == ["a.w", "b"]


def test_lightning_checkpoints_lose_their_loss(tiny, saved):
    content = {
        "epoch": 3,
        "global_step": 99,
        "pytorch-lightning_version": "2.5",
        "state_dict": {**prefixed(tiny.state_dict(), "model."), "criterion.weight": torch.ones(5)},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 1e-3},
    }
    done = convert(saved(content, "last.ckpt"))
    assert equal(load_file(done.path), tiny.state_dict())
    assert "Dropped, of the training and not of the network: criterion.weight." in done.notes
    assert "hyper_parameters (dict of 1)" in "".join(done.notes)


def test_averaged_weights_are_never_taken_for_the_others(tiny, saved):
    state = tiny.state_dict()
    average = {name: value / 2 for name, value in state.items()}
    path = saved({"state_dict": state, "state_dict_ema": average})
    done = convert(path)
    assert equal(load_file(done.path), state) and "not taken: state_dict_ema" in str(done)
    done = convert(path, take="state_dict_ema", force=True)
    assert equal(load_file(done.path), average) and "averaged weights (EMA) under state_dict_ema" in str(done)
    assert "averaged weights" in build("vit_tiny_test", 5, weights=done.path, quiet=True).weights_info.note
    done = convert(saved({"model_ema": average}), force=True)
    assert equal(load_file(done.path), average) and "averaged weights (EMA) under model_ema" in str(done)
    swa = torch.optim.swa_utils.AveragedModel(tiny)
    assert equal(read_foreign(saved(swa.state_dict())).state, state)  # n_averaged is no weight


def test_several_state_dicts_are_not_guessed_between(tiny, saved):
    path = saved({"teacher": tiny.state_dict(), "student": tiny.state_dict()})
    with pytest.raises(WeightsError, match=r"several state dicts: teacher, student. .*--take"):
        convert(path)
    with pytest.raises(WeightsError, match="has no 'techer'; it has: teacher, student"):
        convert(path, take="techer")
    assert convert(path, take="teacher").fits == {"vit_tiny_test": 5}
    assert read_foreign(saved({"teacher": tiny.state_dict(), "epoch": 1})).notes[0] == "Read the weights under teacher."


def test_shared_strided_and_half_tensors_survive(saved):
    shared = torch.arange(6.0).reshape(2, 3)
    state = {
        "a.weight": shared,
        "b.weight": shared,
        "c.weight": shared.T,
        "d.weight": torch.ones(4, dtype=torch.float16)[::2],
        "e.weight": torch.ones(2, dtype=torch.bfloat16),
        "bn.num_batches_tracked": 7,
        "f.none": None,
        "epoch": 3,
    }
    done = convert(saved(state))
    read = load_file(done.path)
    assert torch.equal(read["c.weight"], shared.T) and torch.equal(read["b.weight"], shared)
    assert (read["d.weight"].dtype, read["e.weight"].dtype) == (torch.float16, torch.bfloat16)
    assert read["bn.num_batches_tracked"] == 7 and not {"f.none", "epoch"} & read.keys()
    assert "Shared memory, now copies: a.weight = b.weight = c.weight." in done.notes
    assert "Dropped, no tensors: f.none (NoneType), epoch = 3." in done.notes


def test_tied_weights_of_a_slice_take_their_own_room_only(saved):
    done = convert(saved({"a": torch.zeros(1_000_000)[:10]}))
    assert done.path.stat().st_size < 1000


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_what_safetensors_cannot_hold_is_named(saved):
    with pytest.raises(WeightsError, match=r"a\.w is sparse"):
        convert(saved({"a.w": torch.eye(3).to_sparse()}))
    with pytest.raises(WeightsError, match=r"a\.w is quantised"):
        convert(saved({"a.w": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}))
    assert "Not finite (nan or infinite) in a.w" in str(convert(saved({"a.w": torch.tensor([1.0, torch.nan])})))


def test_the_file_is_compared_with_a_model_all_faults_at_once(net, saved):
    state = net.state_dict()
    state["extra.weight"] = state.pop("layer1.0.conv1.weight")
    state["conv1.weight"] = state["conv1.weight"][:, :, :3, :3]
    path = saved(state)
    with pytest.raises(WeightsError) as error:
        convert(path, name="resnet18")
    for expected in (
        "missing (1): layer1.0.conv1.weight",
        "unexpected (1): extra.weight",
        "wrong shape (1): conv1.weight is (64, 3, 3, 3), the model's (64, 3, 7, 7)",
    ):
        assert expected in str(error.value)
    assert not path.with_suffix(".safetensors").exists()
    with pytest.raises(MedvitError, match=r"Nearest: .*resnet18"):
        convert(path, name="resnet81")


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "shufflenet_v2_x0_5"])
def test_names_of_timm_and_torchvision_are_compared_with_the_heads_classes(saved, name):
    made = build(name, 4, weights=None, quiet=True)
    done = convert(saved({"model": made.state_dict()}), name=name)
    assert done.fits == {name: 4} and equal(load_file(done.path), made.state_dict())
    again = build(name, 4, weights=done.path, quiet=True)
    assert equal(again.state_dict(), made.state_dict())


def test_a_backbone_without_a_head_fits_too(saved):
    backbone = timm.create_model("test_vit", num_classes=0)
    done = convert(saved(backbone.state_dict()), name="test_vit")
    assert done.fits == {"test_vit": None} and "with no head" in str(done)
    assert "head new" in build("test_vit", 2, weights=done.path, quiet=True).weights_info.note


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("how", ["zip", "legacy", "plain", "protocol 4"])
def test_no_code_of_a_malicious_file_runs(tmp_path, how):
    path, crater = tmp_path / "old.pth", tmp_path / "crater"
    content = {"state_dict": {"a.w": torch.ones(2)}, "bomb": Bomb(crater)}
    if how in ("plain", "protocol 4"):
        path.write_bytes(pickle.dumps(Bomb(crater), protocol=2 if how == "plain" else 4))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(WeightsError, match="refused" if how == "protocol 4" else r"mkdir.*refused"):
        convert(path)
    assert not crater.exists() and os.listdir(tmp_path) == ["old.pth"]
    torch.load(path, weights_only=False) if how in ("zip", "legacy") else pickle.loads(path.read_bytes())
    assert crater.exists()  # it was a live one


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (np.float64(0.9), r"numpy\._?core.multiarray.scalar"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_blocks_a_file_is_named_with_the_way_out(saved, beside, named, zipped):
    path = saved({"state_dict": {"a.w": torch.ones(2)}, "x": beside}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=rf"{named}.* refused.*state_dict\(\)") as error:
        convert(path)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_files_that_are_no_checkpoints_are_told_apart(tmp_path, saved, net):
    whole = saved(net.state_dict()).read_bytes()
    old = saved(net.state_dict(), _use_new_zipfile_serialization=False).read_bytes()
    cases = {
        "its end is missing or broken": whole[: len(whole) // 2],
        "damaged or cut off": old[: len(old) // 2],
        "is empty": b"",
        "no PyTorch checkpoint: it begins with b'version https": b"version https://git-lfs.github.com/spec/v1\n",
        "but a list of 2": None,
    }
    for message, content in cases.items():
        path = tmp_path / "case.pth"
        path.write_bytes(content) if content is not None else torch.save([1, 2], path)
        with pytest.raises(WeightsError, match=message) as error:
            convert(path)
        assert "\n" not in str(error.value)
    with pytest.raises(WeightsError, match="but: epoch = 3, config"):
        convert(saved({"epoch": 3, "config": {"lr": 0.1}}))
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "script.pt")
    with pytest.raises(WeightsError, match="TorchScript archive"):
        convert(tmp_path / "script.pt")
    np.savez(tmp_path / "arrays.pt.npz", a=np.ones(2))
    (tmp_path / "arrays.pt.npz").rename(tmp_path / "arrays.pt")
    with pytest.raises(WeightsError, match=r"no data\.pkl"):
        convert(tmp_path / "arrays.pt")


def test_damage_anywhere_is_one_sentence_and_never_another_error(saved, tiny):
    path = saved({"state_dict": tiny.state_dict(), "epoch": 3})
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for number in range(150):
        content = bytearray(whole)
        ends = ((0, 700), (len(whole) - 900, len(whole)))[number % 2]  # the pickle; the archive's table of contents
        for place in rng.integers(*ends, size=1 + number % 8):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            read_foreign(path)
        except WeightsError as error:
            assert "\n" not in str(error)


def test_a_pickle_that_holds_itself_ends_nowhere(saved):
    content = {"epoch": torch.ones(1)}
    content["model"] = content
    with pytest.raises(WeightsError, match="within 5 levels"):
        convert(saved(content))


def test_places_that_cannot_be_read_or_written_are_said(tmp_path, saved, tiny):
    path = saved(tiny.state_dict())
    done = convert(path)
    before = done.path.read_bytes()
    cases = {
        (tmp_path / "none.pth", None): "no file at",
        (tmp_path, tmp_path / "x.safetensors"): "is a folder",
        (path, None): "exists already: .*--force",
        (path, path): r"ends in \.safetensors",
        (done.path, None): "needs no conversion",
        (path, tmp_path / "no" / "x.safetensors"): "no folder",
        (path, "/proc/x.safetensors"): "cannot write",
    }
    for (old, new), message in cases.items():
        with pytest.raises(WeightsError, match=message):
            convert(old, new)
    (tmp_path / "link.safetensors").symlink_to(path)
    with pytest.raises(WeightsError, match="the old file itself"):
        convert(path, tmp_path / "link.safetensors", force=True)
    assert done.path.read_bytes() == before
    assert equal(load_file(convert(path, force=True).path), tiny.state_dict())
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_an_interrupted_write_leaves_the_earlier_file(saved, tiny, monkeypatch):
    path = saved(tiny.state_dict())
    done = convert(path)
    before = done.path.read_bytes()

    def cut_off(state, aside, metadata):
        aside.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", cut_off)
    with pytest.raises(WeightsError, match="No space left"):
        convert(path, force=True)
    assert done.path.read_bytes() == before and len(os.listdir(path.parent)) == 2


def test_build_reads_the_old_file_as_it_reads_the_new(saved, tiny):
    path = saved({"state_dict": collections.OrderedDict(prefixed(tiny.state_dict(), "module."))})
    new = convert(path).path
    assert equal(read_checkpoint(path).state, read_checkpoint(new).state)
    assert build("vit_tiny_test", 5, weights=new, quiet=True).weights_info.source == "argument, from old.pth"


def test_the_command_prints_what_it_did(saved, tiny, capsys):
    path = saved({"model": tiny.half().state_dict(), "epoch": 1})
    assert main(["convert", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "Read the weights under model." in shown and "epoch = 1" in shown
    assert "Fits vit_tiny_test, with a head of 5 classes: build('vit_tiny_test', 5, weights=" in shown
    assert main(["convert", str(path)]) == 1
    assert capsys.readouterr().err.startswith("medvit: ")
    assert main(["convert", str(path), str(path.with_name("b.safetensors")), "--as", "test_vit"]) == 1
    assert "does not fit test_vit" in capsys.readouterr().err


def test_predict_and_evaluate_take_a_converted_file_with_its_classes(saved, net, tmp_path, write_classes, capsys):
    path = convert(saved(net.state_dict()), name="resnet18").path
    folder = write_classes(tmp_path / "cells", {"a": 4, "b": 4, "c": 4})
    named = ["--classes", "c, a,b"]
    assert main(["predict", str(path), str(folder), "--out", str(tmp_path / "out.csv"), *named]) == 0
    shown = capsys.readouterr().out
    assert "its outputs taken as c, a, b. Images are prepared as for the published resnet18 (224 × 224 px" in shown
    assert "the largest probability decides" in shown and "unlike the training images: not checked" in shown
    rows = pd.read_csv(tmp_path / "out.csv")
    planes = torch.from_numpy(open_dataset(folder, image_size=224).images.planes(np.arange(12)))
    expected = net(normalise(planes, published("resnet18")[1])).softmax(1).detach().numpy()
    np.testing.assert_allclose(rows[["p_c", "p_a", "p_b"]].to_numpy(), expected, atol=0.01)  # bfloat16, on some
    assert main(["evaluate", str(path), str(folder), "--out", str(tmp_path / "report"), *named]) == 0
    report = Report.load(tmp_path / "report")
    assert report.classes == ("c", "a", "b") and [report.classes[y] for y in report.y_true] == list("aaaabbbbcccc")
    np.testing.assert_allclose(report.probabilities, expected, atol=0.01)


def test_a_converted_file_of_two_classes_has_a_positive_one_and_a_threshold_that_nobody_chose(
    saved, tmp_path, write_classes
):
    two = build("vit_tiny_test", 2, weights=None, quiet=True)
    path = convert(saved(two.state_dict())).path
    images = write_classes(tmp_path / "two", {"a": 2, "b": 2})
    predictor = Predictor(path, classes=["a", "b"], positive="b")
    assert (predictor.threshold, predictor.rule) == (0.5, "one half, none was chosen")
    assert all("one half, none was chosen" in answer.sentence() for answer in predictor.predict(images, quiet=True))
    assert "converted file brings no validation images" in str(predictor)
    assert Predictor(path, classes=["a", "b"], positive="b", threshold=0.2).threshold == 0.2
    with pytest.raises(MedvitError, match="There is no recall threshold"):
        Predictor(path, classes=["a", "b"], positive="b", threshold="recall")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name its classes in order"),
        (["--classes", "a,b,c"], "a last layer of 2 classes; 3 were named"),
        (["--classes", "a,b"], "name the positive one of the two, a or b"),
        (["--classes", "a,b", "--positive", "c"], "name the positive one of the two"),
        (["--classes", "a,a", "--positive", "a"], "expected two names or more, each once"),
        (["--classes", "a,b,c", "--positive", "a"], "none is the positive one"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_what_a_file_does_not_tell_is_not_guessed(saved, tmp_path, write_classes, capsys, command, options, message):
    path = convert(saved(build("vit_tiny_test", 2, weights=None, quiet=True).state_dict())).path
    images = write_classes(tmp_path / "two", {"a": 2, "b": 2})
    assert main([command, str(path), str(images), *options]) == 1
    assert message in capsys.readouterr().err


def test_a_file_that_does_not_say_its_model_is_refused(saved, net, tmp_path, write_classes):
    path = convert(saved(net.state_dict())).path  # torchvision's models are not tried
    with pytest.raises(MedvitError, match="--as NAME"):
        Predictor(path, classes=["a", "b", "c"])
