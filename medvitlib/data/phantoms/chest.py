"""The shapes of one patient's chest, for `cxr` to draw: polygons in unit coordinates.

`side` is -1 for the left half of the picture (the patient's right) and 1 for the other.
"""

from dataclasses import dataclass

import numpy as np

from medvitlib.data.phantoms.canvas import Polygon, curve, ellipse, smooth


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
    posterior_ribs: list[Polygon]
    anterior_ribs: list[Polygon]
    clavicles: list[Polygon]
    cortices: list[Polygon]
    scapulae: list[Polygon]
    vessels: list[Polygon]
    consolidations: np.ndarray  # (k, 4): x, y, radius, stretch
    tissue: float
    bone: float


def draw_anatomy(rng: np.random.Generator, difficulty: float) -> Anatomy:
    """The anatomy of one patient; consolidations are drawn for everybody and shown in the ill only."""
    wide, high = rng.normal(1, 0.045), rng.normal(1, 0.04)
    lungs = tuple(_lung(side, wide, high, rng) for side in (-1, 1))
    pitch, slope = rng.normal(0.074, 0.003) * high, rng.normal(0.075, 0.015)
    top = 0.155 + rng.normal(0, 0.008)
    scale = 1.15 - 0.45 * difficulty
    consolidations = []
    for _ in range(rng.integers(1, 4)):
        centre = _inside(lungs[rng.integers(2)], rng.uniform(0.35, 0.82), rng.uniform(0.35, 0.75))
        consolidations.append((*centre, scale * rng.uniform(0.065, 0.1), rng.uniform(0.7, 1.4)))
    posterior_ribs = [_posterior_rib(s, top + pitch * k, slope, wide, k) for k in range(9) for s in (-1, 1)]
    clavicles = [_clavicle(s, rng) for s in (-1, 1)]
    return Anatomy(
        body=_body(rng),
        lungs=lungs,
        heart=_heart(rng, wide),
        aorta=ellipse((0.555 + rng.normal(0, 0.006), 0.335), 0.045, 0.055),
        hila=[ellipse((0.5 + s * 0.095, 0.45 + 0.015 * s + rng.normal(0, 0.01)), 0.03, 0.06) for s in (-1, 1)],
        mediastinum=_column(0.5, -0.1, 0.8, 0.062 * wide, 0.045 * wide),
        spine=_column(0.5, -0.1, 1.1, 0.033, 0.042),
        posterior_ribs=posterior_ribs,
        anterior_ribs=[_anterior_rib(s, top + 0.09 + pitch * k, wide, k) for k in range(6) for s in (-1, 1)],
        clavicles=clavicles,
        cortices=_borders([*posterior_ribs, *clavicles], 0.012),
        scapulae=[_scapula(s, rng) for s in (-1, 1)],
        vessels=[*_vessels(-1, rng), *_vessels(1, rng)],
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


def _posterior_rib(side: int, y: float, slope: float, wide: float, k: int) -> Polygon:
    """From the spine outward, a little up, over the back and down along the flank."""
    reach = wide * (0.27 + 0.13 * np.sqrt(min(k, 4) / 4))
    t = np.linspace(0, 1 if k < 7 else 0.75, 16)
    drop = slope * (0.6 + 0.12 * k)
    x = 0.5 + side * (0.035 + reach * np.sin(np.pi / 2 * t))
    return np.column_stack([x, y - 0.025 * np.sin(np.pi * t * 0.8) + drop * t**1.6 * 1.6])


def _anterior_rib(side: int, y: float, wide: float, k: int) -> Polygon:
    """From the flank inward and down, ending where cartilage begins."""
    t = np.linspace(0, 0.72, 12)
    reach = wide * (0.3 + 0.1 * np.sqrt(min(k, 4) / 4))
    return np.column_stack([0.5 + side * (reach + 0.02 - (reach - 0.05) * t), y + 0.16 * t**1.3])


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


def _vessels(side: int, rng: np.random.Generator) -> list[Polygon]:
    """Branches that fan out from the hilum towards the flank."""
    hilum = np.array([0.5 + side * 0.11, 0.44])
    out = []
    for angle in np.linspace(-1.25, 1.35, 13) + rng.normal(0, 0.08, 13):
        length = rng.uniform(0.14, 0.27)
        end = hilum + length * np.array([side * np.cos(angle), np.sin(angle)])
        bend = (hilum + end) / 2 + rng.normal(0, 0.02, 2)
        stem = curve(hilum, bend, end)
        twig = 0.45 * length * np.array([side * np.cos(angle + 0.6), np.sin(angle + 0.6)])
        out += [stem, curve(stem[8], stem[11], stem[8] + twig)]
    return out


def _borders(curves: list[Polygon], half: float) -> list[Polygon]:
    """The two borders of a bone drawn along each curve: cortical bone is denser than what it encloses."""
    return [np.add(bone, (0, sign * half)) for bone in curves for sign in (-1, 1)]
