"""Run folders as one table: figures are those of the reports, what cannot be used is named, two runs are compared."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from medvitlib.compare import comparison_table
from medvitlib.data import open_dataset, split
from medvitlib.duel import compare_runs
from medvitlib.errors import EvaluationError, MedvitError
from medvitlib.evaluate import evaluate
from medvitlib.evaluation import compare_pair, delong
from medvitlib.forest import plot_forest
from medvitlib.leaderboard import METRICS, leaderboard
from medvitlib.models.adapt import adapt
from medvitlib.models.zoo import build, count_parameters
from medvitlib.published import PUBLISHED
from medvitlib.training.config import TrainConfig
from medvitlib.training.fit import fit
from medvitlib.training.probe import fit_probe
from medvitlib.training.run import load_run

CPU = {"device": "cpu", "precision": None}
QUIET = {"quiet": True, "plot": False, **CPU}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two runs on one test set of 60 patients, one of three classes, one that nobody evaluated."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVIT_RUNS", str(folder))
        ct = split(open_dataset("phantom/ct", image_size=32, n_patients=60, difficulty=0.0), seed=0)
        probe = fit_probe(build("vit_tiny_test", 2, weights=None), ct, name="probe", strengths=(0.01, 0.1), **CPU)
        evaluate(probe, ct.test, n_boot=100, figures=False, **CPU)
        lora = adapt(build("vit_tiny_test", 2, weights=None), "lora", rank=2)
        config = TrainConfig(epochs=2, batch_size=16, lr=1e-2, head_epochs=1, seed=3)
        evaluate(fit(lora, ct, config, name="study/lora", **QUIET), ct.test, n_boot=100, figures=False, **CPU)
        cells = split(open_dataset("phantom/blood3", image_size=32, n_patients=30))
        many = fit_probe(build("vit_tiny_test", 3, weights=None), cells, name="cells", strengths=(0.1,), **CPU)
        evaluate(many, cells.test, n_boot=100, figures=False, **CPU)
        fit_probe(build("vit_tiny_test", 2, weights=None), ct, name="unseen", strengths=(0.1,), **CPU)
    return folder


@pytest.fixture(scope="module")
def board(root):
    return leaderboard(root)


@pytest.fixture
def copy(root, tmp_path):
    """A root of one's own to break things in."""
    return shutil.copytree(root, tmp_path / "runs")


def change(path, **keys):
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_a_row_a_run_with_the_figures_of_its_report(board, root):
    table = board.table
    assert set(table.index) == {"probe", "study/lora", "cells", "unseen"} and not board.skipped
    for name in ("probe", "study/lora", "cells"):
        said = json.loads((root / name / "report.json").read_text())
        for metric in METRICS:
            found = said["metrics"].get(metric, said["metrics"].get(f"{metric}_macro"))
            expected = [np.nan if found[end] is None else found[end] for end in ("value", "low", "high")]
            columns = [metric, f"{metric} low", f"{metric} high"]
            np.testing.assert_array_equal(table.loc[name, columns].astype(float), expected, err_msg=f"{name} {metric}")
        assert (table.loc[name, "images"], table.loc[name, "patients"]) == (said["images"], said["patients"])
        model = load_run(root / name).model
        assert table.loc[name, "parameters"] == count_parameters(model), name  # merged: without LoRA's own
        assert table.loc[name, "MB"] == (root / name / "model.safetensors").stat().st_size / 1e6


def test_data_split_model_adaptation_and_seed_are_those_of_the_training(board):
    columns = ["data", "split", "model", "adaptation", "weights"]
    assert board.table.loc["study/lora", columns].tolist() == [
        "phantom/ct", "by patient", "vit_tiny_test", "LoRA, head first", "random",
    ]  # fmt: skip
    assert board.table.loc["cells", columns[:4]].tolist() == ["phantom/blood3", "by patient", "vit_tiny_test", "probe"]
    assert board.table.loc["study/lora", "seed"] == 3 and pd.isna(board.table.loc["probe", "seed"])
    minutes = pd.read_csv(board.runs["study/lora"].folder / "metrics.csv")["seconds"].sum() / 60
    assert board.table.loc["study/lora", "minutes"] == pytest.approx(minutes)
    assert np.isnan(board.table.loc["probe", "minutes"])


