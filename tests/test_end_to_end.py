"""The spine on real chest X-rays with really pretrained weights: the README's calls on a part of the training set."""

import numpy as np
import pytest

from medvitlib.data import open_dataset, split
from medvitlib.evaluate import evaluate
from medvitlib.evaluation import Report
from medvitlib.models.zoo import build
from medvitlib.training.features import forward
from medvitlib.training.probe import fit_probe
from medvitlib.training.run import load_run

SIZE = 56  # pixels: a quarter of the tokens of the notebook's 112, which is what a test can afford


@pytest.mark.real_data
@pytest.mark.pretrained
def test_frozen_features_tell_pneumonia_on_patients_never_seen(real_data, pretrained_weights, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVIT_WEIGHTS", str(pretrained_weights))
    monkeypatch.setenv("MEDVIT_RUNS", str(tmp_path))
    everything = open_dataset("chest_xray", root=real_data, image_size=SIZE)
    rng = np.random.default_rng(0)
    training = np.flatnonzero(everything.splits == "train")  # the official test set stays unread
    some = [rng.choice(training[everything.labels[training] == label], 300, replace=False) for label in (0, 1)]
    small = everything.subset(np.sort(np.concatenate(some)))
    parts = split(small, val=0.25, test=0.25, seed=0)
    model = build("vit_small_patch14_dinov2", 2, image_size=SIZE, pool="token_mean", quiet=True)

    run = fit_probe(model, parts, name="chest", device="cpu", precision=None)
    report = evaluate(run, parts.test, n_boot=200, device="cpu", precision=None)

    area = report.metrics["auroc"]
    assert area.value > 0.93 and area.n_images == 150 and area.n_groups == len(set(parts.test.groups))
    assert report.positive == "PNEUMONIA" and set(report.thresholds) >= {"0.5", "recall"}
    again = Report.load(run.folder)
    assert again.metrics == report.metrics
    logits = forward(load_run("chest").model, parts.test, device="cpu", precision=None)
    positive = logits[:, 1] - logits[:, 0]
    given = report.probabilities[:, 1]
    np.testing.assert_allclose(1 / (1 + np.exp(-positive / report.temperature)), given, atol=1e-5)
