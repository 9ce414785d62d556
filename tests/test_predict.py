"""The next image: from every kind of source, one answer each, and a reason where there is none."""

import json
import shutil
import time
from datetime import UTC, datetime

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from medvitlib.answers import draw_answer, plot_answers, promises_kept, try_it
from medvitlib.cli import main
from medvitlib.data import open_dataset, split
from medvitlib.errors import DataError, MedvitError
from medvitlib.evaluate import evaluate
from medvitlib.evaluation.calibration import apply_temperature
from medvitlib.models.zoo import build, head_of
from medvitlib.predict import Predictor
from medvitlib.prepare import prepare
from medvitlib.training.config import TrainConfig
from medvitlib.training.features import forward
from medvitlib.training.fit import fit

CPU = {"device": "cpu", "precision": None}


@pytest.fixture(scope="module")
def parts():
    return split(open_dataset("phantom/wbc4", image_size=32, n_patients=60, difficulty=0.0))


@pytest.fixture(scope="module")
def run(parts):
    model = build("vit_tiny_test", 4, weights=None)
    found = fit(
        model, parts, TrainConfig(epochs=2, batch_size=16, lr=1e-3), name="predicted", quiet=True, plot=False, **CPU
    )
    evaluate(found, parts.test, figures=False, n_boot=100, **CPU)
    prepare(found, parts, **CPU)
    return found


@pytest.fixture(scope="module")
def predictor(run, tmp_path_factory):
    """From the two files alone."""
    folder = tmp_path_factory.mktemp("model")
    for name in ("model.safetensors", "model.json"):
        shutil.copy(run.folder / name, folder)
    return Predictor(folder, **CPU)


@pytest.fixture
def folder(parts, tmp_path):
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), parts.test.images[i][..., ::-1])
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_the_probabilities_are_those_of_the_report(run, parts, predictor):
    expected = forward(run.model, parts.test, **CPU)
    temperature = json.loads((run.folder / "model.json").read_text())["temperature"]
    answers = list(predictor.predict(np.asarray(parts.test.images)))
    found = np.array([list(answer.probabilities.values()) for answer in answers])
    np.testing.assert_allclose(found, apply_temperature(expected, temperature), atol=1e-5)
    assert [a.label for a in answers] == [parts.test.classes[k] for k in expected.argmax(1)]


def test_a_folder_a_path_an_array_and_a_list_agree(predictor, parts, folder):
    whole = list(predictor.predict(folder, batch_size=2))
    assert [answer.name for answer in whole] == [str(folder / f"{i}.png") for i in range(5)] + [
        str(folder / "broken.jpg")
    ]
    assert "damaged" in whole[-1].error and whole[-1].row()["decision"] == "" and "no answer" in whole[-1].sentence()
    (one,) = predictor.predict(folder / "0.png")
    (array,) = predictor.predict(parts.test.images[0])
    some = list(predictor.predict([folder / "0.png", parts.test.images[0]]))
    for answer in (one, array, *some):
        assert answer.probabilities == pytest.approx(whole[0].probabilities, abs=1e-6)


def test_sets_hold_the_true_class_and_strangers_are_told(predictor, parts):
    answers = list(predictor.predict(np.asarray(parts.test.images)))
    names = [parts.test.classes[label] for label in parts.test.labels]
    inside = np.mean([name in answer.classes for name, answer in zip(names, answers, strict=True)])
    assert inside > 0.75
    assert np.mean([answer.unlike for answer in answers]) < 0.3
    noise = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    strangers = list(predictor.predict(noise))
    assert np.mean([a.distance for a in strangers]) > np.mean([a.distance for a in answers])
    assert all(("UNLIKE" in answer.sentence()) == answer.unlike for answer in [*answers, *strangers])


def test_a_folder_of_any_size_is_answered_for_as_it_is_read(predictor, folder):
    for i in range(30):
        shutil.copy(folder / "0.png", folder / f"more{i:02d}.png")
    answers = predictor.predict(folder, batch_size=1)
    assert next(answers).name.endswith("0.png")
    (folder / "more29.png").unlink()
    assert "cannot be read" in list(answers)[-1].error


def test_batches_that_are_answered_for_side_by_side_do_not_mix(predictor, parts):
    """Features of one thread are not taken for those of another, and the threads are as before, also after a break."""
    threads = torch.get_num_threads()
    images = np.asarray(parts.test.images)
    whole = list(predictor.predict(images, batch_size=len(images)))
    late = head_of(predictor.model).register_forward_hook(lambda *_: time.sleep(0.01))  # the other thread comes between
    answers = predictor.predict(images, batch_size=3)
    for k, (one, other) in enumerate(zip(whole, answers, strict=True)):
        assert one.name == other.name == str(k)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert one.distance == pytest.approx(other.distance, rel=1e-4)
    late.remove()
    broken_off = predictor.predict(images, batch_size=3)
    next(broken_off)
    broken_off.close()
    assert torch.get_num_threads() == threads


