"""Cuts a small picture of each notebook out of its committed outputs, which are of rendered images.

python images/thumbnails.py
"""

import base64
import io
import json
from pathlib import Path

from PIL import Image

SIZE = (240, 150)  # pixels
# number of a notebook: which of its pictures, and what is cut out of it (left, top, right, bottom; shares of its size)
CHOSEN = {
    "01": (3, (0.03, 0.02, 1.0, 0.52)),
    "02": (7, (0.23, 0.035, 0.61, 0.41)),
    "03": (1, (0.0, 0.0, 1.0, 1.0)),
    "04": (3, (0.0, 0.0, 1.0, 1.0)),
    "05": (3, (0.0, 0.0, 0.325, 1.0)),
    "06": (5, (0.1, 0.0, 1.0, 0.25)),
    "08": (2, (0.0, 0.1, 0.52, 1.0)),
    "09": (0, (0.0, 0.0, 0.79, 1.0)),
}


def pictures(notebook: Path) -> list[bytes]:
    """The PNGs and JPEGs among a notebook's outputs, in order."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    data = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    return [base64.b64decode(one[kind]) for one in data for kind in ("image/png", "image/jpeg") if kind in one]


def thumbnail(notebook: Path) -> Image.Image:
    """The chosen picture, or the first one whole, on white.

    Raises:
        IndexError: the notebook has no such picture.
    """
    index, (left, top, right, bottom) = CHOSEN.get(notebook.name[:2], (0, (0, 0, 1, 1)))
    whole = Image.open(io.BytesIO(pictures(notebook)[index])).convert("RGB")
    width, height = whole.size
    part = whole.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))
    part.thumbnail(SIZE, Image.Resampling.LANCZOS)
    page = Image.new("RGB", SIZE, "white")
    page.paste(part, ((SIZE[0] - part.width) // 2, (SIZE[1] - part.height) // 2))
    return page


if __name__ == "__main__":
    here = Path(__file__).parent
    for path in sorted((here.parent / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        thumbnail(path).save(here / f"{path.name[:2]}.jpg", quality=88)