def test_a_split_is_named_by_what_the_data_and_the_caller_said(board, tmp_path, write_classes):
    run = board.runs["probe"]

    def kind(ds, **options):
        parts = split(ds, **options)
        said = {"name": ds.name, "table": json.loads(parts.table().to_json(orient="split")), "notes": parts.notes}
        return replace(run, config={**run.config, "data": said}).split

    ct = open_dataset("phantom/ct", image_size=224, n_patients=12)
    assert (kind(ct), kind(ct, by="images")) == ("by patient", "by image")
    unknown = replace(ct, groups=ct.ids, groups_known=False)
    assert (kind(unknown), kind(unknown, by="clusters")) == ("by image", "by cluster")
    official = replace(ct, splits=np.where(np.arange(len(ct)) % 2, "test", "train"))
    with pytest.warns(UserWarning, match="LEAK"):
        assert kind(official) == "official test, leaks"
    for part in ("train", "test"):
        write_classes(tmp_path / "set" / part, {"a": 12, "b": 12})
    assert kind(open_dataset(str(tmp_path / "set"), image_size=16, positive="a")) == "official test"


def test_what_was_trained_is_told_from_pretrained_and_later_changes(board):
    run = board.runs["study/lora"]
    plain = {key: value for key, value in run.config.items() if key != "adaptation"}
    train = {"head_epochs": 0, "epochs": 1}
    pretrained = {**plain, "weights": {"source": "hub"}, "train": train}
    assert replace(run, config={**plain, "train": train}).adaptation == "none"
    assert replace(run, config=pretrained).adaptation == "full"
    assert replace(run, config={**pretrained, "train": {**train, "prune": 0.5}}).adaptation == "full, pruned"
    assert replace(run, config={**pretrained, "adaptation": {"method": "rlrr"}}).adaptation == "RLRR"
    assert replace(run, config={**pretrained, "method": "int8"}).adaptation == "int8"


def test_shown_it_is_text_best_first_and_says_who_was_not_evaluated(board):
    shown = board.show(("auroc", "nll"), minutes=False)
    assert shown.loc["unseen", ["auroc", "nll", "images"]].tolist() == ["not evaluated"] * 2 + ["–"]
    assert shown.loc["probe", "auroc"] == str(board.runs["probe"].report.metrics["auroc"])
    assert "minutes" not in shown and "minutes" in board.show()
    ct = [name for name in shown.index if name != "cells"]
    assert ct == [*board.table.loc[["probe", "study/lora"]].sort_values("auroc", ascending=False).index, "unseen"]
    by_loss = board.show(("nll",)).index.drop(["cells", "unseen"])
    assert list(by_loss) == list(board.table.loc[["probe", "study/lora"]].sort_values("nll").index)
    with pytest.raises(EvaluationError, match=r"metric 'acuracy' is unknown. Did you mean 'accuracy'"):
        board.show(("acuracy",))


def test_filters_hold_together_and_an_unknown_one_names_the_nearest(board):
    assert set(board.only(data="phantom/ct").runs) == {"probe", "study/lora", "unseen"}
    assert set(board.only(data="phantom/ct", adaptation="probe").runs) == {"probe", "unseen"}
    assert set(board.only(run=["cells", "probe"]).runs) == {"cells", "probe"}
    assert set(board.only(seed=3).runs) == {"study/lora"}
    assert not board.only(data="phantom/blood3", seed=3).runs
    with pytest.raises(EvaluationError, match=r"data 'phantom/tc' is unknown. Did you mean 'phantom/ct'"):
        board.only(data="phantom/tc")
    with pytest.raises(EvaluationError, match=r"filter 'dat' is unknown. Did you mean 'data'"):
        board.only(dat="phantom/ct")


