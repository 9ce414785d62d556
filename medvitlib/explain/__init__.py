"""Where a model looks, and what follows from it; every call leaves the model as it was found.

`attention_maps` reads the attention of a model, with views for a token; `rollout` follows it through the layers; the
figures are in `medvitlib.explain.pictures`.
"""

from medvitlib.explain.attention import attention_maps
from medvitlib.explain.maps import AttentionMaps, LayerMaps, upsample
from medvitlib.explain.rollout import rollout

__all__ = ["AttentionMaps", "LayerMaps", "attention_maps", "rollout", "upsample"]
