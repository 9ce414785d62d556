"""The shapes of one patient's chest, for `cxr` to draw: polygons in unit coordinates.

`side` is -1 for the left half of the picture (the patient's right) and 1 for the other.
"""

from dataclasses import dataclass

import numpy as np

from medvitlib.data.phantoms.canvas import Polygon, curve, curves, ellipse, smooth


@dataclass(frozen=True)
class Anatomy:
    """One patient's shapes and how dense they are."""

    body: Polygon
    lungs: tuple[Polygon, Polygon]
    heart: Polygon
    aorta: Polygon
    mediastinum: Polygon
    hila: list[Polygon]
    spine: Polygon
    scapulae: list[Polygon]
    posterior_ribs: np.ndarray  # these five: (curves, points, 2)
    anterior_ribs: np.ndarray
    clavicles: np.ndarray
    cortices: np.ndarray
    vessels: np.ndarray
    consolidations: np.ndarray  # (k, 4): x, y, radius, stretch
    tissue: float
    bone: float


def draw_anatomy(rng: np.random.Generator, difficulty: float) -> Anatomy:
    """The anatomy of one patient; consolidations are drawn for everybody and shown in the ill only."""
    wide, high = rng.normal(1, 0.045), rng.normal(1, 0.04)
    lungs = tuple(_lung(side, wide, high, rng) for side in (-1, 1))
    pitch, slope = rng.normal(0.074, 0.003) * high, rng.normal(0.075, 0.015)
    top = 0.155 + rng.normal(0, 0.008)
    scale = 1.25 - 0.5 * difficulty
    consolidations = []
    for _ in range(rng.integers(1, 4)):
        centre = _inside(lungs[rng.integers(2)], rng.uniform(0.35, 0.82), rng.uniform(0.35, 0.75))
        consolidations.append((*centre, scale * rng.uniform(0.085, 0.13), rng.uniform(0.84, 1.18)))
    posterior_ribs = _posterior_ribs(top, pitch, slope, wide)
    clavicles = np.stack([_clavicle(s, rng) for s in (-1, 1)])
    bones, thick = np.concatenate([posterior_ribs, clavicles]), np.array([0, 0.012])
    return Anatomy(
        body=_body(rng),
        lungs=lungs,
        heart=_heart(rng, wide),
        aorta=ellipse((0.555 + rng.normal(0, 0.006), 0.335), 0.045, 0.055),
        hila=[ellipse((0.5 + s * 0.095, 0.45 + 0.015 * s + rng.normal(0, 0.01)), 0.03, 0.06) for s in (-1, 1)],
        mediastinum=_column(0.5, -0.1, 0.8, 0.062 * wide, 0.045 * wide),
        spine=_column(0.5, -0.1, 1.1, 0.033, 0.042),
        posterior_ribs=posterior_ribs,
        anterior_ribs=_anterior_ribs(top + 0.09, pitch, wide),
        clavicles=clavicles,
        cortices=np.concatenate([bones + thick, bones - thick]),  # bone is densest at its two borders
        scapulae=[_scapula(s, rng) for s in (-1, 1)],
        vessels=np.concatenate([_vessels(-1, rng), _vessels(1, rng)]),
        consolidations=np.array(consolidations),
        tissue=rng.normal(1, 0.05),
        bone=rng.normal(1, 0.12),
    )


def _lung(side: int, wide: float, high: float, rng: np.random.Generator) -> Polygon:
    """Apex under the collar bone, convex flank, domed diaphragm, and a medial border that makes room for the heart."""
    t = np.linspace(0, 1, 24)
    top, flank = 0.13 + rng.normal(0, 0.006), 0.80 + rng.normal(0, 0.012) + (0.012 if side > 0 else 0)
    depth = (flank - top) * high
    outer = 0.115 + 0.285 * wide * np.sin(np.pi / 2 * np.clip(t * 1.3, 0, 1)) ** 0.8 + 0.015 * t
    inner = 0.055 + 0.012 * np.cos(np.pi * t * 1.5) + (0.03 * t**3 if side < 0 else 0.1 * t**2.2)
    dome = np.linspace(0, 1, 12)[1:-1]
    floor_x = outer[-1] + (inner[-1] - outer[-1]) * dome
    floor_y = top + depth * (1 - (0.115 + rng.normal(0, 0.008)) * np.sin(np.pi * dome**0.62))
    inner_y = top + depth * t * 0.93
    apex_x = np.linspace(inner[0], outer[0], 6)[1:-1]
    apex_y = top - 0.032 * np.sin(np.pi * np.linspace(0, 1, 6)[1:-1])
    x = np.concatenate([outer, floor_x, inner[::-1], apex_x])
    y = np.concatenate([top + depth * t, floor_y, inner_y[::-1], apex_y])
    return np.column_stack([0.5 + side * x, y])


