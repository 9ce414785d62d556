"""White cells among red ones, stained after Wright and Giemsa: what `phantom/wbc4` draws.

The class is in the white cell alone: the lobes of its nucleus, its granules, the colour of its cytoplasm and, with
much overlap, its size. Red cells, platelets, smudged nuclei and stain lie about in all classes alike.
"""

from dataclasses import astuple, dataclass
from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np

from medvitlib.data.phantoms.canvas import Shot
from medvitlib.data.phantoms.cells import (
    GREY,
    NUCLEUS,
    ORANGE,
    RED,
    Slide,
    Smear,
    Window,
    clumps,
    draw_smear,
    place,
    ramp,
    red_cells,
)

VERSION = 1
"""Part of every cache key: raise it when the pictures change."""


@dataclass(frozen=True)
class Kind:
    """What makes a class; lengths in cell radii unless said otherwise.

    Args:
        radius: of the cell, as a share of the picture.
        lobes: fewest of the nucleus; `more` is how many more there may be.
        lobe: radius of a lobe.
        arc: distance of the lobes from the cell's centre; they lie along an arc of `span` radians.
        strand: radius of what joins them.
        dense: amount of ink in the nucleus, as much in all in the end: what is large is pale.
        clumped: how coarse the chromatin is.
        blue, lilac, orange: amount of ink in the cytoplasm, in fine and in large granules.
    """

    radius: float
    lobes: float
    more: float
    lobe: float
    arc: float
    span: float
    strand: float
    dense: float
    clumped: float
    blue: float
    lilac: float
    orange: float


KINDS = (
    Kind(0.191, 2, 0, 0.38, 0.49, 2.9, 0.06, 1.30, 0.12, 0.10, 0.02, 0.7),  # eosinophil
    Kind(0.165, 1, 0, 0.87, 0.04, 0.0, 0.00, 0.92, 0.24, 1.40, 0.00, 0.0),  # lymphocyte
    Kind(0.220, 5, 0, 0.21, 0.50, 4.4, 0.18, 0.78, 0.06, 1.20, 0.02, 0.0),  # monocyte
    Kind(0.188, 3, 2, 0.28, 0.57, 4.8, 0.05, 1.40, 0.12, 0.08, 0.34, 0.0),  # neutrophil
)
_COLOURS = ((0.06, 0.36, 0.38), (0.80, 1.20, 0.20), (0.24, 0.17, 0.05), (0.07, 0.58, 0.50))


