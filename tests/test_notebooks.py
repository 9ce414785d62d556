"""The committed notebooks as files: run top to bottom in one go, small, and free of what changes from run to run."""

import ast
import json
import re
from pathlib import Path

import pytest

from medvitlib.notebooks import discover, read_parameters

NOTEBOOKS = discover(Path(__file__).parents[1] / "notebooks")
pytestmark = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def cells(notebook, kind="code"):
    return [c for c in json.loads(notebook.read_text("utf-8"))["cells"] if c["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def test_it_was_run_top_to_bottom_in_one_go(notebook):
    counts = [cell["execution_count"] for cell in cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_its_outputs_hold_no_error_no_warning_and_no_address(notebook):
    for cell in cells(notebook):
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr", source(cell)
            text = "".join(output.get("text", "")) + "".join(output.get("data", {}).get("text/plain", ""))
            assert not re.search(r" at 0x|/(home|root|Users|kaggle)/", text), source(cell)


def test_no_cell_is_long_or_ends_in_a_semicolon(notebook):
    for cell in cells(notebook):
        lines = [line for line in source(cell).splitlines() if line.strip()]
        assert len(lines) <= 15, source(cell)
        assert not source(cell).rstrip().endswith(";"), "nbval always fails such a cell"  # and hides its output


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


def test_every_code_cell_is_introduced_or_continues_one_that_is(notebook):
    everything = json.loads(notebook.read_text("utf-8"))["cells"]
    assert everything[0]["cell_type"] == "markdown" and source(everything[0]).startswith("# ")
    alone = 0
    for cell in everything:
        alone = alone + 1 if cell["cell_type"] == "code" else 0
        assert alone <= 2, source(cell)


def test_it_ends_with_a_summary_and_exercises(notebook):
    last = source(cells(notebook, "markdown")[-1])
    assert "## Summary" in last and "**Exercises**" in last


def test_it_is_small_and_names_no_version(notebook):
    assert notebook.stat().st_size < 1_000_000
    metadata = json.loads(notebook.read_text("utf-8"))["metadata"]
    assert metadata["kernelspec"]["name"] == "python3"
    assert metadata["language_info"] == {"name": "python"}
