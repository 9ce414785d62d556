"""Points the README's badges, and the first cell for Kaggle and Colab, at this repository's public address.

python docs/badges.py https://github.com/OWNER/NAME [BRANCH]
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOK = re.compile(r"\(notebooks/(\d\d_\w+\.ipynb)\)")
PLACES = {
    "Kaggle": "https://kaggle.com/kernels/welcome?src=https://github.com/{repository}/blob/{branch}/notebooks/{name}",
    "Colab": "https://colab.research.google.com/github/{repository}/blob/{branch}/notebooks/{name}",
}


def point_badges(text: str, repository: str, branch: str = "main") -> str:
    """The README with each notebook's badges opening it from a GitHub repository, OWNER/NAME."""
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if found := NOTEBOOK.search(line):
            for place, address in PLACES.items():
                target = address.format(repository=repository, branch=branch, name=found[1])
                line = re.sub(rf"(\[!\[{place}\]\[\w+\]\])\([^)]*\)", lambda m, to=target: f"{m[1]}({to})", line)
            lines[number] = line
    return "".join(lines)


def point_cell(text: str, repository: str) -> str:
    """The page with the first cell installing from that repository."""
    return re.sub(r'^REPOSITORY = ".*?"', f'REPOSITORY = "https://github.com/{repository}"', text, flags=re.MULTILINE)


if __name__ == "__main__":
    given = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", sys.argv[1] if len(sys.argv) > 1 else "")
    if not given or len(sys.argv) > 3:
        sys.exit(__doc__)
    readme, page = ROOT / "README.md", ROOT / "docs" / "kaggle_and_colab.md"
    readme.write_text(point_badges(readme.read_text("utf-8"), given[1], *sys.argv[2:]), encoding="utf-8")
    page.write_text(point_cell(page.read_text("utf-8"), given[1]), encoding="utf-8")
