"""A model on disk is read as it was written, or refused with the reason."""

import contextlib
import copy
import io
import json
import os
import random
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from medvitlib.cli import main
from medvitlib.data import open_dataset, split
from medvitlib.errors import MedvitError
from medvitlib.evaluate import evaluate
from medvitlib.evaluation import Report
from medvitlib.export import export
from medvitlib.finished import read_run
from medvitlib.leaderboard import leaderboard
from medvitlib.models.adapt import adapt
from medvitlib.models.onnx_model import OnnxModel
from medvitlib.models.saved import load_model
from medvitlib.models.zoo import build
from medvitlib.predict import Predictor
from medvitlib.report_page import write_report
from medvitlib.teaching import FOLDER
from medvitlib.training.config import TrainConfig
from medvitlib.training.fit import fit
from medvitlib.training.run import load_run

CPU = {"device": "cpu", "precision": None}


@pytest.fixture
def folder(tmp_path):
    for name in ("model.safetensors", "model.json"):
        shutil.copy(FOLDER / name, tmp_path)
    return tmp_path


def renamed_pickle(folder):
    model, _ = load_model(folder)
    torch.save(model.state_dict(), folder / "model.safetensors")


def says(**changed):
    def change(folder):
        info = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps({**info, **changed}))

    return change


def of_three_classes(folder):
    info = json.loads((folder / "model.json").read_text())
    architecture = {**info["architecture"], "num_classes": 3}
    says(architecture=architecture, classes=["a", "b", "c"], positive=None, prediction=None)(folder)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (renamed_pickle, "model.safetensors has the SHA-256 .*; model.json belongs to"),
        (of_three_classes, "missing or of another shape, such as fc"),
        (says(classes=["a", "b", "c"]), "classes has 3 names for a model of 2 classes"),
        (says(classes=["a", "a"]), "names one class twice"),
        (says(positive="nobody"), "positive is 'nobody'; expected one of two classes"),
        (says(positive=None), "positive is None; expected one of two classes"),
        (says(temperature={"a": 1}), r"model.json: temperature is {\"a\": 1}; expected a number from 0.05 to 20"),
        (says(temperature=0), "temperature is 0; expected a number"),
        (says(thresholds={"recall": None}), "model.json: thresholds.recall is null; expected a number from 0 to 1"),
        (says(weights={}), "weights has no field 'sha256'"),
        (says(preprocessing={"image_size": "big"}), 'preprocessing.image_size is "big"; expected a list of 2 items'),
        (says(preprocessing={}), "preprocessing has no field 'image_size'"),
        (lambda folder: (folder / "model.safetensors").unlink(), "No such file"),
        (lambda folder: (folder / "model.json").write_text("{"), "model.json is not valid JSON"),
        (lambda folder: (folder / "model.json").write_text("[" * 100_000), "model.json is not valid JSON"),
    ],
)
def test_what_is_no_such_model_is_refused_with_the_reason(folder, spoil, words):
    spoil(folder)
    with pytest.raises(MedvitError, match=words):
        load_model(folder)


def test_a_weights_file_that_was_flipped_or_cut_is_refused(folder):
    """As issue 21 counted: without a hash 38 of 100 such files were loaded without a word."""
    file, rng = folder / "model.safetensors", random.Random(0)
    whole = file.read_bytes()
    for number in range(100):
        content = bytearray(whole)
        if number % 4:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:
            del content[rng.randrange(len(content)) :]
        file.write_bytes(content)
        with pytest.raises(MedvitError, match="has the SHA-256"):
            load_model(folder)
    file.write_bytes(whole)
    load_model(folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 10**7}, "options.depth is 10000000; expected a number"),
        ({"depth": 900_000}, "more than 10,000 tensors"),
        ({"dim": 900_000}, "8,589,934,592 numbers"),
        ({"dim": 128}, "missing or of another shape"),
        ({"depth": 1}, "model of 12 tensors, the files have 20"),
        ({"dim": "wide"}, "cannot be read"),
        ({"nothing": 1}, "has no option 'nothing'"),
    ],
)
def test_an_architecture_that_does_not_fit_is_refused_before_memory_is_taken(folder, options, words):
    info = json.loads((folder / "model.json").read_text())
    says(architecture={**info["architecture"], "options": options})(folder)
    with pytest.raises(MedvitError, match=words):
        load_model(folder)