def test_the_command_answers_by_line_and_by_table(run, folder, capsys):
    assert main(["predict", str(run.folder), str(folder / "0.png"), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{folder / '0.png'}: ") and "no medical device" in said
    table, maps = folder / "out.csv", folder / "maps"
    arguments = ["predict", run.folder.name, str(folder), "--out", str(table), "--maps", str(maps), "--device", "cpu"]
    assert main(arguments) == 0
    assert "Images: 6; without an answer: 1" in capsys.readouterr().out
    rows = pd.read_csv(table, keep_default_na=False)
    assert list(rows["image"]) == [*(str(folder / f"{i}.png") for i in range(5)), str(folder / "broken.jpg")]
    assert rows["error"].str.contains("damaged").tolist() == [False] * 5 + [True]
    found = rows[[f"p_{name}" for name in run.classes]][:5].astype(float)
    assert found.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-4)
    assert len(list(maps.iterdir())) == 5
    assert main(["predict", str(run.folder), str(folder / "broken.jpg"), "--device", "cpu"]) == 1
    assert main(["predict", str(run.folder), str(folder / "nothing"), "--device", "cpu"]) == 1
    assert "there is nothing at" in capsys.readouterr().err


def test_what_cannot_be_is_said(predictor, run, tmp_path):
    for source, words in (
        (tmp_path / "none", "there is nothing at"),
        (tmp_path, "holds no image"),
        (np.zeros((2, 2), np.float32), "expected uint8"),
        (np.zeros((4, 32, 32, 5), np.uint8), "expected uint8"),
    ):
        with pytest.raises(DataError, match=words):
            list(predictor.predict(source))
    with pytest.raises(DataError, match="batch_size=0: expected 1"):
        list(predictor.predict(np.zeros((32, 32, 3), np.uint8), batch_size=0))
    (private,) = predictor.predict("http://127.0.0.1/x.png")
    assert "private network" in private.error
    with pytest.raises(MedvitError):
        Predictor(tmp_path)


def test_a_file_in_memory_is_answered_for_like_one_on_disk(predictor, folder):
    (one,), (same,) = predictor.predict(folder / "0.png"), predictor.predict((folder / "0.png").read_bytes())
    assert same.probabilities == one.probabilities and same.name == "image"


def test_a_list_counts_what_is_in_its_folders_and_tells_wrong_paths_first(predictor, folder):
    assert len(list(predictor.predict([folder, folder / "0.png"]))) == 7
    with pytest.raises(DataError, match="there is nothing at"):
        next(predictor.predict([folder / "0.png", folder / "none.png"]))


def test_an_answer_is_drawn_with_its_image_its_map_and_its_classes(predictor, folder):
    good, *_, bad = predictor.predict(folder)
    figure = draw_answer(predictor, good)
    _, over, bars = figure.axes
    assert len(over.images) == 2 and np.ptp(over.images[1].get_array()) > 0.5
    assert sorted(tick.get_text() for tick in bars.get_yticklabels()) == sorted(predictor.classes)
    assert good.label in figure.get_suptitle()
    with pytest.raises(MedvitError, match="no answer to draw"):
        draw_answer(predictor, bad)
    assert "1 without an answer" in "".join(
        text.get_text() for text in plot_answers(predictor, [good, bad]).axes[0].texts
    )
    with pytest.raises(MedvitError, match="nothing to plot"):
        plot_answers(predictor, [bad])


def test_promises_are_counted_by_patient(predictor, parts):
    answers = list(predictor.predict(np.asarray(parts.test.images)))
    kept = promises_kept(answers, parts.test)
    missed = {
        g
        for a, label, g in zip(answers, parts.test.labels, parts.test.groups, strict=True)
        if parts.test.classes[label] not in a.classes
    }
    patients = len(set(parts.test.groups))
    assert kept["held"].value == pytest.approx(1 - len(missed) / patients) and kept["held"].n_images == patients
    assert kept["unlike"].value == pytest.approx(np.mean([a.unlike for a in answers]))
    with pytest.raises(MedvitError, match="each needs one"):
        promises_kept(answers[1:], parts.test)


def test_the_bench_answers_what_is_dropped_in_and_moves_the_threshold(folder):
    ipywidgets = pytest.importorskip("ipywidgets")
    predictor = Predictor("teaching", **CPU)
    grey = np.full((224, 224, 1), 90, np.uint8)
    answers = list(predictor.predict(grey))
    bench = try_it(predictor, answers)
    upload, slider, said, shown = bench.children
    assert isinstance(bench, ipywidgets.VBox) and "no medical device" in said.value and shown.value.startswith("<svg")
    slider.value = 1.0
    (again,) = [predictor.decide_again(answer) for answer in answers]
    assert again.label != predictor.positive and again.threshold == 1.0
    content = cv2.imencode(".png", grey)[1].tobytes()
    for name, data in (("<b>.png", content), ("torn.png", content[:60])):
        about = {"name": name, "type": "image/png", "size": len(data), "last_modified": datetime.now(UTC)}
        upload.value = ({**about, "content": memoryview(data)},)
        assert "<b>.png:" not in said.value and (name == "torn.png") == ("no answer" in said.value)
    assert try_it(predictor, answers, interactive=False).axes  # a figure, where there are no widgets


def test_a_model_is_found_by_its_name_or_refused_with_those_there_are(run):
    assert Predictor(run.folder.name, **CPU).classes == list(run.classes)
    assert "COVID" in str(Predictor("teaching", **CPU))
    with pytest.raises(MedvitError, match=f"(?s)No finished run at.*{run.folder.name}.*teaching"):
        Predictor("predcited", **CPU)
    with pytest.raises(MedvitError, match="threshold='recal': expected 0 to 1"):
        Predictor("teaching", threshold="recal", **CPU)
