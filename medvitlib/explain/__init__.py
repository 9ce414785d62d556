"""Where a model looks, and what follows from it; every call leaves the model as it was found.

`attention_maps` reads the attention of a model, with views for a token; `rollout` follows it through the layers. The
others have one call shape, `maps = method(model, images, target=None)`, and give (N, H, W) from 0 to 1: `gradcam` and
its relatives (`CAMS`), `relevance`, `attention_rollout`, `occlusion`, `integrated_gradients`. `compare_explanations`
scores them beside maps that know nothing; the figures are in `medvitlib.explain.pictures`.
"""

from medvitlib.explain.attention import attention_maps
from medvitlib.explain.compare import compare_explanations
from medvitlib.explain.gradcam import CAMS, eigencam, gradcam, gradcam_plus_plus, hirescam, layercam
from medvitlib.explain.maps import AttentionMaps, LayerMaps, upsample
from medvitlib.explain.perturbation import attributions, integrated_gradients, occlusion
from medvitlib.explain.relevance import attention_rollout, relevance
from medvitlib.explain.rollout import rollout

__all__ = [
    "CAMS",
    "AttentionMaps",
    "LayerMaps",
    "attention_maps",
    "attention_rollout",
    "attributions",
    "compare_explanations",
    "eigencam",
    "gradcam",
    "gradcam_plus_plus",
    "hirescam",
    "integrated_gradients",
    "layercam",
    "occlusion",
    "relevance",
    "rollout",
    "upsample",
]