# ---------------------------------------------------------------- any JSON value in any position


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run with every field there is: an adapter on a base in a file, evaluated, prepared, exported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVIT_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("MEDVIT_WEIGHTS", str(tmp_path_factory.mktemp("weights")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        base = build("vit_tiny_test", 2, weights=None)
        save_file(base.state_dict(), Path(os.environ["MEDVIT_WEIGHTS"]) / "tiny.safetensors")
        parts = split(open_dataset("phantom/cxr", image_size=32, n_patients=80, difficulty=0.0))
        model = adapt(build("vit_tiny_test", 2, weights="tiny.safetensors", quiet=True), "lora", rank=1)
        run = fit(model, parts, TrainConfig(epochs=1, lr=1e-2), name="run", quiet=True, **CPU)
        evaluate(run, parts, coverage=0.5, n_boot=100, **CPU)
        export(run.folder)
        info = json.loads((run.folder / "model.json").read_text())
        assert info["prediction"]["sets"] and info["prediction"]["familiar"] and info["thresholds"]
        assert info["weights"]["base"] and info["weights"]["adaptation"]
        yield run.folder


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**63, 10**400, 1e308, 1e-320, float("nan"), float("inf"), float("-inf"), "", "NaN"])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["\ud800", "\x00", "a\nb", "日本", "../x", "A" * 3000])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
)


def places(value, path=()):
    """Every position in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


@st.composite
def mutated(draw, content):
    """The text of a JSON document with another value in one position, a position removed, or one added."""
    content = json.loads(json.dumps(content))
    path, how = (
        draw(st.sampled_from(list(places(content)))),
        draw(st.sampled_from(["replace", "swap", "remove", "add"])),
    )
    if not path:
        return json.dumps(draw(values))
    *outer, last = path
    parent = at(content, outer)
    if how == "remove":
        del parent[last]
    elif how == "add" and isinstance(parent, dict):
        parent[draw(st.text(max_size=6))] = draw(values)
    elif how == "swap":  # a value that is right elsewhere
        parent[last] = copy.deepcopy(at(content, draw(st.sampled_from(list(places(content))))))
    else:
        parent[last] = draw(values)
    return json.dumps(content)


def at(value, path):
    for key in path:
        value = value[key]
    return value


def outcome(function, *arguments) -> str:
    """ "answer", or "refused" in one sentence; anything else that is raised fails the test."""
    found = "answer"
    try:
        function(*arguments)
    except MedvitError as error:
        assert "\n" not in str(error) and len(str(error)) < 700
        found = "refused"
    event(f"{function.__name__}: {found}")  # counted by pytest --hypothesis-show-statistics
    return found


def spoiled(run, tmp_path_factory, name: str, content: str):
    """A copy of a run's folder with another content in one of its files."""
    folder = shutil.copytree(run, tmp_path_factory.mktemp("spoiled") / "run")
    (folder / name).write_text(content)
    return folder


MANY = settings(max_examples=int(os.environ.get("MEDVIT_EXAMPLES", "60")), deadline=None)
MANY = settings(MANY, suppress_health_check=list(HealthCheck))
IMAGE = np.zeros((32, 32), np.uint8)


@settings(MANY, max_examples=5 * MANY.max_examples)
@given(st.data())
def test_any_value_in_any_position_of_model_json_is_an_answer_or_refused_in_a_sentence(run, tmp_path_factory, data):
    info = json.loads((run / "model.json").read_text())
    folder = spoiled(run, tmp_path_factory, "model.json", data.draw(mutated(info)))
    first = outcome(load_model, folder)

    def predict():
        list(Predictor(folder, **CPU).predict(IMAGE, quiet=True))

    if outcome(predict) == "refused":  # of a loaded model, where the threshold that it was asked for is not stored
        assert first == "refused" or "recall" not in load_model(folder)[1].get("thresholds", {})
    else:
        assert first != "refused"
    outcome(load_run, folder)  # it needs a field more
    if outcome(read_run, folder) == "refused":  # it loads no tensors, so it may accept what does not fit them
        assert first == "refused"
    shutil.rmtree(folder.parent)


