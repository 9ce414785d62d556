"""A notebook as a program: its number, its parameters, one execution of it, and what came of that.

Reading notebooks needs the standard library alone, so that the runner starts at once; papermill is imported
only by the process that executes one (`python -m medvitlib.notebooks NOTEBOOK OUTPUT PARAMETERS-AS-JSON`, or
`--freeze NOTEBOOK`).
"""

import ast
import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from medvitlib.errors import MedvitError

NAME = re.compile(r"(\d\d)_\w+\.ipynb")
TYPES = {kind.__name__: kind for kind in (str, int, float, bool, list, dict)}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: `name: annotation = default  # help`."""

    name: str
    annotation: str
    default: str
    help: str


def discover(folder: Path, only: str | None = None) -> list[Path]:
    """Notebooks named `NN_name.ipynb`, in order.

    Args:
        only: numbers separated by commas, `"01,04"` (or `"1,4"`); None for all.

    Raises:
        MedvitError: a number that no notebook has, or no notebook at all.
    """
    numbered = {m[1]: path for path in sorted(folder.glob("*.ipynb")) if (m := NAME.fullmatch(path.name))}
    if not numbered:
        raise MedvitError(f"There is no notebook named like 01_name.ipynb in {folder}.")
    if only is None:
        return list(numbered.values())
    wanted = {number.strip().zfill(2) for number in only.split(",")}
    if unknown := wanted - numbered.keys():
        there = ", ".join(path.stem for path in numbered.values())
        raise MedvitError(f"--only {only}: no notebook has number {', '.join(sorted(unknown))}. There are: {there}.")
    return [path for number, path in numbered.items() if number in wanted]


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """What the cell tagged `parameters` declares, by name; empty where there is no such cell.

    Raises:
        MedvitError: the file is no notebook, or the cell is not valid Python.
    """
    try:
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        sources = ["".join(c["source"]) for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
        source = "\n".join(sources)
        statements = ast.parse(source).body
    except (ValueError, KeyError, TypeError, SyntaxError) as error:
        raise MedvitError(f"{notebook.name}: the parameters cell cannot be read: {error}") from None
    lines = source.encode().splitlines()
    found = {}
    for node in statements:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            rest = lines[node.end_lineno - 1][node.end_col_offset :].decode()
            value, annotation = ast.unparse(node.value), ast.unparse(node.annotation)
            found[node.target.id] = Parameter(node.target.id, annotation, value, rest.strip().lstrip("# "))
    return found


def convert(text: str, annotation: str) -> object:
    """The value that `text`, as typed on a command line, has as a parameter annotated like this.

    Raises:
        ValueError: it has none.
    """
    if annotation in ("str", "int", "float"):
        return TYPES[annotation](text)
    try:
        value = ast.literal_eval(text.capitalize() if annotation == "bool" else text)
    except SyntaxError as error:
        raise ValueError(str(error)) from None
    if not _fits(value, ast.parse(annotation, mode="eval").body):
        raise ValueError(f"{text!r} is no {annotation}")
    return value


def _fits(value: object, kind: ast.expr) -> bool:
    """Whether a literal has the annotated type: `list[int]`, `dict[str, float]`, `float` (which takes an int too)."""
    if isinstance(kind, ast.Name):
        return type(value) is TYPES.get(kind.id) or (kind.id == "float" and type(value) is int)
    if not isinstance(kind, ast.Subscript) or not _fits(value, kind.value):
        return False
    if isinstance(value, dict):
        key, item = kind.slice.elts
        return all(_fits(k, key) and _fits(v, item) for k, v in value.items())
    return all(_fits(item, kind.slice) for item in value)


PATHS = ("data", "groups", "metadata", "images", "model", "out", "root", "sets", "weights")
"""Parameters that may be a path; one that is relative means relative to the caller's folder, not to the notebook's."""


def choose_parameters(
    notebooks: list[Path], profile: str, given: list[tuple[str, str]], folder: Path = Path()
) -> list[dict]:
    """For each notebook the parameters it declares, out of the profile and the `-p` options, converted to their types.

    Args:
        folder: that relative paths refer to.

    Raises:
        MedvitError: no notebook declares a name, or its value has another type.
    """
    declared = [read_parameters(path) for path in notebooks]
    known = {name: parameter for found in declared for name, parameter in found.items() if name != "profile"}
    chosen = [{"profile": profile} if "profile" in found else {} for found in declared]
    for name, text in given:
        if name == "profile":
            raise MedvitError(f"-p profile {text}: the profile is chosen with --profile quick, real or full.")
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            lines = [f"  {p.name}: {p.annotation} = {p.default}  {p.help}".rstrip() for p in known.values()]
            listed = "\n".join(["They declare:", *lines] if lines else ["They declare none."])
            raise MedvitError(f"-p {name}: none of the selected notebooks declares it.{hint}\n{listed}")
        for found, parameters in zip(declared, chosen, strict=True):
            if name in found:
                try:
                    parameters[name] = convert(text, found[name].annotation)
                except (ValueError, TypeError):
                    kind, default = found[name].annotation, found[name].default
                    raise MedvitError(f"-p {name} {text}: expected {kind}, such as {default}.") from None
                if name in PATHS and text and (name == "out" or (folder / text).exists()):
                    parameters[name] = str((folder / text).absolute())
    return chosen


def failure(output: Path, returncode: int, log: Path) -> str:
    """Why an execution counts as failed, or an empty string.

    papermill's own metadata call a notebook complete whose kernel died or whose cell called `sys.exit`. So the
    executing process must have ended with 0, every code cell must have run, and none may hold an error.
    """
    cells = code_cells(output)
    for number, cell in enumerate(cells, start=1):
        for item in cell["outputs"]:
            if item["output_type"] == "error":
                return f"cell {number}: {item['ename']}: {item['evalue']}".rstrip(": ")
    if returncode != 0 or not cells or any(cell["execution_count"] is None for cell in cells):
        lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
        why = next((line.strip() for line in reversed(lines) if line.strip()), f"process ended with {returncode}")
        return f"stopped in cell {started(cells)} of {len(cells)}: {why}"
    return ""


def started(cells: list[dict]) -> int:
    """How many of an executed notebook's cells papermill has begun with."""
    return sum(cell["metadata"].get("papermill", {}).get("start_time") is not None for cell in cells)


