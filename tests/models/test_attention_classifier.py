"""The teaching model is built as it is drawn, and its attention is torch's own."""

import pytest
import torch
from timm.models import group_parameters
from torch import nn

from medvitlib.errors import MedvitError
from medvitlib.models.attention_classifier import SelfAttention, TransformerClassifier

PUBLISHED = """\
TransformerClassifier(
  (patch_embedding): Conv2d(1, 64, kernel_size=(32, 32), stride=(32, 32))
  (layers): ModuleList(
    (0-1): 2 x SelfAttention(
      (query): Linear(in_features=64, out_features=64, bias=True)
      (key): Linear(in_features=64, out_features=64, bias=True)
      (value): Linear(in_features=64, out_features=64, bias=True)
      (fc_out): Linear(in_features=64, out_features=64, bias=True)
    )
  )
  (fc): Linear(in_features=64, out_features=2, bias=True)
)"""


def small(seed: int = 0, **options) -> TransformerClassifier:
    """Two heads of 4, patches of 8, images of 32 px."""
    torch.manual_seed(seed)
    return TransformerClassifier(32, **{"patch_size": 8, "dim": 8, "num_classes": 3, **options})


def images(height: int = 32, width: int = 32, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 1, height, width, generator=torch.Generator().manual_seed(1))


def test_the_printed_structure_is_the_published_one():
    model = TransformerClassifier()
    assert str(model).splitlines() == PUBLISHED.splitlines()
    assert [layer.heads for layer in model.layers] == [2, 2]
    assert list(dict(model.named_parameters())) == [
        f"{name}.{kind}"
        for name in (
            "patch_embedding",
            *(f"layers.{i}.{part}" for i in (0, 1) for part in ("query", "key", "value", "fc_out")),
            "fc",
        )
        for kind in ("weight", "bias")
    ]


@pytest.mark.parametrize(("dim", "heads", "tokens"), [(64, 2, 49), (64, 1, 49), (24, 6, 10)])
def test_a_layer_equals_torchs_multi_head_attention(dim, heads, tokens):
    torch.manual_seed(0)
    ours, theirs = SelfAttention(dim, heads), nn.MultiheadAttention(dim, heads, batch_first=True)
    for layer in (ours.query, ours.key, ours.value, ours.fc_out):
        nn.init.normal_(layer.bias)
        layer.weight.data *= 2  # an attention far from uniform
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
    theirs.out_proj.load_state_dict(ours.fc_out.state_dict())
    x = torch.randn(3, tokens, dim)
    with torch.no_grad():
        y, attention = ours.with_weights(x)
        expected, weights = theirs(x, x, x, average_attn_weights=False)
    assert weights.max() > 4 / tokens  # or any attention would do
    assert (attention - weights).abs().max() < 1e-6
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(x), y, atol=1e-5, rtol=1e-5)


def test_intermediates_are_those_of_the_forward_pass():
    model = small(positions=True).eval()
    logits, out = model.forward_intermediates(images())
    torch.testing.assert_close(logits, model(images()), atol=1e-6, rtol=1e-5)
    assert list(out) == ["embedded", "layers.0.attention", "layers.0", "layers.1.attention", "layers.1", "pre_logits"]
    torch.testing.assert_close(out["layers.1"], model.forward_features(images()), atol=1e-5, rtol=1e-5)
    for i in (0, 1):
        assert out[f"layers.{i}.attention"].shape == (2, 2, 16, 16)
        torch.testing.assert_close(out[f"layers.{i}.attention"].sum(-1), torch.ones(2, 2, 16))
    torch.testing.assert_close(out["pre_logits"], out["layers.1"].mean(1))
    gradient = torch.autograd.grad(logits[0, 0], out["layers.0.attention"])[0]
    assert gradient[0].abs().max() > 0 and gradient[1].abs().max() == 0


@pytest.mark.parametrize("options", [{}, {"positions": True, "dropout": 0.2, "depth": 3}], ids=str)
def test_a_gradient_reaches_every_parameter(options):
    model = small(**options)
    torch.nn.functional.cross_entropy(model(images()), torch.tensor([0, 2])).backward()
    dead = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().max() > 0]
    # a key's bias adds the same to a whole row of scores, which softmax does not see
    assert all(name.endswith("key.bias") for name in dead)


def test_without_positions_patches_are_a_set_and_with_them_an_image():
    x = images()
    tiles = x.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)  # (B, 1, 16, 8, 8)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    rows = tiles[:, :, order].unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5)
    shuffled = rows.reshape(x.shape)
    assert not torch.equal(shuffled, x)
    with torch.no_grad():
        assert (small()(shuffled) - small()(x)).abs().max() < 1e-6
        model = small(positions=True)
        nn.init.normal_(model.pos_embed)
        assert (model(shuffled) - model(x)).abs().max() > 1e-3


def test_images_of_another_size_are_taken_and_positions_resized():
    for positions in (False, True):
        _, out = small(positions=positions).forward_intermediates(images(16, 40))
        assert out["layers.1.attention"].shape == (2, 2, 10, 10)
    model = small(positions=True)
    nn.init.constant_(model.pos_embed, 0.5)  # what is the same everywhere stays so
    without = small()
    without.load_state_dict({k: v for k, v in model.state_dict().items() if k != "pos_embed"})
    difference = model.forward_intermediates(images(64, 8))[1]["embedded"]
    difference = difference - without.forward_intermediates(images(64, 8))[1]["embedded"]
    torch.testing.assert_close(difference, torch.full_like(difference, 0.5))


def test_dropout_is_a_module_where_there_is_any_and_acts_in_training_only():
    model = small(dropout=0.5)
    assert [str(layer.dropout) for layer in model.layers] == ["Dropout(p=0.5, inplace=False)"] * 2
    assert not torch.equal(model(images()), model(images()))
    model.eval()
    assert torch.equal(model(images()), model(images()))


def test_parameters_are_grouped_layer_by_layer_for_decay():
    model = small(positions=True)
    layers = group_parameters(model, model.group_matcher())
    assert layers[0] == ["pos_embed", "patch_embedding.weight", "patch_embedding.bias"]
    assert all(name.startswith(f"layers.{i - 1}.") for i in (1, 2) for name in layers[i])
    assert layers[3] == ["fc.weight", "fc.bias"] and len(layers) == 4
    assert model.no_weight_decay() <= dict(model.named_parameters()).keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 230}, "Nearest sizes that are: 224 or 256"),
        ({"heads": 5}, "dim 64 cannot be shared by 5 heads"),
        ({"dropout": 1}, "dropout is a probability"),
    ],
)
def test_impossible_settings_are_answered_with_what_is_possible(options, message):
    with pytest.raises(MedvitError, match=message):
        TransformerClassifier(**options)
    with pytest.raises(MedvitError, match="33 x 32"):
        small()(torch.zeros(1, 1, 33, 32))
