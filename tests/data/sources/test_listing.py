"""`medvit data`: every known set in one table that fits a terminal."""

import pytest

from medvitlib.cli import main
from medvitlib.data.sources.known import KNOWN
from medvitlib.data.sources.listing import Row, known_rows, render


def test_every_known_set_is_listed_with_what_is_known(own_roots, own_cache, write_classes, capsys):
    write_classes(own_roots / "any name", {"NORMAL": 1, "PNEUMONIA": 1})
    assert main(["data"]) == 0
    shown = capsys.readouterr().out
    for name, facts in KNOWN.items():
        assert name in shown and facts.licence in shown and facts.citation in shown and facts.kaggle in shown
    assert max(map(len, shown.splitlines())) <= 120 and len(shown.splitlines()) < 50
    (line,) = (line for line in shown.splitlines() if line.startswith("chest_xray "))
    assert "5,856" in line and line.endswith("any name")
    assert [row.name for row in known_rows() if row.place] == ["chest_xray"]


def test_two_candidates_are_told_not_chosen(own_roots, own_cache, write_classes):
    for place in "ab":
        write_classes(own_roots / place, {"NORMAL": 1, "PNEUMONIA": 1})
    assert "2 folders" in known_rows()[0].place


@pytest.mark.parametrize("place", ["/short", "/long" * 60])
def test_neighbours_from_one_source_share_a_line_and_paths_are_shortened(place):
    rows = [Row(name, place, 780, "CC BY 4.0", "Yang et al. 2023", "the medmnist package") for name in ("x", "y")]
    lines = render([*rows, Row("z", "", 0, "own", "not known", "")]).splitlines()
    assert [line[:1] for line in lines] == ["n", "x", "y", " ", "z", " "]
    assert lines[1].endswith(place[-30:]) and max(map(len, lines)) <= 120
    assert "?" in lines[4] and lines[5].strip() == "from no known source; citation not known"
