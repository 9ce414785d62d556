"""Public sets that this library has facts about. What is not known for certain is left empty, not guessed."""

import re
from dataclasses import dataclass

UNKNOWN = "not known"


@dataclass(frozen=True)
class KnownSet:
    """One set, and the facts that messages, reports and `medvit data` show.

    Args:
        title: what it is.
        kaggle: OWNER/NAME on Kaggle; NAME alone where the owner is not known; "" if it is not there.
        classes: names of its class folders, by which it is recognised; empty where its content is not known.
        positive: the class that a report calls positive, of a two-class set.
        images: how many were published.
        bytes: size of the download.
        rendered: the family of rendered images to practise on while the set is not there.
    """

    title: str
    kaggle: str
    classes: tuple[str, ...] = ()
    positive: str | None = None
    images: int | None = None
    bytes: int | None = None
    licence: str = UNKNOWN
    citation: str = UNKNOWN
    rendered: str = "phantom/cxr"

    @property
    def page(self) -> str:
        """Where a person downloads it, "" if that is not known."""
        return f"https://www.kaggle.com/datasets/{self.kaggle}" if "/" in self.kaggle else ""

    @property
    def origin(self) -> str:
        """Where it would come from, in a few words; "" if that is not known."""
        return f"Kaggle {self.kaggle if self.page else f'OWNER/{self.kaggle}'}" if self.kaggle else ""


KNOWN = {
    "chest_xray": KnownSet(
        title="paediatric chest X-rays",
        kaggle="paultimothymooney/chest-xray-pneumonia",
        classes=("NORMAL", "PNEUMONIA"),
        positive="PNEUMONIA",
        images=5856,
        bytes=2_460_000_000,  # every image twice
        licence="CC BY 4.0",
        citation="Kermany et al. 2018, doi:10.1016/j.cell.2018.02.010",
    ),
    "sarscov2_ct": KnownSet(
        title="lung CT slices, SARS-CoV-2 or not",
        kaggle="plameneduardo/sarscov2-ctscan-dataset",
        classes=("COVID", "non-COVID"),
        positive="COVID",
        images=2482,
        licence="unclear: see its page",
        citation="Soares et al. 2020, doi:10.1101/2020.04.24.20078584",
        rendered="phantom/ct",
    ),
    "blood_cells": KnownSet(
        title="white blood cells, each photograph augmented many times",
        kaggle="paultimothymooney/blood-cells",
        classes=("EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE", "NEUTROPHIL"),
        images=12_444,  # TRAIN and TEST; TEST_SIMPLE has 71 more
        licence="MIT",
        citation="Mooney 2018, from BCCD, github.com/Shenggan/BCCD_Dataset",
        rendered="phantom/wbc4",
    ),
    "reticulocytes": KnownSet(
        title="red cells stained for reticulocytes",
        kaggle="",
        classes=("BG", "erythrocyte", "reticulocyte"),
        rendered="phantom/blood3",
    ),
    "human-dataset-transformer-models": KnownSet(
        title="a private set; it opens as any folder does",
        kaggle="human-dataset-transformer-models",
    ),
}
"""By the name that `open_dataset` takes, in any case."""


def plain(name: str) -> str:
    """A name for comparing: case, hyphens and blanks make no difference."""
    return re.sub(r"[-\s]", "_", name.casefold())


def known_name(name: str) -> str | None:
    """The name in `KNOWN` of what goes by this name: its own, or Kaggle's with or without the owner."""
    for known, facts in KNOWN.items():
        short = facts.kaggle.rpartition("/")[2]
        names = {known, facts.kaggle, short}
        owner_unknown = short and facts.kaggle == short and name.count("/") == 1
        if plain(name.rpartition("/")[2] if owner_unknown else name) in {plain(one) for one in names if one}:
            return known
    return None


def how_to_get(name: str, place: str) -> list[str]:
    """What to tell a user who lacks a known set: what it is, and how to have it at `place`; one string a line."""
    facts = KNOWN[name]
    images = f"{facts.images:,} images, " if facts.images else ""
    size = f", {facts.bytes / 1e9:.1f} GB to download" if facts.bytes else ""
    lines = [f"{name} is: {facts.title}; {images}licence {facts.licence}{size}; citation: {facts.citation}."]
    if facts.page:
        lines.append(f"Download it from {facts.page} and unpack it to {place}.")
    elif facts.kaggle:
        lines.append(
            f"It is on Kaggle, where its owner can see it: https://www.kaggle.com/datasets/OWNER/{facts.kaggle}; "
            f"download it there and unpack it to {place}."
        )
    else:
        lines.append(f"No page is known that offers it. Put its folders {', '.join(facts.classes)} into {place}.")
    return lines
