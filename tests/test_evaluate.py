"""`medvit evaluate`: a saved model on other data, at what was chosen when it was made."""

import importlib
import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from medvitlib.cli import main
from medvitlib.data import open_dataset, save_npz, split
from medvitlib.errors import EvaluationError
from medvitlib.evaluate import evaluate, evaluate_saved
from medvitlib.evaluation import Report
from medvitlib.models.zoo import build
from medvitlib.training import features
from medvitlib.training.config import TrainConfig
from medvitlib.training.fit import fit
from medvitlib.training.probe import fit_probe

evaluate_module = importlib.import_module("medvitlib.evaluate")
CPU = {"device": "cpu", "precision": None}


def xrays(seed=0):
    return open_dataset("phantom/cxr", image_size=32, n_patients=80, seed=seed, difficulty=0.0)


@pytest.fixture(scope="module")
def parts():
    return split(xrays())


@pytest.fixture(scope="module")
def run(parts):
    model = build("vit_tiny_test", 2, weights=None)
    found = fit(model, parts, TrainConfig(epochs=2, lr=1e-3), name="scored", quiet=True, plot=False, **CPU)
    evaluate(found, parts, figures=False, n_boot=100, target_recall=0.9, **CPU)
    return found


@pytest.fixture
def alone(run, tmp_path):
    """The model's two files, without the run."""
    for name in ("model.safetensors", "model.json"):
        shutil.copy(run.folder / name, tmp_path)
    return tmp_path


def write_folder(ds, folder, rename=None):
    for i in range(len(ds)):
        name = ds.classes[ds.labels[i]]
        path = folder / (rename or {}).get(name, name) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), ds.images[i])
    return folder


def test_a_split_leaves_everything_that_prediction_needs_and_a_data_set_leaves_it_alone(run, parts):
    before = json.loads((run.folder / "model.json").read_text())
    assert before["prediction"]["sets"]["coverage"] == 0.9 and before["prediction"]["familiar"]["alarms"] == 0.05
    assert before["no_threshold"]["certified"].startswith("8 positive patients; at least 36 needed")
    evaluate(run, parts.test, figures=False, n_boot=100, target_recall=0.9, **CPU)
    assert json.loads((run.folder / "model.json").read_text()) == before
    wider = {"coverage": 0.8, "alarms": 0.2}
    report = evaluate(run, parts, figures=False, n_boot=100, target_recall=0.9, **wider, **CPU)
    after = json.loads((run.folder / "model.json").read_text())["prediction"]
    assert after["sets"]["coverage"] == 0.8 and after["familiar"]["limit"] < before["prediction"]["familiar"]["limit"]
    assert not any("for prediction" in note for note in report.notes)
    evaluate(run, parts, figures=False, n_boot=100, target_recall=0.9, **CPU)  # for the tests that follow


def test_the_tables_of_a_run_end_their_lines_alike(run):
    tables = {path.name: path.read_bytes() for path in run.folder.glob("*.csv")}
    assert {"metrics.csv", "validation.csv", "predictions.csv", "quarantine.csv"} <= set(tables)
    assert all(content.endswith(b"\n") and b"\r" not in content for content in tables.values())


def test_what_cannot_be_prepared_has_its_reason_in_the_report_and_in_the_model():
    parts = split(open_dataset("phantom/cxr", image_size=32, n_patients=20, difficulty=0.0), val=0.2, test=0.4)
    few = replace(parts, train=parts.train.subset(np.arange(len(parts.train)) % 3 == 0))
    assert len(few.train) < 20
    model = build("vit_tiny_test", 2, weights=None)
    found = fit(model, few, TrainConfig(epochs=1, batch_size=4), name="few", quiet=True, plot=False, **CPU)
    report = evaluate(found, few, figures=False, n_boot=100, **CPU)
    stored = json.loads((found.folder / "model.json").read_text())["prediction"]
    assert stored["sets"] is None and stored["familiar"] is None
    assert [text.split(" 90 %")[0] for text in stored["refused"]] == [
        "Sets that hold normal",
        "Sets that hold all classes",
    ]
    assert "patients to calibrate on; there are" in stored["refused"][1] and stored["refused"][1] in str(report.notes)
    assert f"{len(few.train)} training images" in stored["unchecked"] and stored["unchecked"] in str(report.notes)