def broken(copy):
    """Folder -> (how it is broken, what is said about it)."""
    unfinished = copy / "other.unfinished"
    shutil.copytree(copy / "probe", unfinished)
    cases = {"other.unfinished": "not finished"}
    for name, file, content, why in (
        ("no-model", "model.json", None, "has no model.json"),
        ("cut-weights", "model.safetensors", b"\x10\0\0\0\0\0\0\0{", "model.safetensors cannot be read"),
        ("no-weights", "model.safetensors", None, "model.safetensors cannot be read"),
        ("cut-config", "config.json", b'{"name": ', "config.json is not valid JSON"),
        ("list-config", "config.json", b"[1, 2]", r"config.json is \[1, 2\]; expected an object"),
        ("poor-config", "config.json", b'{"method": "probe"}', "config.json has no field 'data'"),
        ("binary-config", "config.json", b"\xff\xfe\x00", "config.json is not valid JSON"),
        ("cut-report", "report.json", b"{", "report.json is not valid JSON"),
        ("newer-report", "report.json", b'{"format": 99}', "format is 99; expected 1"),
        ("no-predictions", "predictions.csv", None, "predictions.csv"),
        ("empty-metrics", "metrics.csv", b"", "metrics.csv cannot be read"),
        ("odd-model", "model.json", b'{"architecture": {"library": "x"}}', "model.json"),
    ):
        path = shutil.copytree(copy / "probe", copy / name) / file
        path.unlink() if content is None else path.write_bytes(content)
        cases[name] = why
    lines = (copy / "probe" / "predictions.csv").read_text().splitlines(keepends=True)
    shutil.copytree(copy / "probe", copy / "cut-predictions")
    (copy / "cut-predictions" / "predictions.csv").write_text("".join(lines[:10]))
    return cases | {"cut-predictions": "is about .* images, predictions.csv has 9"}


def test_damaged_and_unfinished_folders_are_left_out_each_with_its_reason(copy, board):
    cases = broken(copy)
    (copy / "notes").mkdir()  # no run, and nothing to complain of
    found = leaderboard(copy)
    assert set(found.runs) == set(board.runs)
    assert {folder.rpartition("/")[2] for folder in found.skipped} == set(cases)
    for folder, why in found.skipped.items():
        assert pd.Series([why]).str.contains(cases[folder.rpartition("/")[2]]).all(), (folder, why)


def test_roots_and_single_runs_go_together_and_none_twice(root, copy):
    both = leaderboard(root, copy, root / "probe")
    assert len(both.runs) == 8 and {"probe", "runs/probe", "runs/study/lora"} <= set(both.runs)
    assert list(leaderboard(root / "study" / "lora").runs) == ["lora"]
    with pytest.raises(MedvitError, match=r"There is no folder .*nowhere"):
        leaderboard(root / "nowhere")


def test_without_a_finished_run_the_reasons_are_said(copy):
    (copy / "probe" / "model.json").unlink()
    with pytest.raises(MedvitError, match=r"(?s)no finished run in .*probe.*has no model\.json"):
        leaderboard(copy / "probe")


def test_two_runs_are_compared_by_the_tests_of_this_library(board):
    one, other = (board.runs[name].report for name in ("probe", "study/lora"))
    found = board.compare("probe", "study/lora", n_boot=200)
    given = {"classes": one.classes, "positive": one.positive, "groups": one.groups, "n_boot": 200}
    for metric in ("accuracy", "auroc"):
        assert found.pairs[metric] == compare_pair(
            one.y_true, one.probabilities, other.probabilities, metric=metric, **given
        )
    k = one.classes.index(one.positive)
    assert found.delong == delong(one.y_true == k, one.probabilities[:, k], other.probabilities[:, k], one.groups)
    said = " ".join(found.sentences())
    assert (
        "probe minus study/lora, accuracy" in said and "McNemar" in said and "DeLong's test, patients as units" in said
    )
    assert found.table().index[0] == "probe − study/lora" and found.row()["McNemar p"] in said


def test_the_order_of_the_images_is_no_matter(copy, board):
    path = copy / "study" / "lora" / "predictions.csv"
    pd.read_csv(path, dtype=str).sample(frac=1, random_state=0).to_csv(path, index=False)
    shuffled = compare_runs(copy / "probe", copy / "study" / "lora", n_boot=100)
    expected = board.compare("probe", "study/lora", n_boot=100)
    assert shuffled.pairs == expected.pairs and shuffled.delong == expected.delong


