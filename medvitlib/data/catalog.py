"""`open_dataset`: the one door, for a folder, a manifest, a set's name, or a rendered family."""

import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medvitlib.data import phantoms
from medvitlib.data.cache import file_hashes, stored_files
from medvitlib.data.dataset import Dataset, Quarantined
from medvitlib.data.decode import HEAD, SUFFIXES, Window, check_window, content_kind, height_and_width
from medvitlib.data.describe import understood
from medvitlib.data.folder import Listing, Sample, readable, scan
from medvitlib.data.groups import assign_groups
from medvitlib.data.loading import Images
from medvitlib.data.masks import evidence
from medvitlib.data.metadata import columns_of, with_metadata
from medvitlib.data.sources import huggingface, medmnist
from medvitlib.data.sources.arrays import Opened, read_npz
from medvitlib.data.sources.finding import find, on_disk
from medvitlib.data.sources.known import KNOWN, known_name, plain
from medvitlib.data.sources.labels import check_positive
from medvitlib.errors import DataError, printable

_told: set[tuple[str, ...]] = set()


def open_dataset(
    source: Any,
    *,
    image_size: int | tuple[int, int] = 224,
    root: str | Path | None = None,
    positive: str | None = None,
    groups: str | Path | None = None,
    max_bad: float = 0.05,
    layout: str | None = None,
    metadata: str | Path | None = None,
    window: tuple[float, float] | None = None,
    quiet: bool = False,
    **options,
) -> Dataset:
    """Open a data set, and print how it was understood (`Dataset.describe`); a rendered one has nothing to understand.

    The first time its images are decoded and kept (see `medvitlib.data.cache`).

    Args:
        source: a folder or CSV manifest (layouts in `medvitlib.data.folder`); the name of a set in a data root
            (`"chest_xray"`, `"paultimothymooney/blood-cells"`, `"medmnist/pathmnist@64"`: `medvit data` lists them); a
            rendered family (`"phantom/cxr"`); an .npz archive in MedMNIST's layout (`medvitlib.data.sources.arrays`);
            or a `datasets` object (`medvitlib.data.sources.huggingface`). Case makes no difference.
        image_size: side, or (height, width), in pixels. Images are stretched to it.
        root: a folder searched for names before `$MEDVIT_DATA`, `data/`, `/kaggle/input` and the cache folder.
        positive: the positive class of a two-class set; known for `chest_xray`, `sarscov2_ct`, `phantom/cxr` and
            MedMNIST's. Where an image can have several findings, the one to tell from its absence.
        groups: which images belong together: a side-car CSV, a pattern's name, or a regular expression
            (`medvitlib.data.groups.assign_groups`); None finds out by itself.
        max_bad: share of unusable images above which an error is raised instead of a warning.
        layout: of a folder that could be read in two ways, which is refused otherwise: "CLASS" (the first folders are
            the classes) or "*/CLASS" (those below are).
        metadata: a CSV with a column that names the file and any others (sex, scanner, hospital): `Dataset.metadata`,
            beside a manifest's own columns and the fields of DICOM headers.
        window: of images of more than 8 bits, the values shown as black and as white, alike in all of them; None
            stretches each from its own lowest value to its highest. In DICOM files, of rescaled values, used instead
            of the file's window. A model that is trained on them keeps it for new images.
        quiet: print nothing. The same set is described once only.
        options: of a rendered family, see `medvitlib.data.phantoms.PhantomOptions`; image_column, label_column and
            group_column of a `datasets` object.

    Returns:
        a Dataset. Unusable files are in its `quarantine`, and summed up in one warning.

    Raises:
        DataError: if nothing is found, if what is found has no classes, or too much of it is unusable.
    """
    size = height_and_width(image_size)
    if str(source).lower().startswith("phantom/"):
        if any(value is not None for value in (groups, root, layout, metadata, window)):
            raise DataError(
                f"{source} is rendered: it takes no groups, root, layout, metadata or window. It takes "
                f"{phantoms.options()}."
            )
        return phantoms.render(str(source).lower(), size, positive=positive, **options)
    if not 0 <= max_bad <= 1:
        raise DataError(f"max_bad={max_bad}: expected a share between 0 and 1.")
    window = check_window(window)
    opened = _opened(source, size, root, positive, options, layout, window)
    for name, value in (("layout", layout), ("metadata", metadata), ("window", window)):
        if value is not None and opened.whole and (name != "window" or not str(source).lower().endswith(".npz")):
            raise DataError(f"{name}={value!r} is for a folder or a manifest; {opened.name} is neither.")
    listing, hashes, decoded = opened.listing, opened.hashes, opened.decoded
    clashes = _filed_twice(listing.samples, hashes)
    if opened.whole and clashes:
        i = min(clashes)
        note = (
            f"{listing.samples[i].id}, {clashes[i]}: {len(clashes)} such images are kept, so that the parts stay whole."
        )
        listing = replace(listing, notes=list(dict.fromkeys([*listing.notes, note])))  # once, of a saved set
    reasons = decoded.reasons if opened.whole else clashes | decoded.reasons
    quarantine = [Quarantined(readable(str(listing.samples[i].path)), reasons[i]) for i in sorted(reasons)]
    _judge(listing, quarantine, max_bad)
    quarantine += [Quarantined(readable(str(path)), _why_left(path)) for path in listing.side_files]
    good = np.array([i for i in range(len(listing.samples)) if i not in reasons])
    # last, so that a file that is left out anyway needs no group; what was decoded by then is kept
    listing = replace(listing, samples=[listing.samples[i] for i in good])
    listing = listing if opened.whole else with_metadata(listing, metadata)
    listing, groups_known = assign_groups(listing, groups)
    samples, number = listing.samples, {name: k for k, name in enumerate(opened.classes)}
    columns = columns_of(samples)
    about = understood(opened.name, listing, decoded, quarantine, columns, groups_known, window)
    if not quiet and (told := (about[0], *about[2:])) not in _told:  # at another size it is the same set
        _told.add(told)
        print(*about, sep="\n")
    return Dataset(
        name=opened.name,
        classes=opened.classes,
        positive=positive or opened.positive,
        ids=np.array([sample.id for sample in samples]),
        labels=np.array([number[sample.label] for sample in samples], dtype=np.int64),
        groups=np.array([sample.group for sample in samples]),
        groups_known=groups_known,
        splits=np.array([sample.split for sample in samples]),
        hashes=np.array(hashes)[good],
        images=Images(decoded, good),
        quarantine=quarantine,
        notes=[printable(note) for note in listing.notes],
        mask_of=partial(evidence, listing.masks, size) if listing.masks else None,
        files=None if opened.whole else np.array([str(sample.path) for sample in samples]),
        metadata={name: np.array(values) for name, values in columns.items()},
        window=window,
        about=about,
    )


