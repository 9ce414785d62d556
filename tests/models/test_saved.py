"""A model on disk is read as it was written, or refused with the reason."""

import json
import shutil

import pytest
import torch

from medvitlib.errors import MedvitError
from medvitlib.models.saved import load_model
from medvitlib.teaching import FOLDER


@pytest.fixture
def folder(tmp_path):
    for name in ("model.safetensors", "model.json"):
        shutil.copy(FOLDER / name, tmp_path)
    return tmp_path


def renamed_pickle(folder):
    model, _ = load_model(folder)
    torch.save(model.state_dict(), folder / "model.safetensors")


def truncated(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def says(**changed):
    def change(folder):
        info = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps({**info, **changed}))

    return change


def of_three_classes(folder):
    info = json.loads((folder / "model.json").read_text())
    says(architecture={**info["architecture"], "num_classes": 3}, classes=["a", "b", "c"], positive=None)(folder)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (renamed_pickle, "file of torch.save"),
        (truncated, "cannot be read"),
        (of_three_classes, "size mismatch"),
        (says(classes=["a", "b", "c"]), "names the classes"),
        (says(positive="nobody"), "positive: nobody"),
        (lambda folder: (folder / "model.safetensors").unlink(), "No such file"),
        (lambda folder: (folder / "model.json").write_text("{"), "cannot be read"),
    ],
)
def test_what_is_no_such_model_is_refused_with_the_reason(folder, spoil, words):
    spoil(folder)
    with pytest.raises(MedvitError, match=words):
        load_model(folder)


def test_a_header_whose_length_begins_like_a_pickle_is_none(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    padding = (0x80 - size) % 256  # spaces after a header belong to it
    file.write_bytes((size + padding).to_bytes(8, "little") + whole[8 : 8 + size] + b" " * padding + whole[8 + size :])
    assert file.read_bytes()[:1] == b"\x80"
    load_model(folder)