def code_cells(notebook: Path) -> list[dict]:
    """The code cells that are not blank; none while the file is absent or half written."""
    try:
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
    except (OSError, ValueError):
        return []
    return [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]


def kernel_options() -> dict:
    """Options of an nbclient client that make this interpreter the kernel, whatever kernelspecs the user has."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisInterpreter(AsyncKernelManager):
        kernel_spec = KernelSpec(**get_kernel_dict())  # its command starts with sys.executable

    return {"kernel_manager_class": ThisInterpreter, "kernel_name": "python3", "shutdown_kernel": "immediate"}


def execute(notebook: Path, output: Path, parameters: dict) -> None:
    """Execute through papermill in the notebook's folder, saving after every cell, and render what there is as HTML.

    Raises:
        papermill.PapermillExecutionError: a cell raised.
        nbclient.exceptions.DeadKernelError: the kernel died.
    """
    import papermill

    options = {"progress_bar": False, "cwd": notebook.parent, "language": "python", **kernel_options()}
    try:
        papermill.execute_notebook(notebook, output, parameters, **options)
    finally:
        from nbconvert import HTMLExporter

        if output.is_file():
            html, _ = HTMLExporter().from_filename(str(output))
            output.with_suffix(".html").write_text(html, encoding="utf-8")


def measure(notebook: Path) -> None:
    """Execute a notebook in every arithmetic of this machine, and write the table that its figures are compared with.

    Raises:
        MedvitError: an execution failed.
    """
    from medvitlib.tools import arithmetics
    from medvitlib.tools.figures import RECORD, expected_path, tolerances, write_table

    recorded = {}
    for name in arithmetics.names():
        with tempfile.TemporaryDirectory(prefix="medvitlib-") as scratch:
            values, output = Path(scratch) / "figures.json", Path(scratch) / notebook.name
            execution = [sys.executable, "-m", "medvitlib.notebooks", str(notebook), str(output), "{}"]
            command = [sys.executable, "-m", "medvitlib.tools.arithmetics", name, *execution]
            process = subprocess.run(command, env={**os.environ, RECORD: str(values)}, capture_output=True, text=True)
            if process.returncode or not values.is_file():
                raise MedvitError(
                    f"{notebook.name} in arithmetic {name}: {failure(output, 1, Path(scratch) / 'no log')}"
                )
            recorded[name] = json.loads(values.read_text("utf-8"))
    defaults = {name: ast.literal_eval(found.default) for name, found in read_parameters(notebook).items()}
    write_table(expected_path(notebook.name[:2]), tolerances(recorded, defaults))


def freeze(notebook: Path) -> None:
    """Execute a notebook in place with its defaults, so that executing it again changes no byte.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised; the file stays as it was.
    """
    import nbformat
    from nbclient import NotebookClient

    document = nbformat.read(notebook, as_version=4)
    options = {"record_timing": False, "store_widget_state": False, "coalesce_streams": True, **kernel_options()}
    NotebookClient(document, resources={"metadata": {"path": str(notebook.parent)}}, **options).execute()
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    document.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}  # no versions, which would change
    for cell in document.cells:
        cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
    nbformat.write(document, notebook)


if __name__ == "__main__":
    import signal

    # ends through `finally`, which takes the kernel along and keeps the partial output
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if sys.argv[1] == "--freeze":
        freeze(Path(sys.argv[2]))
    else:
        execute(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
