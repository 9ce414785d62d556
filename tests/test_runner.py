"""The notebook runner, on throw-away notebooks in a throw-away project."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from medvitlib.errors import MedvitError
from medvitlib.notebooks import choose_parameters, convert, discover, read_parameters

PARAMETERS = """profile: str = "quick"  # how much
rate: float = 0.1  # learning rate = step size
sizes: list[int] = [1, 2]
flag: bool = True"""
LAST = "print('the last cell ran')"


def write_notebook(path, *sources, parameters=PARAMETERS):
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def outputs(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    return "".join("".join(o.get("text", "")) for c in cells if c["cell_type"] == "code" for o in c["outputs"])


def start(project, *options):
    command = [sys.executable, "-m", "medvitlib.runner", *options]
    return subprocess.Popen(
        command,
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # tests that were started in the background inherit an ignored SIGINT, which a user's terminal never gives
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(project, *options):
    """Exit status and what was printed."""
    process = start(project, *options)
    printed, _ = process.communicate(timeout=120)
    return process.returncode, printed


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "pyproject.toml").touch()
    (folder / "notebooks").mkdir()
    write_notebook(
        folder / "notebooks/01_passes.ipynb",
        "import os, sys\nprint(sys.executable, profile, rate, sizes, flag)",
        "print(os.getcwd(), os.environ.get('OMP_NUM_THREADS'))",
    )
    write_notebook(folder / "notebooks/02_raises.ipynb", "print('before')", "raise ValueError('boom')", LAST)
    write_notebook(folder / "notebooks/03_dies.ipynb", "print('before')", "import os\nos._exit(0)", LAST)
    write_notebook(
        folder / "notebooks/04_exits.ipynb", "import sys\nsys.exit()", LAST, parameters="epochs: int = 3  # rounds"
    )
    write_notebook(folder / "notebooks/05_sleeps.ipynb", "print('before')", "import time\ntime.sleep(60)")
    (folder / "notebooks/draft.ipynb").write_text("not even JSON")
    return folder


@pytest.fixture(scope="module")
def finished(project):
    status, printed = run(
        project, "--only", "1,02,03,04", "--jobs", "2", "--out", "out", "-p", "rate", "1e-3", "-p", "epochs", "7"
    )
    return status, printed, project / "out"


def test_one_failure_stops_no_other_notebook_and_fails_the_run(finished):
    status, printed, _ = finished
    table = printed.split("\nnotebook ")[1].splitlines()[1:5]
    assert [line.split()[0::2][:2] for line in table] == [
        ["01_passes", "ok"], ["02_raises", "FAILED"], ["03_dies", "FAILED"], ["04_exits", "FAILED"]
    ]  # fmt: skip
    assert status == 1


def test_a_passing_notebook_gets_its_own_parameters_in_this_interpreter(finished, project):
    _, _, out = finished
    assert f"{sys.executable} quick 0.001 [1, 2] True" in outputs(out / "01_passes.ipynb")
    assert str(project / "notebooks") in outputs(out / "01_passes.ipynb")


def test_notebooks_at_once_share_the_cores(finished):
    threads = outputs(finished[2] / "01_passes.ipynb").split()[-1]
    assert int(threads) == max(1, len(os.sched_getaffinity(0)) // 2)


@pytest.mark.parametrize(
    "stem, reason",
    [
        ("02_raises", "cell 4: ValueError: boom"),  # the injected parameters are cell 2
        ("03_dies", "DeadKernelError"),
        ("04_exits", "cell 3: SystemExit"),
    ],
)
def test_a_failure_names_its_reason_and_keeps_the_partial_output(finished, stem, reason):
    _, printed, out = finished
    assert reason in printed
    partial = out / f"{stem}.unfinished.ipynb"
    assert str(partial) in printed and not (out / f"{stem}.ipynb").exists()
    assert ("before" in outputs(partial)) == (stem != "04_exits")
    assert LAST[7:-2] not in outputs(partial)
    assert "<html" in partial.with_suffix(".html").read_text()
    assert (out / f"{stem}.log").is_file()


def test_a_success_leaves_the_notebook_and_its_html_alone(finished):
    assert sorted(p.name for p in finished[2].glob("01*")) == ["01_passes.html", "01_passes.ipynb"]


def test_a_failure_leaves_the_output_of_an_earlier_run(project):
    notebook, out = project / "notebooks/06_fails_later.ipynb", project / "later"
    write_notebook(notebook, LAST)
    try:
        assert run(project, "--only", "06", "--out", "later")[0] == 0
        good = [(out / f"06_fails_later{ending}").read_bytes() for ending in (".ipynb", ".html")]
        write_notebook(notebook, "raise ValueError('now')")
        status, printed = run(project, "--only", "06", "--out", "later")
        assert status == 1 and "06_fails_later.unfinished.ipynb" in printed
        assert good == [(out / f"06_fails_later{ending}").read_bytes() for ending in (".ipynb", ".html")]
        write_notebook(notebook, LAST)
        assert run(project, "--only", "06", "--out", "later")[0] == 0
        assert sorted(path.name for path in out.iterdir()) == ["06_fails_later.html", "06_fails_later.ipynb"]
    finally:
        notebook.unlink()


def test_paths_are_relative_to_the_callers_folder(tmp_path):
    write_notebook(
        tmp_path / "01_x.ipynb", parameters='data: str = ""  # folder\nout: str = ""  # page\nname: str = ""  # run'
    )
    (tmp_path / "mine").mkdir()
    given = [("data", "mine"), ("out", "page.html"), ("name", "mine")]
    (found,) = choose_parameters([tmp_path / "01_x.ipynb"], "quick", given, tmp_path)
    assert found == {"data": str(tmp_path / "mine"), "out": str(tmp_path / "page.html"), "name": "mine"}
    (found,) = choose_parameters([tmp_path / "01_x.ipynb"], "quick", [("data", "chest_xray")], tmp_path)
    assert found["data"] == "chest_xray"  # a set's name


def test_an_interrupted_run_ends_its_children_and_still_prints_the_table(project):
    process = start(project, "--only", "05", "--out", "interrupted")
    output = project / "interrupted/05_sleeps.unfinished.ipynb"
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline and not (output.is_file() and "before\\n" in output.read_text()):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in printed.split("\nnotebook ")[1]
    assert "before" in outputs(output)


def test_a_frozen_notebook_does_not_change_when_it_is_frozen_again(project):
    notebook = project / "notebooks/01_passes.ipynb"
    before = notebook.read_bytes()
    try:
        assert run(project, "--freeze", "--only", "01")[0] == 0
        first = notebook.read_bytes()
        assert b"the last" not in first and sys.executable.encode() in first
        assert run(project, "--freeze", "--only", "01")[0] == 0
        assert notebook.read_bytes() == first
        assert b"version" not in first
    finally:
        notebook.write_bytes(before)


@pytest.mark.parametrize(
    "options, expected",
    [
        (
            ["-p", "rat", "1"],
            ["-p rat", "Did you mean rate?", "rate: float = 0.1  learning rate = step size", "epochs"],
        ),
        (["-p", "rate", "fast"], ["-p rate fast", "expected float", "0.1"]),
        (["-p", "sizes", "[1, 'a']"], ["expected list[int]"]),
        (["-p", "sizes", "{[1]: 2}"], ["expected list[int]"]),
        (["-p", "profile", "real"], ["--profile"]),
        (["-p", "epochs", "3", "--only", "01"], ["none of the selected notebooks declares it"]),
        (["--only", "01,17"], ["17", "01_passes, 02_raises"]),
        (["--jobs", "0"], ["--jobs 0"]),
        (["--out", "pyproject.toml/x"], ["--out", "cannot be written to"]),
        (["--profile", "fast"], ["'quick'"]),
    ],
)
def test_a_wrong_option_is_refused_before_anything_starts(project, options, expected):
    status, printed = run(project, *options)
    assert status == 2
    assert all(text in printed for text in expected), printed
    assert "started" not in printed


def test_the_options_can_be_checked_alone(project):
    assert run(project, "--check", "--only", "01") == (0, "")
    assert run(project, "--check", "--only", "17")[0] == 2


def test_outputs_go_below_the_callers_folder(project, tmp_path):
    run(project, "--only", "04", "--relative-to", str(tmp_path), "--out", "mine")
    assert (tmp_path / "mine/04_exits.unfinished.ipynb").is_file()


def test_parameters_are_read_with_type_default_and_help(project):
    found = read_parameters(project / "notebooks/01_passes.ipynb")
    assert list(found) == ["profile", "rate", "sizes", "flag"]
    assert (found["rate"].annotation, found["rate"].default) == ("float", "0.1")
    assert found["rate"].help == "learning rate = step size"


def test_each_notebook_gets_only_what_it_declares(project):
    notebooks = discover(project / "notebooks", "01,04")
    assert choose_parameters(notebooks, "real", [("epochs", "5")]) == [{"profile": "real"}, {"epochs": 5}]


def test_a_notebook_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "01_bad.ipynb").write_text("{")
    with pytest.raises(MedvitError, match="01_bad"):
        read_parameters(tmp_path / "01_bad.ipynb")


@pytest.mark.parametrize(
    "text, annotation, value",
    [
        ("1e-3", "float", 0.001),
        ("1e-3", "str", "1e-3"),
        ("True", "bool", True),
        ("false", "bool", False),
        ("[1, 2.5]", "list[float]", [1, 2.5]),
        ("{'a': [1]}", "dict[str, list[int]]", {"a": [1]}),
        ("[]", "list", []),
    ],
)
def test_values_are_converted_by_the_declared_type(text, annotation, value):
    converted = convert(text, annotation)
    assert converted == value and type(converted) is type(value)


@pytest.mark.parametrize(
    ("text", "annotation"),
    [("1.5", "int"), ("yes", "bool"), ("1", "bool"), ("[1", "list"), ("(1,)", "list"), ("{1: 2}", "dict[str, int]")],
)
def test_values_of_another_type_are_refused(text, annotation):
    with pytest.raises(ValueError):
        convert(text, annotation)