def test_the_features_of_a_probe_are_not_computed_again(parts, monkeypatch):
    passes = []
    outputs = features._outputs

    def counted(model, dataset, *more):
        passes.append((more[-1], len(dataset)))
        return outputs(model, dataset, *more)

    monkeypatch.setattr(features, "_outputs", counted)
    found = fit_probe(build("vit_tiny_test", 2, weights=None, seed=7), parts, name="probed", **CPU)
    assert passes == [("Features", len(parts.train)), ("Features", len(parts.val))]
    found.model.architecture = dict(reversed(found.model.architecture.items()))  # as other models' are, once loaded
    evaluate(found, parts, figures=False, n_boot=100, **CPU)
    assert passes[2:] == [("Evaluating", len(parts.test))]


@pytest.mark.parametrize("share", [{"coverage": 1.0}, {"alarms": 0.0}])
def test_an_impossible_share_and_another_split_are_refused_before_anything_is_computed(run, parts, share, monkeypatch):
    monkeypatch.setattr(evaluate_module, "forward", None)
    with pytest.raises(EvaluationError, match=f"{next(iter(share))} is"):
        evaluate(run, parts, **share, **CPU)
    with pytest.raises(EvaluationError, match="was not trained on this split"):
        evaluate(run, split(xrays(), seed=3), **CPU)


def test_on_the_same_images_it_says_what_the_run_said(run, parts):
    first, again = Report.load(run.folder), evaluate_saved(run.folder, parts.test, n_boot=100, **CPU)
    assert again.thresholds == first.thresholds and again.temperature == first.temperature
    assert again.metrics["auroc"].value == pytest.approx(first.metrics["auroc"].value, abs=1e-9)
    assert again.settings["target_recall"] == 0.9 and "as stored" in " ".join(again.sentences())


def test_what_was_chosen_stays_whatever_the_new_images_are(alone, parts):
    before = (alone / "model.json").read_bytes()
    reports = [evaluate_saved(alone, xrays(seed), n_boot=100, **CPU) for seed in (1, 2)]
    stored = json.loads(before)
    for report in reports:
        assert report.temperature == stored["temperature"] and report.thresholds == stored["thresholds"]
        assert any("nothing was chosen on these images" in line for line in report.sentences())
    assert abs(reports[0].metrics["auroc"].value - reports[1].metrics["auroc"].value) > 1e-6
    assert reports[0].refused == stored["no_threshold"]
    assert (alone / "model.json").read_bytes() == before


def test_a_model_that_was_never_evaluated_is_scored_as_it_is(alone, parts):
    info = json.loads((alone / "model.json").read_text())
    for key in ("temperature", "thresholds", "target_recall"):
        info.pop(key)
    (alone / "model.json").write_text(json.dumps(info))
    report = evaluate_saved(alone, parts.test, n_boot=100, **CPU)
    assert report.temperature == 1 and set(report.thresholds) == {"0.5"}


