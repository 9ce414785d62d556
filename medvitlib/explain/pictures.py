"""Figures of explanations: attention layer by head over the image, one map alone, or several methods side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from medvitlib.errors import ExplanationError, one_of
from medvitlib.explain.maps import AttentionMaps, upsample
from medvitlib.pictures import INK, OUTLINE, bare, draw_image

SHADES = colormaps["plasma"](np.linspace(0, 1, 256))
SHADES[:, 3] = np.linspace(0, 0.9, 256)  # the image stays visible where there is little attention
HEAT = ListedColormap(SHADES, "heat")
SCALES = ("shared", "own")


def show_attention(
    image: np.ndarray,
    maps: AttentionMaps,
    view: str | tuple[int, int] = "class",
    *,
    index: int = 0,
    layers: Sequence[int] | None = None,
    scale: str = "shared",
) -> Figure:
    """The image under its grid of patches; beside it one row a layer, one column a head.

    Attention is shown as a multiple of an even one, 1 / N over N patches, and upsampled between their centres.

    Args:
        image: (H, W, C) uint8, the one the maps are of, before it was normalised.
        view: "class" (from the class token), "mean" (averaged over the patches as queries), or the (row, column) of a
            patch, which is outlined.
        index: of the image in the batch.
        layers: which to show, counted from 0; None for all.
        scale: "shared", one colour scale for all, from 0 to at least 2 (its top leaves out the highest 0.1 % of
            patches), or "own", each map from its lowest to its highest, which stand above it.

    Raises:
        ExplanationError: a view, layer or scale that there is not.
    """
    one_of("scale", scale, SCALES, ExplanationError)
    views = _view(maps, view)
    shown = list(range(len(views))) if layers is None else list(layers)
    if not shown or not all(0 <= layer < len(views) for layer in shown):
        raise ExplanationError(f"layers={layers}: this model has layers 0 to {len(views) - 1}.")
    times = {layer: views[layer][index] * views[layer][index][0].numel() for layer in shown}  # (H, rows, columns)
    columns = max(len(heads) for heads in times.values())
    everything = np.concatenate([heads.numpy().ravel() for heads in times.values()])
    top = max(2.0, float(np.quantile(everything, 0.999))) if scale == "shared" else None  # even: half the scale at most

    panel = 1.25, 1.25 * image.shape[0] / image.shape[1] + (0.04 if top else 0.2)  # inches
    height = max(panel[1] * len(shown) + 0.3, 2.3 * image.shape[0] / image.shape[1] + 1.1)
    figure = Figure(figsize=(panel[0] * columns + 2.9, height), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2.5, panel[0] * columns + 0.4))
    what = {"class": "from the class token", "mean": "from a patch on average"}.get(view, "from the outlined patch")
    _draw_grid(left, image, maps.grid, view, f"attention {what},\neven = 1", top)
    axes = right.subplots(len(shown), columns, squeeze=False)
    for row, (layer, heads) in enumerate(times.items()):
        for head, axis in enumerate(axes[row]):
            bare(axis)
            if head >= len(heads):
                axis.set_visible(False)
                continue
            low, high = (0.0, top) if top else (float(heads[head].min()), float(heads[head].max()))
            _overlay(axis, image, heads[head], low, high)
            title = [f"head {head + 1}"] if row == 0 or len(heads) != len(times[shown[row - 1]]) else []
            title += [] if top else [f"{low:.2f} to {high:.2f}"]
            axis.set_title("\n".join(title), fontsize=9, color=INK, pad=3)
        axes[row, 0].set_ylabel(f"layer {layer + 1}", fontsize=9, color=INK)
    return figure


def show_map(
    image: np.ndarray, heat: torch.Tensor, title: str = "", label: str = "", on: Figure | SubFigure | None = None
) -> Figure | SubFigure:
    """The image, and one map (rows, columns), such as a rollout's, upsampled over it: from 0 to its highest."""
    figure = on or Figure(figsize=(6.6, 3.1 * image.shape[0] / image.shape[1] + 0.4), layout="constrained")
    plain, over = figure.subplots(1, 2)
    for axis in (plain, over):
        bare(axis)
    draw_image(plain, image)
    _overlay(over, image, heat, 0.0, float(heat.max()))
    over.set_title(title, fontsize=10, color=INK, parse_math=False)
    bar = figure.colorbar(ScalarMappable(Normalize(0, float(heat.max())), HEAT), ax=over, fraction=0.05)
    _label(bar, label)
    return figure


