"""A piece of a blood smear under the microscope, for `blood3` and `wbc4` to draw: inks, red cells, debris, camera.

Light falls through thin layers of ink, so pictures are made of amounts of ink and turned into colours at the end.
Shapes are functions of unit coordinates with an edge as soft as the focus: nothing is blurred afterwards, so that
the evidence ends where its own edge ends, and a picture is the same at every size.
"""

from dataclasses import dataclass
from math import ceil, floor
from statistics import NormalDist

import cv2
import numpy as np

from medvitlib.data.phantoms.canvas import Canvas, Polygon

Window = tuple[slice, slice]
RED, NUCLEUS, GREY, ORANGE = range(4)
"""The inks: red cells and eosin, nuclei and granules, plasma and pale cytoplasm, eosinophil granules."""

_IDENTITY = np.eye(2, 3)
_UNTHREADED = 200_000  # a product of fewer steps starts no threads, which cost more than they save
# normal deviates by a random byte: ten times as fast as drawing them, and as good at 256 grey levels
_NORMAL = np.array([NormalDist().inv_cdf((byte + 0.5) / 256) for byte in range(256)], np.float32)


@dataclass(frozen=True)
class Smear:
    """What all pictures of a smear share: its stain, its microscope and how large its cells appear.

    Args:
        colours: (3, 4) optical density in red, green and blue of one unit of each ink.
        light: (3,) what the empty slide shows in each channel, 0 to 255.
        vignette: optical density at the corners.
        noise: deviation in grey levels.
        scale: size of every cell, about 1.
    """

    colours: np.ndarray
    light: np.ndarray
    vignette: float
    noise: float
    scale: float


def draw_smear(rng: np.random.Generator, colours: tuple[tuple[float, float, float], ...]) -> Smear:
    """One smear; `colours` are the usual optical densities of the four inks, each (red, green, blue)."""
    strength, hue = np.exp(rng.normal(0, 0.3)), np.exp(rng.normal(0, 0.16, (4, 3)))
    exposure, balance = rng.uniform(0.68, 1.04), np.exp(rng.normal(0, 0.07, 3))
    return Smear(
        colours=(strength * hue * colours).T.astype(np.float32),
        light=238 * exposure * balance,
        vignette=rng.uniform(0, 0.5),
        noise=rng.uniform(1.5, 6.5),
        scale=rng.uniform(0.9, 1.12),
    )


