"""Variants of one model: made by one call, compared on the same images, with costs that are those of their files."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from medvitlib.data import open_dataset, split
from medvitlib.errors import AdaptationError, EvaluationError
from medvitlib.evaluate import evaluate
from medvitlib.evaluation.intervals import Estimate
from medvitlib.models.pruning import sparsity
from medvitlib.models.saved import save_whole
from medvitlib.models.zoo import build, count_parameters
from medvitlib.pareto import frontier, plot_pareto
from medvitlib.training.config import TrainConfig
from medvitlib.training.features import forward
from medvitlib.variants import (
    REDUCED,
    REWORKED,
    TRAINED,
    compare_variants,
    cost_table,
    make_variant,
    worth_table,
)

HARDWARE = {"device": "cpu", "precision": None}
CONFIG = TrainConfig(epochs=1, batch_size=16, lr=1e-2, metric="val_accuracy")
OPTIONS = {
    "lora": {"rank": 2},
    "partial": {"blocks": 1},
    "probe": {"strengths": (0.1,)},
    "prune": {"amount": 0.5},
    "shrink": {"heads": 0.5, "neurons": 0.25},
}


@pytest.fixture(scope="module")
def parts():
    return split(open_dataset("phantom/blood3", image_size=32, n_patients=40))


def tiny():
    return build("vit_tiny_test", 3, weights="tiny.safetensors", quiet=True)


@pytest.fixture(scope="module")
def scored(parts, tmp_path_factory):
    """Every way there is, on a base in a weights folder: name -> run and report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVIT_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("MEDVIT_WEIGHTS", str(tmp_path_factory.mktemp("weights")))
        base = build("vit_tiny_test", 3, weights=None)
        save_file(base.state_dict(), Path(os.environ["MEDVIT_WEIGHTS"]) / "tiny.safetensors")
        runs = {}
        for method in TRAINED:
            config = () if method == "probe" else (CONFIG,)
            runs[method] = make_variant(
                tiny(), parts, method, *config, name=method, options=OPTIONS.get(method), **HARDWARE
            )
        for method in REWORKED:
            runs[method] = make_variant(
                runs["full"], parts, method, name=f"full-{method}", options=OPTIONS.get(method), **HARDWARE
            )
        yield {name: (run, evaluate(run, parts.test, n_boot=100, **HARDWARE)) for name, run in runs.items()}


def test_each_is_a_run_whose_logits_are_its_saved_models(scored, parts):
    for name, (run, _) in scored.items():
        logits = forward(run.model, parts.val, **HARDWARE)
        np.testing.assert_allclose(run.validation_logits, logits, rtol=0, atol=1e-5, err_msg=name)


def test_costs_are_counted_from_what_was_written(scored):
    costs = cost_table(scored, timing=False)
    total = count_parameters(tiny())
    assert costs.loc["full", "trained"] == total == costs.loc["full", "parameters"]
    assert costs.loc["head", "trained"] == costs.loc["probe", "trained"] == 3 * 17
    assert costs.loc["lora", "trained"] == 2 * 2 * (16 + 48 + 16 + 16) + 3 * 17
    assert (costs.loc[["bitfit", "lora", "rlrr"], "parameters"] == total).all()  # merged
    for name, (run, _) in scored.items():
        whole = save_whole(run.folder, run.folder.parent / f"whole-{name}") / "model.safetensors"
        assert costs.loc[name, "file MB"] == whole.stat().st_size / 1e6
        assert costs.loc[name, "gzipped MB"] < costs.loc[name, "file MB"]
        kept = (run.folder / "model.safetensors").stat().st_size / 1e6
        if np.isnan(costs.loc[name, "adapter MB"]):
            assert kept == pytest.approx(costs.loc[name, "file MB"], rel=0.2)  # everything
        else:
            assert costs.loc[name, "adapter MB"] == kept < costs.loc[name, "file MB"]
    assert set(costs.index[costs["adapter MB"].notna()]) == {"head", "bitfit", "partial", "lora", "rlrr", "probe"}
    assert costs["step MB"].notna().to_dict() == {
        name: name in ("full", "head", "bitfit", "partial", "lora", "rlrr") for name in scored
    }
    assert costs.loc["head", "step MB"] < costs.loc["lora", "step MB"] < costs.loc["full", "step MB"]
    assert costs.loc["prune", "file MB"] == costs.loc["full", "file MB"]
    assert costs.loc["prune", "gzipped MB"] < 0.8 * costs.loc["full", "gzipped MB"]
    assert costs.loc["prune", "non-zero"] < 0.6 * total
    assert costs.loc["shrink", "parameters"] < 0.8 * total
    assert 0.95 * total < costs.loc["int8", "non-zero"] <= total  # what is small becomes zero
    assert costs.loc["int8", "file MB"] < 0.65 * costs.loc["full", "file MB"]
    pd.testing.assert_frame_equal(costs, cost_table(scored, timing=False))


