"""Every set that a name opens: here or not, how large, under which licence, whom to cite, where it would come from."""

import textwrap
from dataclasses import dataclass
from itertools import groupby

from medvitlib.data.sources.finding import known_places
from medvitlib.data.sources.known import KNOWN, UNKNOWN
from medvitlib.paths import data_roots

WIDTH = 120


@dataclass(frozen=True)
class Row:
    """One set: `place` is its path, "" where it is not on this machine; `images` is 0 where nobody has said."""

    name: str
    place: str
    images: int
    licence: str
    citation: str
    origin: str


def known_rows() -> list[Row]:
    """Of the sets in `medvitlib.data.sources.known`."""
    places = known_places(data_roots())
    return [
        Row(name, places[name], facts.images or 0, facts.licence, facts.citation, facts.origin)
        for name, facts in KNOWN.items()
    ]


def rows() -> list[Row]:
    """Of every set that can be opened by name."""
    from medvitlib.data.sources import medmnist  # which needs Row

    return [*known_rows(), *medmnist.known_rows()]


def render(rows: list[Row]) -> str:
    """The table, at most 120 columns wide; what neighbours have in common (source, citation) is said once, below."""
    name_width = max(len(row.name) for row in rows)
    licence_width = max(len(row.licence) for row in rows)
    lines = []
    for (citation, origin), group in groupby(rows, lambda row: (row.citation, row.origin)):
        for row in group:
            count = f"{row.images:,}" if row.images else "?"
            line = f"{row.name:<{name_width}}  {count:>9}  {row.licence:<{licence_width}}  "
            lines.append(line + _shortened(row.place or "not here", WIDTH - len(line)))
        note = f"from {origin or 'no known source'}; {'citation' if citation == UNKNOWN else 'cite'} {citation}"
        lines += textwrap.wrap(note, WIDTH, initial_indent="    ", subsequent_indent="    ")
    head = f"{'name':<{name_width}}  {'images':>9}  {'licence':<{licence_width}}  where"
    return "\n".join([head, *lines])


def _shortened(text: str, width: int) -> str:
    """The end of a long path says more than its start."""
    return text if len(text) <= width else "..." + text[3 - width :]