def _inside(lung: Polygon, down: float, across: float) -> np.ndarray:
    """The point of a lung at shares of its height (from the apex) and of its width there (from the heart)."""
    outer, inner = lung[:24], lung[34:58][::-1]  # as `_lung` lays them out
    row = round(down * 23)
    return inner[row] + across * (outer[row] - inner[row])


def _body(rng: np.random.Generator) -> Polygon:
    neck, shoulder, flank = 0.14 + rng.normal(0, 0.008), 0.11 + rng.normal(0, 0.012), 0.46 + rng.normal(0, 0.012)
    half = [(neck, -0.2), (neck, 0.02), (0.24, shoulder - 0.02), (0.42, shoulder + 0.03), (0.56, shoulder + 0.12)]
    half += [(0.6, 0.3), (flank + 0.03, 0.42), (flank, 0.6), (flank + 0.015, 0.85), (flank + 0.02, 1.3)]
    half = smooth(np.array(half))
    return np.concatenate([half * (1, 1) + (0.5, 0), (half * (-1, 1) + (0.5, 0))[::-1]])


def _heart(rng: np.random.Generator, wide: float) -> Polygon:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = 1 + 0.1 * np.cos(2 * angle + 0.9) + 0.05 * np.cos(3 * angle)
    spread = (0.165 * wide * rng.normal(1, 0.07), 0.145 * rng.normal(1, 0.06))
    points = np.column_stack([np.cos(angle) * radius * spread[0], np.sin(angle) * radius * spread[1]])
    lean = np.deg2rad(28)
    turn = np.array([[np.cos(lean), -np.sin(lean)], [np.sin(lean), np.cos(lean)]])
    return points @ turn.T + (0.565 + rng.normal(0, 0.008), 0.615 + rng.normal(0, 0.01))


def _column(x: float, top: float, bottom: float, above: float, below: float) -> Polygon:
    return np.array([(x - above, top), (x + above, top), (x + below, bottom), (x - below, bottom)])


def _posterior_ribs(top: float, pitch: float, slope: float, wide: float) -> np.ndarray:
    """From the spine outward, a little up, over the back and down along the flank, (18, 16, 2)."""
    k = np.arange(9)[:, None]
    t = np.linspace(0, 1, 16) * np.where(k < 7, 1, 0.75)
    reach = wide * (0.27 + 0.13 * np.sqrt(np.minimum(k, 4) / 4))
    drop = slope * (0.6 + 0.12 * k)
    y = top + pitch * k - 0.025 * np.sin(np.pi * t * 0.8) + drop * t**1.6 * 1.6
    return _both_sides(0.035 + reach * np.sin(np.pi / 2 * t), y)


def _anterior_ribs(top: float, pitch: float, wide: float) -> np.ndarray:
    """From the flank inward and down, ending where cartilage begins, (12, 12, 2)."""
    k, t = np.arange(6)[:, None], np.linspace(0, 0.72, 12)
    reach = wide * (0.3 + 0.1 * np.sqrt(np.minimum(k, 4) / 4))
    return _both_sides(reach + 0.02 - (reach - 0.05) * t, top + pitch * k + 0.16 * t**1.3)


def _both_sides(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Curves (n, points) given by their distance from the middle and their height, to (2 n, points, 2)."""
    return np.stack([np.concatenate([0.5 - x, 0.5 + x]), np.concatenate([y, y])], axis=-1)


def _clavicle(side: int, rng: np.random.Generator) -> Polygon:
    y = 0.155 + rng.normal(0, 0.008)
    return curve(
        np.array([0.5 + side * 0.035, y + 0.015]),
        np.array([0.5 + side * 0.2, y + 0.02]),
        np.array([0.5 + side * 0.41, y - 0.055]),
    )


def _scapula(side: int, rng: np.random.Generator) -> Polygon:
    shape = np.array([(0.37, 0.14), (0.5, 0.13), (0.49, 0.24), (0.435, 0.41), (0.41, 0.4), (0.395, 0.26)])
    return (shape + rng.normal(0, 0.006, 2)) * (side, 1) + (0.5, 0)


def _vessels(side: int, rng: np.random.Generator) -> np.ndarray:
    """Branches that fan out from the hilum towards the flank, each with a twig, (26, 16, 2)."""
    hilum = np.array([0.5 + side * 0.11, 0.44])
    angle = np.linspace(-1.25, 1.35, 13) + rng.normal(0, 0.08, 13)
    length = rng.uniform(0.14, 0.27, (13, 1))
    ends = hilum + length * np.column_stack([side * np.cos(angle), np.sin(angle)])
    stems = curves(np.broadcast_to(hilum, ends.shape), (hilum + ends) / 2 + rng.normal(0, 0.02, ends.shape), ends)
    twigs = stems[:, 8] + 0.45 * length * np.column_stack([side * np.cos(angle + 0.6), np.sin(angle + 0.6)])
    return np.concatenate([stems, curves(stems[:, 8], stems[:, 11], twigs)])
