"""Google's .npz files: read as timm reads them, written back exactly, and refused with one complete message."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer as TimmViT

from medvitlib.errors import WeightsError
from medvitlib.models.checkpoint import load_into_vit
from medvitlib.models.npz import load_npz, npz_to_state, save_npz, state_to_npz
from medvitlib.models.vit import VisionTransformer

D, H, DEPTH, PATCH, CLASSES = 12, 3, 2, 8, 5
KINDS = [("classic", ""), ("classic", "opt/target/"), ("big_vision", ""), ("big_vision", "params/")]


def google(kind="classic", prefix="", classes=CLASSES, grid=4, seed=0) -> dict[str, np.ndarray]:
    """A file as Google writes it, spelt out independently of the library."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return (rng.standard_normal(shape) * (np.prod(shape[:-1]) ** -0.5 if len(shape) > 1 else 0.3)).astype("f4")

    attention, mlp, norm = ("1", "3", "2") if kind == "classic" else ("0", "0", "1")
    position = "Transformer/posembed_input/pos_embedding" if kind == "classic" else "pos_embedding"
    arrays = {
        "cls": draw(1, 1, D),
        "embedding/kernel": draw(PATCH, PATCH, 3, D),
        "embedding/bias": draw(D),
        position: rng.standard_normal((1, 1 + grid * grid, D)).astype("f4"),
        "Transformer/encoder_norm/scale": 1 + draw(D),
        "Transformer/encoder_norm/bias": draw(D),
        "head/kernel": draw(D, classes),
        "head/bias": draw(classes),
    }
    for i in range(DEPTH):
        block = f"Transformer/encoderblock_{i}"
        for number in ("0", norm):
            arrays[f"{block}/LayerNorm_{number}/scale"] = 1 + draw(D)
            arrays[f"{block}/LayerNorm_{number}/bias"] = draw(D)
        for part in ("query", "key", "value"):
            arrays[f"{block}/MultiHeadDotProductAttention_{attention}/{part}/kernel"] = draw(D, H, D // H)
            arrays[f"{block}/MultiHeadDotProductAttention_{attention}/{part}/bias"] = draw(H, D // H) + draw(1)
        arrays[f"{block}/MultiHeadDotProductAttention_{attention}/out/kernel"] = draw(H, D // H, D)
        arrays[f"{block}/MultiHeadDotProductAttention_{attention}/out/bias"] = draw(D)
        for number, shape in (("0", (D, 4 * D)), ("1", (4 * D, D))):
            arrays[f"{block}/MlpBlock_{mlp}/Dense_{number}/kernel"] = draw(*shape)
            arrays[f"{block}/MlpBlock_{mlp}/Dense_{number}/bias"] = draw(shape[1])
    return {prefix + name: array for name, array in arrays.items()}


def write(folder, arrays, name="file.npz"):
    np.savez(folder / name, **arrays)
    return folder / name


def vit(image=32, classes=CLASSES, channels=3, heads=H) -> VisionTransformer:
    return VisionTransformer(image, PATCH, channels, classes, dim=D, depth=DEPTH, heads=heads).eval()


def timm_vit(channels=3) -> TimmViT:
    return TimmViT(32, PATCH, channels, CLASSES, embed_dim=D, depth=DEPTH, num_heads=H).eval()


def images(channels=3):
    return torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("kind", "prefix"), [k for k in KINDS if k != ("big_vision", "")]
)  # older timm needs the prefix
def test_a_file_is_read_as_timm_reads_it(tmp_path, kind, prefix):
    path = write(tmp_path, google(kind, prefix))
    ours, theirs = vit(), timm_vit()
    assert load_into_vit(ours, load_npz(path)) == []
    theirs.load_pretrained(str(path))
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    with torch.no_grad():
        assert (ours(images()) - theirs(images())).abs().max() < 1e-5


@pytest.mark.parametrize(("kind", "prefix"), KINDS)
def test_all_kinds_of_files_are_read_alike(kind, prefix):
    plain, _ = npz_to_state(google())
    state, heads = npz_to_state(google(kind, prefix))
    assert heads == H and all(np.array_equal(state[name], plain[name]) for name in plain)


@pytest.mark.parametrize("kind", ["classic", "big_vision"])
def test_a_file_we_write_is_read_by_timm(tmp_path, kind):
    ours, theirs = vit(), timm_vit()
    load_into_vit(ours, load_npz(write(tmp_path, google(seed=3))))
    theirs.load_pretrained(str(save_npz(ours.state_dict(), tmp_path / "ours.npz", heads=H, numbering=kind)))
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


@pytest.mark.parametrize("kind", ["classic", "big_vision"])
@given(seed=st.integers(0, 2**32 - 1), heads=st.sampled_from([1, 2, 3, 4, 6]))
@settings(max_examples=10, deadline=None)
def test_state_to_npz_and_back_is_exact(kind, seed, heads):
    torch.manual_seed(seed)
    state = {name: torch.randn_like(value).numpy() for name, value in vit(heads=heads).state_dict().items()}
    again, found = npz_to_state(state_to_npz(state, heads, kind))
    assert found == heads and again.keys() == state.keys()
    assert all(np.array_equal(again[name], state[name]) for name in state)


def test_what_is_said_of_the_weights_travels_in_the_file(tmp_path):
    state = load_npz(write(tmp_path, google())).state
    meta = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0], "grid": [2, 8], "licence": "MIT"}
    checkpoint = load_npz(save_npz(state, tmp_path / "ours.npz", heads=H, meta=meta))
    assert checkpoint.meta == meta and checkpoint.grid == (2, 8) and checkpoint.heads == H