def test_the_command_writes_the_report_and_refuses_other_classes(run, parts, tmp_path, capsys):
    folder, out = write_folder(parts.test, tmp_path / "hospital"), tmp_path / "out"
    assert main(["evaluate", str(run.folder), str(folder), "--out", str(out), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert f"scored on all images of hospital:\n{len(parts.test)} test images" in said and "AUROC" in said
    assert {"report.json", "predictions.csv", "plots"} == {path.name for path in out.iterdir()}
    assert {"roc.png", "reliability.png"} <= {path.name for path in (out / "plots").iterdir()}
    expected = evaluate_saved(run.folder, parts.test, n_boot=100, **CPU).metrics["accuracy"].value
    assert Report.load(out).metrics["accuracy"].value == pytest.approx(expected)

    other = write_folder(parts.test, tmp_path / "other", {"pneumonia": "tuberculosis"})
    assert main(["evaluate", str(run.folder), str(other), "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert "tells apart normal, pneumonia; the data set 'other' has normal, tuberculosis" in said
    assert main(["evaluate", "no-such-run", str(folder)]) == 1 and "No finished run at" in capsys.readouterr().err


def test_of_an_archive_the_official_test_part_is_scored_unless_asked_otherwise(run, parts, tmp_path, capsys):
    path = save_npz(parts, tmp_path / "xrays.npz")
    assert main(["evaluate", run.folder.name, str(path), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "scored on the official test part of xrays" in said
    folder = run.folder.parent / "evaluate-scored-xrays"
    assert str(folder) in said and len(Report.load(folder).y_true) == len(parts.test)
    arguments = ["evaluate", run.folder.name, str(path), "--device", "cpu", "--part", "val", "--out", str(tmp_path)]
    assert main(arguments) == 0 and f"{len(parts.val)} test images" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*arguments[:-4], "--part", "vall"])
    assert "there is no --part 'vall'. Did you mean 'val'?" in capsys.readouterr().err


def test_classes_in_another_order_are_the_same_classes(alone, parts):
    turned = parts.test.of_classes(parts.test.classes[::-1])
    one, other = (evaluate_saved(alone, ds, n_boot=100, **CPU) for ds in (parts.test, turned))
    np.testing.assert_array_equal(one.y_true, other.y_true)
    assert one.metrics["recall"] == other.metrics["recall"]


@pytest.mark.parametrize(("part", "words"), [("train", "were trained on"), ("val", "were used for validation")])
def test_images_that_the_model_was_made_with_are_recognised_and_said_first(run, parts, part, words):
    ds = getattr(parts, part)
    report = evaluate_saved(run.folder, ds, n_boot=100, **CPU)
    first = report.sentences()[0]
    assert first.startswith(f"WARNING: of these {len(ds)} images, {len(ds)} {words}") and str(report).startswith(
        "WARNING"
    )
    assert Report.load(report.save(run.folder.parent / part)).alerts == [first]
    assert not evaluate_saved(run.folder, parts.test, n_boot=100, **CPU).alerts


def test_the_parts_of_the_runs_own_split_are_found_by_content(tmp_path, monkeypatch, capsys):
    """The same folder again, whatever its files are called now."""
    monkeypatch.setenv("MEDVIT_RUNS", str(tmp_path / "runs"))
    folder = write_folder(xrays(seed=4), tmp_path / "mine")
    parts = split(open_dataset(folder, image_size=32, positive="pneumonia"), val=0.2, test=0.2)
    run = fit_probe(build("vit_tiny_test", 2, weights=None), parts, name="mine", strengths=(0.1,), **CPU)
    evaluate(run, parts, figures=False, n_boot=100, **CPU)
    for path in folder.rglob("*.png"):
        path.rename(path.with_name(f"renamed_{path.name}"))
    command = [
        "evaluate",
        "mine",
        str(folder),
        "--device",
        "cpu",
        "--positive",
        "pneumonia",
        "--out",
        str(tmp_path / "out"),
    ]
    for part in ("train", "val", "test"):
        assert main([*command, "--part", part]) == 0
        said = capsys.readouterr().out
        assert f"mine on the {part} part of the run of mine:" in said
        assert f"{len(getattr(parts, part))} test images" in said and ("WARNING" in said) == (part != "test")
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"{len(parts.train)} were trained on and {len(parts.val)} were used for validation" in said
    (run.folder / "images.csv").unlink()
    assert main([*command, "--part", "test"]) == 1 and "has no images.csv: leave out --part" in capsys.readouterr().err


def test_a_model_in_place_of_a_run_is_refused(parts):
    with pytest.raises(EvaluationError, match=r"takes a run.*a VisionTransformer was given"):
        evaluate(build("vit_tiny_test", 2, weights=None), parts)


def test_no_images_and_no_place_to_write_are_said(alone, parts, tmp_path):
    with pytest.raises(EvaluationError, match="no images"):
        evaluate_saved(alone, parts.test.subset([]), **CPU)
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="name another folder"):
        evaluate_saved(alone, parts.test, out=tmp_path / "file" / "below", n_boot=100, **CPU)
