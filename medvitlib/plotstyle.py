"""What the curves in `plots` share: size, colours, axes, titles, a key beside the axes."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

SIZE = (6.0, 4.5)  # inches; at DPI that is a README column
DPI = 120
BLUE, VERMILION, GREEN, GREY, PALE = "#0072B2", "#D55E00", "#009E73", "#6B6B6B", "#BFD9EA"
COLOURS = (
    BLUE,
    VERMILION,
    GREEN,
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)  # Okabe and Ito: safe for colour-blind eyes
DASHES = ("-", "--", ":")  # one for each round through the colours
MARKERS = ("o", "s", "D", "^", "v", "P")
BROKEN = (0, (4, 3))


def canvas(on: Figure | SubFigure | None, size: tuple[float, float] = SIZE) -> Figure | SubFigure:
    """`on`, or a new figure that pyplot does not know of."""
    return Figure(figsize=size, dpi=DPI, layout="constrained") if on is None else on


def clean(ax: Axes) -> None:
    """Leave the two axes that carry numbers, and a light grid."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92", lw=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=9)


def headline(ax: Axes, title: str, caption: str) -> None:
    """A title at the left with n, or whatever else must be known to read the figure, beneath it."""
    ax.set_title(f"{title}\n", loc="left", fontsize=11, fontweight="bold", pad=5)
    ax.annotate(
        caption, (0, 1), (0, 6), "axes fraction", "offset points", fontsize=8.5, color=GREY, annotation_clip=False
    )


def key(figure: Figure | SubFigure, *axes: Axes, title: str | None = None) -> None:
    """One legend for all `axes`, to their right, where it hides nothing."""
    handles, labels = zip(
        *(pair for ax in axes for pair in zip(*ax.get_legend_handles_labels(), strict=True)), strict=True
    )
    figure.legend(
        handles,
        labels,
        loc="outside right upper",
        frameon=False,
        fontsize=8.5,
        title=title,
        title_fontsize=8.5,
        alignment="left",
        labelspacing=0.7,
        handlelength=1.6,
    )


def line_style(index: int, of: int = 1) -> dict:
    """Colour, dash and width of the index-th of `of` curves; the fewer, the wider."""
    dash = DASHES[index // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[index % len(COLOURS)], "ls": dash, "lw": 1.8 if of < 4 else 1.3}
