"""The docstrings of the whole package make pages: one for each module, whose links lead somewhere."""

import importlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "medvitlib").rglob("*.py")
    if path.name != "__main__.py"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> tuple[Path, str]:
    """The pages, without the code, and what was said while they were made."""
    folder = tmp_path_factory.mktemp("site")
    program = "import sys, build_api, pathlib; build_api.build(pathlib.Path(sys.argv[1]), source=False)"
    command = [sys.executable, "-W", "always", "-c", program, folder]
    done = subprocess.run(command, cwd=ROOT / "docs", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


def page_of(module: str) -> str:
    return module.replace(".", "/") + ".html"


def test_every_module_has_a_page_and_none_a_warning(site):
    folder, said = site
    assert len(MODULES) > 80 and not [name for name in MODULES if not (folder / page_of(name)).is_file()]
    assert not [line for line in said.splitlines() if "pdoc" in line]  # other packages may warn of what they like


def test_what_is_imported_on_demand_is_described_too(site):
    text = (site[0] / page_of("medvitlib.data")).read_text("utf-8")
    assert 'id="open_dataset"' in text and "Unusable files are in its" in text


def test_every_link_between_pages_leads_somewhere(site):
    folder, _ = site

    @cache
    def places(page: Path) -> set[str]:
        return set(re.findall(r'\bid="([^"]+)"', page.read_text("utf-8")))

    count, broken = 0, []
    for page in folder.rglob("*.html"):
        for link in re.findall(r'href="([^":$]+)"', page.read_text("utf-8")):
            name, _, place = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            count += 1
            if not target.is_file() or (place and target.suffix == ".html" and place not in places(target)):
                broken.append(f"{page.relative_to(folder)}: {link}")
    assert count > 1000 and not broken


def test_every_name_a_docstring_refers_to_exists():
    count, unknown = 0, []
    for path in (ROOT / "medvitlib").rglob("*.py"):
        for name in re.findall(r"`(medvitlib(?:\.\w+)+)`", path.read_text("utf-8")):
            count += 1
            if not exists(name):
                unknown.append(f"{path.name}: {name}")
    assert count > 20 and not unknown


def exists(name: str) -> bool:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        if ".".join(parts[:cut]) in MODULES:
            found = importlib.import_module(".".join(parts[:cut]))
            for part in parts[cut:]:
                found = getattr(found, part, None)
            return found is not None
    return False
