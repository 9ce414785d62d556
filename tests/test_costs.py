"""Sizes, memory and speed are those of the model: by formula where there is one, and the model stays as it was."""

import gzip

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medvitlib.costs import CHUNK, model_sizes, speed, training_memory
from medvitlib.errors import MedvitError, TrainingError
from medvitlib.models.int8 import quantise
from medvitlib.models.zoo import build, head_of

B = 8
LABELS = torch.arange(B) % 2
OF_THE_LOSS = 4 * B * 2 + 4  # log-probabilities (B, 2), and the sum of the images' weights, which is one number


@pytest.fixture
def vit():
    return build("vit_tiny_test", 2, weights=None)


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(B, 3, size, size, generator=torch.Generator().manual_seed(0))


def numbers(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_a_model_is_as_large_as_its_file_and_as_gzip_makes_it(tmp_path):
    model = nn.Linear(1, CHUNK // 2)  # 4 MB, several chunks
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    content = (tmp_path / "model.safetensors").read_bytes()
    assert model_sizes(model) == {"dense": len(content), "compressed": len(gzip.compress(content, 6))}
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)  # zeros take as much room, and no time to send
    sizes = model_sizes(model)
    assert sizes["dense"] == len(content) and sizes["compressed"] < len(content) / 500


def test_the_memory_of_linear_layers_is_the_formula():
    """Each layer keeps what came in, and a ReLU what came out, which is what the next layer keeps: once, not twice."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 2))
    x = torch.randn(B, 3, 4, 4)
    assert training_memory(model, x, LABELS) == 4 * (4 * numbers(model) + B * (20 + 12)) + OF_THE_LOSS
    model[1].requires_grad_(False)  # no gradient, no moments; the images were not counted, so no activation goes
    expected = 4 * (numbers(model) + 3 * numbers(model[3], model[5]) + B * (20 + 12)) + OF_THE_LOSS
    assert training_memory(model, x, LABELS) == expected


def test_buffers_are_held_too_and_shared_parameters_once():
    layer = nn.Linear(48, 48)
    model = nn.Sequential(nn.Flatten(), layer, layer, nn.BatchNorm1d(48, affine=False), nn.Linear(48, 2))
    x = torch.randn(B, 3, 4, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    buffers = 4 * (48 + 48) + 8  # mean, variance, and how many batches
    kept = 4 * (
        B * 48 * 3 + 48 * 2
    )  # the second layer's input, the norm's and its output; the batch's mean and deviation
    assert training_memory(model, x, LABELS) == 4 * 4 * numbers(model) + buffers + kept + OF_THE_LOSS
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# the class token is a view of all tokens, which therefore stay; a mean is a new and small tensor
@pytest.mark.parametrize(
    ("name", "tokens"), [("vit_tiny_test", 17), ("test_vit", 101), ("transformer_classifier", 1), ("test_convnext", 1)]
)
def test_a_frozen_backbone_keeps_hardly_any_activation(name, tokens):
    model = build(name, 2, weights=None)
    size, channels = model.preprocessing.image_size, model.preprocessing.channels
    x = torch.randn(B, channels, *size)
    # without what is held of the parameters themselves
    everything = training_memory(model, x, LABELS) - 16 * numbers(model)
    model.requires_grad_(False)
    head_of(model).requires_grad_(True)
    head = training_memory(model, x, LABELS) - 4 * numbers(model) - 12 * numbers(head_of(model))
    assert head == 4 * B * tokens * head_of(model).in_features + OF_THE_LOSS
    assert everything > 20 * head


def test_activations_grow_with_the_batch_and_shrink_under_autocast(vit):
    fixed = 16 * numbers(vit)
    one = training_memory(vit, images()[:4], LABELS[:4]) - fixed
    both = training_memory(vit, images(), LABELS) - fixed
    assert both == pytest.approx(2 * one, rel=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert training_memory(vit, images(), LABELS) - fixed < 0.9 * both


def test_measuring_leaves_the_model_as_it_was(vit):
    vit = build("vit_tiny_test", 2, weights=None, dropout=0.5)
    vit.blocks[1].norm1.eval()
    vit.head.weight.grad = torch.ones_like(vit.head.weight)
    flags = [module.training for module in vit.modules()]
    state = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = training_memory(vit, images(), LABELS)
    assert torch.equal(torch.rand(2), expected)
    assert training_memory(vit, images(), LABELS) == first
    speed(vit, 32, 3, batch_size=2, seconds=1e-3)
    assert [module.training for module in vit.modules()] == flags
    assert all(torch.equal(state[name], tensor) for name, tensor in vit.state_dict().items())
    assert torch.equal(vit.head.weight.grad, torch.ones_like(vit.head.weight))
    assert all(p.grad is None for name, p in vit.named_parameters() if name != "head.weight")


def test_a_model_that_fails_is_put_back_too():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, 2), nn.Linear(3, 2)).eval()
    with pytest.raises(RuntimeError):
        training_memory(model, torch.randn(B, 3, 4, 4), LABELS)
    with pytest.raises(RuntimeError):
        speed(model.train(), 4, 3, seconds=1e-3)
    assert model.training and model[1].num_batches_tracked == 0


def test_nothing_to_train_is_said(vit):
    with pytest.raises(TrainingError, match="No parameter of this model requires a gradient"):
        training_memory(quantise(vit), images(), LABELS)


def test_speed_is_measured_in_evaluation_mode_at_two_batch_sizes(vit):
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            seen.append((self.training, torch.is_inference_mode_enabled(), tuple(x.shape)))
            return self.layer(x)

    found = speed(Watched(), (6, 8), 1, batch_size=5, seconds=1e-9)
    assert set(seen) == {(False, True, (5, 1, 6, 8)), (False, True, (1, 1, 6, 8))}
    assert set(found) == {"images_per_second", "latency_ms"} and min(found.values()) > 0
    assert min(speed(quantise(vit), 32, 3, batch_size=2, seconds=1e-3).values()) > 0


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"seconds": 0}, {"seconds": float("nan")}])
def test_no_image_or_no_time_is_refused(vit, options):
    with pytest.raises(MedvitError, match="expected 1 or more, and some time above 0"):
        speed(vit, 32, 3, **options)
