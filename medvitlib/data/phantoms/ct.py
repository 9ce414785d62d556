"""A stylised axial chest CT slice in a lung window, with known evidence: what `phantom/ct` draws.

Everything is drawn from unit coordinates, so that a picture is the same at every size. Anatomy belongs to the
patient; the level of the slice, window, noise, motion and what gravity does belong to the image and never to the
class. The one thing that depends on the class is the ground glass: soft, patchy opacities along the pleura.
"""

from functools import lru_cache

import numpy as np

from medvitlib.data.phantoms import thorax
from medvitlib.data.phantoms.canvas import Canvas, Polygon, Shot, curve, ellipse, pose
from medvitlib.data.phantoms.thorax import Thorax, draw_thorax

VERSION = 1
"""Part of every cache key: raise it when the pictures change."""

_THICK = 0.045  # half a slice, in levels


def draw(shot: Shot, evidence: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """One slice of a patient: image uint8 (H, W, 1) and evidence bool (H, W), empty unless ill and shown.

    Without the evidence all else is the same, to the last grey level.
    """
    rng, anatomy = np.random.default_rng(shot.image), _anatomy(shot.patient)
    canvas, level = Canvas(shot.size, pose(rng, 0.94)), rng.uniform(0.05, 1)
    lungs, middle = [thorax.cavity(anatomy, side, level) for side in (-1, 1)], thorax.mediastinum(anatomy, level)
    density = _density(canvas, anatomy, level, lungs, middle, rng)
    air = np.clip((-350 - density) * (1 / 450), 0, 1)  # 0 in vessels and walls, 1 in lung
    air *= canvas.blur(canvas.paint(canvas.fill(lungs), [middle], 0.0), 0.004)
    density += air * _nuisance(canvas, rng)
    extra = np.zeros(shot.size, np.float32)
    if evidence and shot.label == 0:
        own = np.random.default_rng((*shot.image, 1))  # so that the slice's other draws are the same for everybody
        depth = np.clip(2 * canvas.blur(air, 0.012) - 1, 0, 1)  # from 0 at the walls: nothing marks where it begins
        extra = depth**3 * _ground_glass(canvas, anatomy, level, shot.difficulty, own)
    return _window(canvas, density + extra, rng)[..., None], extra > 0


@lru_cache(maxsize=64)
def _anatomy(patient: tuple[int, ...]) -> Thorax:
    return draw_thorax(np.random.default_rng(patient))


def _density(
    canvas: Canvas, t: Thorax, level: float, lungs: list[Polygon], middle: Polygon, rng: np.random.Generator
) -> np.ndarray:
    """Hounsfield units, painted from the outside in and blurred as a scanner does."""
    layer = np.full(canvas.size, -1000, np.float32)
    canvas.stroke(layer, [curve((-0.1, 0.8), (0.5, 1.02), (1.1, 0.8))], 0.014, -250, -1000)
    canvas.paint(layer, [thorax.body(t, level)], -95)
    canvas.paint(layer, [thorax.body(t, level, t.fat)], 45)
    bars = thorax.ribs(t, level)
    canvas.stroke(layer, bars, 0.034, t.bone)
    canvas.stroke(layer, bars, 0.016, t.bone - 260)
    canvas.paint(layer, lungs, t.lung)
    _vessels(canvas, layer, t, level)
    canvas.paint(layer, [middle], 5)
    canvas.paint(layer, thorax.great_vessels(t, level), 35 + t.blood)
    _liver(canvas, layer, level)
    tubes = thorax.airways(level)
    canvas.stroke(layer, [np.concatenate([tube, tube[:1]]) for tube in tubes], 0.006 + 0.008 * t.nodes, 40)
    canvas.paint(layer, tubes, -990)
    fills, bars = thorax.spine(t)
    canvas.stroke(layer, bars, 0.02, t.bone)
    canvas.paint(layer, fills, t.bone)
    canvas.paint(layer, [0.8 * (shape - shape.mean(0)) + shape.mean(0) for shape in fills], t.bone - 180)
    canvas.paint(layer, [ellipse((0.5, 0.455 + t.deep * 0.275 + 0.066), 0.02, 0.017)], 20)
    canvas.paint(layer, [ellipse((0.5, 0.12), 0.035, 0.014)], t.bone - 120)
    layer = canvas.blur(layer, rng.uniform(0.0025, 0.0055))  # the reconstruction kernel, and the heart that beats
    return layer + canvas.clouds(rng, (6, 12), (30, 10))


def _vessels(canvas: Canvas, layer: np.ndarray, t: Thorax, level: float) -> None:
    """What of the tree lies in the slice: dots where it is crossed, dashes where it runs along; and the fissures."""
    mid = (t.vessels[:, :-1] + t.vessels[:, 1:]) / 2
    inside = np.abs(mid[..., 2] - level) < _THICK
    start, end, radius = t.vessels[:, :-1, :2][inside], t.vessels[:, 1:, :2][inside], mid[..., 3][inside]
    parts = np.stack([start, end], axis=1)  # (k, 2, 2)
    for low, high, width, value in ((0, 0.002, 0.0032, -420), (0.002, 0.0038, 0.006, -220), (0.0038, 1, 0.011, 0)):
        canvas.stroke(layer, parts[(low <= radius) & (radius < high)], width, value, t.lung)
    y = 0.72 - 0.34 * level + t.fissure
    lines = [curve((0.5 + s * 0.1, y + 0.02), (0.5 + s * 0.25, y - 0.05), (0.5 + s * 0.42, y + 0.03)) for s in (-1, 1)]
    canvas.stroke(layer, lines, 0.002, -500, t.lung)


def _liver(canvas: Canvas, layer: np.ndarray, level: float) -> None:
    """The domes of the diaphragm, near the base."""
    rise = level - 0.86
    if rise > 0:
        canvas.paint(layer, [ellipse((0.3, 0.42), 0.1 * np.sqrt(rise / 0.14), 0.15 * np.sqrt(rise / 0.14))], 60)
    if rise > 0.05:
        canvas.paint(layer, [ellipse((0.71, 0.42), 0.5 * rise, 0.7 * rise)], 40)


def _nuisance(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """What lungs show in either class: denser towards the back, where a lying patient's blood sinks, and uneven."""
    depth = np.linspace(-1, 1, canvas.size[0], dtype=np.float32)[:, None]
    sunk = rng.uniform(0, 70) * np.clip(depth + 0.2, 0, None) + rng.uniform(0, 130) * np.clip(5 * depth - 1.9, 0, 1)
    return sunk + canvas.clouds(rng, (5, rng.uniform(5, 30)))


def _ground_glass(canvas: Canvas, t: Thorax, level: float, difficulty: float, rng: np.random.Generator) -> np.ndarray:
    """Hounsfield units to add to aerated lung, exactly 0 outside their border: Gaussian patches along the pleura, torn
    by noise, meshed with fine lines, denser in their cores."""
    h, w = canvas.size
    x, y = np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)[:, None]
    field = np.zeros(canvas.size, np.float32)
    near = np.exp(-(((t.lesions[:, 2] - level) / 0.3) ** 2))
    near /= near.max()  # every slice of the ill shows something
    for (side, angle, _, radius), presence in zip(t.lesions.tolist(), near.tolist(), strict=True):
        px, py = canvas.pixel(thorax.pleura(t, side, angle, level, 0.12))
        size = radius * (1.25 - 0.5 * difficulty) * rng.uniform(0.9, 1.1)
        field += presence * np.exp(-(((x - px) / (size * w)) ** 2)) * np.exp(-(((y - py) / (1.4 * size * h)) ** 2))
    rough = canvas.clouds(rng, (9, 0.25), (20, 0.2))
    share = np.clip(np.minimum(field, 1.1) * (1 + rough) - 0.25, 0, 1)
    share *= share * (3 - 2 * share)
    mesh = np.clip(1 - 2.2 * np.abs(canvas.cloud(rng, 36)), 0, 1)
    amount = (640 - 450 * difficulty) * rng.uniform(0.85, 1.1)
    return amount * share * (0.8 + 0.25 * mesh + 0.6 * np.clip(share - 0.55, 0, None))


def _window(canvas: Canvas, density: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise, then the window, pixel by pixel, so that evidence changes no pixel outside itself."""
    noise = canvas.noise(rng)
    density = density + (canvas.blur(noise, 0.003) * 40 + noise * 12) * rng.uniform(0.4, 1.6)
    middle, width = rng.normal(-530, 60), rng.uniform(1250, 1650)
    floor, ceiling = 0.12 * int(rng.integers(2)), rng.uniform(0.9, 1.0)  # black may have been lifted on export
    grey = floor + (ceiling - floor) * np.clip((density - middle) * (1 / width) + 0.5, 0, 1)
    return np.rint(255 * grey).astype(np.uint8)
