"""Every setting of a training, checked when it is made."""

from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from medvitlib.data import RECIPES
from medvitlib.errors import TrainingError, one_of
from medvitlib.evaluation import paired
from medvitlib.evaluation.paired import SMALLER
from medvitlib.models.pruning import SCOPES

OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "step", "constant")
LOSSES = ("cross_entropy", "focal")
BALANCES = ("none", "weights", "sampling")
METRICS = {f"val_{name}": min if name in SMALLER else max for name in paired.METRICS}
"""What early stopping can look at, with what is better. For more than two classes AUROC, AUPRC and F1 are macro."""


@dataclass(frozen=True)
class TrainConfig:
    """How `fit` trains. The defaults suit the fine-tuning of a pretrained Vision Transformer.

    Attributes:
        epochs: passes over the training part in which everything is trained.
        batch_size: images an update, whatever `accumulate` is.
        accumulate: parts that a batch goes through the model in; less memory, the same update (but for batch
            normalisation, which sees a part at a time).
        optimizer: "adamw" (weight decay apart from the gradient, Loshchilov & Hutter 2019), "adam" or "sgd".
        lr: the highest learning rate, of the head and, without `layer_decay`, of everything.
        weight_decay: not applied to norms, biases, positions and class tokens.
        momentum: of SGD (Nesterov's).
        layer_decay: each layer below the head learns at this times the rate of the one above (Clark et al. 2020).
        schedule: after the warm-up, "cosine" falls to `min_lr` times `lr` at the end, "step" multiplies by `gamma`
            every `step_size` epochs, "constant" stays.
        warmup_epochs: epochs, or a part of one, in which the rate rises linearly from 0.
        head_epochs, head_lr: passes before those, in which the head alone is trained, at this constant rate, over a
            backbone in evaluation mode (LP-FT: Kumar et al. 2022).
        loss: "cross_entropy", or "focal" (Lin et al. 2017) with `focal_gamma`.
        label_smoothing: share of a label that is spread over all classes.
        balance: "weights" in the loss, or "sampling": both give every class the same say.
        recipe: augmentation, one of `medvitlib.data.RECIPES`.
        mixup, cutmix: strengths, see `medvitlib.data.mix`; both 0: nothing is mixed.
        clip_norm: largest norm of an update's gradient; 0 leaves it as it is.
        prune: share of the weights of linear and convolutional layers, those of least magnitude, that become zero and
            stay so; 0: none. Only epochs in which all of it is zero can be the best one.
        prune_epochs: epochs of full training over which the share grows, by a cubic (Zhu & Gupta 2017); 1: at once,
            before the first update.
        prune_scope: "layer", the same share of each, or "global", one threshold for all.
        ema: decay of the moving average of the weights, which then is what is validated and kept; 0: none.
        metric: a column of metrics.csv; the epoch that is best by it is kept, of equal ones the one with the lowest
            validation NLL.
        keep_start: validate the weights before the first update too, as epoch 0, and keep them if no epoch is better:
            a fine-tuned model is then never worse on validation than what it started from.
        patience: epochs without a better one after which the training stops; 0: never.
        workers: processes that augment images; 0 does it in this one. The result is the same.
        compile: let `torch.compile` translate the model first (of a Transformer, its blocks); it takes a while, and
            pays in long trainings.
        checkpointing: keep the input of each block alone, and compute its activations again on the way back: less
            memory, more time, the same update. Where memory runs out all the same, a batch goes through
            the model in more parts.
        deterministic: refuse operations whose result differs between two runs (on a CPU there are hardly any).
        seed: of the order of the images, augmentation, mixing, dropout.
        trackers: experiment trackers to tell, as accelerate names them ("tensorboard", "mlflow", ...); where
            $MLFLOW_TRACKING_URI is set, MLflow is told in any case.

    Raises:
        TrainingError: a value of the wrong kind or out of range; names the setting and what it may be.
    """

    epochs: int = 10
    batch_size: int = 32
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-4
    weight_decay: float = 0.05
    momentum: float = 0.9
    layer_decay: float = 1.0
    schedule: str = "cosine"
    warmup_epochs: float = 0.5
    min_lr: float = 0.01
    step_size: int = 7
    gamma: float = 0.1
    head_epochs: int = 0
    head_lr: float = 1e-3
    loss: str = "cross_entropy"
    focal_gamma: float = 2.0
    label_smoothing: float = 0.0
    balance: str = "none"
    recipe: str = "none"
    mixup: float = 0.0
    cutmix: float = 0.0
    clip_norm: float = 1.0
    prune: float = 0.0
    prune_epochs: int = 1
    prune_scope: str = "layer"
    ema: float = 0.0
    metric: str = "val_auroc"
    keep_start: bool = False
    patience: int = 0
    workers: int = 0
    compile: bool = False
    checkpointing: bool = False
    deterministic: bool = False
    seed: int = 0
    trackers: tuple[str, ...] = ()

    def __post_init__(self):
        for name, kind in get_type_hints(TrainConfig).items():
            object.__setattr__(self, name, of_kind(name, getattr(self, name), kind))
        for name, choices in _CHOICES.items():
            one_of(name, getattr(self, name), choices, TrainingError)
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                upper = f" to {high:g}" if high < float("inf") else " or more"
                raise TrainingError(f"{name}={getattr(self, name)}: expected {low:g}{upper}.")
        for name in ("lr", "head_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise TrainingError(f"{name}={getattr(self, name)}: expected a number above 0.")
        if self.epochs + self.head_epochs < 1:
            raise TrainingError("epochs=0 and head_epochs=0: there is nothing to train.")
        if self.warmup_epochs > self.epochs > 0:
            raise TrainingError(f"warmup_epochs={self.warmup_epochs} of epochs={self.epochs}: the warm-up never ends.")
        if self.prune and self.keep_start:
            raise TrainingError("keep_start=True with prune: the weights before the first update are not pruned.")
        if self.prune and self.prune_epochs > self.epochs:
            raise TrainingError(
                f"prune_epochs={self.prune_epochs} of epochs={self.epochs}: the share asked for is never reached."
            )

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> "TrainConfig":
        """From a mapping such as a YAML file's; TrainingError names an unknown setting and the nearest known one."""
        known = [f.name for f in fields(cls)]
        for name in settings:
            one_of("setting", name, known, TrainingError)
        return cls(**settings)


_CHOICES = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "loss": LOSSES,
    "balance": BALANCES,
    "recipe": RECIPES,
    "prune_scope": SCOPES,
    "metric": tuple(METRICS),
}
_ANY = float("inf")
_RANGES = {
    "epochs": (0, _ANY),
    "batch_size": (1, _ANY),
    "accumulate": (1, _ANY),
    "weight_decay": (0, _ANY),
    "momentum": (0, 0.9999),
    "layer_decay": (0.01, 1),
    "warmup_epochs": (0, _ANY),
    "min_lr": (0, 1),
    "step_size": (1, _ANY),
    "gamma": (0, 1),
    "head_epochs": (0, _ANY),
    "focal_gamma": (0, _ANY),
    "label_smoothing": (0, 0.99),
    "mixup": (0, _ANY),
    "cutmix": (0, _ANY),
    "clip_norm": (0, _ANY),
    "prune": (0, 0.9999),
    "prune_epochs": (1, _ANY),
    "ema": (0, 0.99999),
    "patience": (0, _ANY),
    "workers": (0, 256),
}


def of_kind(name: str, value: Any, kind: Any) -> Any:
    """The value as the field's type; a YAML file's 1e-3 is text, and an integer will do for a float."""
    try:
        if kind is bool or isinstance(value, bool):
            if kind is not bool or not isinstance(value, bool):
                raise ValueError
            return value
        if kind in (int, float):
            number = float(value)
            if kind is int and number != int(number):
                raise ValueError
            return kind(number)
        if kind is str:
            if not isinstance(value, str):
                raise ValueError
            return value
        return (value,) if isinstance(value, str) else tuple(map(str, value))
    except (ValueError, TypeError, OverflowError):
        words = {
            int: "a whole number",
            float: "a number",
            str: "a word (in quotes, anything is)",
            bool: "True or False",
        }
        raise TrainingError(f"{name}={value!r}: expected {words.get(kind, 'a list of names')}.") from None
