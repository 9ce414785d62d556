"""What every rendered family draws with: a canvas in unit coordinates (x right, y down), and a few shapes.

A picture is drawn from coordinates between 0 and 1, so that it is the same at every size.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

Polygon = np.ndarray  # (n, 2), unit coordinates

_T = np.linspace(0, 1, 16)
_BEZIER = np.stack([(1 - _T) ** 2, 2 * _T * (1 - _T), _T**2], axis=1)  # (16, 3)


@dataclass(frozen=True)
class Shot:
    """One picture to draw.

    Args:
        patient: seed of what all images of the patient share (anatomy, or stain and microscope).
        image: seed of what belongs to this image alone.
        label: its class; nothing but the evidence may depend on it.
        difficulty: 0 (plain evidence) to 1 (barely above the noise).
        size: (height, width) in pixels.
    """

    patient: tuple[int, ...]
    image: tuple[int, ...]
    label: int
    difficulty: float
    size: tuple[int, int]


@dataclass(frozen=True)
class Canvas:
    """Draws unit-coordinate shapes, after the exposure's own shift, zoom and tilt, onto float32 (H, W)."""

    size: tuple[int, int]
    affine: np.ndarray  # (2, 3)

    def pixels(self, shapes: list[Polygon] | np.ndarray) -> list[np.ndarray]:
        """Points in pixels, int32 with four fractional bits, as cv2's drawing functions take them."""
        if not len(shapes):
            return []
        scale = np.array([self.size[1] * 16, self.size[0] * 16])
        points = np.concatenate(shapes) @ (self.affine[:, :2].T * scale) + self.affine[:, 2] * scale
        points, parts, end = np.rint(points).astype(np.int32), [], 0
        if isinstance(shapes, np.ndarray):  # all of one length
            return list(points.reshape(shapes.shape))
        for shape in shapes:
            parts.append(points[end : end + len(shape)])
            end += len(shape)
        return parts

    def pixel(self, point: np.ndarray) -> tuple[float, float]:
        """One point, (x, y) in pixels."""
        x, y = (self.affine[:, :2] @ point + self.affine[:, 2]).tolist()
        return x * self.size[1], y * self.size[0]

    def blur(self, layer: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian blur, sigma as a share of the side, cut off at two sigma: half the time, and nobody sees it."""
        sigmas = [max(sigma * side, 0.3) for side in self.size[::-1]]
        return cv2.GaussianBlur(layer, [2 * math.ceil(2 * s) + 1 for s in sigmas], sigmaX=sigmas[0], sigmaY=sigmas[1])

    def fill(self, shapes: list[Polygon], value: float = 1.0) -> np.ndarray:
        """`value` inside the shapes, 0 outside."""
        return self.paint(np.zeros(self.size, np.float32), shapes, value)

    def paint(self, layer: np.ndarray, shapes: list[Polygon], value: float) -> np.ndarray:
        """The layer itself, with `value` inside the shapes."""
        for shape in self.pixels(shapes):
            cv2.fillPoly(layer, [shape], value, cv2.LINE_8, 4)
        return layer

    def lines(self, curves: list[Polygon], width: float, value: float = 1.0) -> np.ndarray:
        """`value` on curves of the given width, 0 elsewhere."""
        return self.stroke(np.zeros(self.size, np.float32), curves, width, value)

    def stroke(
        self, layer: np.ndarray, curves: list[Polygon], width: float, value: float, ground: float = 0.0
    ) -> np.ndarray:
        """The layer itself, with `value` on curves; narrower than a pixel, they fade to `ground` instead of growing."""
        pixels = width * min(self.size)
        thickness = max(1, round(pixels))
        value = ground + (value - ground) * min(1.0, pixels / thickness)
        cv2.polylines(layer, self.pixels(curves), False, value, thickness, cv2.LINE_8, 4)
        return layer

    def cloud(self, rng: np.random.Generator, grain: int) -> np.ndarray:
        """Smooth noise of mean 0 and deviation about 1, `grain` cells a side: the same picture at every size."""
        return self.clouds(rng, (grain, 1.0))

    def clouds(self, rng: np.random.Generator, *octaves: tuple[int, float]) -> np.ndarray:
        """The sum of smooth noises, each with its cells a side and its deviation."""
        side = max(64, 2 * max(grain for grain, _ in octaves))  # cubic up to here, then linear: a tenth of the time
        total = np.zeros((side, side), np.float32)
        for grain, deviation in octaves:
            cells = rng.standard_normal((grain, grain), dtype=np.float32) * np.float32(deviation)
            total += cv2.resize(cells, (side, side), interpolation=cv2.INTER_CUBIC)
        return cv2.resize(total, self.size[::-1], interpolation=cv2.INTER_LINEAR)

    def noise(self, rng: np.random.Generator) -> np.ndarray:
        """A value of its own for every pixel, mean 0 and deviation 1; evenly spread, which is quickest to draw."""
        return (rng.integers(0, 256, self.size, np.uint8) - np.float32(127.5)) * np.float32(1 / 73.9)


def pose(rng: np.random.Generator, zoom: float = 1.0) -> np.ndarray:
    """Where the exposure's own shift, zoom (about the one given) and tilt take a point."""
    angle, zoom = np.deg2rad(rng.normal(0, 2.2)), zoom * rng.normal(1.0, 0.035)
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = rng.normal(0, 0.018, 2) + 0.5 - turn @ (0.5, 0.5)
    return np.column_stack([turn, shift])


def curve(start: np.ndarray, bend: np.ndarray, end: np.ndarray) -> Polygon:
    """A quadratic Bézier curve of 16 points."""
    return _BEZIER @ (start, bend, end)


def curves(start: np.ndarray, bend: np.ndarray, end: np.ndarray) -> np.ndarray:
    """As many of them as there are rows, (n, d) each: (n, 16, d)."""
    return _BEZIER @ np.stack([start, bend, end], axis=1)


def ellipse(centre: np.ndarray, rx: float, ry: float) -> Polygon:
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.column_stack([centre[0] + rx * np.cos(angle), centre[1] + ry * np.sin(angle)])


def smooth(points: Polygon) -> Polygon:
    """Chaikin's corner cutting, twice."""
    for _ in range(2):
        a, b = points[:-1], points[1:]
        corners = np.stack([0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b], axis=1).reshape(-1, 2)
        points = np.concatenate([points[:1], corners, points[-1:]])
    return points
