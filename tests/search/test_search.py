"""Studies: what can be asked, what is trained, and what is known of it afterwards."""

import signal
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import yaml

from medvitlib.cli import main
from medvitlib.errors import DataError, MedvitError, TrainingError
from medvitlib.models.model_json import read_info
from medvitlib.paths import WORKING, runs_dir
from medvitlib.search import trial as trials
from medvitlib.search import workers
from medvitlib.search.study import read_study
from medvitlib.search.workers import run_search, show_search
from medvitlib.training.run import load_run

PATCH, HEADS = "model.options.patch_size", "model.options.heads"
SPACE = {PATCH: [8, 16], HEADS: [1, 2]}


def asked(name: str, space=SPACE, epochs: int = 2, **search) -> dict:
    return {
        "name": name,
        "data": {"name": "phantom/cxr", "image_size": 32, "rendered": {"n_patients": 40, "difficulty": 0.0}},
        "model": {"name": "vit_scratch", "weights": None, "options": {"dim": 16, "depth": 1}},
        "train": {"epochs": epochs, "lr": 1e-2, "metric": "val_auroc"},
        "search": {"space": space, **search},
    }


def untouched(monkeypatch) -> None:
    monkeypatch.setattr(trials, "fit", lambda *args, **options: pytest.fail("something is trained"))


@pytest.fixture(scope="module")
def grid():
    return run_search(asked("grid"), quiet=True)


def test_a_grid_is_every_combination_once(grid):
    table = grid.table
    assert list(zip(table["patch_size"], table["heads"], strict=True)) == [(8, 1), (8, 2), (16, 1), (16, 2)]
    assert set(table["state"]) == {"complete"} and table["value"].between(0, 1).all()
    assert table.loc[grid.best, "value"] == table["value"].max()
    assert grid.points.columns.tolist() == ["patch_size", "heads", "value", "sd"]


def test_a_point_is_an_ordinary_training(grid):
    for point in grid.table.index:
        run = load_run(grid.folder_of(point))
        kept = run.metrics[run.metrics["best"] == 1].iloc[-1]
        assert grid.table.loc[point, "value"] == pytest.approx(kept["val_auroc"])
        assert grid.table.loc[point, "val_mcc"] == pytest.approx(kept["val_mcc"])
        assert run.model.architecture["options"]["patch_size"] == grid.table.loc[point, "patch_size"]
        assert run.candidates == 4 * 2  # four points of two epochs were compared on this validation part
        assert np.allclose(grid.logits[point][0], run.validation_logits, atol=1e-6)
        assert grid.curves[point][0]["train_loss"].tolist() == pytest.approx(run.metrics["train_loss"].tolist())


def test_a_finished_study_runs_nothing(grid, monkeypatch):
    untouched(monkeypatch)
    again = run_search(asked("grid"), quiet=True)
    assert again.table["value"].tolist() == grid.table["value"].tolist()


def test_what_cannot_be_told_apart_is_counted(grid):
    names = [grid.name_of(point) for point in grid.table.index]
    assert names[3] == "patch_size 16, heads 2"
    assert grid.sentence() == grid.compare().sentence(names)
    assert names[grid.best] in grid.sentence() and "of the other 3" in grid.sentence()
    assert grid.sentence() in str(grid)
    strangers = replace(grid.parts, val=replace(grid.parts.val, groups_known=False))
    assert "patients unknown" in replace(grid, parts=strangers).sentence()
    compared = grid.compare()
    assert [value.value for value in compared.values] == pytest.approx(grid.table["value"].tolist())
    assert compared.best == grid.best


def test_a_point_can_be_trained_further(grid):
    content = grid.training(grid.best)
    options = content["model"]["options"]
    assert [options["patch_size"], options["heads"]] == grid.table.loc[grid.best, ["patch_size", "heads"]].tolist()
    assert yaml.safe_load(yaml.safe_dump(content)) == content  # plain values, as a file has them


def test_workers_find_what_one_process_finds(grid, capsys):
    shared = run_search(asked("shared"), workers=2)
    assert shared.table["value"].tolist() == pytest.approx(grid.table["value"].tolist(), abs=1e-3)
    assert np.allclose(shared.logits[2], grid.logits[2], atol=1e-2)
    said = [line for line in capsys.readouterr().out.splitlines() if "val_auroc" in line]
    assert sorted(line.split()[0] for line in said) == ["1/4", "2/4", "3/4", "4/4"]
    assert "1/4 patch_size 8, heads 1: val_auroc" in "\n".join(said)


