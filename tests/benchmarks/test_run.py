"""benchmarks/run.py: what is run, skipped and failed, where figures go, and the README's table of them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import growth
import run

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HEADER = {"device": "cpu", "processor": "Intel(R) Xeon(R) CPU @ 2.90GHz", "cores": 2}
GOOD = f"""
import json, sys
claim = {{"what": "speed", "figure": float(sys.argv[1]), "unit": "times"}}
with open(sys.argv[3], "w") as file:
    json.dump({{"header": {HEADER}, "command": "x", "claims": [claim], "tables": []}}, file)
"""


def figures(*claims: dict, gpu: str = "") -> dict:
    header = HEADER | ({"device": "cuda", "gpu": gpu} if gpu else {})
    return {"header": header, "command": "python benchmarks/x.py", "claims": list(claims), "tables": []}


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """A folder of scripts in place of the benchmarks, and what they are called with."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    for name, text in {"good": GOOD, "bad": "raise SystemExit('broken')", "mute": ""}.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(run, "HERE", folder)
    table = {name: run.Benchmark("2.0", quick="1.0") for name in ("bad", "mute", "good", "absent")}
    monkeypatch.setattr(run, "BENCHMARKS", table)
    return folder


def test_a_failed_one_does_not_stop_the_others_and_makes_the_status_1(scripts, capsys):
    assert run.main([]) == 1
    said = capsys.readouterr().out
    assert "bad: FAILED with status 1" in said and "mute: FAILED: it wrote no figures" in said
    assert "absent: skipped: there is no absent.py" in said and "good: done" in said
    (path,) = (scripts / "results").glob("*.json")
    held = json.loads(path.read_text())
    assert path.name == "intel-xeon-cpu-2-90ghz-2-cores.json" and list(held["benchmarks"]) == ["good"]
    assert held["benchmarks"]["good"]["claims"][0]["figure"] == 2.0


def test_only_those_that_are_named_are_run_and_skipping_is_no_failure(scripts, capsys):
    assert run.main(["good", "absent"]) == 0
    assert "bad" not in capsys.readouterr().out


def test_quick_figures_are_kept_only_where_a_folder_is_named(scripts, tmp_path):
    assert run.main(["good", "--quick"]) == 0 and not (scripts / "results").exists()
    assert run.main(["good", "--quick", "--results", str(tmp_path / "own")]) == 0
    (held,) = run.read_results(tmp_path / "own").values()
    assert held["good"]["claims"][0]["figure"] == 1.0


def test_an_unknown_name_is_one_sentence_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as stopped:
        run.main(["trainstep"])
    assert stopped.value.code == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("no benchmark is called 'trainstep': the nearest is 'train_step'.")
    )


def test_what_a_machine_lacks_is_the_reason(tmp_path, monkeypatch, own_roots, own_cache):
    script = tmp_path / "script.py"
    assert run.why_not(run.Benchmark(), script) == "there is no script.py"
    script.touch()
    assert run.why_not(run.Benchmark(peers=("no_such_package",)), script) == ""
    monkeypatch.setattr(run.turns, "device", lambda: "cpu")
    assert run.why_not(run.Benchmark(cuda=True), script) == "no CUDA device"
    assert run.why_not(run.Benchmark(data="chest_xray"), script).startswith("no chest_xray in a data root")
    weights = run.Benchmark(weights=True)
    assert run.why_not(weights, script) == "no pretrained weights (medvit weights fetch)"
    (own_cache / "weights").mkdir(parents=True)
    (own_cache / "weights" / "vit_small_patch14_dinov2.safetensors").touch()
    assert run.why_not(weights, script) == ""


def test_figures_replace_those_of_the_same_benchmark_and_leave_the_others(tmp_path):
    claim = {"what": "speed", "figure": 1.0, "unit": "times"}
    run.merge(tmp_path, "loading", figures(claim))
    run.merge(tmp_path, "adapters", figures(claim))
    path = run.merge(tmp_path, "loading", figures(claim | {"figure": 3.0}))
    held = json.loads(path.read_text())["benchmarks"]
    assert list(held) == ["adapters", "loading"] and held["loading"]["claims"][0]["figure"] == 3.0
    before = path.read_bytes()
    run.merge(tmp_path, "loading", figures(claim | {"figure": 3.0}))
    assert path.read_bytes() == before
    assert run.merge(tmp_path, "loading", figures(gpu="NVIDIA H200")).name == "nvidia-h200.json"


