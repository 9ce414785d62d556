"""What changes the weights: groups of parameters, an optimizer, and the learning rate as a function of the step."""

import math

import torch
from timm.models import group_parameters
from torch import nn

from medvitlib.models.zoo import head_of
from medvitlib.training.config import TrainConfig

NO_DECAY = ("pos_embed", "pos_embedding", "position", "cls_token", "class_token", "dist_token", "reg_token")
"""Parts of the names of positions and tokens in this library's, timm's and torchvision's models."""


def parameter_groups(model: nn.Module, lr: float, weight_decay: float, layer_decay: float = 1.0) -> list[dict]:
    """Every trainable parameter in one group of its layer, with or without weight decay.

    Without it go norms and biases (one dimension), position embeddings and tokens. Layer l of L, the head being the
    last, learns at lr x layer_decay^(L - l) (Clark et al. 2020; Bao et al. 2022).

    Returns:
        dictionaries with `params`, `names`, `weight_decay`, `lr` and `base_lr`, which the schedule multiplies.
    """
    skip = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    layer = _layers(model) if layer_decay < 1 else {}
    top = max(layer.values(), default=0)
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or name in skip or any(part in name for part in NO_DECAY)
        depth = layer.get(name, top)
        rate = lr * layer_decay ** (top - depth)
        new = {"params": [], "names": [], "weight_decay": 0.0 if plain else weight_decay, "lr": rate, "base_lr": rate}
        group = groups.setdefault((depth, plain), new)
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]


def _layers(model: nn.Module) -> dict[str, int]:
    """Parameter name to layer: timm's grouping where the model has one, else each of its children is a layer."""
    if hasattr(model, "group_matcher"):
        return {
            name: int(layer) for name, layer in group_parameters(model, model.group_matcher(), reverse=True).items()
        }
    children = [name for name, module in model.named_children() if any(True for _ in module.parameters())]
    return {
        name: children.index(first) if (first := name.split(".")[0]) in children else 0
        for name, _ in model.named_parameters()
    }


def make_optimizer(model: nn.Module, config: TrainConfig, head_only: bool = False) -> torch.optim.Optimizer:
    """The optimizer of one phase: of the head alone at `head_lr`, or of everything that is trainable."""
    if head_only:
        groups = parameter_groups(head_of(model), config.head_lr, config.weight_decay)
    else:
        groups = parameter_groups(model, config.lr, config.weight_decay, config.layer_decay)
    for group in groups:
        del group["names"]  # PyTorch would want them in every state that is loaded
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    fused = all(parameter.is_cuda for group in groups for parameter in group["params"])  # each number is read once
    return kind(groups, lr=config.lr, fused=fused)


def rate_at(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """What the learning rate is multiplied by at update `step` of full training, counted from 0.

    A function of the step alone, so a training that is taken up again needs no state of a scheduler.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "step":
        return config.gamma ** (step // (config.step_size * steps_per_epoch))
    total = config.epochs * steps_per_epoch
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return config.min_lr + (1 - config.min_lr) * (1 + math.cos(math.pi * done)) / 2
