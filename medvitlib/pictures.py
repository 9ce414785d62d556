"""Figures that show images: samples, patches, pairs, position embeddings. Curves are in `plots`.

Every function returns a matplotlib Figure that belongs to nobody else: a notebook shows it once, a script saves it.
"""

import numpy as np
from matplotlib.figure import Figure, SubFigure

from medvitlib.data import Dataset, Split
from medvitlib.errors import DataError
from medvitlib.plotstyle import COLOURS

INK = "#1b3a57"
OUTLINE = "#E69F00"  # seen on grey, dark and bright


def show_samples(
    dataset: Dataset, per_class: int = 5, seed: int = 0, masks: bool = False, on: Figure | SubFigure | None = None
) -> Figure | SubFigure:
    """A row of images a class, drawn at random, each with its group; with `masks`, the known evidence is outlined."""
    rng = np.random.default_rng(seed)
    rows, columns = len(dataset.classes), per_class
    figure = on or Figure(figsize=(1.9 * columns + 0.5, 2.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for label, name in enumerate(dataset.classes):
        of_class = np.flatnonzero(dataset.labels == label)
        chosen = np.sort(rng.choice(of_class, min(columns, len(of_class)), replace=False))
        for column, axis in enumerate(axes[label]):
            bare(axis)
            if column >= len(chosen):
                axis.set_visible(False)
                continue
            index = int(chosen[column])
            draw_image(axis, dataset.images[index])
            if masks and (mask := dataset.mask(index)) is not None and mask.any():
                axis.contour(mask, levels=[0.5], colors=[OUTLINE], linewidths=1.4)
            axis.set_title(str(dataset.groups[index])[-22:], fontsize=8, color="0.35")
        axes[label, 0].set_ylabel(name, fontsize=11, color=INK)
    return figure


def show_mistakes(dataset: Dataset, called: np.ndarray, sureness: np.ndarray, most: int = 10) -> Figure:
    """The images that were called wrongly, the surest first, each with its class and what it was called.

    Args:
        called: (N,) int, the decision for each image of `dataset`.
        sureness: (N,) the probability of that decision.
        most: of them; where there is none, the figure says so.
    """
    wrong = np.flatnonzero(called != dataset.labels)
    shown = wrong[np.argsort(-sureness[wrong], kind="stable")][:most]
    columns = min(5, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(1.9 * columns + 0.3, 2.3 * rows + 0.4), layout="constrained")
    for axis in figure.subplots(rows, columns, squeeze=False).ravel():
        bare(axis)
        axis.set_visible(False)
    for axis, i in zip(figure.axes, shown, strict=False):
        axis.set_visible(True)
        draw_image(axis, dataset.images[i])
        true, said = (dataset.classes[k] for k in (dataset.labels[i], called[i]))
        axis.set_title(f"{true}\ncalled {said}, {sureness[i]:.2f}", fontsize=8, color=INK)
    figure.suptitle(f"{len(wrong)} of {len(dataset)} called wrongly", fontsize=10, color=INK)
    return figure


def draw_patches(image: np.ndarray, patch_sizes: tuple[int, ...] = (7, 16, 32)) -> Figure:
    """One image under the grids that a Vision Transformer of each patch size would cut it into.

    Args:
        image: (H, W, C) uint8.
        patch_sizes: pixels a side; what is left over at the right and lower edge is shaded.
    """
    height, width = image.shape[:2]
    figure = Figure(figsize=(3.5 * len(patch_sizes), 3.9), layout="constrained")
    for axis, patch in zip(figure.subplots(1, len(patch_sizes), squeeze=False)[0], patch_sizes, strict=True):
        bare(axis)
        draw_image(axis, image)
        rows, columns = height // patch, width // patch
        xs, ys = np.arange(columns + 1) * patch - 0.5, np.arange(rows + 1) * patch - 0.5
        axis.vlines(xs, -0.5, ys[-1], colors=OUTLINE, linewidth=0.6)
        axis.hlines(ys, -0.5, xs[-1], colors=OUTLINE, linewidth=0.6)
        axis.axvspan(xs[-1], width - 0.5, color="k", alpha=0.5)
        axis.axhspan(ys[-1], height - 0.5, color="k", alpha=0.5)
        left = "" if (rows * patch, columns * patch) == (height, width) else "\nedge left over"
        axis.set_title(f"patch {patch}: {rows} × {columns} = {rows * columns} tokens{left}", fontsize=10, color=INK)
    return figure


def patch_sequence(image: np.ndarray, patch: int, first: int = 12) -> Figure:
    """The patches of the middle row as the sequence the transformer reads, each enlarged."""
    if not 1 <= patch <= min(image.shape[:2]):
        raise DataError(f"patch={patch}: expected 1 to {min(image.shape[:2])}, the shorter side of the image.")
    columns = image.shape[1] // patch
    row = (image.shape[0] // patch) // 2
    shown = min(first, columns)
    start = (columns - shown) // 2
    figure = Figure(figsize=(0.85 * shown, 1.15), layout="constrained")
    for offset, axis in enumerate(figure.subplots(1, shown, squeeze=False)[0]):
        column = start + offset
        bare(axis)
        draw_image(axis, image[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch])
        axis.set_title(str(row * columns + column), fontsize=8, color="0.35")
    return figure


def plot_counts(parts: Split) -> Figure:
    """Images and groups per class in each part of a split, side by side."""
    names = {"train": parts.train, "val": parts.val, "test": parts.test}
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    what = "patients" if parts.train.groups_known else "groups (no ids known: one an image)"
    for axis, title in zip(figure.subplots(1, 2, sharey=True), ("images", what), strict=True):
        left = np.zeros(len(names))
        for label, name in enumerate(parts.train.classes):
            chosen = [part.labels == label for part in names.values()]
            counts = np.array(
                [
                    m.sum() if title == "images" else len(set(p.groups[m]))
                    for p, m in zip(names.values(), chosen, strict=True)
                ]
            )
            bars = axis.barh(list(names), counts, left=left, color=COLOURS[label % len(COLOURS)], label=name)
            axis.bar_label(bars, label_type="center", color="white", fontsize=8, fmt=lambda v: f"{v:.0f}" if v else "")
            left += counts
        axis.set_title(title, fontsize=10, color=INK)
        axis.spines[["top", "right", "left"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return figure


def show_recipe(dataset: Dataset, name: str, index: int = 0, draws: int = 6, masks: bool = False) -> Figure:
    """One image as it is, then what an augmentation recipe makes of it; with `masks`, known evidence is outlined."""
    from medvitlib.data import augmented  # torchvision takes a second to import, and no other picture needs it

    one = dataset.subset([index])
    drawn = augmented(one, name)
    figure = Figure(figsize=(1.9 * (draws + 1), 2.1), layout="constrained")
    for draw, axis in enumerate(figure.subplots(1, draws + 1, squeeze=False)[0]):
        drawn.set_epoch(draw)
        shown = drawn if draw else one
        bare(axis)
        draw_image(axis, shown.images[0])
        if masks and (mask := shown.mask(0)) is not None and mask.any():
            axis.contour(mask, levels=[0.5], colors=[OUTLINE], linewidths=1.4)
        axis.set_title(f"draw {draw}" if draw else "as it is", fontsize=8, color="0.35")
    figure.axes[0].set_ylabel(name, fontsize=11, color=INK)
    return figure


def plot_position_embedding(
    embedding: np.ndarray, grid: tuple[int, int], resized: np.ndarray, new_grid: tuple[int, int]
) -> Figure:
    """How alike the position of one patch is to every other, before and after the embedding is resized.

    Args:
        embedding: (h * w, D) of the patch grid, without the class token; resized: the same for `new_grid`.
    """
    figure = Figure(figsize=(9.4, 3.4), layout="constrained")
    axes = figure.subplots(1, 4)
    places = ((0.3, 0.3), (0.5, 0.75))
    for half, (table, (h, w), name) in enumerate(((embedding, grid, "stored"), (resized, new_grid, "resized to"))):
        unit = table / np.linalg.norm(table, axis=1, keepdims=True)
        for axis, (y, x) in zip(axes[2 * half : 2 * half + 2], places, strict=True):
            row, column = int(y * h), int(x * w)
            likeness = (unit @ unit[row * w + column]).reshape(h, w)
            drawn = axis.imshow(likeness, cmap="cividis", vmin=-0.2, vmax=1)
            axis.plot(column, row, "o", markerfacecolor="none", markeredgecolor="white", markersize=9)
            axis.set_title(f"{name} {h} × {w}\npatch in row {row}, column {column}", fontsize=9, color=INK)
            bare(axis)
    figure.colorbar(drawn, ax=axes, shrink=0.75, label="cosine similarity")
    return figure


def draw_image(axis, image: np.ndarray) -> None:
    """An image (H, W, C) on an axis; a small one with its pixels visible."""
    grey = image.shape[2] == 1
    small = max(image.shape[:2]) < 64
    axis.imshow(
        image[..., 0] if grey else image,
        cmap="gray" if grey else None,
        vmin=0,
        vmax=255,
        interpolation="nearest" if small else "antialiased",
    )


def bare(axis) -> None:
    """No ticks and no frame."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