def test_workers_join_the_storage_without_its_address_on_their_command_lines(tmp_path, monkeypatch):
    commands = []

    class Popen(subprocess.Popen):
        def __init__(self, command, **options):
            commands.append(command)
            super().__init__(command, **options)

    monkeypatch.setattr(workers.subprocess, "Popen", Popen)
    monkeypatch.setenv("MEDVIT_STORAGE", str(tmp_path / "s.journal"))
    content = asked("address", {HEADS: (1, 2)}, epochs=1)  # a tuple, as Python may have it
    content["data"]["image_size"] = (32, 32)
    found = run_search(content, workers=2, quiet=True)
    assert set(found.table["state"]) == {"complete"} and (tmp_path / "s.journal").is_file()
    assert len(commands) == 2 and not any("journal" in word for command in commands for word in command)


def test_an_interrupted_study_goes_on(grid, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(asked("stopped", epochs=30)))
    command = [sys.executable, "-m", "medvitlib.cli", "search", "run", str(file), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "val_auroc" in line:  # the first point is done
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=100) == 130
    assert "stopped. The same command goes on." in process.stderr.read()
    before = show_search(file)
    done = before.table["state"] == "complete"
    assert 1 <= done.sum() < 4
    began = {p: p.stat().st_mtime_ns for p in (runs_dir() / "stopped").glob("*/model.safetensors")}
    after = run_search(file, quiet=True)
    assert set(after.table["state"]) == {"complete"} and len(after.table) == 4
    assert after.table["value"][done].tolist() == before.table["value"][done].tolist()
    assert all(path.stat().st_mtime_ns == time for path, time in began.items())  # nothing done was done again
    left = [p for p in (runs_dir() / "stopped").rglob("*") if p.name == "last" or p.name.endswith(WORKING)]
    assert not left  # complete runs keep no state


def test_every_worker_dying_is_said(monkeypatch):
    monkeypatch.setattr(workers.sys, "executable", "/bin/false")
    with pytest.raises(TrainingError, match=r"Every worker has stopped before the search was done:\n.*worker-0.log"):
        run_search(asked("dying"), workers=2, quiet=True)