def show_maps(
    images: Sequence[np.ndarray],
    maps: Mapping[str, torch.Tensor],
    titles: Sequence[str] = (),
    *,
    masks: Sequence[np.ndarray] = (),
    raw: bool = False,
) -> Figure:
    """A row an image: the picture, then one map after the other over it.

    Args:
        images: N of (H, W, C) uint8, before they were normalised.
        maps: name -> (N, H, W), 0 to 1.
        titles: N, what is beside each row, such as what the cell is and what it was called.
        masks: N of bool (H, W), known evidence, to be outlined.
        raw: show each map alone, too, before it is laid over.

    Raises:
        ExplanationError: as many maps, titles or masks as there are not images.
    """
    counts = {**{name: len(found) for name, found in maps.items()}, "titles": len(titles), "masks": len(masks)}
    for name, count in counts.items():
        if count != len(images) and (count or name in maps):
            raise ExplanationError(f"{name} has {count}, there are {len(images)} images: expected one for each.")
    columns = [(name, alone) for name in maps for alone in ((True, False) if raw else (False,))]
    figure = Figure(figsize=(1.6 * (1 + len(columns)) + 0.6, 1.62 * len(images) + 0.4), layout="constrained")
    axes = figure.subplots(len(images), 1 + len(columns), squeeze=False)
    for row, image in enumerate(images):
        for axis in axes[row]:
            bare(axis)
        draw_image(axes[row, 0], image)
        for axis, (name, alone) in zip(axes[row, 1:], columns, strict=True):
            heat = maps[name][row].detach().cpu()
            if alone:
                axis.imshow(heat.numpy(), cmap="plasma", vmin=0, vmax=1)
            else:
                _overlay(axis, image, heat, 0.0, 1.0)
            if row == 0:
                axis.set_title(f"{name}, alone" if alone else name, fontsize=9, color=INK)
        if len(masks) and np.any(masks[row]):
            axes[row, 0].contour(masks[row], levels=[0.5], colors=[OUTLINE], linewidths=1.2)
        if len(titles):
            axes[row, 0].set_ylabel(titles[row], fontsize=8, color=INK)
    return figure


def _view(maps: AttentionMaps, view: str | tuple[int, int]) -> list[torch.Tensor]:
    if view == "class":
        return maps.of_class_token()
    if view == "mean":
        return maps.of_mean_query()
    if isinstance(view, str):
        raise ExplanationError(f'view={view!r} is unknown: "class", "mean", or (row, column) of a patch is expected.')
    return maps.of_patch(*view)


def _draw_grid(
    figure: SubFigure,
    image: np.ndarray,
    grid: tuple[int, int],
    view: str | tuple[int, int],
    label: str,
    top: float | None,
) -> None:
    """The image under its grid, and beneath it the colour scale, up to `top` or, without it, to each map's highest."""
    wide, high = figure.bbox.size / figure.figure.dpi  # inches
    inches = wide * image.shape[0] / image.shape[1]
    rows = figure.add_gridspec(3, 1, height_ratios=(inches, 0.12, max(high - inches - 0.12, 0.01)))
    axis = figure.add_subplot(rows[0])
    bare(axis)
    draw_image(axis, image)
    height, width = image.shape[0] / grid[0], image.shape[1] / grid[1]  # pixels of a patch
    fine = {"colors": OUTLINE, "linewidth": 0.6 if max(grid) <= 32 else 0.2}
    axis.vlines(np.arange(grid[1] + 1) * width - 0.5, -0.5, image.shape[0] - 0.5, **fine)
    axis.hlines(np.arange(grid[0] + 1) * height - 0.5, -0.5, image.shape[1] - 0.5, **fine)
    if not isinstance(view, str):
        place = view[1] * width - 0.5, view[0] * height - 0.5
        axis.add_patch(Rectangle(place, width, height, fill=False, edgecolor="#56B4E9", linewidth=2))
    axis.set_title(f"{grid[0]} × {grid[1]} = {grid[0] * grid[1]} patches", fontsize=9, color=INK)
    drawn, extend = ScalarMappable(Normalize(0, top or 1), HEAT), "max" if top else "neither"
    bar = figure.colorbar(drawn, cax=figure.add_subplot(rows[1]), orientation="horizontal", extend=extend)
    if not top:
        bar.set_ticks([0, 1], labels=["lowest", "highest of each map"])
        for tick, side in zip(bar.ax.get_xticklabels(), ("left", "right"), strict=True):
            tick.set_horizontalalignment(side)
    _label(bar, label)


def _label(bar: Colorbar, label: str) -> None:
    bar.ax.set_facecolor("0.4")  # as the colours look over a middle grey
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _overlay(axis: Axes, image: np.ndarray, heat: torch.Tensor, low: float, high: float) -> None:
    draw_image(axis, image)
    axis.imshow(upsample(heat, image.shape[:2]).numpy(), cmap=HEAT, vmin=low, vmax=high)
