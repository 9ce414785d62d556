"""The next image: from every kind of source, one answer each, and a reason where there is none."""

import errno
import json
import os
import re
import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from medvitlib.answers import draw_answer, plot_answers, promises_kept, try_it
from medvitlib.cli import main
from medvitlib.data import open_dataset, split
from medvitlib.errors import DataError, MedvitError
from medvitlib.evaluate import evaluate
from medvitlib.evaluation.calibration import apply_temperature
from medvitlib.models.saved import save_model
from medvitlib.models.zoo import build, head_of
from medvitlib.outliers import familiar
from medvitlib.predict import Predictor
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
    evaluate(found, parts, figures=False, n_boot=100, **CPU)
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


def test_of_several_pages_the_answer_is_on_the_first_and_says_so(predictor, folder, tmp_path):
    pages = [Image.open(folder / f"{i}.png") for i in range(3)]
    pages[0].save(tmp_path / "three.tif", save_all=True, append_images=pages[1:])
    one, three = predictor.predict([folder / "0.png", tmp_path / "three.tif"])
    assert three.probabilities == pytest.approx(one.probabilities, abs=1e-6)
    assert three.row()["note"] == "the first of 3 pages" and "; the first of 3 pages" in three.sentence()
    assert one.row()["note"] == "" and "pages" not in one.sentence()


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
    with pytest.raises(MedvitError, match="each image needs one"):
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


TWO_CLASSES = ["benign", "malignant"]
SETS = {"coverage": 0.9, "by": "class", "classes": TWO_CLASSES, "cutoffs": [0.1, 0.1], "patients": [40, 40]}
TOO_FEW = "Sets that hold all classes 90 % of the time take 9 patients to calibrate on; there are 4."
UNUSUAL = "12 training images of 6 patients; at least 20 images of 2 patients are needed."


@pytest.fixture(scope="module")
def saved_with(tmp_path_factory):
    """A small two-class model whose model.json has the given keys too: (**keys) -> folder."""
    folder, model = tmp_path_factory.mktemp("saved"), build("vit_tiny_test", 2, weights=None)

    def write(**keys):
        save_model(model, folder, {"classes": TWO_CLASSES, "positive": "malignant", **keys})
        return folder

    return write


@pytest.fixture(scope="module")
def usual():
    """`familiar` of a model.json, for features of vit_tiny_test."""
    features = np.random.default_rng(0).normal(size=(60, head_of(build("vit_tiny_test", 2, weights=None)).in_features))
    return familiar(features[:40], np.arange(40), features[40:], np.arange(20)).to_dict()


