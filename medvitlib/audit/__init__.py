"""Is my data safe to report on? Copies, leaks, shortcuts and doubtful labels of a data set, in one call.

    audit(open_dataset("my_images", image_size=224)).save(folder)

It stands above all other rooms but `evaluate`, for it needs a data set, a pretrained network and intervals.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from medvitlib.audit import measures
from medvitlib.audit.findings import Finding, findings, some
from medvitlib.audit.leaks import agreement, counts, overlap, pair_table, suspects
from medvitlib.data import Dataset
from medvitlib.data.near import CERTAIN, KINDS, near_duplicates
from medvitlib.data.splits import joined
from medvitlib.errors import DataError, printable
from medvitlib.evaluation import Estimate
from medvitlib.evaluation.result import jsonable
from medvitlib.jsonfile import write_json
from medvitlib.paths import runs_dir

__all__ = ["Audit", "Finding", "agreement", "audit"]


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found.

    Args:
        dataset: what was audited.
        pairs: near-duplicates, one row a pair (`medvitlib.audit.leaks.pair_table`).
        clusters: int (N,): which images the pairs connect.
        units: int (N,): what is independent of each other: groups, joined by copies; clusters where groups are unknown.
        counts: images and units a class and official part.
        files: sizes, modes and bytes of the files a class; None where the images are not files.
        baselines: AUROC of each shortcut, out of fold and by unit; a sentence where there is none.
        gap: one classifier on the embedding, cross-validated "by image", "by cluster" and (where groups are known) "by
            unit": its "auroc" and "accuracy" each time; None where a class has too few units.
        difference: of the first and the last of these AUROCs, the same units drawn for both; None without `gap`.
        suspects: candidates for a wrong label, the clearest first.
        network: what the features are, or that they are thumbnails, and why.
    """

    dataset: Dataset
    pairs: pd.DataFrame
    clusters: np.ndarray
    units: np.ndarray
    counts: pd.DataFrame
    files: pd.DataFrame | None
    baselines: dict[str, Estimate | str]
    gap: dict[str, dict[str, Estimate]] | None
    difference: Estimate | None
    suspects: pd.DataFrame
    network: str

    @property
    def mixed_groups(self) -> int:
        """Known groups with images of more than one class."""
        if not self.dataset.groups_known:
            return 0
        pairs = pd.DataFrame({"group": self.dataset.groups, "label": self.dataset.labels}).drop_duplicates()
        return int((pairs.group.value_counts() > 1).sum())

    @property
    def findings(self) -> list[Finding]:
        """In plain sentences, the one that can inflate a result most first."""
        return findings(self)

    def table(self) -> pd.DataFrame:
        """Every check and what it found, one row each."""
        ds, how = self.dataset, self.pairs.how.value_counts()
        shared = overlap(ds.splits, ds.groups)
        copied = overlap(ds.splits, self.clusters)
        rows = {
            "images": f"{len(ds)} of {len(ds.classes)} classes",
            "files left out": str(len(ds.quarantine)),
            "groups": self._groups(),
            "independent units": str(int(self.units.max()) + 1),
            **{kind: some(int(how.get(kind, 0)), "pair") for kind in KINDS},
            "near-duplicates across classes": some(int(self.pairs.across.str.contains("classes").sum()), "pair"),
            "near-duplicates across groups": some(int(self.pairs.across.str.contains("groups").sum()), "pair")
            if ds.groups_known
            else "groups not known",
            **({"clusters against groups": self._recovery()} if ds.groups_known else {}),
            "images of groups in two parts": _shared(shared)
            if ds.groups_known or shared.shared.any()
            else "groups not known",
            "images of clusters in two parts": _shared(copied),
            **{f"AUROC of {name} alone": str(value) for name, value in self.baselines.items()},
            **{f"AUROC of features, {name}": str(value["auroc"]) for name, value in (self.gap or {}).items()},
            "AUROC by image less by unit": str(self.difference or "not measured"),
            "labels in doubt": f"{len(self.suspects)} images",
        }
        return pd.DataFrame({"found": rows})

    def _groups(self) -> str:
        if not self.dataset.groups_known:
            return "not known"
        sizes = np.unique(self.dataset.groups, return_counts=True)[1]
        return f"{len(sizes)}; several images: {(sizes > 1).sum()}, several classes: {self.mixed_groups}"

    def _recovery(self) -> str:
        precision, recall = agreement(self.clusters, self.dataset.groups)
        return f"precision {precision:.3f}, recall {recall:.3f}"

    def gap_table(self) -> pd.DataFrame:
        """What one classifier seems to reach, by what its folds keep together; empty without `gap`."""
        rows = {name: {figure: str(value) for figure, value in row.items()} for name, row in (self.gap or {}).items()}
        return pd.DataFrame.from_dict(rows, orient="index")

    def __str__(self) -> str:
        tables = [self.table().to_string(header=False), self.counts.to_string(index=False)]
        tables += [] if self.files is None else [self.files.to_string()]
        lines = [repr(self.dataset), *(f"Note: {note}" for note in self.dataset.notes)]
        lines += [f"Features: {self.network}.", ""]
        lines += [line for table in tables for line in (table, "")]
        texts = [printable(finding.text) for finding in self.findings]
        lines += [f"{k}. {text}" for k, text in enumerate(texts, 1)] or ["Nothing was found."]
        return printable("\n".join(lines), keep="\n")

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return {
            "dataset": {
                "name": self.dataset.name,
                "classes": self.dataset.classes,
                "images": len(self.dataset),
                "fingerprint": self.dataset.fingerprint,
                "quarantine": [vars(bad) for bad in self.dataset.quarantine],
            },
            "network": self.network,
            "table": self.table().found.to_dict(),
            "findings": [vars(finding) for finding in self.findings],
            "baselines": jsonable(self.baselines),
            "gap": jsonable(self.gap),
            "difference": jsonable(self.difference),
            "counts": jsonable(self.counts.to_dict("records")),
            "files": None if self.files is None else jsonable(self.files.reset_index().to_dict("records")),
            "pairs": jsonable(self.pairs.drop(columns=["a", "b"]).to_dict("records")),
            "suspects": jsonable(self.suspects.drop(columns="i").to_dict("records")),
        }

    def save(self, folder: str | Path | None = None) -> Path:
        """Write audit.json, audit.txt, contact_sheet.png (pairs), suspects.png and shortcuts.png; returns the folder.

        Args:
            folder: None for `audit-NAME` in the runs folder.

        Raises:
            DataError: if the folder cannot be written to.
        """
        from medvitlib.audit import sheets

        folder = Path(folder) if folder else runs_dir() / f"audit-{self.dataset.name.replace('/', '-')}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "audit.json", self.to_dict())
            (folder / "audit.txt").write_text(f"{self}\n")
            drawn = {"shortcuts": sheets.plot_shortcuts(self)}
            if len(self.pairs):
                drawn["contact_sheet"] = sheets.show_pairs(self)
            if len(self.suspects):
                drawn["suspects"] = sheets.show_suspects(self)
            for name in ("shortcuts", "contact_sheet", "suspects"):
                (folder / f"{name}.png").unlink(missing_ok=True)  # of an earlier audit
                if name in drawn:
                    drawn[name].savefig(folder / f"{name}.png", dpi=100)
        except OSError as error:
            raise DataError(
                f"the audit cannot be written to {folder}: {error.strerror or error}. Name another folder."
            ) from error
        return folder