class Slide:
    """Amounts of the four inks on one piece of a smear, float32 (4, H, W)."""

    def __init__(self, size: tuple[int, int], focus: float, rng: np.random.Generator):
        self.canvas, self.focus = Canvas(size, _IDENTITY), focus
        self.inks = np.zeros((4, *size), np.float32)
        self.plasma: dict[int, np.ndarray] = {}  # ink: what lies over everything, and no cell hides
        self.x, self.y = ((np.arange(side, dtype=np.float32) + 0.5) / side for side in size[::-1])
        # no outline is a perfect ellipse: everything is drawn on a sheet that was pulled about a little
        self.sheet_x, self.sheet_y = (
            line + np.float32(0.005) * self.canvas.cloud(rng, 10) for line in (self.x, self.y[:, None])
        )

    def window(self, centre: np.ndarray, reach: float) -> Window:
        """The pixels of a square about `centre`, cut off at the border."""
        return tuple(
            slice(max(0, floor((at - reach) * side)), max(0, min(side, ceil((at + reach) * side))))
            for at, side in zip(centre[::-1].tolist(), self.canvas.size, strict=True)
        )

    def distance(self, window: Window, centre: np.ndarray, radii: tuple[float, float], angle: float) -> np.ndarray:
        """Distance from the centre of an ellipse, 1 on its outline, float32 of the window's shape."""
        x, y = self.sheet_x[window] - np.float32(centre[0]), self.sheet_y[window] - np.float32(centre[1])
        cos, sin, (a, b) = np.cos(angle), np.sin(angle), np.square(radii)
        xx, yy, xy = cos**2 / a + sin**2 / b, sin**2 / a + cos**2 / b, 2 * cos * sin * (1 / a - 1 / b)
        return np.sqrt(x * (np.float32(xx) * x + np.float32(xy) * y) + np.float32(yy) * y * y)

    def inside(self, distance: np.ndarray, radius: float) -> np.ndarray:
        """1 within an outline and 0 outside, with an edge as soft as the focus; exactly 0 beyond `reach`."""
        return ramp((1 - distance) * np.float32(radius / (2 * self.focus)) + np.float32(0.5))

    def reach(self, radius: float) -> float:
        """How far a cell of this radius can be seen."""
        return radius + self.focus + 0.02  # the sheet's pull

    def dots(
        self, window: Window, points: Polygon, radii: np.ndarray, strength: np.ndarray | float = 1.0
    ) -> np.ndarray:
        """The sum of Gaussians of the given radii (at half their height), float32 of the window's shape."""
        narrow = (np.sqrt(np.log(2)) / np.maximum(radii, 0.3 * self.focus)).astype(np.float32)
        across, down = (  # cut off long before float32 becomes subnormal, which is slow to multiply
            np.exp(-np.minimum(((line - at.astype(np.float32)[:, None]) * narrow[:, None]) ** 2, 30))
            for line, at in ((self.x[window[1]], points[:, 0]), (self.y[window[0]], points[:, 1]))
        )
        down *= np.float32(strength) if np.isscalar(strength) else strength[:, None].astype(np.float32)
        step = max(1, _UNTHREADED // (down.shape[1] * across.shape[1]))
        return sum(down[i : i + step].T @ across[i : i + step] for i in range(0, len(points), step))

    def put(self, window: Window, matte: np.ndarray, inks: dict[int, np.ndarray | float], opacity: float) -> None:
        """Lay inks over what is there, as thick as `matte` (0 to 1), which hides `opacity` of what is below."""
        below = self.inks[:, window[0], window[1]]
        if opacity:
            below *= 1 - np.float32(opacity) * matte
        for ink, amount in inks.items():
            below[ink] += matte * (np.float32(amount) if np.isscalar(amount) else amount)

    def photograph(self, smear: Smear, rng: np.random.Generator) -> np.ndarray:
        """What the camera sees: uint8 (H, W, 3). Every pixel is made of its own inks alone."""
        exposure, balance = np.exp(rng.normal(0, 0.06)), np.exp(rng.normal(0, 0.02, 3))
        light = (smear.light * exposure * balance).astype(np.float32)
        across, down = (
            np.exp(-rng.normal(0, 0.03) * (2 * line - 1) - smear.vignette / 2 * (2 * line - 1) ** 2)
            for line in (self.x, self.y)
        )  # the lamp is brightest near the middle
        for ink, amount in self.plasma.items():
            self.inks[ink] += amount
        colour = cv2.exp(cv2.transform(cv2.merge(list(self.inks)), -smear.colours))
        colour *= np.float32(across[:, None] * light)
        colour *= np.float32(down)[:, None, None]
        drawn = np.frombuffer(rng.bytes(colour.size), np.uint8).reshape(colour.shape)
        colour += cv2.LUT(drawn, _NORMAL * np.float32(smear.noise))
        np.maximum(colour, 0, out=colour)
        return np.minimum(colour, 255, out=colour).astype(np.uint8)


def ramp(t: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, smooth between."""
    t = np.minimum(np.maximum(t, 0), 1)
    return t * t * (3 - 2 * t)


def place(rng: np.random.Generator) -> np.ndarray:
    """Where the evidence stands: never in the middle, on every side as often."""
    angle, off = rng.uniform(0, 2 * np.pi), rng.uniform(0.09, 0.22)
    return 0.5 + off * np.array([np.cos(angle), np.sin(angle)])


def red_cell(
    slide: Slide, centre: np.ndarray, radius: float, rng: np.random.Generator
) -> tuple[Window, np.ndarray, np.ndarray]:
    """A red cell with its central pallor: window, matte (0 to 1) and amount of red ink, for `Slide.put`."""
    stretch, angle = np.exp(rng.normal(0, 0.06)), rng.uniform(0, np.pi)
    pallor, width, thickness = rng.uniform(0.25, 0.85), rng.uniform(0.42, 0.62), rng.uniform(0.85, 1.15)
    window = slide.window(centre, slide.reach(radius * max(stretch, 1 / stretch)))
    r = slide.distance(window, centre, (radius * stretch, radius / stretch), angle)
    dish = thickness * (1 - pallor * np.exp(-((r * np.float32(1 / width)) ** 2)))
    return window, slide.inside(r, radius), dish


def red_cells(slide: Slide, centres: np.ndarray, radius: float, rng: np.random.Generator) -> None:
    """Red cells that lie over each other as they come: where two overlap it is darker."""
    for centre in centres:
        window, matte, dish = red_cell(slide, centre, radius * np.exp(rng.normal(0, 0.06)), rng)
        below = slide.inks[RED][window]
        below += matte * (dish - np.float32(0.3) * below)


def clumps(
    slide: Slide, rng: np.random.Generator, count: int, spread: float, radius: float, inks: dict[int, float]
) -> None:
    """Shapeless heaps of ink anywhere: dirt, platelets, lysed cells, stain that fell out.

    Args:
        spread: deviation of a heap's grains about its middle.
        radius: of a grain, about.
        inks: how much of which.
    """
    sharp = np.float32(min(max(radius / (2 * slide.focus), 1.0), 3.0))
    for middle in rng.uniform(0, 1, (count, 2)):
        points = middle + spread * rng.standard_normal((7, 2))
        radii = radius * np.exp(rng.normal(0, 0.35, 7))
        window = slide.window(middle, np.abs(points - middle).max() + 2 * radii.max())
        heap = slide.dots(window, points, radii)
        slide.put(window, ramp((heap - 0.5) * sharp + 0.5), inks, opacity=0)
