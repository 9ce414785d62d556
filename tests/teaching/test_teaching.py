"""The model that comes with the library: what it is, and what it can and cannot do."""

import json

import pytest
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from medvitlib.data import open_dataset
from medvitlib.models.zoo import count_parameters
from medvitlib.teaching import FOLDER, load_teaching_model
from medvitlib.training.features import forward


@pytest.fixture(scope="module")
def loaded():
    return load_teaching_model()


def test_it_is_the_published_two_layer_model(loaded):
    model, info = loaded
    assert count_parameters(model) == info["trained"]["parameters"] == 99_010
    assert (len(model.layers), model.layers[0].heads, model.patch_size) == (2, 2, 32)
    assert not model.training and model.preprocessing.channels == 1
    assert info["positive"] in info["classes"] and info["temperature"] > 0


def test_its_files_are_small_and_hold_no_pickle():
    assert sorted(path.suffix for path in FOLDER.iterdir() if path.is_file()) == [".json", ".py", ".py", ".safetensors"]
    assert (FOLDER / "model.safetensors").stat().st_size < 450_000
    state = load_file(FOLDER / "model.safetensors")  # a format that holds tensors and cannot hold code
    assert sum(tensor.numel() for tensor in state.values()) == 99_010
    assert "command" in json.loads((FOLDER / "model.json").read_text())["trained"]


def test_it_finds_plain_disease_in_patients_that_it_has_not_seen(loaded):
    """model.json says how well when it was committed; these are other patients again."""
    model, info = loaded
    positive = info["classes"].index(info["positive"])
    ds = open_dataset("phantom/ct", image_size=224, n_patients=60, seed=3, difficulty=0.0)
    logits = forward(model, ds, device="cpu", precision=None)
    assert roc_auc_score(ds.labels == positive, logits[:, positive] - logits[:, 1 - positive]) > 0.7
