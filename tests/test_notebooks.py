"""The committed notebooks as files: run top to bottom in one go, small, and free of what changes from run to run."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from medvitlib.notebooks import discover, kernel_options, read_parameters
from medvitlib.tools.figures import LARGEST, SMALLEST, expected_path

COMPUTED = re.compile(r"(?<![\d.])\d+[.]\d+(?![.]?\d)|\d ?%|\de[-+]\d")
"""A printed number that is no whole one."""
EXACT = re.compile(r"<Figure size .*>|.* \(MB\): .*|.*below 1e-6|Weights: .*")
"""Lines with such numbers that follow from whole ones or are read from a file, the same on every processor."""
NOTEBOOKS = discover(Path(__file__).parents[1] / "notebooks")
each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def cells(notebook, kind="code"):
    return [c for c in json.loads(notebook.read_text("utf-8"))["cells"] if c["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


@each_notebook
def test_it_was_run_top_to_bottom_in_one_go(notebook):
    counts = [cell["execution_count"] for cell in cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


@each_notebook
def test_its_outputs_hold_no_error_no_warning_and_no_address(notebook):
    for cell in cells(notebook):
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr", source(cell)
            text = "".join(output.get("text", "")) + "".join(output.get("data", {}).get("text/plain", ""))
            assert not re.search(r" at 0x|/(home|root|Users|kaggle)/", text), source(cell)


@each_notebook
def test_no_computed_figure_is_compared_as_text(notebook):
    for cell in cells(notebook):
        if "nbval-ignore-output" not in cell["metadata"].get("tags", []):
            shown = [o.get("text", o.get("data", {}).get("text/plain", "")) for o in cell["outputs"]]
            lines = "".join("".join(text) + "\n" for text in shown).splitlines()
            assert not [line for line in lines if COMPUTED.search(line) and not EXACT.fullmatch(line)], source(cell)


@each_notebook
def test_its_last_cell_compares_its_figures_with_a_table_that_was_measured(notebook):
    table = json.loads(expected_path(notebook.name[:2]).read_text("utf-8"))
    figures = {name: row for group in table["figures"].values() for name, row in group.items()}
    last = cells(notebook)[-1]
    assert source(last).endswith("numbers.check()") and "nbval-ignore-output" not in last["metadata"].get("tags", [])
    assert "".join(last["outputs"][-1]["text"]) == f"{len(figures)} figures within tolerance\n"
    assert len(figures) >= 10 and len(table["measured in"]) >= 3
    assert all(SMALLEST <= width <= 1.001 * LARGEST * max(1, abs(value)) for value, width in figures.values())
    defaults = {name: ast.literal_eval(found.default) for name, found in read_parameters(notebook).items()}
    assert table["parameters"] == defaults


@each_notebook
def test_no_cell_is_long_or_ends_in_a_semicolon(notebook):
    for cell in cells(notebook):
        lines = [line for line in source(cell).splitlines() if line.strip()]
        assert len(lines) <= (20 if "parameters" in cell["metadata"].get("tags", []) else 15), source(cell)
        assert not source(cell).rstrip().endswith(";"), "nbval always fails such a cell"  # and hides its output


@each_notebook
def test_one_cell_declares_the_parameters_plainly(notebook):
    tagged = [cell for cell in cells(notebook) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    lines = source(tagged[0]).splitlines()
    for line in lines:
        (statement,) = ast.parse(line).body
        assert isinstance(statement, ast.AnnAssign) and "|" not in ast.unparse(statement.annotation), line
        ast.literal_eval(statement.value)
        assert "  # " in line, f"no help for {line}"
    found = read_parameters(notebook)
    assert len(found) == len(lines) and found["profile"].default == "'quick'"


@each_notebook
def test_every_code_cell_is_introduced_or_continues_one_that_is(notebook):
    everything = json.loads(notebook.read_text("utf-8"))["cells"]
    assert everything[0]["cell_type"] == "markdown" and source(everything[0]).startswith("# ")
    alone = 0
    for cell in everything:
        alone = alone + 1 if cell["cell_type"] == "code" else 0
        assert alone <= 2, source(cell)


@each_notebook
def test_it_ends_with_a_summary_and_exercises(notebook):
    last = source(cells(notebook, "markdown")[-1])
    assert "## Summary" in last and "**Exercises**" in last


@each_notebook
def test_it_is_small_and_names_no_version(notebook):
    assert notebook.stat().st_size < 1_000_000
    metadata = json.loads(notebook.read_text("utf-8"))["metadata"]
    assert metadata["kernelspec"]["name"] == "python3"
    assert metadata["language_info"] == {"name": "python"}


SHIFTED = """
import medvitlib.{module} as module
from dataclasses import is_dataclass, replace
computed = module.{function}
def shifted(*args, **options):
    found = computed(*args, **options)
    if is_dataclass(found):
        return replace(found, value=found.value - 0.02)
    return {{name: value - 0.02 for name, value in found.items()}}
module.{function} = shifted
"""


@pytest.mark.parametrize(
    ("number", "module", "function"),
    [
        ("01", "evaluation.scoring", "score_metrics"),
        ("08", "answers", "proportion"),
        ("09", "evaluation.scoring", "score_metrics"),
    ],
)
def test_a_metric_moved_by_two_hundredths_in_the_library_fails_the_notebook(
    number, module, function, monkeypatch, tmp_path
):
    (notebook,) = (path for path in NOTEBOOKS if path.name.startswith(number))
    document = nbformat.read(notebook, as_version=4)
    document.cells.insert(0, nbformat.v4.new_code_cell(SHIFTED.format(module=module, function=function)))
    monkeypatch.setenv("MEDVIT_RUNS", str(tmp_path))
    client = NotebookClient(document, resources={"metadata": {"path": str(notebook.parent)}}, **kernel_options())
    with pytest.raises(CellExecutionError, match=r"figures differ from"):
        client.execute()
