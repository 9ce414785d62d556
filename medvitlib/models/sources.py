"""Where the weights of this library's own models are published. Plain facts: nothing is imported or fetched here."""

from dataclasses import dataclass

GOOGLE = "https://storage.googleapis.com/vit_models"


@dataclass(frozen=True)
class Source:
    """Where the weights of one named model may be found.

    Attributes:
        files: names a local file may have, best first.
        licence: of the files named here.
        hub: Hugging Face repository.
        url: direct download (torchvision's, a few of timm's).
        by_hand: addresses a browser can download from.
        index: whether the package index has them.
    """

    files: tuple[str, ...] = ()
    licence: str = "unknown"
    hub: str = ""
    url: str = ""
    by_hand: tuple[str, ...] = ()
    index: bool = False


SOURCES = {
    "vit_small_patch14_dinov2": Source(
        files=("vit_small_patch14_dinov2.safetensors", "vit_small_patch14_dinov2.npz"),
        licence="Apache-2.0",
        hub="timm/vit_small_patch14_dinov2.lvd142m",
        index=True,
    ),
    "vit_base_patch16_224": Source(
        files=(
            "vit_base_patch16_224.safetensors",
            "ViT-B_16.npz",
            "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz",
        ),
        licence="Apache-2.0",
        hub="timm/vit_base_patch16_224.augreg_in21k",
        by_hand=(
            f"{GOOGLE}/imagenet21k/ViT-B_16.npz",
            f"{GOOGLE}/augreg/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz",
        ),
    ),
    "vit_small_patch16_224": Source(
        files=(
            "vit_small_patch16_224.safetensors",
            "S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0.npz",
        ),
        licence="Apache-2.0",
        hub="timm/vit_small_patch16_224.augreg_in21k",
        by_hand=(f"{GOOGLE}/augreg/S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0.npz",),
    ),
}

SHORT_NAMES = {"vit_s16": "vit_small_patch16_224", "vit_b16": "vit_base_patch16_224"}
"""The same models under the names their papers use."""


def source_of(name: str) -> Source | None:
    """Where the weights of one of this library's models are published; None for a name without any."""
    return SOURCES.get(SHORT_NAMES.get(name, name))