@MANY
@given(st.data())
def test_any_value_in_the_metadata_of_an_exported_file_is_an_answer_or_refused_in_a_sentence(run, data):
    model = OnnxModel(run / "model.onnx")
    content = data.draw(mutated(model.info))
    info = json.loads(content)
    stored = {f"medvitlib.{k}": json.dumps(v) for k, v in info.items()} if isinstance(info, dict) else {"a": content}

    class Session:
        """The same network with other metadata."""

        get_inputs, get_outputs, run = model.session.get_inputs, model.session.get_outputs, model.session.run

        def __init__(self, *args, **kwargs):
            pass

        def get_modelmeta(self):
            return type("Meta", (), {"custom_metadata_map": stored})

    def predict():
        list(Predictor(run / "model.onnx", **CPU).predict(IMAGE, quiet=True))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxruntime.InferenceSession", Session)
        outcome(predict)


@MANY
@given(st.data())
def test_the_command_answers_or_says_one_sentence(run, tmp_path_factory, data):
    info = json.loads((run / "model.json").read_text())
    folder = spoiled(run, tmp_path_factory, "model.json", data.draw(mutated(info)))
    cv2.imwrite(str(folder / "image.png"), IMAGE)
    screen = io.TextIOWrapper(io.BytesIO(), "utf-8")  # strict: half of a surrogate pair cannot be shown
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(screen):
        status = main(["predict", str(folder), str(folder / "image.png"), "--device", "cpu"])
    assert status in (0, 1)
    assert "Traceback" not in err.getvalue() and (status == 0) == (err.getvalue() == "")
    shutil.rmtree(folder.parent)


def use(folder):
    """Everything that reads a run without its model, and what is shown of it."""
    board = leaderboard(folder)
    board.show()
    board.table, board.best("accuracy"), board.beside_published()
    for one in board.runs.values():
        if one.report is not None:
            one.report.sentences(), one.report.table(), one.report.operating_table()
    write_report([folder], folder.parent / "page.html")


@pytest.mark.parametrize("name", ["config.json", "report.json"])
@MANY
@given(st.data())
def test_any_value_in_any_position_of_the_other_files_is_an_answer_or_refused(run, name, tmp_path_factory, data):
    content = json.loads((run / name).read_text())
    folder = spoiled(run, tmp_path_factory, name, data.draw(mutated(content)))
    outcome(read_run, folder)
    outcome(Report.load, folder)
    with contextlib.suppress(MedvitError):  # where no run is left, one line for each
        use(folder)
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize("name", ["validation.csv", "predictions.csv", "metrics.csv"])
@MANY
@given(st.data())
def test_a_damaged_table_is_an_answer_or_refused(run, name, tmp_path_factory, data):
    rows = [line.split(",") for line in (run / name).read_text().splitlines()]
    row = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.integers(0, len(rows[row]) - 1))
    how = data.draw(st.sampled_from(["cell", "cut", "short", "long"]))
    odd = ["nan", "inf", "", "1e999", '"', "x,y", "-1", "2", "normal"]
    cell = data.draw(st.text(max_size=8) | st.sampled_from(odd))
    rows[row] = {
        "cell": [*rows[row][:column], cell, *rows[row][column + 1 :]],
        "cut": rows[row],
        "short": rows[row][:column],
        "long": [*rows[row], cell],
    }[how]
    text = "\n".join(",".join(one) for one in (rows[:row] if how == "cut" else rows))
    folder = spoiled(run, tmp_path_factory, name, "")
    (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    if name == "validation.csv":
        outcome(load_run, folder)
    else:
        outcome(Report.load, folder)
        with contextlib.suppress(MedvitError):
            use(folder)
    shutil.rmtree(folder.parent)
