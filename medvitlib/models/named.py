"""This library's Vision Transformers by name: small functions that say their sizes."""

from medvitlib.models.vit import VisionTransformer

OPTIONS = ("dropout", "drop_path", "pool")
"""Settings of `VisionTransformer` that every model below takes: they change how it trains, not what it is called."""


def vit_tiny_test(
    image_size: int | tuple[int, int] = 32, in_channels: int = 3, num_classes: int = 2, **options
) -> VisionTransformer:
    """Makes tests instant: 32 px, patches of 8, 16 wide, 2 blocks of 2 heads."""
    return VisionTransformer(image_size, 8, in_channels, num_classes, dim=16, depth=2, heads=2, **options)


def vit_scratch(
    image_size: int | tuple[int, int] = 224,
    in_channels: int = 3,
    num_classes: int = 2,
    *,
    patch_size: int = 16,
    dim: int = 256,
    depth: int = 6,
    heads: int = 8,
    mlp_ratio: float = 4.0,
    dropout: float = 0.1,
    drop_path: float = 0.05,
    **options,
) -> VisionTransformer:
    """To be trained from random numbers on thousands of images: 4.99 M parameters with its own sizes.

    No weights are published for it, so that its sizes may be chosen freely.
    """
    sizes = {"dim": dim, "depth": depth, "heads": heads, "mlp_ratio": mlp_ratio}
    options |= {"dropout": dropout, "drop_path": drop_path}
    return VisionTransformer(image_size, patch_size, in_channels, num_classes, **sizes, **options)


def vit_small_patch14_dinov2(
    image_size: int | tuple[int, int] = 224, in_channels: int = 3, num_classes: int = 2, **options
) -> VisionTransformer:
    """ViT-S/14, 22 M parameters (DINOv2, Oquab et al. 2023; published at 518 px)."""
    return VisionTransformer(image_size, 14, in_channels, num_classes, dim=384, depth=12, heads=6, **options)


def vit_s16(
    image_size: int | tuple[int, int] = 224, in_channels: int = 3, num_classes: int = 2, **options
) -> VisionTransformer:
    """ViT-S/16, 22 M parameters (Steiner et al., "How to train your ViT?", 2021)."""
    return VisionTransformer(image_size, 16, in_channels, num_classes, dim=384, depth=12, heads=6, **options)


def vit_b16(
    image_size: int | tuple[int, int] = 224, in_channels: int = 3, num_classes: int = 2, **options
) -> VisionTransformer:
    """ViT-B/16, 86 M parameters (Table 1 of the paper)."""
    return VisionTransformer(image_size, 16, in_channels, num_classes, dim=768, depth=12, heads=12, **options)


MODELS = {
    "vit_tiny_test": vit_tiny_test,
    "vit_scratch": vit_scratch,
    "vit_small_patch14_dinov2": vit_small_patch14_dinov2,
    "vit_s16": vit_s16,
    "vit_b16": vit_b16,
    "vit_small_patch16_224": vit_s16,  # timm's names of the same two
    "vit_base_patch16_224": vit_b16,
}
