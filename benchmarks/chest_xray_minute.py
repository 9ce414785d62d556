"""From JPEGs on disk to a recall-first report: how many seconds, how far from the floor, and against a notebook's loop?

    MEDVIT_DATA=/path/to/data python benchmarks/chest_xray_minute.py [--image-size 112] [--rounds 3] [--checked 256]

    medvitlib   open_dataset, split, build, fit_probe, evaluate: what README's five lines do, up to the written report
    notebook    the same as one would write it: torchvision's ImageFolder (PIL, Resize, ToTensor, Normalize) in a
                DataLoader with a worker a core, timm's ViT in the same precision, scikit-learn's StandardScaler and
                LogisticRegression with the same six strengths, accuracy and AUROC; no interval, no certificate, no file

`chest_xray` (5,856 images), DINOv2's ViT-S/14, a patient-disjoint validation part (both sides have the same), on which
the penalty, the temperature and the thresholds are chosen; the test set is read once. Each side starts in a process of
its own, with its start counted: nothing is decoded or computed yet, the weights and the JPEGs are on the disk (and what
the operating system keeps of it in memory). Sides take turns, and ratios are taken within a round.

The floor is what cannot be saved: the multiply-adds of one forward pass of every image, at the rate that this machine's
matrix products reach in the same call. The features are compared with those of a float32 pass, image by image.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import turns

NAME, DATA = "vit_small_patch14_dinov2", "chest_xray"


def main() -> None:
    parser = turns.parser(__doc__)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checked", type=int, default=256, metavar="N", help="images whose features are compared")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side](options.image_size)))
        return
    page = turns.Page(options, "torch", "torchvision", "timm", "scikit-learn", "opencv-python", on="cpu")
    places = needed()
    found: dict[str, list[dict]] = {side: [] for side in SIDES}

    def turn(side: str) -> None:
        with tempfile.TemporaryDirectory() as empty:
            folders = {"MEDVIT_CACHE": empty, "MEDVIT_RUNS": f"{empty}/runs", **places}
            line = turns.own_process(__file__, "--side", side, "--image-size", options.image_size, **folders)
        found[side].append(json.loads(line))

    seconds = turns.in_turns({side: lambda side=side: turn(side) for side in SIDES}, options.rounds, warm_up=0)
    stages = {name: turns.spread(one["stages"][name] for one in found["medvitlib"]) for name in STAGES}
    page.table({"medvitlib": "", "seconds": ".1f"}, stages.items(), "Where the time goes, and what it is altogether")
    rows = [(side, turns.spread(seconds[side]), turns.ratio(seconds["notebook"], seconds[side])) for side in SIDES]
    page.table({"": "", "seconds, from the shell": ".1f", "times as fast": ".2f"}, rows)
    said = [(side, found[side][-1]["auroc"], found[side][-1]["accuracy"]) for side in SIDES]
    page.table({"624 test images": "", "AUROC": "", "accuracy": ""}, said)

    forward, images, rate = floor(options.image_size)
    share = turns.spread(forward * images / rate / took for took in seconds["medvitlib"])
    extracted = found["medvitlib"][0]["extracted"]
    page.say(
        f"\nfloor: {images:,} images x {forward / 1e9:.2f} GFLOP / {rate / 1e9:.0f} GFLOP/s = "
        f"{forward * images / rate:.1f} s, which is {share:.2f} of the whole; that of the {extracted:,} images in "
        f"'features' is {forward * extracted / rate / stages['features'].median:.2f} of their time"
    )
    page.say(f"features apart from float32's: {difference(options.image_size, options.checked):.4f} of their norm")
    page.claim("chest X-ray, JPEGs to report, ViT-S/14", turns.spread(seconds["medvitlib"]), "seconds")
    page.claim("chest X-ray, JPEGs to report, over a notebook's loop", rows[0][2])
    page.save()


def needed() -> dict[str, str]:
    """Where the images and the weights are and what to compute in, for the processes; stops where one is absent."""
    from medvitlib.data.sources.finding import find
    from medvitlib.errors import MedvitError
    from medvitlib.models.weights import weights_path
    from medvitlib.precision import autocast_dtype

    try:
        folder, _ = find(DATA)
    except MedvitError as error:
        sys.exit(str(error))
    if (weights := weights_path(NAME)) is None:
        sys.exit(f"The weights are needed: medvit weights fetch {NAME}")
    precision = str(autocast_dtype("cpu") or "torch.float32").removeprefix("torch.")
    os.environ["PRECISION"] = precision
    found = {"CHEST_XRAY": str(folder), "WEIGHTS_FILE": str(weights), "MEDVIT_WEIGHTS": str(weights.parent)}
    return {**found, "CUDA_VISIBLE_DEVICES": ""}


STAGES = ("import", "open", "split", "build", "features", "probe", "report")


def medvitlibs(image_size: int) -> dict:
    """Everything, from the imports on."""
    begun, stages = time.perf_counter(), {}

    def lap(name: str) -> None:
        nonlocal begun
        stages[name], begun = time.perf_counter() - begun, time.perf_counter()

    from medvitlib.data import open_dataset, split
    from medvitlib.evaluate import evaluate
    from medvitlib.models.zoo import build
    from medvitlib.training.features import extract_features
    from medvitlib.training.probe import fit_probe

    lap("import")
    ds = open_dataset(DATA, image_size=image_size)
    lap("open")
    parts = split(ds, seed=0)
    lap("split")
    model = build(NAME, len(ds.classes), image_size=image_size, pool="token_mean", quiet=True)
    lap("build")
    for part in (parts.train, parts.val):  # `fit_probe` does it, too, and then finds them
        extract_features(model, part)
    lap("features")
    run = fit_probe(model, parts, name="minute")
    lap("probe")
    report = evaluate(run, parts, target_recall=0.95)
    lap("report")
    said = {name: str(report.metrics[name]) for name in ("auroc", "accuracy")}
    return {"stages": stages, "extracted": len(parts.train) + len(parts.val), **said}


def notebooks(image_size: int) -> dict:
    """What a notebook would write: (N, 768) features of class token and mean patch, and a regression on them."""
    import re

    import numpy as np
    import timm
    import torch
    from safetensors.torch import load_file
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
    from sklearn.model_selection import GroupShuffleSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from timm.layers import resample_abs_pos_embed
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    folder, state = Path(os.environ["CHEST_XRAY"]), load_file(os.environ["WEIGHTS_FILE"])
    reduced = {"dtype": torch.bfloat16, "enabled": os.environ["PRECISION"] == "bfloat16"}
    model = timm.create_model(NAME, img_size=image_size, num_classes=0).eval()
    grid = [image_size // 14] * 2
    model.load_state_dict({**state, "pos_embed": resample_abs_pos_embed(state["pos_embed"], grid)})
    usual = [transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    prepare = transforms.Compose([transforms.Resize([image_size] * 2), transforms.ToTensor(), *usual])

    def features(part: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
        images, found = ImageFolder(folder / part, prepare), []
        with (
            torch.inference_mode(),
            torch.autocast("cpu", **reduced),
        ):
            for x, _ in DataLoader(images, 32, num_workers=os.cpu_count()):
                tokens = model.forward_features(x)  # (B, 1 + N, 384)
                found.append(torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1).float().numpy())
        names = [Path(path).name for path, _ in images.samples]
        return np.concatenate(found), np.array(images.targets), names

    x, y, names = features("train")
    patients = [re.match(r"person\d+|(?:NORMAL2-)?IM-\d+", name)[0] for name in names]
    train, val = next(GroupShuffleSplit(1, test_size=0.2, random_state=0).split(x, y, patients))
    fitted = [
        make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=500)).fit(x[train], y[train])
        for C in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    ]
    best = min(fitted, key=lambda model: log_loss(y[val], model.predict_proba(x[val])))
    x, y, _ = features("test")
    p = best.predict_proba(x)[:, 1]
    return {"auroc": f"{roc_auc_score(y, p):.3f}", "accuracy": f"{accuracy_score(y, p > 0.5):.3f}"}


SIDES = {"medvitlib": medvitlibs, "notebook": notebooks}


def floor(image_size: int) -> tuple[int, int, float]:
    """Operations of one image's forward pass, images, and operations a second of a matrix product of that shape."""
    import torch
    from torch.nn import functional as F
    from torch.utils.flop_counter import FlopCounterMode

    from medvitlib.data import open_dataset
    from medvitlib.models.zoo import build

    dtype = getattr(torch, os.environ["PRECISION"])
    model = build(NAME, 2, weights=None, image_size=image_size, pool="token_mean", quiet=True)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, image_size, image_size))
    x, weight = torch.randn(4096, 384, dtype=dtype), torch.randn(1536, 384, dtype=dtype)
    seconds = turns.in_turns({"product": lambda: [F.linear(x, weight) for _ in range(10)]}, 20)["product"]
    rate = 10 * 2 * x.numel() * len(weight) / min(seconds)
    return counter.get_total_flops(), len(open_dataset(DATA, image_size=image_size)), rate


def difference(image_size: int, n: int) -> float:
    """Largest distance of an image's features from those of a float32 pass, over their norm."""
    import numpy as np
    import torch

    from medvitlib.data import open_dataset
    from medvitlib.models.zoo import build, replace_head
    from medvitlib.training.features import forward

    ds = open_dataset(DATA, image_size=image_size)
    some = ds.subset(np.linspace(0, len(ds) - 1, min(n, len(ds))).astype(int))
    model = build(NAME, 2, image_size=image_size, pool="token_mean", quiet=True)
    replace_head(model, torch.nn.Identity())
    ours, plain = forward(model, some, device="cpu"), forward(model, some, device="cpu", precision=None)
    return float((np.linalg.norm(ours - plain, axis=1) / np.linalg.norm(plain, axis=1)).max())


if __name__ == "__main__":
    main()
