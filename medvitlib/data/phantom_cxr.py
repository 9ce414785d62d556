"""A stylised frontal chest X-ray with known evidence: what `phantom/cxr` draws.

Everything is drawn from unit coordinates, so that a picture is the same at every size. Anatomy belongs to the
patient; position, exposure, noise and clutter belong to the exposure and never to the class. The one thing that
depends on the class is the consolidation: an irregular, blurred opacity inside a lung.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from medvitlib.data.phantom_anatomy import Anatomy, Polygon, curve, ellipse

RENDER_VERSION = 1
"""Part of every cache key: raise it when the pictures change."""

_LETTERS = (
    [np.array([(0, 1), (0, 0), (0.8, 0.05), (0.9, 0.25), (0.8, 0.45), (0, 0.5)]), np.array([(0.4, 0.5), (1, 1)])],  # R
    [np.array([(0, 0), (0, 1), (0.9, 1)])],  # L
)


@dataclass(frozen=True)
class Canvas:
    """Draws unit-coordinate shapes, after the exposure's own shift, zoom and tilt, onto float32 (H, W)."""

    size: tuple[int, int]
    affine: np.ndarray  # (2, 3)

    def pixels(self, shapes: list[Polygon]) -> list[np.ndarray]:
        """Points in pixels, int32 with four fractional bits, as cv2's drawing functions take them."""
        points = np.concatenate(shapes) @ self.affine[:, :2].T + self.affine[:, 2]
        scaled = np.rint(points * (self.size[1] * 16, self.size[0] * 16)).astype(np.int32)
        ends = np.cumsum([len(shape) for shape in shapes])
        return [scaled[end - len(shape) : end] for shape, end in zip(shapes, ends, strict=True)]

    def blur(self, layer: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian blur, sigma as a share of the side, cut off at two sigma: half the time, and nobody sees it."""
        sigmas = [max(sigma * side, 0.3) for side in self.size[::-1]]
        return cv2.GaussianBlur(layer, [2 * math.ceil(2 * s) + 1 for s in sigmas], sigmaX=sigmas[0], sigmaY=sigmas[1])

    def fill(self, shapes: list[Polygon], value: float = 1.0) -> np.ndarray:
        """`value` inside the shapes, 0 outside."""
        layer = np.zeros(self.size, np.float32)
        for shape in self.pixels(shapes):
            cv2.fillPoly(layer, [shape], value, cv2.LINE_8, 4)
        return layer

    def lines(self, curves: list[Polygon], width: float, value: float = 1.0) -> np.ndarray:
        """`value` on curves of the given width; where that is less than a pixel they fade instead of growing."""
        layer, pixels = np.zeros(self.size, np.float32), width * min(self.size)
        thickness = max(1, round(pixels))
        value *= min(1.0, pixels / thickness)
        cv2.polylines(layer, self.pixels(curves), False, value, thickness, cv2.LINE_8, 4)
        return layer

    def cloud(self, rng: np.random.Generator, grain: int) -> np.ndarray:
        """Smooth noise of mean 0 and deviation about 1, `grain` cells a side: the same picture at every size."""
        cells = rng.standard_normal((grain, grain), dtype=np.float32)
        return cv2.resize(cells, self.size[::-1], interpolation=cv2.INTER_CUBIC)


def expose(
    anatomy: Anatomy, ill: bool, difficulty: float, size: tuple[int, int], seed: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """One exposure of a patient.

    Args:
        ill: show the consolidations. All else is the same for the same seed, to the last grey level.
        difficulty: 0 (dense opacities) to 1 (barely above the noise).
        size: (height, width) in pixels.
        seed: of this exposure.

    Returns:
        image uint8 (H, W) and evidence bool (H, W), empty unless ill.
    """
    rng = np.random.default_rng(seed)
    canvas = Canvas(size, _pose(rng))
    density, aerated = _density(canvas, anatomy, rng)
    density += _clutter(canvas, rng)
    evidence = np.zeros(size, np.float32)
    if ill:  # from a generator of its own, so that the exposure's draws are the same for everybody
        evidence = _consolidation(canvas, anatomy, aerated, difficulty, np.random.default_rng((*seed, 1)))
    return _film(canvas, density + evidence, rng), evidence > 0


def _density(canvas: Canvas, a: Anatomy, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What the rays cross on their way, about 0 (air) to 1.2 (bone over heart), and the lung fields 0 to 1."""
    body = canvas.blur(canvas.fill([a.body]), 0.012)
    lungs = canvas.blur(canvas.fill(list(a.lungs)), 0.008)
    centre = canvas.blur(canvas.fill([a.mediastinum, a.heart, a.aorta]), 0.012)
    bones = canvas.lines(a.posterior_ribs, 0.026, 0.085) + canvas.lines(a.anterior_ribs, 0.03, 0.05)
    bones += canvas.lines(a.clavicles, 0.026, 0.11) + canvas.lines(a.cortices, 0.006, 0.06)
    bones += canvas.fill(a.scapulae, 0.07) + canvas.fill([a.spine], 0.12) * (1 + 0.2 * _vertebrae(canvas, rng))
    vessels = canvas.blur(canvas.lines(a.vessels, 0.007), 0.004) + canvas.blur(canvas.fill(a.hila), 0.014)
    stomach = canvas.fill([ellipse((0.68 + rng.normal(0, 0.02), 0.875), 0.07, 0.035)], rng.uniform(0, 0.14))
    aerated = lungs * (1 - 0.85 * centre)
    density = body * (0.62 * a.tissue + 0.03 * canvas.cloud(rng, 5)) - 0.43 * aerated + 0.12 * centre
    density += a.bone * body * canvas.blur(bones, 0.004) - canvas.blur(stomach, 0.012)
    haze = rng.uniform(0, 0.07)  # inspiration, and soft tissue in front of the lungs: both sides, any class
    density += aerated * (0.1 * vessels + haze + 0.016 * canvas.cloud(rng, 9) + 0.014 * canvas.cloud(rng, 40))
    return density, aerated


def _consolidation(
    canvas: Canvas, a: Anatomy, aerated: np.ndarray, difficulty: float, rng: np.random.Generator
) -> np.ndarray:
    """Extra density, exactly 0 outside its border: sums of Gaussians, torn by noise, inside the lung fields."""
    h, w = canvas.size
    x, y = np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)[:, None]
    field = np.zeros(canvas.size, np.float32)
    for *centre, radius, stretch in a.consolidations:
        moved = np.array([centre]) + rng.normal(0, 0.01, 2)  # films of one patient differ a little
        px, py = canvas.pixels([moved])[0][0] / 16
        rx, ry = radius * w * np.sqrt(stretch), radius * h / np.sqrt(stretch)
        field += np.exp(-(((x - px) / rx) ** 2)) * np.exp(-(((y - py) / ry) ** 2))
    torn = np.minimum(field, 1.1) * (1 + 0.35 * canvas.cloud(rng, 14) + 0.2 * canvas.cloud(rng, 36))
    strength = (0.3 - 0.24 * difficulty) * rng.uniform(0.8, 1.2)
    return strength * np.clip(torn * np.minimum(aerated * 1.3, 1) - 0.3, 0, 0.9)


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
    noise = rng.standard_normal(canvas.size, dtype=np.float32)
    grain = (canvas.blur(noise, 0.003) * 0.035 + noise * 0.012) * np.float32(rng.uniform(0.6, 1.4))
    value = np.clip((density + shade) * np.float32(gain) + grain + np.float32(offset), 0, 1.15)
    steps = np.linspace(0, 1.15, 4096)
    response = ((1 - np.exp(-1.3 * steps)) / (1 - np.exp(-1.3 * 1.15))) ** gamma  # film saturates towards white
    table = np.rint(255 * response).astype(np.uint8)
    return table[(value * np.float32(4095 / 1.15)).astype(np.uint16)]


def _pose(rng: np.random.Generator) -> np.ndarray:
    angle, zoom = np.deg2rad(rng.normal(0, 2.2)), rng.normal(1.0, 0.035)
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = rng.normal(0, 0.018, 2) + 0.5 - turn @ (0.5, 0.5)
    return np.column_stack([turn, shift])


def _vertebrae(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    h = canvas.size[0]
    return np.sin(2 * np.pi * (np.linspace(0, 17, h, dtype=np.float32) + rng.uniform()))[:, None]
