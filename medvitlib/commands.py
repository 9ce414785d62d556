"""What each sub-command of `medvit` does: call a function of the library, print what it returns, give the exit status.

What they need is imported when they run: the command starts at once.
"""

import argparse
import shlex
import sys
import textwrap
from pathlib import Path

from medvitlib.errors import MedvitError, printable

DESCRIBED = 96
"""Pixels a side at which a set is opened to be described."""


def doctor(options: argparse.Namespace) -> int:
    from medvitlib.doctor import examine, render

    rows = examine()
    print(render(rows))
    return 1 if any(row.status == "fail" for row in rows) else 0


def clean(options: argparse.Namespace) -> int:
    from medvitlib.paths import removable, remove

    found = removable(weights=options.weights)
    for one in found:
        print(f"{one.size / 1e6:10,.1f} MB  {one.kind}: {one.path}")
    if options.dry_run or not found:
        print("Nothing was removed." if found else "There is nothing to remove.")
        return 0
    if not options.yes:
        if not sys.stdin.isatty():
            print("Nothing was removed: no terminal to ask for confirmation. Pass --yes to remove all of these.")
            return 1
        if input("Remove all of these? What is needed again is made again. [y/N] ").strip().lower() not in ("y", "yes"):
            print("Nothing was removed.")
            return 0
    for one in found:
        if why := remove(one):
            print(f"left: {one.path}: {why}")
    freed = sum(one.size for one in found) - sum(one.size for one in removable(weights=options.weights))
    print(f"{freed / 1e6:,.1f} MB removed.")
    return 0