def audit(ds: Dataset, *, weights: str | None = "auto", n_boot: int = 500) -> Audit:
    """Look for everything that makes a result on this data set better than it deserves to be.

    Args:
        ds: best opened at 224 pixels: near-duplicates are proven by detail.
        weights: of the pretrained network, as `build` takes them; None does without, on thumbnails.
        n_boot: replicates of each interval.

    Raises:
        DataError: for a data set with fewer than two images or two classes.
    """
    if len(ds) < 2 or len(np.unique(ds.labels)) < 2:
        raise DataError(f"{ds.name!r} has {len(ds)} images of {len(np.unique(ds.labels))} classes: nothing to compare.")
    ds = _of_classes_that_have_images(ds)
    files = measures.headers(ds)
    cells, colours = measures.thumbnails(ds)
    features, network = measures.embedding(ds, weights)
    pairs = near_duplicates(ds)
    clusters = pairs.clusters(len(ds))
    # two patients can be very alike, so that only copies join them; an image of an unknown group stands for itself
    joining = pairs.take(np.isin(pairs.how, CERTAIN)) if ds.groups_known else pairs
    units = joined(joining.clusters(len(ds)), ds.hashes, ds.groups)

    together = {"by image": np.arange(len(ds)), "by cluster": clusters, "by unit": units}
    # where nothing is shared they are the same, and so is what comes of them
    keys = {name: values.astype(int).tobytes() for name, values in together.items()}
    cuts: dict[bytes, list | None] = {}
    for name, key in keys.items():
        if key not in cuts:
            cuts[key] = measures.folds(ds.labels, together[name])

    baselines: dict[str, Estimate | str] = {}
    shortcuts = measures.shortcut_features(cells, colours, files) | measures.metadata_features(ds)
    for name, x in shortcuts.items():
        p = None if isinstance(x, str) else measures.out_of_fold(x, ds.labels, cuts[keys["by unit"]])
        why = x if isinstance(x, str) else f"a class has fewer than {measures.FOLDS} independent units"
        baselines[name] = why if p is None else measures.figures(ds, p, units, n_boot)["auroc"]
    x = np.hstack([cells.reshape(len(ds), -1), colours]) if features is None else features
    if not ds.groups_known and units.max() == clusters.max():
        keys.pop("by unit")  # no group is known: the clusters, then
    found = {key: measures.out_of_fold(x, ds.labels, cuts[key]) for key in dict.fromkeys(keys.values())}
    folds = {name: found[key] for name, key in keys.items()}
    gap, difference, judged = None, None, folds[list(folds)[-1]]
    if judged is not None:
        gap = {name: measures.figures(ds, p, units, n_boot) for name, p in folds.items()}
        difference = measures.difference(ds, folds["by image"], judged, units, n_boot)
    doubtful = suspects(ds, np.eye(len(ds.classes))[ds.labels] if judged is None else judged)
    return Audit(
        dataset=ds,
        pairs=pair_table(ds, pairs),
        clusters=clusters,
        units=units,
        counts=counts(ds, units),
        files=None if files is None else _files(ds, files),
        baselines=baselines,
        gap=gap,
        difference=difference,
        suspects=doubtful,
        network=network if features is not None else f"thumbnails: {network}",
    )