def test_other_test_sets_are_refused_with_the_reason(copy, board):
    with pytest.raises(EvaluationError, match="scored on 'phantom/ct' and on 'phantom/blood3'"):
        board.compare("probe", "cells")
    with pytest.raises(EvaluationError, match="'unseen' was not evaluated"):
        board.compare("probe", "unseen")
    with pytest.raises(EvaluationError, match="given twice"):
        board.compare("probe", "probe")
    with pytest.raises(EvaluationError, match="Did you mean 'probe'"):
        board.compare("prob", "cells")
    with pytest.raises(EvaluationError, match=r"nowhere: it has no model\.json"):
        compare_runs(copy / "nowhere", copy / "probe")
    other = copy / "study" / "lora"
    config = json.loads((other / "config.json").read_text())
    config["data"]["parts"]["test"] = "0" * 64  # the same names, rendered with another seed
    change(other / "config.json", data=config["data"])
    with pytest.raises(EvaluationError, match="same names and are not the same files"):
        compare_runs(copy / "probe", other)
    table = pd.read_csv(other / "predictions.csv", dtype=str)
    table["id"] = ["x" + name if i < 3 else name for i, name in enumerate(table["id"])]
    table.to_csv(other / "predictions.csv", index=False)
    n = len(table)
    with pytest.raises(EvaluationError, match=f"{n} and {n} images, {n - 3} of them in both"):
        compare_runs(copy / "probe", other)


def test_the_best_of_each_test_set_and_how_many_cannot_be_told_apart(board):
    best = board.best("auroc", n_boot=200).set_index("data")
    assert best.loc["phantom/ct", "best run"] == board.table.loc[["probe", "study/lora"], "auroc"].idxmax()
    assert best.loc["phantom/ct", "runs"] == 2 and best.loc["phantom/ct", "not told apart"] in ("0 of 1", "1 of 1")
    assert best.loc["phantom/blood3", "not told apart"] == "the only one"
    with pytest.raises(EvaluationError, match="metric 'recall' is unknown"):
        board.best("recall")


def test_the_best_stands_above_what_was_published_for_its_data(board, copy):
    for name in ("probe", "study/lora"):
        config = json.loads((copy / name / "config.json").read_text())
        change(copy / name / "config.json", data={**config["data"], "name": "/data/chest_xray"})
    table = leaderboard(copy).only(data="/data/chest_xray").beside_published("accuracy")
    rows = table.index.get_level_values("model")
    best = max(("probe", "study/lora"), key=lambda name: board.table.loc[name, "accuracy"])
    assert rows[0] == f"{best}, @0.5" and [row["model"] for row in PUBLISHED["chest_xray"]] == list(rows[-2:])
    assert table["accuracy"].iloc[0] == str(board.runs[best].report.metrics["accuracy"])


def test_the_picture_has_a_panel_a_test_set_and_a_bar_a_run(board):
    figure = plot_forest(board, "auroc")
    titles = [ax.get_title(loc="left").strip() for ax in figure.axes]
    assert titles == ["phantom/blood3", "phantom/ct"]
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert set(labels) == {"probe", "study/lora"}
    bars = [line.get_segments()[0][:, 0] for line in figure.axes[1].collections]
    expected = [board.table.loc[name, ["auroc low", "auroc high"]].tolist() for name in labels]
    np.testing.assert_allclose(bars, expected)
    with pytest.raises(EvaluationError, match="No run has a figure"):
        plot_forest(board.only(run="unseen"))


def test_the_tables_of_one_notebook_and_of_the_leaderboard_agree(board, root):
    run = load_run(root / "probe")
    table = comparison_table({"probe": (run, board.runs["probe"].report)})
    shown = board.show()
    assert table.loc[("probe", "@0.5"), "accuracy"] == shown.loc["probe", "accuracy"]
    assert table.loc[("probe", "@0.5"), "parameters"] == shown.loc["probe", "parameters"]