def _opened(
    source: Any,
    size: tuple[int, int],
    root: str | Path | None,
    positive: str | None,
    options: dict,
    layout: str | None,
    window: Window,
) -> Opened:
    """Samples, classes and decoded images, from whatever kind of source it is."""
    if huggingface.is_datasets(source):
        if root is not None or (unknown := set(options) - {"image_column", "label_column", "group_column"}):
            given = "root" if root is not None else sorted(unknown)
            raise DataError(f"{given}: a datasets object takes image_column, label_column and group_column.")
        return huggingface.read_datasets(source, size, positive=positive, **options)
    if options:
        raise DataError(f"{sorted(options)}: options of rendered sets (phantom/...), not of {source}.")
    if not isinstance(source, str | Path):
        raise DataError(f"source is a {type(source).__name__}: expected a path, a name, or a datasets object.")
    if "://" in str(source):
        raise DataError(f"{source} is an address: download what is there, and pass the path of the file or folder.")
    if str(source).lower().endswith(".npz"):
        path = on_disk(source)
        return read_npz(path, size, positive=positive, facts=medmnist.facts_of_file(path), window=window)
    if str(source).lower().startswith(medmnist.PREFIX) and not Path(source).exists():
        return medmnist.open_medmnist(str(source), size, root, positive)
    place, name = find(source, root)
    listing = scan(place, layout)
    classes, known, usual = sorted({sample.label for sample in listing.samples}), KNOWN.get(name), None
    if known and known.positive:  # its folders may be spelled in another case
        usual = next((label for label in classes if plain(label) == plain(known.positive)), None)
    if known and not any(known_name(part) == name for part in place.parts):
        listing.notes.append(f"{place} was taken for {name}, because of its class folders.")
    listing.notes.extend(wrong_endings(listing.samples))
    check_positive(positive, classes, str(place))
    paths = [sample.path for sample in listing.samples]
    hashes = file_hashes(paths)
    return Opened(name, listing, classes, usual, hashes, stored_files(paths, hashes, size, window), whole=False)