def _of_classes_that_have_images(ds: Dataset) -> Dataset:
    """All files of a class may be broken; nothing can be measured of it."""
    present, labels = np.unique(ds.labels, return_inverse=True)
    if len(present) == len(ds.classes):
        return ds
    classes = [ds.classes[label] for label in present]
    note = f"no image of {', '.join(name for name in ds.classes if name not in classes)} could be used."
    positive = ds.positive if ds.positive in classes else None
    return replace(ds, classes=classes, labels=labels, positive=positive, notes=[*ds.notes, note])


def _files(ds: Dataset, files: list[measures.Header]) -> pd.DataFrame:
    """Sizes, aspect, modes and bytes a class."""
    table = pd.DataFrame([vars(file) for file in files])
    table["class"], table["aspect"] = np.array(ds.classes)[ds.labels], table.width / table.height.clip(lower=1)
    return table.groupby("class").agg(
        height=("height", _range),
        width=("width", _range),
        aspect=("aspect", lambda a: f"{a.min():.2f} to {a.max():.2f}"),
        modes=("mode", lambda m: ", ".join(f"{n} {mode}" for mode, n in m.value_counts().items())),
        median_bytes=("size", "median"),
    )


def _range(values: pd.Series) -> str:
    return str(values.min()) if values.min() == values.max() else f"{values.min()} to {values.max()}"


def _shared(table: pd.DataFrame) -> str:
    found = [f"{row.images} {row.other}/{row.one}" for row in table.itertuples() if row.shared]
    return ", ".join(found) or ("none" if len(table) else "no official split")
