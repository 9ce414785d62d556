"""The same places whoever starts the notebook: JupyterLab, papermill or nbval, whose working directories differ."""

import os
from pathlib import Path

import pytest

from medvitlib import paths


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "notebooks" / "deep").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "pyproject.toml").touch()
    for name in ("MEDVIT_RUNS", "MEDVIT_DATA", "MEDVIT_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize("below", ["", "notebooks", "notebooks/deep"])
def test_project_folders_do_not_depend_on_where_one_starts(project, monkeypatch, below):
    monkeypatch.chdir(project / below)
    assert paths.project_root() == project
    assert paths.runs_dir() == project / "runs"
    assert paths.data_roots() == [project / "data"]


def test_outside_a_project_the_working_directory_serves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.project_root() == tmp_path


def test_data_roots_come_in_the_documented_order(project, monkeypatch):
    first, second, argument = (project / name for name in ("first", "second", "argument"))
    for folder in (first, second, argument, project / "cache" / "data"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(project)
    monkeypatch.setenv("MEDVIT_CACHE", str(project / "cache"))
    monkeypatch.setenv("MEDVIT_DATA", os.pathsep.join([str(first), "second", "absent"]))
    assert paths.data_roots(argument) == [argument, first, second, project / "data", project / "cache" / "data"]


def test_the_cache_and_the_runs_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDVIT_CACHE", "~/elsewhere")
    monkeypatch.setenv("MEDVIT_RUNS", str(tmp_path))
    assert paths.cache_dir() == Path.home() / "elsewhere"
    assert paths.runs_dir() == tmp_path
