"""An exported file answers as the model does, says what it is, and is refused where it cannot be made."""

import json
import subprocess
import sys

import cv2
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from medvitlib import export as export_module
from medvitlib.cli import main
from medvitlib.data import normalise
from medvitlib.errors import AdaptationError, DataError, MedvitError
from medvitlib.evaluation.calibration import apply_temperature
from medvitlib.export import export
from medvitlib.models.adapters import merge_and_unload
from medvitlib.models.int8 import quantise
from medvitlib.models.lora import add_lora
from medvitlib.models.onnx_model import OnnxModel
from medvitlib.models.saved import save_model
from medvitlib.models.zoo import build, head_of
from medvitlib.predict import Predictor

# ours, timm's and torchvision's, each kind at reduced size
MODELS = {
    "vit_tiny_test": {},
    "transformer_classifier": {"image_size": 64, "options": {"depth": 3, "heads": 2, "positions": True}},
    "vit_tiny_patch16_224": {"image_size": 48, "options": {"depth": 2}},
    "vit_small_patch14_reg4_dinov2": {"image_size": 56, "options": {"depth": 2}},
    "swin_tiny_patch4_window7_224": {
        "image_size": 56,
        "options": {"embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 3, 6]},
    },
    "resnet18": {"image_size": 32},
    "shufflenet_v2_x0_5": {"image_size": 48},
}
TEMPERATURE = 1.7


def save(model: nn.Module, folder, **more):
    folder.mkdir(exist_ok=True)
    classes = [f"class {i}" for i in range(model.architecture["num_classes"])]
    save_model(model, folder, {"classes": classes, "positive": None, "temperature": TEMPERATURE, **more})
    return folder


@pytest.fixture
def saved(redraw, tmp_path):
    def make(name: str = "vit_tiny_patch16_224", classes: int = 3, **changed):
        given = {**MODELS[name], **changed}
        model = redraw(build(name, classes, weights=None, **given.pop("options", {}), **given))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 2**0.5)  # after each ReLU, or nothing of the image is left
        return model, save(model, tmp_path / name)

    return make


def some_images(model: nn.Module, n: int = 5, seed: int = 0) -> np.ndarray:
    """Smooth ones: no picture is white noise."""
    p = model.preprocessing
    noise = np.random.default_rng(seed).integers(0, 256, (n, 6, 6, p.channels), dtype=np.uint8)
    found = [cv2.resize(image, p.image_size[::-1], interpolation=cv2.INTER_CUBIC) for image in noise]
    return np.stack(found).reshape(n, *p.image_size, p.channels).transpose(0, 3, 1, 2)


@torch.inference_mode()
def logits(model: nn.Module, images: np.ndarray) -> np.ndarray:
    return model.eval()(normalise(torch.from_numpy(images), model.preprocessing)).numpy()


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_pytorch_for_any_number_of_images(name, saved):
    model, folder = saved(name)
    done = export(folder)
    assert done.logits <= 1e-4 and done.agreement == 1 and done.path == folder / "model.onnx"
    images = some_images(model)
    expected, file = logits(model, images), OnnxModel(done.path, threads=1)
    assert np.ptp(expected, axis=0).max() > 0.01  # an image makes a difference
    for n in (1, 2, 5):
        answer = file(images[:n])
        np.testing.assert_allclose(answer.logits, expected[:n], atol=1e-4)
        np.testing.assert_allclose(answer.probabilities, apply_temperature(expected[:n], TEMPERATURE), atol=1e-5)
        with torch.inference_mode():
            again = head_of(model)(torch.from_numpy(answer.features)).numpy()
        np.testing.assert_allclose(again, answer.logits, atol=1e-5)


def test_low_rank_updates_are_in_the_file_once_merged(redraw, tmp_path):
    model = build("vit_tiny_test", 3, weights=None)
    add_lora(model, rank=2, generator=torch.Generator().manual_seed(0))
    redraw(model)
    images = some_images(model)
    expected = logits(model, images)
    merge_and_unload(model)
    file = OnnxModel(export(save(model, tmp_path / "run")).path)
    np.testing.assert_allclose(file(images).logits, expected, atol=1e-4)


def test_grey_images_serve_a_model_of_colour(saved):
    model, folder = saved()
    grey = some_images(model)[:, :1]
    file = OnnxModel(export(folder).path)
    np.testing.assert_allclose(file(grey).logits, logits(model, grey), atol=1e-4)