def wrong_endings(samples: list[Sample]) -> list[str]:
    """Say how many files are of another format than their names claim, and of which classes."""
    found: dict[tuple[str, str], Counter] = {}
    for sample in samples:
        claimed = SUFFIXES.get(sample.path.suffix.lower())
        if claimed is None:
            continue
        with suppress(OSError), open(sample.path, "rb") as file:
            kind = content_kind(file.read(HEAD))
            if kind not in (None, claimed):
                found.setdefault((claimed, kind), Counter())[sample.label] += 1
    return [
        f"{counts.total()} files named {claimed} are {kind} ({', '.join(f'{n} of {c}' for c, n in counts.items())}): "
        "they were read as what they are."
        for (claimed, kind), counts in found.items()
    ]


def _why_left(path: Path) -> str:
    if path.name.upper() == "DICOMDIR":
        return "the index of a disc, which has no picture"
    return f"not an image: its name ends in {path.suffix}"


def _filed_twice(samples: list[Sample], hashes: list[str]) -> dict[int, str]:
    """Byte-identical files under different classes: one label at least is wrong, and nobody knows which."""
    first: dict[str, int] = {}
    clashes: dict[str, int] = {}
    for i, digest in enumerate(hashes):
        j = first.setdefault(digest, i)
        if digest and samples[i].label != samples[j].label:
            clashes.setdefault(digest, i)
    reasons = {}
    for i, digest in enumerate(hashes):
        if digest in clashes:
            other = samples[first[digest] if samples[i].label != samples[first[digest]].label else clashes[digest]]
            reasons[i] = f"mislabelled: the same image is filed under {other.label} as {other.id}"
    return reasons


def _judge(listing: Listing, quarantine: list[Quarantined], max_bad: float) -> None:
    bad, total = len(quarantine), len(listing.samples)
    first = "\n".join(printable(f"  {q.path}: {q.reason}") for q in quarantine[:5])
    if bad == total or bad > max_bad * total:
        raise DataError(
            f"{bad} of {total} images in {listing.folder} cannot be used ({bad / total:.1%}, above {max_bad:.0%}):\n"
            f"{first}\nRepair or remove them, or pass a larger max_bad (a share; now {max_bad}) to leave them out."
        )
    set_aside = bad + len(listing.side_files)
    if set_aside:
        names = [f"{Path(q.path).name} ({q.reason})" for q in quarantine]
        names += [f"{readable(path.name)} (not an image)" for path in listing.side_files]
        warnings.warn(
            f"{set_aside} of {total + len(listing.side_files)} files in {printable(listing.folder)} are left out: "
            f"{printable('; '.join(names[:3]))}{'; ...' if set_aside > 3 else ''}. All are listed in the data set's "
            "`quarantine`.",
            stacklevel=3,
        )