def test_several_seeds_make_a_mean_and_a_spread(grid):
    found = run_search(asked("seeds", {HEADS: [1, 2]}, seeds=[0, 5]), quiet=True)
    for point, row in found.table.iterrows():
        values = [load_run(found.folder_of(point, seed)).metrics["val_auroc"].max() for seed in (0, 5)]
        assert values[0] != values[1]
        assert (row["value"], row["sd"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
        assert found.logits[point].shape[0] == len(found.curves[point]) == 2


def test_a_failing_point_is_recorded_and_the_rest_go_on(monkeypatch, capsys):
    def failing(model, *args, **options):
        if model.architecture["options"]["heads"] == 2:
            raise RuntimeError("no luck")
        return fit(model, *args, **options)

    fit = trials.fit
    with monkeypatch.context() as patch:
        patch.setattr(trials, "fit", failing)
        found = run_search(asked("failing", {HEADS: [2, 1]}))
    assert found.table["state"].tolist() == ["failed", "complete"]
    assert found.table["error"].tolist() == ["RuntimeError: no luck", ""]
    assert "1/2 heads 2: RuntimeError: no luck" in capsys.readouterr().out
    assert found.best == 1 and "there is no other to compare it with" in str(found)
    with monkeypatch.context() as patch:
        untouched(patch)
        run_search(asked("failing", {HEADS: [2, 1]}), quiet=True)  # it is finished
    again = run_search(asked("failing", {HEADS: [2, 1]}), retry=True, quiet=True)
    assert again.table["state"].tolist() == ["complete", "complete"]


def test_nothing_but_failures_is_said(monkeypatch):
    monkeypatch.setattr(trials, "fit", lambda *args, **options: 1 / 0)
    found = run_search(asked("hopeless", {HEADS: [1]}), quiet=True)
    with pytest.raises(TrainingError, match=r"No point of 'hopeless' was trained to its end.*ZeroDivisionError"):
        found.sentence()
    assert "failed" in str(found)


@pytest.mark.parametrize(("method", "workers"), [("random", 2), ("tpe", 1)])
def test_ranges_are_searched_by_chance_or_by_model(method, workers):
    space = {
        "train.lr": {"low": 1e-4, "high": 0.1, "log": True},
        "train.batch_size": {"low": 8, "high": 9},
        HEADS: [1, 2],
    }
    found = run_search(asked(method, space, method=method, trials=5, epochs=1), workers=workers, quiet=True)
    assert len(found.table) == 5 and set(found.table["state"]) == {"complete"}
    assert found.table["lr"].between(1e-4, 1e-1).all() and found.table["lr"].nunique() == 5
    assert set(found.table["batch_size"]) <= {8, 9} and set(found.table["heads"]) <= {1, 2}
    more = run_search(asked(method, space, method=method, trials=6, epochs=1), quiet=True)
    assert len(more.table) == 6 and more.table["lr"][:5].tolist() == found.table["lr"].tolist()


def test_a_point_begun_elsewhere_is_begun_anew(monkeypatch):
    study = asked("elsewhere", {HEADS: [1]})
    train = trials.fit

    def stopped(*args, **options):
        train(*args, **(options | {"settings": {"another": "device"}, "each_epoch": lambda row: 1 / 0}))

    with monkeypatch.context() as patch:
        patch.setattr(trials, "fit", stopped)
        assert run_search(study, quiet=True).table["state"].tolist() == ["failed"]
    assert (runs_dir() / "elsewhere" / "000-seed0.unfinished").is_dir()
    assert run_search(study, retry=True, quiet=True).table["state"].tolist() == ["complete"]


def test_an_adapters_rank_is_a_setting_like_any_other(monkeypatch):
    content = asked("ranks", {"model.adapter.rank": [1, 2, 64]})
    content["model"]["adapter"] = {"method": "lora"}
    with pytest.raises(MedvitError, match="rank=64 is above 16"):
        run_search(content, quiet=True)
    content["search"]["space"] = {"model.adapter.rank": [1, 2]}
    found = run_search(content, quiet=True)
    adaptations = [read_info(found.folder_of(k))["weights"]["adaptation"] for k in (0, 1)]
    assert [adaptation["rank"] for adaptation in adaptations] == [1, 2]


def test_poor_points_are_stopped_where_asked(monkeypatch):
    space = {"train.lr": [3e-2, 1e-2, 1e-3, 3e-3, 5e-3, 7e-3, 1e-5, 1e-6, 1e-7, 1e-9, 1e-10, 1e-11]}
    content = asked("poor", space, epochs=4, method="random", trials=12, stop_poor=True)
    content["train"]["metric"] = "val_nll"
    found = run_search(content, quiet=True)
    stopped = found.table["state"] == "stopped early"
    assert 0 < stopped.sum() < 7 and found.table["value"].isna()[stopped].all()
    assert found.table["value"].idxmin() == found.best
    assert not list((runs_dir() / "poor").glob("*.unfinished"))


def test_what_the_trials_share_is_opened_once(monkeypatch):
    opened = []
    open_parts = trials.open_parts
    monkeypatch.setattr(trials, "open_parts", lambda *args, **options: opened.append(1) or open_parts(*args, **options))
    run_search(asked("once"), quiet=True)
    assert len(opened) == 1
    content = asked("sizes", {"data.image_size": [32, 48]}, epochs=1)
    content["split"] = {"by": "clusters"}
    found = run_search(content, quiet=True)
    assert len(opened) == 3
    runs = [load_run(found.folder_of(point)) for point in (0, 1)]
    assert [run.model.preprocessing.image_size for run in runs] == [(32, 32), (48, 48)]
    assert runs[0].validation["id"].tolist() == runs[1].validation["id"].tolist()


LIST = r"expected at least one `key: \[values\]`"


@pytest.mark.parametrize(
    ("space", "search", "message"),
    [
        ({}, {}, LIST),
        (None, {}, LIST),
        ([1, 2], {}, LIST),
        ({HEADS: []}, {}, "heads holds .*: expected a list of values to try"),
        ({HEADS: 2}, {}, "expected a list of values"),
        ({HEADS: [1, 1]}, {}, "a value twice"),
        ({HEADS: [[1]]}, {}, "expected numbers, words"),
        ({HEADS: [3]}, {}, "heads=3: dim 16 cannot be shared by 3 heads"),
        ({PATCH: [8, 7]}, {}, "patch_size=7: image size 32 x 32 is not made of 7 x 7 patches"),
        ({"model.options.heds": [1]}, {}, "has no option 'heds'. Nearest: heads"),
        ({"train.lrr": [1]}, {}, "setting 'lrr' is unknown. Did you mean 'lr'"),
        ({"train.lr": [0.1, -1]}, {}, "train.lr=-1: lr=-1.0: expected a number above 0"),
        ({"train.seed": [1]}, {}, "train.seed cannot be searched"),
        ({"split.val": [0.1]}, {}, "split.val cannot be searched"),
        ({"heads": [1]}, {}, "heads cannot be searched.*model.options.heads"),
        ({"model.name": ["vit_scrtch"]}, {}, "no model is called 'vit_scrtch'"),
        ({"train.lr": {"low": 1, "high": 2}}, {}, "a range, of which a grid cannot try every value"),
        ({"train.lr": {"low": 2, "high": 1}}, {"method": "tpe"}, "from 2 to 1: expected low < high"),
        ({"train.lr": {"low": 0, "high": 1, "log": True}}, {"method": "tpe"}, "above 0"),
        ({"train.lr": {"low": 0, "hgh": 1}}, {"method": "tpe"}, "Did you mean 'high'"),
        ({"train.lr": {"low": 0}}, {"method": "tpe"}, "expected {low: ..., high: ...}"),
        (SPACE, {"method": "gird"}, "search: method 'gird' is unknown. Did you mean 'grid'"),
        (SPACE, {"trials": 3}, "trials and stop_poor are for random and tpe"),
        (SPACE, {"method": "tpe", "trials": 0}, "trials=0"),
        (SPACE, {"seeds": []}, "seeds=.*: expected how many"),
        (SPACE, {"seeds": [1, 1]}, "expected how many"),
        (SPACE, {"sedes": 1}, "Did you mean 'seeds'"),
    ],
)
def test_what_cannot_be_searched_is_said_before_anything_is_trained(monkeypatch, space, search, message):
    untouched(monkeypatch)
    with pytest.raises(TrainingError, match=message):
        run_search(asked("wrong", space, **search), quiet=True)


def test_data_that_cannot_be_trained_on_are_said_before_anything_is_trained(monkeypatch, tmp_path):
    untouched(monkeypatch)
    for image in range(60):
        folder = tmp_path / "images" / ("round", "square")[image % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{image}.png"), np.full((32, 32), image, np.uint8))
    content = asked("unsaid") | {"data": {"name": str(tmp_path / "images"), "image_size": 32}}
    with pytest.raises(DataError, match=r"Pass positive= one of \['round', 'square'\]"):
        run_search(content, quiet=True)


def test_another_space_under_the_same_name_is_refused(grid, monkeypatch):
    untouched(monkeypatch)
    with pytest.raises(
        TrainingError, match=r"study 'grid' .* of something else: search.space.*heads was \[1, 2\], now"
    ):
        run_search(asked("grid", {**SPACE, HEADS: [1]}), quiet=True)
    other = asked("grid")
    other["data"]["rendered"]["n_patients"] = 50
    with pytest.raises(TrainingError, match=r"fingerprints\.train was"):
        run_search(other, quiet=True)


def test_the_command_line_says_it_all(grid, tmp_path, capsys):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(asked("grid"), sort_keys=False))
    assert main(["search", "run", str(file)]) == 0
    assert grid.sentence() in capsys.readouterr().out
    assert main(["search", "show", str(file)]) == 0
    assert grid.sentence() in capsys.readouterr().out
    assert main(["search", "show", str(file), "--storage", str(tmp_path / "s.journal")]) == 1
    assert "There is no study 'grid'" in capsys.readouterr().err
    assert main(["search", "run", str(file), "--workers", "0"]) == 1
    assert "workers=0: expected 1 or more" in capsys.readouterr().err
    assert main(["search", "run", str(tmp_path / "no.yaml")]) == 1
    assert "no.yaml: cannot be read" in capsys.readouterr().err


def test_a_study_file_is_a_training_file_with_a_space():
    study = read_study({**asked("file"), "evaluate": {"target_recall": 0.9}})
    point, config = study.at({PATCH: 8, HEADS: 2}, 7)
    assert point["model"]["options"] == {"dim": 16, "depth": 1, "patch_size": 8, "heads": 2} and config.seed == 7
    assert study.content["model"]["options"] == {"dim": 16, "depth": 1}  # what was given stays as it was