@pytest.mark.parametrize("case", ["other classes", "zeros", "absent"])
def test_a_head_that_is_of_no_use_is_left_out_and_said(tmp_path, case):
    arrays = google(classes=7 if case == "other classes" else CLASSES)
    if case == "zeros":
        arrays |= {"head/kernel": np.zeros((D, CLASSES), "f4"), "head/bias": np.full(CLASSES, -10, "f4")}
    if case == "absent":
        del arrays["head/kernel"], arrays["head/bias"]
    model = vit()
    before = model.head.weight.clone()
    assert load_into_vit(model, load_npz(write(tmp_path, arrays))) == ["head new, not pretrained"]
    assert torch.equal(model.head.weight, before)


def test_pre_logits_are_dropped(tmp_path):
    extra = {"pre_logits/kernel": np.ones((D, D), "f4"), "pre_logits/bias": np.ones(D, "f4")}
    with_, without = load_npz(write(tmp_path, google() | extra)), load_npz(write(tmp_path, google(), "plain.npz"))
    assert with_.state.keys() == without.state.keys()


@pytest.mark.parametrize("image", [(32, 32), (48, 24), (16, 64)])  # the last has as many patches as the file
def test_position_embedding_is_resized_to_height_and_width(tmp_path, image):
    checkpoint = load_npz(write(tmp_path, google()))
    model = vit(image)
    load_into_vit(model, checkpoint)
    new = [image[0] // PATCH, image[1] // PATCH]
    position = torch.from_numpy(checkpoint.state["pos_embed"])
    if new != [4, 4]:
        position = resample_abs_pos_embed(position, new, [4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(model.pos_embed.data, position)
    assert model(torch.zeros(1, 3, *image)).shape == (1, CLASSES)


def test_a_grid_that_is_not_square_is_kept_in_our_files(tmp_path):
    model = vit((16, 64))
    path = save_npz(model.state_dict(), tmp_path / "wide.npz", heads=H, meta={"grid": [2, 8]})
    again = vit((16, 64))
    load_into_vit(again, load_npz(path))
    assert torch.equal(again.pos_embed, model.pos_embed)


def test_a_grey_model_sums_the_colour_kernels_as_timm_does(tmp_path):
    path = write(tmp_path, google())
    grey, colour, theirs = vit(channels=1), vit(), timm_vit(channels=1)
    load_into_vit(grey, load_npz(path))
    load_into_vit(colour, load_npz(path))
    theirs.load_pretrained(str(path))
    x = images(channels=1)
    with torch.no_grad():
        assert (grey(x) - colour(x.expand(-1, 3, -1, -1))).abs().max() < 1e-5
        assert (grey(x) - theirs(x)).abs().max() < 1e-5


def test_swapped_query_and_key_in_a_file_are_noticed(tmp_path):
    arrays = google()
    right, wrong = vit(), vit()
    load_into_vit(right, load_npz(write(tmp_path, arrays)))
    base = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1"
    arrays[f"{base}/query/kernel"], arrays[f"{base}/key/kernel"] = (
        arrays[f"{base}/key/kernel"],
        arrays[f"{base}/query/kernel"],
    )
    load_into_vit(wrong, load_npz(write(tmp_path, arrays)))
    with torch.no_grad():
        assert (right(images()) - wrong(images())).abs().max() > 1e-3


@pytest.mark.parametrize(("kind", "prefix"), KINDS)
def test_all_that_is_wrong_with_a_file_is_in_one_message(tmp_path, kind, prefix):
    arrays = google(kind, prefix)
    mlp = "MlpBlock_3" if kind == "classic" else "MlpBlock_0"
    del arrays[f"{prefix}cls"], arrays[f"{prefix}Transformer/encoderblock_1/{mlp}/Dense_0/bias"]
    arrays[f"{prefix}MAPHead_0/probe"] = np.zeros((1, 1, D), "f4")
    arrays[f"{prefix}Transformer/encoderblock_0/{mlp}/Dense_1/kernel"] = np.zeros((3, D), "f4")
    arrays[f"{prefix}Transformer/encoder_norm/scale"] = np.zeros(D, "i4")
    with pytest.raises(WeightsError) as error:
        load_npz(write(tmp_path, arrays))
    message = str(error.value)
    assert "missing (2)" in message and "cls" in message and f"encoderblock_1/{mlp}/Dense_0/bias" in message
    assert "unexpected (1): MAPHead_0/probe" in message
    assert f"encoderblock_0/{mlp}/Dense_1/kernel is (3, 12), the other arrays ask for (48, 12)" in message
    assert "wrong (2)" in message and "holds int32" in message


def test_a_file_for_another_architecture_is_refused_with_all_differences(tmp_path):
    deeper = VisionTransformer(32, PATCH, dim=D, depth=3, heads=2, mlp_ratio=2.0)
    with pytest.raises(WeightsError) as error:
        load_into_vit(deeper, load_npz(write(tmp_path, google())))
    message = str(error.value)
    assert "missing (12)" in message and "blocks.2.attn.qkv.weight" in message
    assert "3 attention heads, the model has 2" in message  # the shapes alone would not tell
    assert "blocks.1.mlp.fc1.weight is (48, 12), the model has (24, 12)" in message


def test_parameters_with_no_place_in_the_layout_are_listed():
    state = {name: value.numpy() for name, value in vit().state_dict().items()}
    state["blocks.0.ls1.gamma"] = np.ones(D, "f4")
    del state["norm.bias"]
    with pytest.raises(WeightsError, match=r"(?s)fold LayerScale.*missing \(1\): norm.bias.*blocks.0.ls1.gamma"):
        state_to_npz(state, H)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


def test_pickles_are_refused_and_never_run(tmp_path):
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError, match="a pickle"):
        load_npz(tmp_path / "raw.npz")
    np.savez(tmp_path / "objects.npz", **google(), extra=np.array([Bomb()], dtype=object))
    with pytest.raises(WeightsError, match="pickled Python objects"):
        load_npz(tmp_path / "objects.npz")


def test_absent_empty_and_foreign_files_are_answered_in_words(tmp_path):
    with pytest.raises(WeightsError, match="cannot read"):
        load_npz(tmp_path / "none.npz")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("empty.npz", "one.npy"):
        with pytest.raises(WeightsError, match="not an npz archive"):
            load_npz(tmp_path / name)
    with pytest.raises(WeightsError, match=r"missing \(22\)"):
        load_npz(write(tmp_path, {"a": np.zeros(3)}))


def test_what_a_file_says_of_itself_is_checked(tmp_path):
    for meta in ("{]", "[1]", '{"grid": 3}'):
        np.savez(tmp_path / "bad.npz", medvitlib=np.array(meta), **google())
        with pytest.raises(WeightsError, match="cannot be read"):
            load_npz(tmp_path / "bad.npz")


def test_a_small_file_that_unpacks_to_gigabytes_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", **{f"a{k}": np.zeros(2**26, np.float32) for k in range(2)})
    with pytest.raises(WeightsError, match=r"claim to hold 0\.5 GB"):
        load_npz(tmp_path / "bomb.npz")


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_truncated_file_is_an_error_and_a_damaged_one_is_never_a_crash(tmp_path_factory, data):
    path = write(tmp_path_factory.mktemp("damage"), google())
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        with pytest.raises(WeightsError):
            load_npz(path)
        return
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        state = load_npz(path).state
    except WeightsError:
        return
    assert all(np.isfinite(array).all() for array in state.values())  # a flip in padding or a time stamp
