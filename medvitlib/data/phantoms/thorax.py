"""The shapes of one patient's chest in cross-section, for `ct` to draw: polygons in unit coordinates.

A slice's level goes from 0 (aortic arch) to 1 (just above the diaphragm); front is up, and the patient's right is on
the left of the picture: `side` is -1 there and 1 on the other side.
"""

from dataclasses import dataclass

import numpy as np

from medvitlib.data.phantoms.canvas import Polygon, curves, ellipse, smooth

_LEVELS = np.array([0.0, 0.35, 0.65, 1.0])
_DEPTHS = np.array([0.13, 0.17, 0.25, 0.35, 0.45, 0.55, 0.63, 0.70, 0.76])  # where the widths below are measured
_RIGHT = np.array(  # half width of the mediastinum, by level and depth
    [
        [0.05, 0.03, 0.06, 0.09, 0.095, 0.08, 0.06, 0.075, 0.06],
        [0.05, 0.02, 0.05, 0.085, 0.115, 0.115, 0.065, 0.07, 0.06],
        [0.05, 0.03, 0.07, 0.115, 0.13, 0.105, 0.06, 0.065, 0.06],
        [0.05, 0.05, 0.11, 0.145, 0.145, 0.095, 0.06, 0.065, 0.06],
    ]
)
_LEFT = np.array(
    [
        [0.05, 0.03, 0.06, 0.1, 0.12, 0.105, 0.085, 0.085, 0.06],
        [0.05, 0.03, 0.075, 0.115, 0.135, 0.12, 0.095, 0.09, 0.06],
        [0.05, 0.05, 0.12, 0.165, 0.175, 0.14, 0.09, 0.09, 0.06],
        [0.05, 0.09, 0.185, 0.235, 0.23, 0.17, 0.09, 0.085, 0.06],
    ]
)
_ANGLE = np.linspace(0, 2 * np.pi, 40, endpoint=False)
_COS, _SIN = np.cos(_ANGLE), np.sin(_ANGLE)
_OVAL = np.column_stack([np.sign(_COS) * np.abs(_COS) ** 0.8, np.sign(_SIN) * np.abs(_SIN) ** 0.86])
_BRANCHES = 50  # a lung's vessels; each has three twigs


@dataclass(frozen=True)
class Thorax:
    """One patient: proportions, densities in Hounsfield units, and what has a place in three dimensions."""

    wide: float
    deep: float
    heart: float
    fat: float  # thickness under the skin
    blood: float  # contrast medium
    lung: float
    bone: float
    ribs: float  # where between two ribs level 0 lies
    fissure: float
    nodes: float  # thickness of the airways' walls and what lies around them
    vessels: np.ndarray  # (curves, points, 4): x, y, level, radius
    lesions: np.ndarray  # (k, 4): side, angle along the pleura, level, radius


def draw_thorax(rng: np.random.Generator) -> Thorax:
    """The anatomy of one patient; lesions are drawn for everybody and shown in the ill only."""
    wide, deep = rng.normal(1, 0.035), rng.normal(1, 0.04)
    sides = np.where(rng.random() < 0.7, [-1, 1], np.full(2, rng.choice((-1, 1))))  # mostly both lungs
    count = rng.integers(3, 8)
    lesions = np.column_stack(
        [
            np.resize(sides, count),
            rng.uniform(-0.25, 0.42, count) * np.pi,  # 0 is the flank, a quarter turn the back
            rng.uniform(0, 1, count),
            rng.uniform(0.09, 0.135, count),
        ]
    )
    return Thorax(
        wide=wide,
        deep=deep,
        heart=rng.normal(1, 0.08),
        fat=rng.uniform(0.012, 0.035),
        blood=rng.uniform(20, 150),
        lung=rng.normal(-865, 20),
        bone=rng.normal(420, 90),
        ribs=rng.uniform(),
        fissure=rng.normal(0, 0.03),
        nodes=max(0.0, rng.normal(0.4, 0.4)),
        vessels=np.concatenate([_vessels(side, wide, deep, rng) for side in (-1, 1)]),
        lesions=lesions,
    )


def body(t: Thorax, level: float, inset: float = 0.0) -> Polygon:
    """The skin, or what lies `inset` below it."""
    broad = 0.465 + 0.02 * level
    return _OVAL * ((broad * t.wide - inset), (0.4 * t.deep - inset)) + (0.5, 0.475)


def cavity(t: Thorax, side: int, level: float, shrink: float = 1.0) -> Polygon:
    """What a lung and its half of the mediastinum fill: an egg that leans inward at the front; point 0 is lateral."""
    return _place(t, side, level, _OVAL * shrink)


def pleura(t: Thorax, side: int, angle: float, level: float, depth: float) -> np.ndarray:
    """The point at an angle (0 the flank, positive to the back), `depth` of the way to the middle of the lung."""
    point = np.array([np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.8, np.sin(angle)])
    return _place(t, side, level, point[None] * (1 - depth))[0]


def _place(t: Thorax, side: float, level: float, points: np.ndarray) -> np.ndarray:
    full = 0.86 + 0.16 * np.sin(np.pi / 2 * min(1.0, 0.25 + level))
    x = 0.213 + (0.186 * full * points[:, 0]) + 0.045 * np.minimum(points[:, 1], 0)
    return np.column_stack([0.5 + side * t.wide * x, 0.455 + t.deep * 0.31 * full * points[:, 1]])


