"""Crops of single red cells stained with new methylene blue: what `phantom/blood3` draws.

Background holds no whole cell; an erythrocyte is plain, with central pallor; a reticulocyte is the same cell with
blue granules and threads, what is left of its ribosomes. Neighbours cut off at the border, platelets, dirt and stain
that fell out are in all three alike.
"""

from functools import lru_cache

import numpy as np

from medvitlib.data.phantoms.canvas import Shot, curve
from medvitlib.data.phantoms.cells import (
    GREY,
    NUCLEUS,
    RED,
    Slide,
    Smear,
    Window,
    clumps,
    draw_smear,
    place,
    red_cell,
    red_cells,
)

VERSION = 1
"""Part of every cache key: raise it when the pictures change."""

_BACKGROUND, _RETICULOCYTE = 0, 2
_RADIUS = 0.2
_COLOURS = ((0.20, 0.26, 0.42), (1.25, 1.05, 0.45), (0.22, 0.20, 0.16), (0, 0, 0))


def draw(shot: Shot, evidence: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """One crop: image uint8 (H, W, 3) and evidence bool (H, W), the cell; empty for background and if left out."""
    rng, smear = np.random.default_rng(shot.image), _smear(shot.patient)
    slide = Slide(shot.size, rng.uniform(0.005, 0.012), rng)
    _clutter(slide, smear, rng)
    mask = np.zeros(shot.size, bool)
    if evidence and shot.label != _BACKGROUND:
        # from generators of its own, so that all else is drawn alike, and so that both kinds have the same outlines
        own, inner = (np.random.default_rng((*shot.image, k)) for k in (1, 2))
        centre, radius = place(own), _RADIUS * smear.scale * np.exp(own.normal(0, 0.07))
        window, matte, dish = red_cell(slide, centre, radius, own)
        plain = 1 - 0.8 * shot.difficulty**2
        inks = {RED: plain * dish}
        if shot.label == _RETICULOCYTE:
            inks[NUCLEUS] = _reticulum(slide, window, centre, radius, shot.difficulty, inner)
        slide.put(window, matte, inks, opacity=0.3 * plain)
        mask[window] = matte > 0
    return slide.photograph(smear, rng), mask


@lru_cache(maxsize=64)
def _smear(patient: tuple[int, ...]) -> Smear:
    return draw_smear(np.random.default_rng(patient), _COLOURS)


def _reticulum(
    slide: Slide, window: Window, centre: np.ndarray, radius: float, difficulty: float, rng: np.random.Generator
) -> np.ndarray:
    """Amount of blue ink in the window: granules, and threads between them, all well inside the cell."""
    nodes = centre + radius * (0.3 * rng.standard_normal(2) + 0.34 * rng.standard_normal((40, 2)))
    nodes = np.vstack([nodes[np.hypot(*(nodes - centre).T) < 0.78 * radius], centre])
    granules = nodes[: round(rng.uniform(14, 26) * (1 - 0.7 * difficulty))]
    count = max(1, round(rng.uniform(3, 6) * (1 - 0.8 * difficulty)))
    starts, ends = nodes[rng.integers(len(nodes), size=(2, count))]
    bends = (starts + ends) / 2 + 0.15 * radius * rng.standard_normal((count, 2))
    threads = [curve(*points) for points in zip(starts, bends, ends, strict=True)]
    points = np.concatenate([granules, *threads])
    radii = radius * np.where(np.arange(len(points)) < len(granules), 0.05, 0.024)
    radii *= np.exp(rng.normal(0, 0.25, len(points)))
    return (1.1 - 0.95 * difficulty) * np.minimum(slide.dots(window, points, radii, 0.9), 1.2)


def _clutter(slide: Slide, smear: Smear, rng: np.random.Generator) -> None:
    """Plasma, cut-off neighbours, lysed cells, platelets and stain, drawn without regard to the class."""
    film = 1 + 0.4 * slide.canvas.cloud(rng, 4)
    slide.plasma = {RED: rng.uniform(0, 0.35) * film, GREY: rng.uniform(0, 0.5) * film}
    count = rng.integers(0, 10)
    along, out = rng.uniform(0, 1, count), rng.uniform(-0.14, 0.05, count)
    out = np.where(rng.random(count) < 0.5, out, 1 - out)
    upright = rng.random(count) < 0.5
    centres = np.column_stack([np.where(upright, out, along), np.where(upright, along, out)])
    red_cells(slide, centres, _RADIUS * smear.scale, rng)
    lysed, platelets, stain = rng.integers(0, 7), rng.integers(0, 7), round(16 * rng.random() ** 2)
    clumps(slide, rng, lysed, 0.05, 0.05, {RED: rng.uniform(0.1, 1.0), GREY: 0.3})
    clumps(slide, rng, platelets, 0.012, 0.016, {NUCLEUS: rng.uniform(0.2, 0.9), GREY: 0.4})
    clumps(slide, rng, stain, 0.03, rng.uniform(0.006, 0.014), {NUCLEUS: rng.uniform(0.3, 1.5)})
