"""How long does the 27-point grid take, against the loop that a notebook would write? Are the metrics the same?

    python benchmarks/grid.py [--data sarscov2_ct] [--epochs 3] [--workers 2] [--rounds 1] [--values 3]
                              [--images 300] [--json PATH]

The grid is the published one (patches of 8, 16, 32; 1, 2, 4 heads; dropout 0.1, 0.3, 0.5) on the teaching model with
three layers, at 224 px:
    plain       for each point in turn, in one process with every core: files decoded and resized as they are read, in
                each epoch, as a torchvision ImageFolder does; attention written out (a product, a softmax, a product),
                as the published model has it; forward, backward, Adam; validation after each epoch
    fused       the same loop over this library's model, whose attention is one fused operation
    decoded     that loop, which decodes each file once a point and keeps it in memory
    medvitlib   run_search with a new study and an empty cache: decoded once, two processes of one thread each
Each starts in a process of its own, whose start is part of its time. One more, not timed, is the decoded loop on one
thread: with equal seeds and threads every point's metrics must be those of the search. All of it in float32, whatever
else pays on this machine. Prints Markdown.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import turns
from medvitlib.data import Dataset, PhantomOptions, Split, normalise, open_dataset, split
from medvitlib.data.decode import decode, fit
from medvitlib.data.phantoms import picture
from medvitlib.errors import DataError
from medvitlib.models.attention_classifier import SelfAttention
from medvitlib.models.zoo import build
from medvitlib.search.study import Study, read_study
from medvitlib.search.workers import run_search
from medvitlib.training.order import bounds_of, order_of, seed_of
from medvitlib.training.validation import validation_metrics

SIZE, LR, BATCH = 224, 1e-3, 32
GRID = {
    "model.options.patch_size": [32, 16, 8],
    "model.options.heads": [1, 2, 4],
    "model.options.dropout": [0.1, 0.3, 0.5],
}
PEERS = {
    "plain": "that decodes in each epoch, attention written out",
    "fused": "that decodes in each epoch",
    "decoded": "that decodes once a point",
}


def main() -> None:
    parser = turns.parser(__doc__)
    parser.add_argument("--data", help="a data set's name or folder; default: sarscov2_ct if found, else rendered PNGs")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--values", type=int, choices=(1, 2, 3), default=3, help="of each setting: 1, 8 or 27 points")
    parser.add_argument("--images", type=int, default=300, help="how many are rendered")
    parser.add_argument("--part", choices=(*PEERS, "equal", "medvitlib"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part(options)
        return
    page = turns.Page(options)
    with tempfile.TemporaryDirectory() as scratch:
        options.data, what = choose(options.data, Path(scratch), options.images)
        page.say(f"\n{what}; {options.epochs} epochs, {SIZE} px, {options.workers} workers, {options.rounds} rounds")
        found: dict[str, list[dict]] = {}

        def keep(name: str) -> None:
            found[name] = trained(name, options, Path(scratch))

        names = (*PEERS, "medvitlib")
        seconds = turns.in_turns({name: lambda n=name: keep(n) for name in names}, options.rounds, warm_up=0)
        keep("equal")
    columns = {"": "", "seconds, median": ".0f", "times as fast as plain": ".2f"}
    columns |= {"as fused": ".2f", "as decoded": ".2f"}
    rows = [
        (name, statistics.median(took), *(turns.ratio(seconds[peer], took).median for peer in PEERS))
        for name, took in seconds.items()
    ]
    page.table(columns, rows)
    points = f"{options.values**3} points, {options.epochs} epochs"
    for peer, what in PEERS.items():
        speed = turns.ratio(seconds[peer], seconds["medvitlib"])
        page.claim(f"{points}, speed over a loop {what}", speed)
    for theirs, ours in zip(found["equal"], found["medvitlib"], strict=True):
        assert theirs == ours, f"on equal threads the loop found {theirs}, the search {ours}"
    compared = {"equal": "equal threads", "plain": "other threads"}
    for other, how in compared.items():
        for metric in ("val_accuracy", "val_nll"):
            apart = [abs(a[metric] - b[metric]) for a, b in zip(found["medvitlib"], found[other], strict=True)]
            page.say(f"\n{metric} of {len(apart)} points, {how}: largest difference {max(apart):.2g}", end="")
    page.say()
    page.save()


def trained(name: str, options: argparse.Namespace, scratch: Path) -> list[dict]:
    """For each point the metrics of the kept epoch; one process, an empty cache."""
    for folder in ("cache", "runs"):
        shutil.rmtree(scratch / folder, ignore_errors=True)
    environment = os.environ | {
        "MEDVIT_CACHE": str(scratch / "cache"),
        "MEDVIT_RUNS": str(scratch / "runs"),
        "MEDVIT_PROGRESS": os.devnull,
    }
    if name == "equal":
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // options.workers))
    command = [sys.executable, __file__, "--part", name, "--out", str(scratch / "out.json"), "--data", options.data]
    for number in ("epochs", "workers", "values"):
        command += [f"--{number}", str(getattr(options, number))]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return json.loads((scratch / "out.json").read_text())


def part(options: argparse.Namespace) -> None:
    """What one of the processes does."""
    content = asked(options.data, options.epochs, options.values)
    if options.part == "medvitlib":
        table = run_search(content, quiet=True, precision="float32", workers=options.workers).table
        if errors := [error for error in table["error"] if error]:
            sys.exit(errors[0])
        results = [{name: row[name] for name in ("val_accuracy", "val_nll")} for _, row in table.iterrows()]
    else:
        if options.part == "plain":
            SelfAttention.forward = lambda self, x: self.with_weights(x)[0]
        results = plain(read_study(content), once=options.part in ("decoded", "equal"))
    options.out.write_text(json.dumps(results))


def asked(data: str, epochs: int, values: int) -> dict:
    """The study, whose training is what the plain loop does."""
    return {
        "name": "grid",
        "data": {"name": data, "image_size": SIZE, "positive": positive_of(data)},
        "split": {"by": "images"},
        "model": {"name": "transformer_classifier", "weights": None, "options": {"depth": 3, "in_channels": 3}},
        "train": {
            "epochs": epochs,
            "lr": LR,
            "batch_size": BATCH,
            "optimizer": "adam",
            "schedule": "constant",
            "warmup_epochs": 0,
            "weight_decay": 0,
            "clip_norm": 0,
            "metric": "val_accuracy",
        },
        "search": {"space": {name: some[:values] for name, some in GRID.items()}},
    }


def positive_of(data: str) -> str:
    """Its own, or that of the rendered slices."""
    return open_dataset(data, image_size=16).positive or "disease"


def plain(study: Study, once: bool) -> list[dict]:
    """The grid as a notebook would write it; the seeds are those of `fit`, so that its figures can be compared."""
    data = study.content["data"]  # names and labels alone are read here: the pixels come from the files
    dataset = open_dataset(data["name"], image_size=16, positive=data["positive"])
    parts = split(dataset, by="images")
    return [train(study, point, parts, once) for point in study.points]


def train(study: Study, point: dict, parts: Split, once: bool) -> dict:
    """One point: the metrics of the epoch with the best validation accuracy."""
    content, config = study.at(point, 0)
    model = build("transformer_classifier", 2, weights=None, image_size=SIZE, seed=0, **content["model"]["options"])
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    kept: dict[tuple[int, int], torch.Tensor] = {}

    def images(dataset: Dataset, rows) -> torch.Tensor:
        for row in rows if once else ():
            if (id(dataset), row) not in kept:
                kept[id(dataset), row] = read(dataset.files[row])
        return torch.stack([kept[id(dataset), row] if once else read(dataset.files[row]) for row in rows])

    best = {"val_accuracy": -1.0}
    for epoch in range(config.epochs):
        model.train()
        order = order_of(len(parts.train), config.seed, epoch)
        for step, (first, last) in enumerate(bounds_of(len(order), config.batch_size)):
            rows = order[first:last]
            x = normalise(images(parts.train, rows), model.preprocessing)
            torch.manual_seed(seed_of(config.seed, epoch, step))
            loss = F.cross_entropy(model(x), torch.from_numpy(parts.train.labels[rows]))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        with torch.inference_mode():
            logits = [
                model(normalise(images(parts.val, range(i, min(i + BATCH, len(parts.val)))), model.preprocessing))
                for i in range(0, len(parts.val), BATCH)
            ]
        values = validation_metrics(parts.val, torch.cat(logits))
        best = values if values["val_accuracy"] > best["val_accuracy"] else best
    return {name: best[name] for name in ("val_accuracy", "val_nll")}


def read(path: str) -> torch.Tensor:
    """uint8 (3, SIZE, SIZE), by the decoder of the library: other resizing would be another experiment."""
    image = fit(decode(Path(path).read_bytes(), Path(path).name), (SIZE, SIZE))
    return torch.from_numpy(np.repeat(image, 3 // image.shape[2], axis=2)).permute(2, 0, 1).contiguous()


def choose(asked_for: str | None, scratch: Path, images: int) -> tuple[str, str]:
    """The data set that was asked for, else the real slices where they are, else rendered ones as PNG files."""
    if asked_for is None:
        try:
            asked_for = "sarscov2_ct"
            open_dataset(asked_for, image_size=16)
        except DataError:
            import cv2

            for patient in range(images):
                image, mask = picture(
                    "phantom/ct", f"patient{patient:04d}/0", (400, 400), PhantomOptions(n_patients=max(2, images))
                )
                folder = scratch / "slices" / ("disease" if mask.any() else "healthy")
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / f"{patient}.png"), image)
            asked_for = str(scratch / "slices")
    dataset = open_dataset(asked_for, image_size=16)
    return asked_for, f"{len(dataset)} images of {'rendered slices' if str(scratch) in asked_for else dataset.name}"


if __name__ == "__main__":
    main()
