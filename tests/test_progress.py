"""Progress is shown where the user looks, and never gets between the loop and its items."""

import time

from medvitlib import progress
from medvitlib.progress import track


def slow(n, seconds=0.02):
    for i in range(n):
        time.sleep(seconds)
        yield i


def test_a_file_receives_the_line_and_is_emptied_at_the_end(tmp_path, monkeypatch):
    target = tmp_path / "line"
    monkeypatch.setenv("MEDVIT_PROGRESS", str(target))
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    seen = []
    for _ in track(slow(4), "Features", total=10, step=3):
        seen.append(target.read_text() if target.exists() else "")
    assert seen[0] == ""
    assert seen[2].startswith("Features: 6/10 img, ") and seen[2].endswith(" s left")
    assert target.read_text() == ""


def test_a_file_that_cannot_be_written_costs_no_result(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVIT_PROGRESS", str(tmp_path / "nowhere" / "line"))
    monkeypatch.setattr(progress, "DELAY", 0.0)
    assert list(track(slow(3), "x")) == [0, 1, 2]


def test_what_is_quick_shows_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEDVIT_PROGRESS", str(tmp_path / "line"))
    assert list(track([1, 2, 3], "x")) == [1, 2, 3]
    monkeypatch.delenv("MEDVIT_PROGRESS")
    assert list(track(range(5), "x", step=2)) == [0, 1, 2, 3, 4]
    assert capsys.readouterr() == ("", "")


def test_the_terminal_shows_a_bar_with_rate_and_time_left(monkeypatch, capsys):
    monkeypatch.delenv("MEDVIT_PROGRESS")
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(progress, "_in_notebook", lambda: False)
    assert list(track(slow(20), "Evaluating", total=40, step=2)) == list(range(20))
    shown = capsys.readouterr().err
    assert "Evaluating" in shown and "/40" in shown and "img/s" in shown


def test_a_line_states_the_rate_and_what_is_left():
    assert progress._line("Features", 50, 200, 10.0, "img") == "Features: 50/200 img, 5 img/s, 30 s left"
    assert progress._line("Reading", 50, None, 10.0, "file") == "Reading: 50 file, 5 file/s"
    assert progress._line("grid", 6, 27, 72.0, "point") == "grid: 6/27 point, 12 s/point, 252 s left"