def mediastinum(t: Thorax, level: float) -> Polygon:
    """From the breastbone to the spine, wider to the patient's left where the heart is."""
    right, left = _at(_RIGHT, level), _at(_LEFT, level)
    swell = 1 + (t.heart - 1) * np.sin(np.pi * np.linspace(0, 1, len(_DEPTHS)))
    y = 0.455 + t.deep * (_DEPTHS - 0.455)
    one = smooth(np.column_stack([0.5 - right * swell * t.wide, y]))
    other = smooth(np.column_stack([0.5 + left * swell * t.wide, y]))
    return np.concatenate([one, other[::-1]])


def great_vessels(t: Thorax, level: float) -> list[Polygon]:
    """Aorta going up and down, and what lies between them at this level: arch, pulmonary trunk, or chambers."""
    down = ellipse((0.5 + 0.062 * t.wide, 0.655), 0.029, 0.03)
    if level < 0.2:
        return [np.array([(0.44, 0.34), (0.5, 0.29), (0.58, 0.42), (0.6, 0.6), (0.56, 0.64), (0.52, 0.5)])]
    if level < 0.55:
        trunk = np.array([(0.53, 0.29), (0.58, 0.3), (0.6, 0.38), (0.54, 0.47), (0.42, 0.5), (0.42, 0.46), (0.52, 0.4)])
        return [down, ellipse((0.475, 0.36), 0.038, 0.038), smooth(trunk), ellipse((0.425, 0.4), 0.02, 0.024)]
    right, left = 0.085 * t.heart, (0.07 + 0.05 * level) * t.heart
    return [down, ellipse((0.455, 0.4), right * 0.75, right), ellipse((0.5 + 0.9 * left, 0.37), left, left * 0.9)]


def airways(level: float) -> list[Polygon]:
    """The trachea, or the bronchi that part from it."""
    if level < 0.3:
        return [ellipse((0.487, 0.475), 0.024, 0.028)]
    apart = 0.035 + 0.16 * (level - 0.3)
    bore = 0.021 * (1 - 0.75 * (level - 0.3))
    return [ellipse((0.495 + side * apart, 0.5 + 0.05 * (level - 0.3)), bore, bore) for side in (-1, 1)]


def ribs(t: Thorax, level: float) -> list[Polygon]:
    """Where the slice meets them: they slope, so that each appears as a short bar beside the lung."""
    bars = []
    for side in (-1, 1):
        ring = cavity(t, side, level, 1.085)
        for k in range(7):
            at = -14 + 5.2 * k + 4 * ((t.ribs + 1.7 * level + 0.5 * (side > 0)) % 1)
            if -13 <= at <= 13:
                bars.append(ring[np.arange(round(at) - 1, round(at) + 2) % len(ring)])
    return bars


def spine(t: Thorax) -> tuple[list[Polygon], list[Polygon]]:
    """A vertebra: filled shapes, and bars."""
    x, y = 0.5, 0.455 + t.deep * 0.275
    fills = [ellipse((x, y), 0.05, 0.042)]
    bars = [np.array([(x + s * 0.035, y + 0.03), (x + s * 0.045, y + 0.07), (x, y + 0.105)]) for s in (-1, 1)]
    bars += [np.array([(x + s * 0.045, y + 0.065), (x + s * 0.105, y + 0.07)]) for s in (-1, 1)]
    bars += [np.array([(x, y + 0.1), (x, y + 0.135)])]
    return fills, bars


def _at(table: np.ndarray, level: float) -> np.ndarray:
    """A row between those of the table."""
    k = int(np.clip(np.searchsorted(_LEVELS, level) - 1, 0, len(_LEVELS) - 2))
    share = np.clip((level - _LEVELS[k]) / (_LEVELS[k + 1] - _LEVELS[k]), 0, 1)
    return (1 - share) * table[k] + share * table[k + 1]


def _vessels(side: int, wide: float, deep: float, rng: np.random.Generator) -> np.ndarray:
    """A tree from the hilum to the whole lung, (curves, points, 4), thinner towards the pleura."""
    n = _BRANCHES
    hilum = np.array([0.5 + side * 0.12 * wide, 0.48, 0.42]) + rng.normal(0, (0.01, 0.03, 0.13), (n, 3))
    angle, share = rng.uniform(0, 2 * np.pi, n), np.sqrt(rng.uniform(0.05, 0.95, n))
    ends = np.column_stack(
        [
            0.5 + side * wide * (0.225 + 0.175 * share * np.cos(angle)),
            0.455 + 0.29 * deep * share * np.sin(angle),
            rng.uniform(-0.15, 1.15, n),
        ]
    )
    bends = (hilum + ends) / 2 + rng.normal(0, (0.025, 0.025, 0.1), (n, 3))
    stems = curves(hilum, bends, ends)  # (n, 16, 3)
    twigs = []
    for start in (6, 9, 13):
        at = stems[:, start]
        tips = at + (ends - at) * rng.uniform(0.6, 1.1, (n, 1)) + rng.normal(0, (0.045, 0.045, 0.09), (n, 3))
        twigs.append(curves(at, (at + tips) / 2 + rng.normal(0, 0.008, (n, 3)), tips))
    radius = np.linspace(0.0075, 0.0022, 16) * rng.uniform(0.6, 1.2, (n, 1))
    thin = np.linspace(0.0034, 0.0014, 16) * rng.uniform(0.7, 1.2, (3 * n, 1))
    places, radii = np.concatenate([stems, *twigs]), np.concatenate([radius, thin])
    return np.concatenate([places, radii[..., None]], axis=2)
