"""Red cells of 13 shapes, split by smear: does an adapter beat a linear probe of the same features, and at what cost?

    MEDVIT_DATA=/path/to/data python benchmarks/red_cells.py [--method lora] [--epochs 7] [--lr 1e-3] [--seed 0]

`chula_rbc12` (1,950 crops), ViT-S/14 at 112 px. A logistic regression on frozen features gives the head that the
adapter starts from (LP-FT). Everything is chosen on the validation smears; the test smears are read once for each
of the two, compared on the same images, smears drawn together.
"""

import argparse
import copy
import os
import platform
import time

import torch

from medvitlib.data import open_dataset, split
from medvitlib.evaluate import evaluate
from medvitlib.models.zoo import build
from medvitlib.training.config import TrainConfig
from medvitlib.variants import compare_variants, cost_table, make_variant, worth_table

NAME, SIZE = "vit_small_patch14_dinov2", 112


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=("lora", "rlrr", "full", "bitfit"), default="lora")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(
        f"{platform.platform()}, {os.cpu_count()} cores; torch {torch.__version__}, {torch.get_num_threads()} threads\n"
    )
    parts = split(open_dataset("chula_rbc12", image_size=SIZE), seed=options.seed)
    print(parts.table()[["images", "patients"]].rename(columns={"patients": "smears"}).to_string())
    base = build(NAME, len(parts.train.classes), image_size=SIZE, pool="token_mean")
    config = TrainConfig(
        epochs=options.epochs,
        lr=options.lr,
        recipe="cells",
        label_smoothing=0.1,
        metric="val_accuracy",
        seed=options.seed,
    )
    runs, seconds = {}, {}
    for method in ("probe", options.method):
        start = time.perf_counter()
        asked = () if method == "probe" else (config,)
        # the first leaves its head on the base
        model = base if method == "probe" else copy.deepcopy(base)
        runs[method] = make_variant(model, parts, method, *asked, name=f"red-cells-{method}")
        seconds[method] = time.perf_counter() - start
    scored = {method: (run, evaluate(run, parts.test, figures=False)) for method, run in runs.items()}
    print(f"\n{worth_table(scored, 'probe').T.to_string()}\n")
    costs = cost_table(scored, timing=False)
    print(costs.round(2).T.to_string())
    print(f"\n{compare_variants(scored, options.method, 'probe').sentence(options.method, 'the probe')}")
    share = costs.loc[options.method, "trained"] / costs.loc[options.method, "parameters"]
    print(f"\n{share:.2%} of the parameters trained; minutes: ", end="")
    print(", ".join(f"{method} {took / 60:.1f}" for method, took in seconds.items()))


if __name__ == "__main__":
    main()
