"""Runs on rendered images with an instant model: what is promised of features, probe and run folder."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from medvitlib.data import augmented, normalise, open_dataset, split
from medvitlib.errors import DataError, EvaluationError, MedvitError
from medvitlib.evaluate import evaluate
from medvitlib.models.zoo import build, head_of
from medvitlib.training import features
from medvitlib.training.features import extract_features, fingerprint, forward
from medvitlib.training.probe import fit_probe
from medvitlib.training.run import load_run, start_run

RENDERED = {"image_size": 32, "n_patients": 60, "difficulty": 0.0, "seed": 1}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDVIT_RUNS", str(tmp_path / "runs"))
    return tmp_path


@pytest.fixture
def parts(folders):
    return split(open_dataset("phantom/cxr", **RENDERED), val=0.25, test=0.25, seed=0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build("vit_tiny_test", 2, weights=None, image_size=32, quiet=True)


def test_probe_equals_a_scaled_logistic_regression(model, parts):
    """Folding the scaling into the exported layer changes no logit."""
    x = extract_features(model, parts.train, precision=None, device="cpu")
    run = fit_probe(model, parts, name="folded", strengths=(0.1,), precision=None, device="cpu")
    scaler = StandardScaler().fit(x)
    reference = LogisticRegression(C=0.1, max_iter=500).fit(scaler.transform(x), parts.train.labels)
    logits = forward(run.model, parts.test, precision=None, device="cpu")
    features_test = forward_features(run.model, parts.test)
    expected = reference.decision_function(scaler.transform(features_test))
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], expected, atol=2e-3)


def forward_features(model, dataset):
    return extract_features(model, dataset, precision=None, device="cpu")


def test_the_strength_with_the_lowest_validation_loss_is_kept(model, parts):
    run = fit_probe(model, parts, name="chosen", precision=None, device="cpu")
    table = run.metrics
    kept = json.loads((run.folder / "model.json").read_text())["chosen"]["C"]
    assert kept == table.loc[table.val_nll.idxmin(), "C"]
    assert run.candidates == len(table) == 6 and run.compared == "penalties"
    labels = torch.tensor(run.validation.y_true.map(run.classes.index).to_numpy())
    again = torch.nn.functional.cross_entropy(torch.from_numpy(run.validation_logits), labels)
    assert again.item() == pytest.approx(table.val_nll.min(), abs=1e-5)


def counting(monkeypatch, stop_after=None):
    """Counts the images that pass through a model; raises KeyboardInterrupt after `stop_after` batches."""
    original, sizes = features.normalise, []

    def normalise(images, preprocessing):
        if len(sizes) == stop_after:
            raise KeyboardInterrupt
        sizes.append(len(images))
        return original(images, preprocessing)

    monkeypatch.setattr(features, "normalise", normalise)
    return sizes


def test_features_are_computed_once_a_picture(model, parts, monkeypatch):
    seen = counting(monkeypatch)
    first = extract_features(model, parts.train, precision=None)
    np.testing.assert_array_equal(extract_features(model, parts.train, precision=None), first)
    other = split(open_dataset("phantom/cxr", **RENDERED), val=0.25, test=0.25, seed=5)
    extract_features(model, other.train, precision=None)
    assert sum(seen) == len({*parts.train.hashes, *other.train.hashes})


def test_batches_side_by_side_are_the_batches_one_by_one(model, parts):
    """In reduced precision each core takes a batch: same rows, same order, and the same threads afterwards."""
    threads = torch.get_num_threads()
    together = forward(model, parts.train, batch_size=7, device="cpu", precision="bfloat16")
    rows = [parts.train.subset(np.arange(i, min(i + 7, len(parts.train)))) for i in range(0, len(parts.train), 7)]
    alone = np.concatenate([forward(model, part, batch_size=7, device="cpu", precision="bfloat16") for part in rows])
    np.testing.assert_allclose(together, alone, atol=0.02 * np.abs(alone).max())
    with ThreadPoolExecutor(1) as pool:
        assert torch.get_num_threads() == threads == pool.submit(torch.get_num_threads).result()


def test_a_fault_in_one_of_the_batches_side_by_side_is_reported(model, parts, monkeypatch):
    calls = iter(range(1000))

    def failing(*given):
        if next(calls) == 3:
            raise RuntimeError("no memory")
        return normalise(*given)

    monkeypatch.setattr(features, "normalise", failing)
    with pytest.raises(RuntimeError, match="no memory"):
        forward(model, parts.train, batch_size=7, device="cpu", precision="bfloat16")


def test_features_of_augmented_images_never_enter_the_cache(model, parts):
    with pytest.raises(DataError, match="by image, not by draw"):
        extract_features(model, augmented(parts.train, "light"))


def test_features_of_another_pooling_are_other_features(model, parts):
    """Pooling has no parameters: the same weights pool the same tokens in three ways."""
    backbone = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    found = {}
    for pool in ("token", "mean", "token_mean"):
        pooled = build("vit_tiny_test", 2, weights=None, image_size=32, pool=pool, quiet=True)
        pooled.load_state_dict(backbone, strict=False)
        found[pool] = extract_features(pooled, parts.val)
    token, mean, both = found.values()
    assert both.shape[1] == 2 * token.shape[1] and not np.allclose(token, mean)
    np.testing.assert_allclose(both, np.concatenate([token, mean], axis=1), atol=1e-5)


def test_what_else_was_compared_is_counted(model, parts):
    run = fit_probe(model, parts, name="three", strengths=(0.1, 1.0), compared=3)
    assert (
        run.candidates == 6
        and run.compared == "choices (3 models, 2 penalties each)"
        and json.loads((run.folder / "config.json").read_text())["compared"] == 3
    )
    with pytest.raises(MedvitError, match="compared=0: expected 1 or more"):
        fit_probe(model, parts, name="three", compared=0)


def test_words_for_missing_are_names_like_any_other(model, parts):
    names = {"classes": ["NA", "None"], "positive": "None"}
    parts = type(parts)(
        *(
            replace(part, **names, groups=np.array(["null", "nan", "NA"])[np.arange(len(part)) % 3])
            for part in (parts.train, parts.val)
        ),
        replace(parts.test, **names),
        notes=[],
    )
    run = fit_probe(model, parts, name="words")
    assert set(run.validation["group"]) == {"null", "nan", "NA"}
    assert evaluate(run, parts.test, n_boot=100).classes == ("NA", "None")


def test_one_name_is_trained_by_one_process_at_a_time(model, parts, folders):
    (folders / "runs").mkdir()
    with FileLock(folders / "runs" / ".busy.lock"), pytest.raises(MedvitError, match="Another process is training"):
        fit_probe(model, parts, name="busy")
    with pytest.raises(KeyboardInterrupt), start_run("busy", model, parts, {}):
        raise KeyboardInterrupt  # an interrupted training holds nothing
    fit_probe(model, parts, name="busy")


def test_a_model_without_a_linear_last_layer_is_refused_before_anything_is_computed(parts, folders):
    model = build("dla34", 2, weights=None, image_size=32, quiet=True)
    with pytest.raises(MedvitError, match="ends in Conv2d"):
        fit_probe(model, parts, name="x")
    assert not (folders / "runs").exists()


def test_an_interrupted_extraction_keeps_what_it_had(model, parts, monkeypatch):
    head = head_of(model)
    with pytest.MonkeyPatch.context() as interruption:
        before = counting(interruption, stop_after=3)
        with pytest.raises(KeyboardInterrupt):
            extract_features(model, parts.train, batch_size=4, precision=None)
    assert head_of(model) is head  # the model is as it was
    after = counting(monkeypatch)
    extract_features(model, parts.train, batch_size=4, precision=None)
    assert sum(before) == 12 and sum(before) + sum(after) == len(parts.train)


def test_a_damaged_feature_file_is_computed_again(model, parts, folders):
    expected = extract_features(model, parts.val, precision=None)
    (store,) = (folders / "cache" / "features").glob("*.npz")
    store.write_bytes(store.read_bytes()[:-100])
    np.testing.assert_array_equal(extract_features(model, parts.val, precision=None), expected)


def test_a_run_reads_back_to_the_same_predictions(model, parts):
    run = fit_probe(model, parts, name="again", precision=None, device="cpu")
    read = load_run("again")
    assert fingerprint(read.model) == fingerprint(run.model)
    np.testing.assert_array_equal(
        forward(read.model, parts.test, precision=None), forward(run.model, parts.test, precision=None)
    )
    assert read.model.preprocessing == model.preprocessing


def test_a_run_is_rebuilt_with_its_options(parts):
    model = build("vit_tiny_test", 2, weights=None, image_size=32, quiet=True, dropout=0.3, drop_path=0.2)
    fit_probe(model, parts, name="options", precision=None, device="cpu")
    again = load_run("options").model
    assert again.architecture["options"] == {"dropout": 0.3, "drop_path": 0.2} and again.pos_drop.p == 0.3


def test_the_run_folder_holds_what_the_design_promises(model, parts):
    run = fit_probe(model, parts, name="whole", precision=None, device="cpu")
    report = evaluate(run, parts.test, n_boot=100, precision=None, device="cpu")
    names = {p.name for p in run.folder.iterdir()}
    assert names == {
        "config.json", "metrics.csv", "model.safetensors", "model.json", "validation.csv",
        "data.txt", "images.csv", "quarantine.csv", "predictions.csv", "report.json", "plots",
    }  # fmt: skip
    config = json.loads((run.folder / "config.json").read_text())
    assert config["weights"] == "random initialisation" and config["data"]["parts"]["test"] == parts.test.fingerprint
    saved = pd.read_csv(run.folder / "predictions.csv")
    assert list(saved.id) == list(parts.test.ids)
    assert json.loads((run.folder / "model.json").read_text())["temperature"] == report.temperature
    assert not (run.folder.parent / "whole.unfinished").exists()


def test_an_interrupted_run_leaves_the_finished_one_alone(model, parts, monkeypatch):
    before = fingerprint(fit_probe(model, parts, name="kept", precision=None).model)
    monkeypatch.setattr("medvitlib.training.probe._fit", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fit_probe(
            build("vit_tiny_test", 2, weights=None, image_size=32, quiet=True), parts, name="kept", precision=None
        )
    assert fingerprint(load_run("kept").model) == before


def test_what_cannot_be_done_is_said(model, parts, folders):
    one_class = parts.val.subset(np.flatnonzero(parts.val.labels == 0))
    broken = type(parts)(train=parts.train, val=one_class, test=parts.test, notes=[])
    with pytest.raises(DataError, match="validation part has no image of"):
        fit_probe(model, broken, name="x")
    nobody_said = type(parts)(*(replace(p, positive=None) for p in (parts.train, parts.val, parts.test)), notes=[])
    with pytest.raises(DataError, match=r"Pass positive= one of \['normal', 'pneumonia'\]"):
        fit_probe(model, nobody_said, name="x")
    assert not list((folders / "runs").glob("*"))
    for name in ("a/b/c", "a/", "..", "y.old", "y.unfinished"):
        with pytest.raises(MedvitError, match="one folder name"):
            fit_probe(model, parts, name=name)
    run = fit_probe(model, parts, name="one", precision=None)
    with pytest.raises(MedvitError, match=r"Finished runs in .*one"):
        load_run("oen")
    (run.folder / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(MedvitError, match="cannot be read"):
        load_run("one")
    other = open_dataset("phantom/cxr", image_size=32, n_patients=10, positive="normal")
    with pytest.raises(EvaluationError, match="positive: normal"):
        evaluate(run, other)
