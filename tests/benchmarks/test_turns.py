"""What the benchmarks share: who takes a turn when, what a ratio is of, what is printed and what is kept."""

import json
import os
import sys
from pathlib import Path

import pytest

import turns

SCRIPTS = os.pathsep.join([str(Path(turns.__file__).parent), *sys.path])


class Clock:
    """Time that passes only while a call says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/benchmarks/some.py", "--rounds", "2", "--json", "x.json"])
    options = turns.parser("").parse_args(["--json", str(tmp_path / "found.json")])
    return turns.Page(options, "numpy", "no-such-package", on="cpu")


def test_everyone_has_one_turn_a_round_in_changing_order_and_the_same_one_in_every_run():
    def orders() -> list[str]:
        calls: list[str] = []
        turns.in_turns({name: lambda n=name: calls.append(n) for name in "abc"}, rounds=20, warm_up=1)
        return ["".join(calls[at : at + 3]) for at in range(0, len(calls), 3)]

    found = orders()
    assert len(found) == 21 and {"".join(sorted(one)) for one in found} == {"abc"}
    assert len(set(found)) >= 5 and {one[0] for one in found} == set("abc")
    assert orders() == found


def test_only_the_rounds_after_the_warm_up_are_timed_each_in_its_place():
    clock, rounds = Clock(), iter([100.0, 100.0, 1.0, 2.0, 3.0])

    def slower_each_round() -> None:
        clock.now += next(rounds)

    assert turns.in_turns({"a": slower_each_round}, rounds=3, warm_up=2, clock=clock) == {"a": [1.0, 2.0, 3.0]}


def test_a_ratio_is_taken_within_a_round():
    found = turns.ratio([2.0, 20.0, 6.0], [1.0, 10.0, 2.0])  # the machine was ten times as slow in the second round
    assert found == turns.Spread(2.0, 2.0, 3.0) and f"{found:.1f}" == "2.0 (2.0 to 3.0)"
    with pytest.raises(ValueError):
        turns.ratio([1.0, 2.0], [1.0])


def test_peak_memory_is_what_a_call_needs_on_top(tmp_path):
    script = tmp_path / "script.py"  # this process may have held more before
    script.write_text("import turns\nprint(turns.peak_memory(lambda: bytearray(b'x') * (256 * 2**20), times=2))")
    assert 250 <= int(turns.own_process(str(script), PYTHONPATH=SCRIPTS)) <= 300


def test_a_process_of_its_own_answers_with_its_last_line_and_has_the_environment_it_is_given(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os, sys\nprint('noise')\nprint(sys.argv[1:], os.environ['GIVEN'])")
    assert turns.own_process(str(script), "--one", 3, GIVEN="here") == "['--one', '3'] here"


def test_a_table_is_markdown_with_empty_cells_for_what_is_not_known(page, capsys):
    capsys.readouterr()
    rows = [("ours", 1234, turns.Spread(1.0, 0.5, 2.0)), ("x", None, None)]
    page.table({"model": "", "MB": ",", "speed": ".2f"}, rows)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "| model | MB | speed |",
        "|---|---:|---:|",
        "| ours | 1,234 | 1.00 (0.50 to 2.00) |",
        "| x |  |  |",
    ]


def test_the_file_holds_machine_versions_command_and_figures(page):
    page.table({"model": "", "img/s": ".1f"}, [("ours", 12.345678)], "One image:")
    page.claim("ours over theirs", turns.Spread(1.23456, 1.0, 2.0), images_per_second=12.345678)
    page.save()
    found = json.loads(page.path.read_text())
    assert found["command"] == "python benchmarks/some.py --rounds 2"
    assert found["header"]["device"] == "cpu" and found["header"]["cores"] >= 1 and found["header"]["processor"]
    assert {"Python", "torch", "numpy"} == set(found["header"]["versions"])
    assert found["tables"] == [{"title": "One image:", "rows": [{"model": "ours", "img/s": 12.35}]}]
    figure = {"median": 1.235, "min": 1.0, "max": 2.0}
    told = {"what": "ours over theirs", "figure": figure, "unit": "times", "images_per_second": 12.35}
    assert found["claims"] == [told]


def test_a_machine_is_its_gpu_or_else_its_processor_with_its_cores():
    header = {"device": "cpu", "gpu": "NVIDIA T4", "processor": "AMD EPYC", "cores": 2}
    assert turns.machine(header) == "AMD EPYC, 2 cores"
    assert turns.machine(header | {"device": "cuda"}) == "NVIDIA T4"


def test_a_process_that_measures_onnx_runtime_is_not_made_larger_by_pytorch(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys, turns, predict\nprint('torch' in sys.modules)")
    assert turns.own_process(str(script), PYTHONPATH=SCRIPTS) == "False"