def test_the_table_has_a_row_a_claim_and_a_column_a_machine():
    spread = {"median": 1.3456, "min": 0.9, "max": 12.34}
    one = {"what": "speed", "figure": spread, "unit": "times", "images_per_second": 1234.5, "peak_mb": 99}
    results = {
        "A": {"loading": figures(one), "explain": figures({"what": "maps", "figure": 4.0, "unit": "s"})},
        "B": {"explain": figures({"what": "other", "figure": 1.02, "unit": ""}), "loading": figures(one)},
    }
    cell = "1.35 × (0.90 to 12.3); 1,234 img/s; 99 MB"
    assert run.table(results).splitlines() == [
        "| `benchmarks/` | | A | B |",
        "|---|---|---|---|",
        "| explain | maps | 4.00 s |  |",
        "| explain | other |  | 1.02 |",
        f"| loading | speed | {cell} | {cell} |",
    ]
    page = f"above\n{run.BEGIN}\nold\n{run.END}\nbelow\n"
    assert run.with_table(page, results) == f"above\n{run.BEGIN}\n\n{run.table(results)}\n\n{run.END}\nbelow\n"
    with pytest.raises(SystemExit, match="has lost a marker"):
        run.with_table("above\nbelow\n", results)


def test_the_readme_shows_what_the_files_hold():
    page = (ROOT / "README.md").read_text("utf-8")
    assert run.with_table(page, run.read_results(ROOT / "benchmarks" / "results")) == page


def test_every_benchmark_that_stands_here_takes_what_it_is_called_with():
    for name, benchmark in run.BENCHMARKS.items():
        script = ROOT / "benchmarks" / f"{name}.py"
        if script.is_file():
            text = script.read_text("utf-8")
            assert "turns.parser(" in text or '"--json"' in text, name
            for option in re.findall(r"--[\w-]+", f"{benchmark.arguments} {benchmark.quick}"):
                assert f'"{option}"' in text, f"{name} {option}"


def test_the_commands_on_the_pages_are_those_of_scripts():
    commands = []
    for page in PAGES:
        found = re.findall(r"python\s+benchmarks/(\w+)\.py([^`;()#\n]*(?:\n--[^`;()#]*)?)", page.read_text("utf-8"))
        commands += found
    assert len(commands) > 8
    for name, words in commands:
        text = (ROOT / "benchmarks" / f"{name}.py").read_text("utf-8")
        for option in re.findall(r"--[\w-]+", words):
            assert f'"{option}"' in text or option == "--json", f"{name} {option}"


def test_a_real_one_runs_to_its_end(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--quick", "loading", "--results", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (held,) = run.read_results(tmp_path).values()
    (claim,) = held["loading"]["claims"]
    assert claim["figure"]["min"] <= claim["figure"]["median"] <= claim["figure"]["max"]
    assert held["loading"]["command"].startswith("python benchmarks/loading.py --images 64")


def test_a_line_is_told_from_a_square():
    x = np.array([1000.0, 2000.0, 4000.0, 8000.0])
    slope, r2, exponent = growth.fit_line(x, 3 * x + 500)
    assert slope == pytest.approx(3) and r2 == pytest.approx(1) and 0.8 < exponent < 1
    _, r2, exponent = growth.fit_line(x, 1e-6 * x**2)
    assert exponent == pytest.approx(2) and r2 < 0.97
    assert growth.fit_line(x, np.full(4, 7.0)) == (0, 1, 0)


def test_growth_is_drawn_with_a_line_for_each_task(tmp_path):
    given = {"images": [10, 20, 40], "size": [32, 64], "classes": [2, 4]}
    points = {axis: [{"seconds": 0.1 * v, "peak_mb": 500 + v} for v in values] for axis, values in given.items()}
    figure = growth.draw(given, {axis: {"open": some, "audit": some} for axis, some in points.items()})
    figure.savefig(tmp_path / "growth.png")
    assert [ax.get_xlabel() for ax in figure.axes[:3]] == ["number of images", "pixels an image", "number of classes"]
    for ax in figure.axes[:3]:
        slope = [np.polyfit(np.log(line.get_xdata()), np.log(line.get_ydata()), 1)[0] for line in ax.lines]
        assert len(slope) == 5 and slope[0] == pytest.approx(slope[1]) and slope[-1] == pytest.approx(1)