def test_timing_is_a_column_more(scored):
    some = {name: scored[name] for name in ("full", "probe", "int8")}
    costs = cost_table(some)
    assert (costs["img/s"] > 0).all() and (costs["ms"] > 0).all()
    assert costs["s/epoch"].notna().to_dict() == {"full": True, "probe": False, "int8": False}


def test_a_pruned_and_a_shrunk_run_remember_what_they_were_made_of(scored):
    asked = json.loads((scored["shrink"][0].folder / "config.json").read_text())
    assert asked["of"] == "full" and asked["options"] == {"heads": 0.5, "neurons": 0.25}
    assert asked["weights"]["path_or_url"].endswith("tiny.safetensors")
    assert scored["shrink"][0].model.blocks[0].attn.num_heads == 1
    assert sparsity(scored["prune"][0].model) == pytest.approx(0.5, abs=1e-3)
    assert scored["prune"][0].candidates == scored["full"][0].candidates


def test_the_worth_is_what_the_reports_say(scored):
    table = worth_table(scored, reference="full")
    assert list(table.index) == list(scored)
    for name, (_, report) in scored.items():
        assert table.loc[name, "accuracy"] == str(report.metrics["accuracy"])
        assert table.loc[name, "f1 weighted"] == str(report.metrics["f1_weighted"])
        pair = compare_variants(scored, name, "full")
        if name != "full":
            assert table.loc[name, "accuracy - full"] == f"{pair.difference:+.3f}"
    assert table.loc["full", "accuracy - full"] == table.loc["full", "McNemar p"] == ""
    assert set(table["weights"]) == {"pretrained"}
    assert "accuracy - full" not in worth_table(scored)


def test_what_cannot_be_is_said(scored, parts):
    run = scored["full"][0]
    for source, method, words in (
        (tiny(), "prune", "'prune' takes a run, whose model it changes; a VisionTransformer was given"),
        (run, "lora", "'lora' takes a model from `build`, which it trains; a Run was given"),
        (tiny(), "lorra", r"method 'lorra' is unknown\. Did you mean 'lora'"),
    ):
        with pytest.raises(AdaptationError, match=words):
            make_variant(source, parts, method, name="no", **HARDWARE)
    for options, words in (
        ({}, "prune needs amount"),
        ({"amont": 0.1}, "Did you mean 'amount'"),
        ({"amount": 1}, "amount=1"),
    ):
        with pytest.raises(AdaptationError, match=words):
            make_variant(run, parts, "prune", name="no", options=options, **HARDWARE)
    two = split(open_dataset("phantom/cxr", image_size=32, n_patients=40))
    with pytest.raises(AdaptationError, match="tells apart"):
        make_variant(run, two, "int8", name="no", **HARDWARE)
    with pytest.raises(EvaluationError, match=r"variant 'ful' is unknown\. Did you mean 'full'"):
        worth_table(scored, reference="ful")


@pytest.mark.parametrize("name", REDUCED)
def test_the_reduced_sizes_are_small_and_take_other_image_sizes(name):
    for size in (56, 112):
        model = build(name, 3, weights=None, image_size=size, **REDUCED[name])
        assert count_parameters(model) < 600_000
        assert model(torch.zeros(1, 3, size, size)).shape == (1, 3)


def test_the_frontier_is_what_nothing_else_beats():
    points = {"dear": (10, 0.9), "cheap": (1, 0.5), "beaten": (5, 0.4), "middle": (3, 0.7), "same": (4, 0.7)}
    assert frontier(points) == ["cheap", "middle", "dear"]
    assert frontier(points, more=True) == ["dear"]
    rng = np.random.default_rng(0)
    many = {str(i): tuple(rng.random(2)) for i in range(50)}
    left = {
        a for a, (x, y) in many.items() if not any(u <= x and v >= y and (u, v) != (x, y) for u, v in many.values())
    }
    assert set(frontier(many)) == left


def test_the_picture_leaves_out_what_has_no_cost(scored):
    costs = cost_table(scored, timing=False)
    worth = {name: report.metrics["accuracy"] for name, (_, report) in scored.items()}
    figure = plot_pareto(worth, costs, ("trained", "adapter MB"), unlike=["probe"])
    trained, adapter = figure.axes
    assert len(adapter.containers) == 6 and len(trained.containers) == len(TRAINED)  # reworked: nothing trained
    with pytest.raises(EvaluationError, match="Did you mean 'trained'"):
        plot_pareto(worth, costs, ("traned",))
    none = Estimate(0.5, math.nan, math.nan, "none", 1, None, "too few")
    plot_pareto({"full": none}, costs)  # without an interval: the point alone
