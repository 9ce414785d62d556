"""README.md and docs/: links lead somewhere, tables say what the code says, quoted messages are the code's own."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

import medvitlib
from medvitlib.data import phantoms
from medvitlib.data.sources import medmnist
from medvitlib.data.sources.known import KNOWN
from medvitlib.models.package_index import META, NAME
from medvitlib.models.sources import SOURCES
from medvitlib.notebooks import discover

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = discover(ROOT / "notebooks")
README = PAGES[0].read_text("utf-8")
FOREIGN = {  # quoted on a page, and said by others: what the code recognises them by
    "operator torchvision::nms does not exist": "torchvision::nms",
    "libGL.so.1: cannot open shared object file": "libGL",
}


def plain(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def table_rows(text: str) -> list[list[str]]:
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    heads = re.findall(r"^#+ (.+)$", plain(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_link_to_a_file_leads_there(page):
    text = plain(page)
    links = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]
    for link in links:
        if "://" not in link:
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target), link


def test_the_readme_leads_to_every_page():
    for page in PAGES[1:]:
        assert f"](docs/{page.name}" in README, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_python_on_a_page_is_python(page):
    for code in re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
        ast.parse(code)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_has_a_row_with_a_small_picture_and_badges(notebook):
    (row,) = [row for row in table_rows(README) if f"(notebooks/{notebook.name})" in row[1]]
    picture = ROOT / "images" / f"{notebook.name[:2]}.jpg"
    assert f'src="images/{picture.name}"' in row[0] and len(row[2]) > 40
    assert "[![Kaggle][kaggle]](" in row[3] and "[![Colab][colab]](" in row[3]
    assert picture.stat().st_size < 40_000 and Image.open(picture).size == (240, 150)


@pytest.fixture(scope="module")
def badges():
    specification = importlib.util.spec_from_file_location("badges", ROOT / "docs" / "badges.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_badges_point_at_the_repository_once_it_has_an_address(badges):
    pointed = badges.point_badges(README, "someone/something", "trunk")
    for notebook in NOTEBOOKS:
        place = f"someone/something/blob/trunk/notebooks/{notebook.name})"
        assert f"(https://colab.research.google.com/github/{place}" in pointed
        assert f"(https://kaggle.com/kernels/welcome?src=https://github.com/{place}" in pointed
    assert badges.point_badges(pointed, "another/place") == badges.point_badges(README, "another/place")
    page = (ROOT / "docs" / "kaggle_and_colab.md").read_text("utf-8")
    assert 'REPOSITORY = "https://github.com/someone/something"' in badges.point_cell(page, "someone/something")


def test_the_licences_are_those_the_code_tells():
    rows = table_rows(README[README.index("## Data and weights") :])
    for name, facts in KNOWN.items():
        assert [f"`{name}`", f"{facts.images:,}" if facts.images else "?", facts.licence, facts.citation] in rows
    sets = medmnist.known_rows()
    usual = [row for row in sets if row.licence == "CC BY 4.0"]
    for row in sets:
        if row not in usual:
            assert [f"`{row.name}`", f"{row.images:,}", row.licence, row.citation] in rows
    others = f"the other {len(usual)} sets of `medmnist/...`"
    assert [others, f"{sum(row.images for row in usual):,}", "CC BY 4.0", usual[0].citation] in rows
    told = {row[0]: row[1] for row in rows}
    for name, source in SOURCES.items():
        assert told[f"`{name}`"] == (META["licence"] if name == NAME else source.licence)
    assert all(f"`{name}`" in README for name in phantoms.FAMILIES)


def said_by_the_code() -> list[str]:
    """Every text in medvitlib/, with … for what is put into it."""

    def text_of(node: ast.expr) -> str:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        if isinstance(node, ast.JoinedStr):
            return "".join(map(text_of, node.values))
        if isinstance(node, ast.BinOp):
            return text_of(node.left) + text_of(node.right)
        return "…"

    kinds = (ast.Constant, ast.JoinedStr, ast.BinOp)
    files = sorted((ROOT / "medvitlib").rglob("*.py"))
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, kinds))
    return [text_of(node) for node in nodes]


def test_quoted_messages_are_the_codes_own():
    quoted = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    section = README[README.index("## When something does not work") : README.index("## Data and weights")]
    quoted += [row[0].strip("`") for row in table_rows(section)[2:]]
    said = said_by_the_code()
    assert len(quoted) > 30
    for message in quoted:
        message = FOREIGN.get(message, message)
        assert any(message in text for text in said), message


def test_the_citation_file_says_what_the_package_says():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert cited["cff-version"] == "1.2.0" and {"message", "title"} <= set(cited)
    assert cited["authors"] == [{"name": "medvitlib contributors"}] and cited["authors"][0]["name"] in project
    assert f'version = "{cited["version"]}"' in project and f'license = "{cited["license"]}"' in project
    assert cited["title"] == medvitlib.__name__
