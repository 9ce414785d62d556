"""Do maps point at the evidence where it is known, and do they beat maps that know nothing?

    python benchmarks/pointing.py [--data phantom/cxr] [--image-size 112] [--n-patients 150] [--epochs 2] [--seed 0]

Rendered images have their evidence as a mask. A ViT-S/14 is fine-tuned (a linear probe, then LoRA, everything chosen on
validation), scored on the test patients, and its maps of the test images that have evidence are scored by all of
`compare_explanations`, for the true class. Prints tables.
"""

import argparse
import os
import platform

import numpy as np
import torch

from medvitlib import explain
from medvitlib.data import normalise, open_dataset, split
from medvitlib.evaluate import evaluate
from medvitlib.explain.compare import CONTROLS
from medvitlib.models.zoo import build
from medvitlib.training.config import TrainConfig
from medvitlib.variants import make_variant

NAME = "vit_small_patch14_dinov2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="phantom/cxr")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--n-patients", type=int, default=150)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores; torch {torch.__version__}\n")
    rendering = {"image_size": options.image_size, "n_patients": options.n_patients, "seed": options.seed}
    parts = split(open_dataset(options.data, **rendering), seed=options.seed)
    model = build(NAME, len(parts.train.classes), image_size=options.image_size, quiet=True)
    name = f"pointing-{options.data.replace('/', '-')}"
    make_variant(model, parts, "probe", name=f"{name}-probe")
    config = TrainConfig(
        epochs=options.epochs, batch_size=16, lr=1e-3, recipe="light", metric="val_nll", seed=options.seed
    )
    run = make_variant(model, parts, "lora", config, name=f"{name}-lora", plot=False)
    test = parts.test
    figures = evaluate(run, test, figures=False).metrics
    area = figures.get("auroc") or figures["auroc_macro"]
    masks = np.stack([test.mask(i) for i in range(len(test))])
    rows = np.flatnonzero(masks.any((1, 2)))
    print(f"\n{options.data}, {options.image_size} px: AUROC {area}, accuracy {figures['accuracy']}")
    print(f"maps of {len(rows)} images with evidence, {len(np.unique(test.groups[rows]))} patients", end="; ")
    print(f"the evidence is {masks[rows].mean():.1%} of an image on average\n")
    x = normalise(torch.from_numpy(test.images.planes(rows)), run.model.preprocessing)
    methods = {**explain.CAMS, "relevance": explain.relevance, "rollout": explain.attention_rollout}
    given = {"target": test.labels[rows], "masks": torch.from_numpy(masks[rows]), "groups": test.groups[rows]}
    found = explain.compare_explanations(run.model, x, methods, **given, seed=options.seed)
    print(f"{found.table().T.to_string()}\n")
    best = max(methods, key=lambda method: found.estimate(method, "pointing").value)
    for control in CONTROLS:
        print(f"pointing, {best} - {control}: {found.estimate(best, 'pointing', against=control):+.3f}")
    print(*found.sentences(), sep="\n")


if __name__ == "__main__":
    main()
