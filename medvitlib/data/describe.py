"""How a stranger's images were understood, in a few lines, and as a page with thumbnails."""

import base64
import html
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from medvitlib.data.cache import Stored
from medvitlib.data.folder import Listing
from medvitlib.errors import printable

if TYPE_CHECKING:
    from medvitlib.data.dataset import Dataset, Quarantined

MOST_LINES = 9
"""Of a set; a split adds one."""
MOST_NAMES = 6
"""Classes, parts or columns that a line lists."""
THUMBNAILS, SIDE = 8, 96
"""Of each class on the page, and pixels a side of each."""


def understood(
    name: str,
    listing: Listing,
    stored: Stored,
    quarantine: "Sequence[Quarantined]",
    columns: dict[str, list[str]],
    groups_known: bool,
    window: tuple[float, float] | None,
) -> tuple[str, ...]:
    """The lines of `Dataset.describe`.

    Args:
        name: of the set.
        listing: its samples, with groups.
        quarantine: all files left out.
        columns: its metadata.
        window: as `open_dataset` got it.
    """
    samples = listing.samples
    n, channels, h, w = len(samples), *stored.shape[1:]
    parts = Counter(sample.split for sample in samples)
    groups = Counter(sample.group for sample in samples)
    few, many = min(groups.values()), max(groups.values())
    sizes = f"{few} to {many} images each" if few < many else f"images each: {few}"
    patients = f"{len(groups)}, {sizes}; from {listing.patients or 'the set itself'}" if groups_known else "not known"
    if not groups_known and len(groups) < n:
        patients += f"; {len(groups)} groups of images are kept together"
    lines = [
        f"{name}: {listing.how or 'arrays'} ({listing.folder})",
        f"images: {n} of {h}x{w} px, {'grey' if channels == 1 else 'RGB'}",
        f"classes: {_counted(Counter(sample.label for sample in samples))}",
        f"patients: {patients}",
        f"official parts: {_counted(parts) if set(parts) != {''} else 'none'}",
        _values(stored, window),
    ]
    if columns:
        told = [f"{column} ({len(set(values))} values)" for column, values in columns.items()]
        lines.append(f"metadata: {', '.join(told[:MOST_NAMES])}{', ...' if len(told) > MOST_NAMES else ''}")
    if pages := stored.facts.get("pages"):
        lines.append(f"pages: {len(pages)} files have several (up to {max(pages.values())}): the first was taken")
    if listing.masks:
        lines.append(f"masks: of {len(listing.masks)} images, kept as evidence for heat maps")
    if quarantine:
        reasons = Counter(bad.reason.split(":")[0] for bad in quarantine)
        lines.append(f"files left out: {len(quarantine)} ({_counted(reasons)})")
    notes = [f"note: {note}" for note in listing.notes]
    room = MOST_LINES - len(lines)
    if len(notes) > room:
        notes = [*notes[: room - 1], f"and {len(notes) - room + 1} more notes (`notes` of the data set)"]
    return tuple(printable(line) for line in lines + notes)


def cut(by: str, parts: "dict[str, Dataset]") -> str:
    """The line that a split adds to those of its set."""
    told = [
        f"{name} {len(part)} images" + (f" of {len(set(part.groups))} patients" if part.groups_known else "")
        for name, part in parts.items()
    ]
    return f"split by {by}: {', '.join(told)}"


def _counted(counts: Counter) -> str:
    told = [f"{number} {what or 'in none'}" for what, number in sorted(counts.items())]
    return ", ".join(told[:MOST_NAMES]) + (f", ... ({len(told)} in all)" if len(told) > MOST_NAMES else "")


def _values(stored: Stored, window: tuple[float, float] | None) -> str:
    """What the stored values are, and how they became 8 bits."""
    if window is not None:
        return f"values: {window[0]:g} to {window[1]:g} are shown from black to white in all images"
    ranges = stored.facts.get("ranges")
    if not ranges:
        return "values: 8 bits"
    low, high = np.array(list(ranges.values())).T
    text = f"values: more than 8 bits in {len(ranges)} images, each stretched from its own lowest to its highest"
    if low.min() == low.max() and high.min() == high.max():
        return f"{text}, {low[0]:g} to {high[0]:g}"
    return (
        f"{text}. These differ ({low.min():g}..{low.max():g} to {high.min():g}..{high.max():g}): if brightness means "
        f"something, pass window=({low.min():g}, {high.max():g}) (--window)"
    )


def page(ds: "Dataset") -> str:
    """The lines of `Dataset.describe` as an HTML page, with the first images of each class, in one file."""
    rows = []
    for label, name in enumerate(ds.classes):
        at = np.flatnonzero(ds.labels == label)
        shown = at[np.linspace(0, len(at) - 1, min(THUMBNAILS, len(at))).astype(int)] if len(at) else []
        pictures = "".join(_picture(ds, i) for i in shown)
        rows.append(f"<h2>{html.escape(name)}: {len(at)} images</h2><p>{pictures}</p>")
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in ds.describe().splitlines())
    left_out = "".join(f"<li>{html.escape(printable(f'{bad.path}: {bad.reason}'))}</li>" for bad in ds.quarantine)
    rows.append(f"<h2>Left out</h2><ul>{left_out}</ul>" if left_out else "")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(ds.name)}</title>"
        "<style>body{font-family:sans-serif;max-width:60rem;margin:2rem auto}img{margin:2px}</style>"
        f"<h1>{html.escape(ds.name)}</h1><ul>{lines}</ul>{''.join(rows)}</html>\n"
    )


def _picture(ds: "Dataset", i: int) -> str:
    image = np.ascontiguousarray(ds.images[int(i)])
    scale = SIDE / max(image.shape[:2])
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    png = cv2.imencode(".png", image if image.ndim == 2 or image.shape[2] == 1 else image[..., ::-1])[1].tobytes()
    said = html.escape(str(ds.ids[i]), quote=True)
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{said}" title="{said}">'