@pytest.mark.parametrize("sets", [None, SETS])
@pytest.mark.parametrize("refused", [[], [TOO_FEW]])
@pytest.mark.parametrize("has_limit", [False, True])
@pytest.mark.parametrize("unchecked", ["", UNUSUAL])
@pytest.mark.parametrize("prepared", [False, True])
def test_a_check_that_was_not_prepared_is_never_reported_as_made(
    saved_with, usual, sets, refused, has_limit, unchecked, prepared, tmp_path, capsys
):
    """Whatever model.json holds: each check is made, or "not checked" with the reason that is stored and no other."""
    stored = {"sets": sets, "refused": refused, "familiar": usual if has_limit else None, "unchecked": unchecked}
    folder = saved_with(thresholds={"0.5": 0.5, "recall": 0.5}, **({"prediction": stored} if prepared else {}))
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    arguments = ["predict", str(folder), str(tmp_path / "a.png"), "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "out.csv")]) == 0 and main(arguments) == 0
    said = capsys.readouterr().out + str(Predictor(folder, **CPU))
    row = pd.read_csv(tmp_path / "out.csv", dtype=str).iloc[0]
    with_sets, checked = prepared and sets is not None, prepared and has_limit

    assert (row["set"] == "not calibrated") == ("Sets of classes: not calibrated" in said) == (not with_sets)
    assert (TOO_FEW in said) == (prepared and not with_sets and bool(refused))
    assert "patients" not in said.replace(TOO_FEW, "").replace(UNUSUAL, "") or with_sets or checked
    assert (row["unlike"] in ("0", "1")) == (row["distance"] != "not checked") == checked
    assert (row["unlike"] == "not checked") == (not checked) == ("unlike the training images: not checked" in said)
    assert (UNUSUAL in said) == (prepared and not checked and bool(unchecked))
    unprepared = (not with_sets and not (prepared and refused)) or (not checked and not (prepared and unchecked))
    assert ("evaluate(run, parts), with the split" in said) == unprepared


def test_every_answer_names_the_probability_the_threshold_and_where_it_comes_from(saved_with):
    folder = saved_with(thresholds={"0.5": 0.5, "recall": 0.2, "published": 0.9}, prediction=None)
    image = np.zeros((32, 32, 3), np.uint8)
    for asked, threshold, words in (
        ("recall", 0.2, "chosen for recall on validation"),
        ("published", 0.9, "published rule, on validation"),
        ("0.5", 0.5, "one half"),
        (0.25, 0.25, "as given"),
    ):
        (answer,) = Predictor(folder, threshold=asked, **CPU).predict(image, quiet=True)
        p = answer.probabilities["malignant"]
        side = "at or above" if answer.label == "malignant" else "below"
        assert (p >= threshold) == (answer.label == "malignant")
        assert answer.sentence().startswith(f"{answer.label}: p(malignant) = {p:.3f}, {side} {threshold:.3f} ({words})")
        assert (float(answer.row()["threshold"]), answer.row()["rule"]) == (threshold, words)


def test_a_decision_that_its_set_does_not_hold_is_said(saved_with):
    sets = {"coverage": 0.9, "by": "all", "classes": TWO_CLASSES, "cutoffs": [0.3, 0.3], "patients": [50, 50]}
    predictor = Predictor(
        saved_with(thresholds={"recall": 0.5}, prediction={"sets": sets, "refused": [], "familiar": None}), **CPU
    )
    (answer,) = predictor.predict(np.zeros((32, 32, 3), np.uint8), quiet=True)
    other = next(name for name in TWO_CLASSES if name != answer.label)
    assert f"; its set holds only {other}" in replace(answer, classes=(other,)).sentence()
    assert "; its set holds benign or malignant" in replace(answer, classes=("benign", "malignant")).sentence()
    assert "its set" not in replace(answer, classes=(answer.label,)).sentence()


def test_the_command_ends_with_a_summary(saved_with, tmp_path, capsys):
    folder = saved_with(thresholds={"recall": 0.2}, prediction=None)
    for k in range(3):
        cv2.imwrite(str(tmp_path / f"{k}.png"), np.full((32, 32, 3), 80 * k, np.uint8))
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(["predict", str(folder), str(tmp_path), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "Images: 4; without an answer: 1." in said
    counted = re.search(r"benign: (\d); malignant: (\d) \(malignant from p\(malignant\) = 0.200 on, chosen for", said)
    assert sum(map(int, counted.groups())) == 3
    assert "Not one class in the set: not calibrated; unlike the training images: not checked." in said


def test_a_folder_of_maps_that_cannot_be_written_is_named(saved_with, tmp_path, monkeypatch, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((32, 32, 3), np.uint8))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    folder = saved_with(thresholds={"recall": 0.2})
    assert main(["predict", str(folder), str(tmp_path / "a.png"), "--maps", str(tmp_path / "maps")]) == 1
    assert f"{tmp_path / 'maps'} cannot be written (No space left on device)" in capsys.readouterr().err


def test_an_unreadable_image_was_not_checked_either(saved_with, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (answer,) = Predictor(saved_with(thresholds={"recall": 0.5}), **CPU).predict(tmp_path / "torn.png")
    row = answer.row()
    assert answer.unlike is None and row["error"] and (row["set"], row["distance"], row["unlike"]) == ("", "", "")


def test_answers_that_were_not_checked_are_plotted_as_such_and_prove_no_promise(saved_with, parts):
    predictor = Predictor(saved_with(thresholds={"recall": 0.5}), **CPU)
    answers = list(predictor.predict(np.asarray(parts.test.images)))
    legend = plot_answers(predictor, answers).axes[0].get_legend()
    assert "unlike: not checked" in [text.get_text() for text in legend.get_texts()]
    with pytest.raises(MedvitError, match="no sets of classes"):
        promises_kept(answers, parts.test)


FEW = "23 positive patients; at least 94 needed for 95 % recall with 95 % confidence."


@pytest.mark.parametrize(
    ("keys", "asked", "reason"),
    [
        ({"thresholds": {"0.5": 0.5, "recall": 0.3}, "no_threshold": {"certified": FEW}}, "certified", FEW),
        ({"thresholds": {"0.5": 0.5, "recall": 0.3}}, "certified", "no reason is stored"),
        ({}, "certified", "the model was not evaluated. Call evaluate(run, parts)"),
        ({}, "recall", "the model was not evaluated. Call evaluate(run, parts)"),
    ],
)
def test_a_threshold_that_does_not_exist_is_refused_with_the_reason(saved_with, keys, asked, reason, capsys):
    folder = saved_with(**keys)
    with pytest.raises(MedvitError) as refusal:
        Predictor(folder, threshold=asked, **CPU)
    assert f"There is no {asked} threshold: {reason}" in str(refusal.value)
    assert main(["predict", str(folder), "image.png", "--threshold", asked, "--device", "cpu"]) == 1
    assert str(refusal.value) in capsys.readouterr().err
    assert Predictor(folder, threshold="0.5", **CPU).threshold == 0.5
    if "thresholds" in keys:
        assert Predictor(folder, **CPU).threshold == 0.3


def test_a_threshold_is_refused_where_there_are_more_than_two_classes(run):
    for asked in ("certified", 0.5, "0.5"):
        with pytest.raises(MedvitError, match="a threshold is for two classes"):
            Predictor(run.folder, threshold=asked, **CPU)


NAMES = ['a,b".png', "line\nbreak.png", "return\rhome.png", "\x1b[31mred.png", "tab\t.png", "\u202egnp.exe.png"]


def test_names_with_control_characters_are_escaped_in_the_terminal_and_read_back_from_the_table(
    run, parts, tmp_path, capsys
):
    folder = tmp_path / "images"
    folder.mkdir()
    content = cv2.imencode(".png", parts.test.images[0][..., ::-1])[1].tobytes()
    for name in NAMES:
        (folder / name).write_bytes(content)
    (folder / "bad\x1b\n.png").write_bytes(content[:99])
    with open(os.fsencode(folder) + b"/latin-\xe9.png", "wb") as file:
        file.write(content)
    arguments = ["predict", str(run.folder), str(folder), "--device", "cpu"]
    assert main(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() for line in said) and len([line for line in said if str(folder) in line]) == 8
    assert any("line\\nbreak.png" in line for line in said) and any("\\u202egnp" in line for line in said)
    table = tmp_path / "out.csv"
    assert main([*arguments, "--out", str(table)]) == 0
    assert table.read_bytes().count(b"\r") == 1  # the one in a name: lines end in "\n"
    found = set(pd.read_csv(table, keep_default_na=False)["image"])
    assert found == {str(folder / name) for name in [*NAMES, "bad\x1b\n.png", "latin-\\xe9.png"]}