def test_the_file_says_all_that_model_json_says_and_runs_without_pytorch(saved):
    _, folder = saved("vit_tiny_test")
    path = export(folder).path
    code = (
        "import json, sys, numpy as np; from medvitlib.models.onnx_model import OnnxModel;"
        f"m = OnnxModel({str(path)!r}); print(m(np.zeros((2, m.channels, *m.image_size), np.uint8)).logits.shape);"
        "print('torch' in sys.modules); print(json.dumps(m.info))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shape, torch_too, said = done.stdout.splitlines()
    assert (shape, torch_too) == ("(2, 3)", "False")
    expected = json.loads((folder / "model.json").read_text())
    del expected["weights"]  # of model.safetensors
    assert json.loads(said) == {**expected, "precision": "float32"}
    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    assert {value.name for value in proto.graph.output} == {"logits", "probabilities", "features"}
    assert all(value.doc_string for value in (*proto.graph.input, *proto.graph.output))


def test_int8_decides_as_the_model_does_in_a_third_of_the_bytes(saved):
    model, folder = saved()
    done = export(folder, int8=True, check=some_images(model, 20).transpose(0, 2, 3, 1))
    assert done.precision == "int8, dynamic" and done.images == 20 and done.logits <= 1e-4
    assert done.agreement >= 0.9 and 0 < done.probabilities < 0.1
    images = some_images(model, 8, seed=1)
    file, expected = OnnxModel(done.path), logits(model, images)
    found = file(images).logits
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)
    np.testing.assert_array_equal(file(images[:1]).logits, found[:1])  # whatever else is in the batch
    whole = export(folder)
    assert done.megabytes < 0.4 * whole.megabytes
    assert "the same" in str(done) and "the same" not in str(whole)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_with_images_to_calibrate_on_ranges_are_fixed_and_convolutions_rounded(name, saved):
    model, folder = saved(name)
    usual = some_images(model, 16).transpose(0, 2, 3, 1)
    done = export(folder, int8=True, calibration=usual, check=usual)
    assert done.precision == "int8, static" and done.megabytes < 0.3 * done.before
    images = some_images(model, 8, seed=1)
    found, expected = OnnxModel(done.path)(images).logits, logits(model, images)
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)


def test_a_file_that_differs_is_not_kept(saved, monkeypatch):
    _, folder = saved("vit_tiny_test")
    monkeypatch.setattr(export_module, "TOLERANCE", -1.0)
    with pytest.raises(MedvitError, match=r"differ from PyTorch's by .*it was not kept"):
        export(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]


def test_a_predictor_answers_from_a_file_as_from_the_run(tmp_path):
    done = export("teaching", tmp_path / "teaching.onnx")
    cpu = {"device": "cpu", "precision": None}
    model, file = Predictor("teaching", **cpu), Predictor(done.path, **cpu)
    images = list(np.random.default_rng(0).integers(0, 256, (3, 100, 120), dtype=np.uint8))
    for one, other in zip(model.predict(images, quiet=True), file.predict(images, quiet=True), strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-5) and one.label == other.label
    assert str(file).splitlines()[:2] == str(model).splitlines()[:2]


def test_the_command_exports_compares_and_answers(saved, tmp_path, capsys):
    model, folder = saved("vit_tiny_test")
    picture = tmp_path / "images" / "0.png"
    picture.parent.mkdir()
    cv2.imwrite(str(picture), some_images(model)[0].transpose(1, 2, 0))
    out = tmp_path / "small.onnx"
    assert main(["export", str(folder), "--out", str(out), "--int8", "--check", str(picture.parent)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{out}: int8, dynamic") and "checked on 1 images" in shown
    assert main(["predict", str(out), str(picture), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith(f"{picture}: class ")
    assert main(["export", str(folder), "--out", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["export", str(folder), "--out", str(out), "--force"]) == 0
    assert "float32" in capsys.readouterr().out
    assert main(["predict", str(out), str(picture), "--maps", str(tmp_path / "maps"), "--device", "cpu"]) == 1
    assert "give the run's folder" in capsys.readouterr().err


def test_what_cannot_be_exported_is_said(saved, tmp_path):
    model, folder = saved("vit_tiny_test")
    (tmp_path / "notes.txt").write_text("no run")
    for arguments, words in (
        ((tmp_path / "nothing",), "No finished run at"),
        ((tmp_path / "notes.txt",), "No finished run at"),
        ((folder, tmp_path / "model.pt"), r"does not end in \.onnx"),
        ((folder, tmp_path / "no" / "model.onnx"), "There is no folder"),
        (("teaching",), "say where"),
    ):
        with pytest.raises(MedvitError, match=words):
            export(*arguments)
    for chosen, words in (
        ({"calibration": tmp_path}, "are for int8"),
        ({"check": tmp_path / "none"}, "there is nothing at"),
        ({"check": tmp_path / "notes.txt"}, "None of 1 images"),
    ):
        with pytest.raises((MedvitError, DataError), match=words):
            export(folder, **chosen)
    rounded = save(quantise(model), tmp_path / "rounded")
    with pytest.raises(MedvitError, match="in int8 already"):
        export(rounded)
    with pytest.raises(AdaptationError, match="--calibrate"):
        export(saved("resnet18")[1], int8=True)


def test_without_onnx_runtime_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MedvitError, match="pip install onnxruntime"):
        export("teaching")


def test_a_file_of_another_program_or_a_damaged_one_is_refused(saved, tmp_path):
    model, folder = saved("vit_tiny_test")
    path = export(folder).path
    for n, change in enumerate((lambda b: b[: len(b) // 2], lambda b: b"no file of ONNX")):
        damaged = tmp_path / f"{n}.onnx"
        damaged.write_bytes(change(path.read_bytes()))
        with pytest.raises(MedvitError, match="cannot be read"):
            OnnxModel(damaged)
    proto = onnx.load(path)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    with pytest.raises(MedvitError, match="was written by another program"):
        Predictor(tmp_path / "foreign.onnx")
    with pytest.raises(MedvitError, match="There is no file"):
        OnnxModel(tmp_path / "none.onnx")
    images = some_images(model)
    for wrong in (images.astype(np.float32), images[:, :, 1:], images[0], images[:0]):
        with pytest.raises(DataError, match="expected uint8"):
            OnnxModel(path)(wrong)
