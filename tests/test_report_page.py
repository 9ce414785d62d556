"""The page on finished runs: complete in one file, valid, harmless whatever a run says, and refused with a sentence."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import cv2
import numpy as np
import pandas as pd
import pytest

from medvitlib.cli import main
from medvitlib.data import open_dataset, split
from medvitlib.errors import EvaluationError, MedvitError
from medvitlib.evaluate import evaluate
from medvitlib.models.zoo import build
from medvitlib.predict import NOTICE
from medvitlib.report_page import write_report
from medvitlib.training.probe import fit_probe

CPU = {"device": "cpu", "precision": None}
EVIL = "<script>alert('1')</script>"
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Every tag with its attributes, every id, and the text; fails where a tag is not closed in its turn."""

    def __init__(self, content: str):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(content)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def rename(folder, old: str, new: str) -> None:
    """Give a class another name in every file of a run."""
    for name in ("model.json", "config.json", "report.json"):
        (folder / name).write_text((folder / name).read_text().replace(f'"{old}', f'"{new}'))
    for name in ("predictions.csv", "validation.csv"):
        table = pd.read_csv(folder / name, dtype=str).replace({old: new})
        table.columns = [column.replace(old, new) for column in table.columns]
        table.to_csv(folder / name, index=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two runs on one test set, the first with pictures; a third whose names are an attack; one that is damaged."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVIT_RUNS", str(folder))
        parts = split(open_dataset("phantom/ct", image_size=32, n_patients=60, difficulty=0.0), seed=0)
        for seed, name in enumerate(("first", "second")):
            model = build("vit_tiny_test", 2, weights=None, seed=seed)
            run = fit_probe(model, parts, name=name, strengths=(0.01,), settings={"seed": seed}, **CPU)
            evaluate(run, parts.test, n_boot=100, figures=not seed, **CPU)
    evil = shutil.copytree(folder / "second", folder / "a<img src=x onerror=alert(1)>")
    rename(evil, "non-COVID", EVIL)
    config = json.loads((evil / "config.json").read_text())
    config["data"] |= {"name": EVIL, "notes": [EVIL]}
    (evil / "config.json").write_text(json.dumps({**config, "note": EVIL, "weights": {"source": EVIL}}))
    shutil.copytree(folder / "first", folder / "broken")
    (folder / "broken" / "report.json").write_text("{")
    return folder


@pytest.fixture(scope="module")
def written(root, tmp_path_factory):
    return write_report([root], tmp_path_factory.mktemp("out") / "deep" / "report.html", n_boot=100)


@pytest.fixture(scope="module")
def page(written):
    return Page(written[0].read_text("utf-8"))


def test_the_page_asks_for_nothing_outside_itself(page, written):
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    for tag, attributes in page.tags:
        for name in ("src", "href", "data", "action"):
            if name in attributes:
                assert attributes[name].startswith(("data:image/png;base64,", "#")), (tag, name)
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
    css = re.search(r"<style>(.*?)</style>", written[0].read_text("utf-8"), re.DOTALL)[1]
    assert "url(" not in css and "@import" not in css
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_it_is_a_page_with_a_title_a_language_and_links_that_lead_somewhere(page, written):
    assert written[0].read_text("utf-8").startswith("<!DOCTYPE html>\n")
    assert page.all("html") == [{"lang": "en"}] and len(page.all("title")) == len(page.all("h1")) == 1
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"] for a in page.all("a")} == {f"#{name}" for name in ids}
    assert all(image["alt"] for image in page.all("img"))


def test_what_a_class_or_a_run_is_called_is_shown_and_never_obeyed(page):
    assert not page.all("script") and {"src", "alt"} == set().union(*page.all("img"))
    text = "".join(page.text)
    assert text.count(EVIL) > 5 and "a<img src=x onerror=alert(1)>" in text


def test_every_run_has_a_section_with_its_figures_pictures_and_settings(page, written):
    text, board = "".join(page.text), written[1]
    assert len([s for s in page.all("section") if s.get("class") == "run"]) == 3 == len(board.runs)
    for run in board.runs.values():
        for sentence in run.report.sentences():
            assert sentence in text
        for name, found in run.report.metrics.items():
            assert found.interval() in text, name
    assert "strengths" in text and "random initialisation" in text
    captions = [image["alt"] for image in page.all("img")]
    for run in ("first", "second"):  # the second's were not drawn by `evaluate`
        for words in ("Confusion, decided by the largest probability", "ROC", "Calibration"):
            assert f"{words}: {run}" in captions


def test_pictures_are_whole_and_those_of_the_run_are_taken_as_they_are(page, root):
    contents = {image["alt"]: base64.b64decode(image["src"].partition(",")[2]) for image in page.all("img")}
    for content in contents.values():
        assert min(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape[:2]) > 200
    assert contents["ROC: first"] == (root / "first" / "plots" / "roc.png").read_bytes()


def test_runs_on_the_same_images_are_compared_and_what_was_left_out_is_named(page, written):
    text = "".join(page.text)
    first, second = written[1].only(run=["first", "second"]).test_sets()[0]
    expected = written[1].compare(second.name, first.name, n_boot=100).row()
    assert f"Each run minus {first.name}" in text and expected["accuracy"] in text and expected["DeLong p"] in text
    assert "report.json is not valid JSON" in text


def test_notice_size_and_print_rules_are_there(page, written):
    text = "".join(page.text)
    assert text.count(NOTICE) == 2 and "no medical device" in NOTICE
    said = float(re.search(r"This page is complete: ([\d.]+) MB", text)[1])
    assert said == pytest.approx(written[0].stat().st_size / 1e6, abs=0.06)
    assert "@media print" in text and "max-width: 72rem" in text
    assert not list(written[0].parent.glob("*.part"))


def test_paths_of_this_machine_stay_out_of_the_settings(root, tmp_path):
    run = shutil.copytree(root / "first", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    weights = {"source": "cache", "path_or_url": "/secret/w.npz", "sha256": "abc"}
    (run / "config.json").write_text(json.dumps({**config, "weights": weights}))
    content = write_report([run], tmp_path / "r.html", n_boot=100)[0].read_text("utf-8")
    assert "sha256=abc" in content and "/secret" not in content


def test_the_command_says_what_it_wrote_and_what_it_left_out(root, tmp_path, capsys):
    out = tmp_path / "r.html"
    assert main(["report", str(root / "first"), str(root / "broken"), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "left out: " in shown and f"1 run, 1 evaluated: {out} (" in shown


def test_what_cannot_be_is_one_sentence(root, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty"), "--out", str(tmp_path / "r.html")]) == 1
    assert "There is no finished run in" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "absent")]) == 1
    assert "There is no folder" in capsys.readouterr().err
    with pytest.raises(MedvitError, match=r"model\.json is no name for a page"):
        write_report([root], root / "first" / "model.json")
    with pytest.raises(EvaluationError, match="metric 'acc' is unknown"):
        write_report([root], tmp_path / "r.html", metric="acc")
    (tmp_path / "file").write_text("")
    with pytest.raises(MedvitError, match=r"cannot be written \(.*\): name another place"):
        write_report([root / "first"], tmp_path / "file" / "r.html", n_boot=100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]  # nothing half-written
