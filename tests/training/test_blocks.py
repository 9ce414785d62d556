"""Which parts of a model are compiled, how often, and that nothing of it is left."""

from dataclasses import replace

import pytest
import torch

from medvitlib.data import open_dataset, split
from medvitlib.models.adapt import adapt
from medvitlib.models.zoo import build
from medvitlib.training import blocks
from medvitlib.training.config import TrainConfig
from medvitlib.training.fit import fit

SIZES = {"patch_size": 8, "dim": 64, "depth": 3, "heads": 2, "dropout": 0.0}


def small(drop_path=0.0):
    return build("vit_scratch", 2, weights=None, image_size=32, drop_path=drop_path, **SIZES)


@pytest.fixture
def graphs(monkeypatch):
    """What `torch.compile` was given to translate; it runs as it is."""
    found = []

    def keep(graph, inputs):
        found.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(blocks, "BACKEND", keep)
    yield found
    torch._dynamo.reset()


def test_blocks_that_are_alike_are_found():
    assert len(blocks.alike(small())) == 3
    assert blocks.alike(small(drop_path=0.1)) == []  # each has a rate of its own: the whole model is compiled
    with torch.device("meta"):
        assert blocks.alike(build("resnet18", 2, weights=None)) == []
    lora = adapt(small(), "lora", rank=2)
    assert len(blocks.alike(lora)) == 3


def test_a_training_translates_one_block_for_all_and_ends_the_same(graphs):
    parts = split(open_dataset("phantom/cxr", image_size=32, n_patients=40))
    config = TrainConfig(epochs=2, batch_size=16, optimizer="sgd", lr=0.05)
    assert len(parts.train) % 16 > 1  # a last batch of another size, which is not worth a translation
    plain, compiled = (
        fit(small(), parts, replace(config, compile=on), name=f"c-{on}", device="cpu", precision=None, quiet=True)
        for on in (False, True)
    )
    assert len(graphs) == 1
    for one, other in zip(plain.model.state_dict().values(), compiled.model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_compiled_and_computed_twice_go_together_and_nothing_is_left(graphs):
    model, x = small().train(), torch.randn(2, 3, 32, 32)
    model(x).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with blocks.compiled(model, True), blocks.checkpointed(model, True):
        model(x).sum().backward()
        with blocks.uncompiled():
            model(x[:1])
    assert graphs
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)
    assert all(m._compiled_call_impl is None and "forward" not in m.__dict__ for m in model.modules())
