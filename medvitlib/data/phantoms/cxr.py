"""A stylised frontal chest X-ray with known evidence: what `phantom/cxr` draws.

Everything is drawn from unit coordinates, so that a picture is the same at every size. Anatomy belongs to the
patient; position, exposure, noise and clutter belong to the exposure and never to the class. The one thing that
depends on the class is the consolidation: an irregular, blurred opacity inside a lung.
"""

from functools import lru_cache

import numpy as np

from medvitlib.data.phantoms.canvas import Canvas, Shot, curve, ellipse, pose
from medvitlib.data.phantoms.chest import Anatomy, draw_anatomy

VERSION = 2
"""Part of every cache key: raise it when the pictures change."""
AIR = 0.43
"""What a lung's air lacks in density: what a consolidation at most puts back."""

_LETTERS = (
    [np.array([(0, 1), (0, 0), (0.8, 0.05), (0.9, 0.25), (0.8, 0.45), (0, 0.5)]), np.array([(0.4, 0.5), (1, 1)])],  # R
    [np.array([(0, 0), (0, 1), (0.9, 1)])],  # L
)

_RESPONSE = (1 - np.exp(-1.3 * np.linspace(0, 1.15, 2048, dtype=np.float32))) / (1 - np.exp(-1.3 * 1.15))


def draw(shot: Shot, evidence: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """One exposure of a patient: image uint8 (H, W, 1) and evidence bool (H, W), empty unless ill and shown.

    Without the evidence all else is the same, to the last grey level.
    """
    rng, anatomy = np.random.default_rng(shot.image), _anatomy(shot.patient, shot.difficulty)
    canvas = Canvas(shot.size, pose(rng))
    density, aerated = _density(canvas, anatomy, rng)
    density += _clutter(canvas, rng)
    extra = np.zeros(shot.size, np.float32)
    if evidence and shot.label:  # from a generator of its own, so that the exposure's draws are the same for everybody
        extra = _consolidation(canvas, anatomy, aerated, shot.difficulty, np.random.default_rng((*shot.image, 1)))
    return _film(canvas, density + extra, rng)[..., None], extra > 0


@lru_cache(maxsize=64)
def _anatomy(patient: tuple[int, ...], difficulty: float) -> Anatomy:
    return draw_anatomy(np.random.default_rng(patient), difficulty)


def _density(canvas: Canvas, a: Anatomy, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What the rays cross on their way, about 0 (air) to 1.2 (bone over heart), and the lung fields 0 to 1."""
    stomach = ellipse((0.68 + rng.normal(0, 0.02), 0.875), 0.07, 0.035)
    body = canvas.blur(canvas.paint(canvas.fill([a.body]), [stomach], 1 - rng.uniform(0, 0.22)), 0.012)
    aerated = canvas.blur(canvas.fill(list(a.lungs)), 0.008)
    centre = canvas.blur(canvas.fill([a.mediastinum, a.heart, a.aorta]), 0.012)
    bones = canvas.lines(a.posterior_ribs, 0.026, 0.07)
    canvas.stroke(bones, a.clavicles, 0.026, 0.12)
    canvas.stroke(bones, a.cortices, 0.006, 0.13, 0.07)
    bones += canvas.stroke(canvas.fill(a.scapulae, 0.07), a.anterior_ribs, 0.03, 0.045)
    bones += canvas.fill([a.spine], 0.1) * _vertebrae(canvas, rng)
    vessels = canvas.fill(a.hila, 0.6)
    canvas.stroke(vessels, a.vessels, 0.007, 1.0)
    aerated *= 1 - 0.85 * centre
    density = body * (0.62 * a.tissue + canvas.clouds(rng, (5, 0.03))) - AIR * aerated + 0.12 * centre
    density += a.bone * body * canvas.blur(bones, 0.004)
    haze = rng.uniform(0, 0.07)  # inspiration, and soft tissue in front of the lungs: both sides, any class
    density += aerated * (0.1 * canvas.blur(vessels, 0.005) + haze + canvas.clouds(rng, (9, 0.016), (40, 0.014)))
    return density, aerated


def _consolidation(
    canvas: Canvas, a: Anatomy, aerated: np.ndarray, difficulty: float, rng: np.random.Generator
) -> np.ndarray:
    """Extra density, exactly 0 outside its border: fluid in the place of air, in Gaussian patches torn by noise."""
    h, w = canvas.size
    x, y = np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)[:, None]
    field = np.zeros(canvas.size, np.float32)
    for *centre, radius, stretch in a.consolidations.tolist():
        px, py = canvas.pixel(centre + rng.normal(0, 0.01, 2))  # films of one patient differ a little
        rx, ry = radius * w * stretch, radius * h / stretch
        field += np.exp(-(((x - px) / rx) ** 2)) * np.exp(-(((y - py) / ry) ** 2))
    torn = np.minimum(field, 1.1) * (1 + canvas.clouds(rng, (6, 0.25), (14, 0.16), (36, 0.1)))
    share = np.clip(1.15 * torn - 0.25, 0, 1)
    share *= share * (3 - 2 * share)  # fades in: nothing marks where it begins
    return (AIR * (1 - 0.78 * difficulty) * rng.uniform(0.85, 1.05)) * share * aerated


def _clutter(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Cables, electrodes and a side marker, as often in the healthy as in the ill."""
    letter = _LETTERS[rng.integers(2)]  # which side it names tells nothing here
    place = (rng.choice((0.07, 0.88)), rng.uniform(0.12, 0.2))
    strokes = [stroke * (0.035, 0.05) + place for stroke in letter]
    layer = canvas.lines(strokes, 0.009, rng.uniform(0.3, 0.6))
    for _ in range(rng.integers(0, 3)):
        start, bend = rng.uniform((0.1, 0.3), (0.9, 1.0)), rng.uniform(0.2, 0.8, 2)
        layer += canvas.lines([curve(start, bend, rng.uniform((0, 0.8), (1, 1.1)))], 0.006, 0.2)
        layer += canvas.fill([ellipse(start, 0.016, 0.016)], 0.16)
    return canvas.blur(layer, 0.002)


def _film(canvas: Canvas, density: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, noise and the film's curve, pixel by pixel, so that evidence changes no pixel outside itself."""
    h, w = canvas.size
    gain, offset, gamma = rng.uniform(0.85, 1.15), rng.normal(0, 0.055), rng.uniform(0.95, 1.35)
    tilt = rng.normal(0, 0.03, 2).astype(np.float32)  # the tube is never quite centred
    shade = (
        tilt[0] * np.linspace(-1, 1, w, dtype=np.float32) + tilt[1] * np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    )
    noise = canvas.noise(rng)
    grain = (canvas.blur(noise, 0.003) * 0.035 + noise * 0.012) * rng.uniform(0.6, 1.4)
    value = np.clip((density + shade) * gain + grain + offset, 0, 1.15)
    response = _RESPONSE**gamma  # film saturates towards white
    return np.take(np.rint(255 * response).astype(np.uint8), (value * (2047 / 1.15)).astype(np.uint16))


def _vertebrae(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """The spine's share of bone, (H, 1): less in the discs."""
    wave = np.sin(2 * np.pi * (np.linspace(0, 17, canvas.size[0], dtype=np.float32) + rng.uniform()))
    return (0.9 + 0.15 * np.tanh(2 * wave))[:, None]