def data(options: argparse.Namespace) -> int:
    from medvitlib.data.sources.listing import WIDTH, render, rows
    from medvitlib.doctor import check_data

    for row in check_data():
        print(
            textwrap.fill(row.detail, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
        )
    print()
    print(render(rows()))
    print("\nTo have one that is not here: medvit fetch NAME. Rendered sets (phantom/...) are always here.")
    return 0


def describe(options: argparse.Namespace) -> int:
    from medvitlib.data import open_dataset
    from medvitlib.data.describe import page

    ds = open_dataset(options.data, image_size=DESCRIBED, **_opening(options))
    if not ds.about:  # rendered
        print(ds)
    if options.html:
        try:
            Path(options.html).write_text(page(ds), encoding="utf-8")
        except OSError as error:
            raise MedvitError(f"{options.html} cannot be written: {error.strerror}.") from None
        print(f"with thumbnails: {options.html}")
    return 0


def _opening(options: argparse.Namespace) -> dict:
    """What was asked of `open_dataset` (`cli._data_options`)."""
    chosen = {name: getattr(options, name) for name in ("positive", "groups", "layout", "metadata", "max_bad")}
    if window := getattr(options, "window", None):
        chosen["window"] = window.split(",")
    return chosen


def fetch(options: argparse.Namespace) -> int:
    from medvitlib.data.sources.fetching import fetch

    print(fetch(options.name))
    return 0


def audit(options: argparse.Namespace) -> int:
    from medvitlib.audit import audit
    from medvitlib.data import open_dataset

    rendered = {"leaky": True} if options.leaky else {}
    ds = open_dataset(options.data, image_size=options.size, **_opening(options), **rendered)
    found = audit(ds, weights=None if options.no_network else "auto")
    print(found)
    print(f"\nPictures and audit.json: {found.save(options.out)}")
    return 0


def train(options: argparse.Namespace) -> int:
    from medvitlib.train import EXAMPLE, train
    from medvitlib.training import parallel

    if options.example:
        print(EXAMPLE, end="")
        return 0
    if not options.config:
        raise MedvitError("Name a training file: medvit train CONFIG.yaml (medvit train --example prints one).")
    try:
        run, report = train(options.config, force=options.force, deterministic=options.deterministic)
    except MedvitError:
        if parallel.first_to_fail():
            raise
        return 1
    except (KeyboardInterrupt, SystemExit) as stopped:  # SystemExit: after SIGTERM
        if parallel.rank():  # of several processes the first answers for all
            return 0
        print(f"medvit: stopped. To continue: medvit train {shlex.quote(options.config)}", file=sys.stderr)
        return 130 if isinstance(stopped, KeyboardInterrupt) else stopped.code
    if run is None:
        return 0
    print("", *report.sentences(), "", f"{report.headline()} The run, report.json and plots: {run.folder}", sep="\n")
    print(f"Next: medvit predict {shlex.quote(run.folder.name)} IMAGE ...")
    return 0


def evaluate(options: argparse.Namespace) -> int:
    from medvitlib.data import open_dataset
    from medvitlib.data.sources.medmnist import is_ordered
    from medvitlib.evaluate import evaluate_saved, own_part
    from medvitlib.models.convert import load_converted
    from medvitlib.models.saved import load_model, model_folder
    from medvitlib.paths import runs_dir

    given = _converted(options)
    folder = Path(options.model) if given else model_folder(options.model)
    _, info = load_converted(folder, **given, quiet=True) if given else load_model(folder)
    size = tuple(info["preprocessing"]["image_size"])
    ds = open_dataset(options.data, image_size=size, window=info["preprocessing"].get("window"), **_opening(options))
    part = options.part or ("test" if (ds.splits == "test").any() else "all")
    official = (ds.splits != "").any()
    ds = own_part(folder, ds, part)
    name = f"evaluate-{folder.absolute().name}-{ds.name.replace('/', '-')}"
    out = Path(options.out) if options.out else runs_dir() / name
    ordered = options.ordered or is_ordered(options.data)
    ordered = [name.strip() for name in ordered.split(",")] if isinstance(ordered, str) else ordered
    asked = {"ordered": ordered, "device": options.device}
    report = evaluate_saved(folder, ds, out=out, **given, **asked)
    words = (
        "all images"
        if part == "all"
        else f"the {'official ' if official else ''}{part} part{'' if official else ' of the run'}"
    )
    print(f"{folder.name} on {words} of {ds.name}:", *report.sentences(), sep="\n")
    print(f"\nreport.json, predictions.csv and plots: {out}")
    return 0


def predict(options: argparse.Namespace) -> int:
    from medvitlib.predict import NOTICE, Predictor, summary, written

    given = _converted(options)
    predictor = Predictor(options.model, threshold=options.threshold, device=options.device, **given)
    asked = {"batch_size": options.batch_size, "allow_private": options.allow_private, "quiet": not options.out}
    answers = predictor.predict(options.images, **asked)
    counts = written(answers, predictor, options.out, options.maps, show=print)
    print("", *summary(counts, predictor), NOTICE, sep="\n")
    return 1 if counts["errors"] == counts["images"] else 0


def _converted(options: argparse.Namespace) -> dict:
    """What `load_converted` needs to know of a checkpoint; nothing for a run."""
    file = Path(options.model)
    if not options.classes:
        if file.is_file() and file.suffix != ".onnx":
            raise MedvitError(f"{file} is a file of weights: name its classes in order, --classes normal,pneumonia.")
        return {}
    return {"classes": [name.strip() for name in options.classes.split(",")], "positive": options.positive}


def export(options: argparse.Namespace) -> int:
    if options.full:
        if options.out or options.int8 or options.calibrate or options.check or options.force:
            raise MedvitError("--full copies a run as it is: the other options are for ONNX. Leave them out.")
        from medvitlib.models.saved import save_whole

        print(save_whole(options.model, options.full))
        return 0
    from medvitlib.export import export

    chosen = {"int8": options.int8, "calibration": options.calibrate, "check": options.check, "force": options.force}
    print(export(options.model, options.out, **chosen))
    return 0


def report(options: argparse.Namespace) -> int:
    from medvitlib.report_page import write_report

    path, board = write_report(options.runs, options.out, metric=options.metric)
    for folder, why in board.skipped.items():
        print(printable(f"left out: {folder}: {why}"))
    evaluated = sum(run.report is not None for run in board.runs.values())
    runs = f"{len(board.runs)} run{'s' if len(board.runs) > 1 else ''}"
    print(f"{runs}, {evaluated} evaluated: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def search_run(options: argparse.Namespace) -> int:
    from medvitlib.search.workers import run_search

    try:
        found = run_search(
            options.study,
            storage=options.storage,
            workers=options.workers,
            retry=options.retry,
            device=options.device,
            precision=options.precision,
        )
    except (KeyboardInterrupt, SystemExit) as stopped:
        print("medvit: stopped. The same command goes on.", file=sys.stderr)
        return 130 if isinstance(stopped, KeyboardInterrupt) else stopped.code
    print(f"\n{found}")
    return 0


def search_show(options: argparse.Namespace) -> int:
    from medvitlib.search.workers import show_search

    print(show_search(options.study, storage=options.storage))
    return 0


def list_weights(options: argparse.Namespace) -> int:
    from medvitlib.models.weights import list_weights

    for row in list_weights(probe=True):
        where = f"{row['on_disk']} ({row['bytes'] / 1e6:.0f} MB)" if row["on_disk"] else "not on disk"
        print(f"{row['name']}\n  {where}\n  licence: {row['licence']}")
        print(f"  can be fetched from: {row['reachable_from'] or 'nowhere that answers now'}")
    return 0


def fetch_weights(options: argparse.Namespace) -> int:
    from medvitlib.models.weights import fetch_weights

    print(fetch_weights(options.name) if options.name else fetch_weights())
    return 0


def convert(options: argparse.Namespace) -> int:
    from medvitlib.models.convert import convert

    print(convert(options.old, options.new, force=options.force, name=options.name, take=options.take))
    return 0