def draw(shot: Shot, evidence: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """One field: image uint8 (H, W, 3) and evidence bool (H, W), the white cell; empty if it is left out."""
    rng, smear = np.random.default_rng(shot.image), _smear(shot.patient)
    slide = Slide(shot.size, rng.uniform(0.004, 0.010), rng)
    _clutter(slide, smear, rng)
    mask = np.zeros(shot.size, bool)
    if evidence:  # from a generator of its own, so that all else is drawn alike
        kind = _blurred(KINDS[shot.label], shot.difficulty)
        window, matte = _white_cell(slide, smear, kind, np.random.default_rng((*shot.image, 1)))
        mask[window] = matte > 0
    return slide.photograph(smear, rng), mask


@lru_cache(maxsize=64)
def _smear(patient: tuple[int, ...]) -> Smear:
    return draw_smear(np.random.default_rng(patient), _COLOURS)


@lru_cache(maxsize=64)
def _blurred(kind: Kind, difficulty: float) -> Kind:
    """The kind, moved towards the mean of all kinds."""
    mean, away = np.mean([astuple(k) for k in KINDS], axis=0), 0.95 * difficulty**2
    return Kind(*(own + away * (usual - own) for own, usual in zip(astuple(kind), mean, strict=True)))


def _white_cell(slide: Slide, smear: Smear, kind: Kind, rng: np.random.Generator) -> tuple[Window, np.ndarray]:
    """Draws it; returns its window and its matte."""
    centre, radius = place(rng), kind.radius * smear.scale * np.exp(rng.normal(0, 0.08))
    stretch, angle = np.exp(rng.normal(0, 0.05)), rng.uniform(0, np.pi)
    window = slide.window(centre, slide.reach(radius * max(stretch, 1 / stretch)))
    matte = slide.inside(slide.distance(window, centre, (radius * stretch, radius / stretch), angle), radius)
    nucleus = _nucleus(slide, window, centre, radius, kind, rng)
    around = 1 - nucleus
    large, fine = (
        np.minimum(slide.dots(window, *_granules(centre, radius, 110, size, rng)), 1.1) for size in (0.06, 0.035)
    )
    grain = cv2.resize(rng.standard_normal((16, 16), dtype=np.float32), matte.shape[::-1])
    chromatin = kind.dense * rng.uniform(0.85, 1.15) * (1 + kind.clumped * grain)
    inks = {
        NUCLEUS: nucleus * chromatin + around * (0.04 + kind.lilac * (0.4 + fine)),
        GREY: kind.blue * (0.6 * around + 0.25) * (1 + 0.12 * grain),
        RED: 0.2 * max(0, 1.5 - kind.blue) * around,  # what is not blue is pink
        ORANGE: kind.orange * around * (0.25 + large),
    }
    slide.put(window, matte, inks, opacity=0.95)
    return window, matte


def _nucleus(
    slide: Slide, window: Window, centre: np.ndarray, radius: float, kind: Kind, rng: np.random.Generator
) -> np.ndarray:
    """0 to 1: lobes along an arc, joined by strands; thick strands make a kidney or a horseshoe of them."""
    lobes = round(kind.lobes) + int(rng.integers(round(kind.more) + 1))
    angles = rng.uniform(0, 2 * np.pi) + kind.span * (np.linspace(-0.5, 0.5, lobes) if lobes > 1 else np.zeros(1))
    away, along = np.column_stack([np.cos(angles), np.sin(angles)]), np.column_stack([-np.sin(angles), np.cos(angles)])
    nodes = kind.arc * np.exp(rng.normal(0, 0.12, (lobes, 1))) * away
    ends = 0.25 * kind.lobe * along  # a lobe is two discs: longer along the arc
    radii = 0.83 * kind.lobe * (kind.lobes / lobes) ** 0.6 * np.exp(rng.normal(0, 0.07, lobes))
    strands = [a + np.linspace(0, 1, 9)[:, None] * (b - a) for a, b in pairwise(nodes)]
    points = np.concatenate([nodes + ends, nodes - ends, *strands])
    widths = np.concatenate([radii, radii, np.full(9 * len(strands), kind.strand)])
    strength = np.repeat([0.68, 0.5], [2 * lobes, 9 * len(strands)])
    field = slide.dots(window, centre + radius * points, radius * widths, strength)
    return ramp((field - 0.5) * np.float32(min(0.35 * radius / slide.focus, 6)) + 0.5)


def _granules(centre: np.ndarray, radius: float, count: int, size: float, rng: np.random.Generator) -> tuple:
    """Points all over the cell and their radii."""
    angle, out = rng.uniform(0, 2 * np.pi, count), radius * 0.95 * np.sqrt(rng.uniform(0, 1, count))
    points = centre + np.column_stack([out * np.cos(angle), out * np.sin(angle)])
    return points, radius * size * np.exp(rng.normal(0, 0.2, count))


def _clutter(slide: Slide, smear: Smear, rng: np.random.Generator) -> None:
    """Plasma, red cells, platelets, smudged nuclei and stain, drawn without regard to the class."""
    slide.plasma = {GREY: rng.uniform(0, 0.6) * (1 + 0.3 * slide.canvas.cloud(rng, 4)), RED: rng.uniform(0, 0.15)}
    radius = 0.118 * smear.scale
    red_cells(slide, _spread(radius, rng.uniform(0.05, 0.95), rng), radius, rng)
    platelets, smudges, stain = rng.integers(0, 8), rng.integers(0, 5), rng.integers(0, 6)
    clumps(slide, rng, platelets, 0.012, 0.016, {NUCLEUS: rng.uniform(0.2, 1.0), GREY: 0.4})
    clumps(slide, rng, smudges, 0.04, rng.uniform(0.03, 0.055), {NUCLEUS: rng.uniform(0.1, 1.2)})
    clumps(slide, rng, stain, 0.02, 0.007, {NUCLEUS: rng.uniform(0.3, 1.2)})


def _spread(radius: float, cover: float, rng: np.random.Generator) -> np.ndarray:
    """Centres of cells side by side, (n, 2): a shaken honeycomb of which a share is left out."""
    steps = 2.05 * radius * np.arange(-6, 7)
    grid = np.stack(np.meshgrid(steps, 0.87 * steps), axis=-1)
    grid[1::2, :, 0] += 1.025 * radius
    points = grid[rng.random(grid.shape[:2]) < cover]
    points += rng.normal(0, 0.3 * radius, points.shape)
    turn = rng.uniform(0, np.pi)
    points = 0.5 + points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return points[(np.abs(points - 0.5) < 0.5 + radius).all(axis=1)]
