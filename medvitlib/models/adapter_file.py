"""One base for many tasks: put the adapter and the head that a run has trained onto a model in memory.

base = build("vit_small_patch14_dinov2", 3, image_size=112)
load_adapter(base, "smears")  # a run, by its name or folder; another one takes its place
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from medvitlib.errors import AdaptationError, MedvitError
from medvitlib.jsonfile import differences
from medvitlib.models.adapt import adapt
from medvitlib.models.adapters import unload, unmerge
from medvitlib.models.saved import model_folder, read_saved, sketch
from medvitlib.models.zoo import head_of, replace_head


def load_adapter(model: nn.Module, run: str | Path, classes: Sequence[str] | None = None) -> nn.Module:
    """Put what a run has trained onto its base, in the place of an adapter that may be there.

    Args:
        model: from `build` with the name, weights and image size that the run was trained from; changed in place.
        run: of a model that went through `adapt` with any method but "full".
        classes: expected of the run; None takes its own.

    Returns:
        the same model, adapted and not merged.

    Raises:
        AdaptationError: the run has no adapter, another base or other classes; the model is left as it was.
        MedvitError: the run cannot be read.
    """
    folder = model_folder(run)
    saved = read_saved(folder)
    architecture, adaptation = saved.info["architecture"], saved.info["weights"]["adaptation"]
    if adaptation is None or adaptation["method"] == "full":
        raise AdaptationError(f"The model in {folder} was trained in full and has no adapter: use `load_model`.")
    mine, theirs = (
        {key: v for key, v in a.items() if key != "num_classes"} for a in (model.architecture, architecture)
    )
    if different := differences(theirs, mine):
        listed = "; ".join(f"{key} was {was}, is {now}" for key, (was, now) in different.items())
        raise AdaptationError(f"{folder} belongs to another base: {listed}. Build the model that it was trained from.")
    if classes is not None and list(classes) != saved.info["classes"]:
        raise AdaptationError(f"{folder} was trained on classes {saved.info['classes']}, not on {list(classes)}.")
    try:
        like = adapt(sketch(architecture), **adaptation)
        frozen = {name for name, parameter in like.named_parameters() if not parameter.requires_grad}
        state = {name: saved.state[name] for name in like.state_dict()}
    except (MedvitError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise AdaptationError(f"The adapter in {folder} does not fit its architecture: {error}") from error
    base = model.state_dict()  # of adapted layers the weights before merging
    if any(name not in base or not torch.equal(base[name].cpu(), state[name]) for name in frozen):
        raise AdaptationError(
            f"{folder} belongs to {architecture['name']} with other weights than these: build the model with the "
            "weights that it was trained from. What an earlier training has changed (BitFit: biases) is not put back."
        )
    unmerge(model)
    unload(model)
    head, device = head_of(like), next(model.parameters())
    new = nn.Linear(head.in_features, head.out_features, head.bias is not None, device=device.device)
    replace_head(model, new)
    adapt(model, **adaptation).load_state_dict({name: state[name] for name in state.keys() - frozen}, strict=False)
    return model
