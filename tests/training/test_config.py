"""A setting that cannot be is refused when it is made, and the message says what can be."""

import re

import pytest

from medvitlib.errors import TrainingError
from medvitlib.training.config import TrainConfig


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"optimizer": "adamW"}, "optimizer 'adamW' is unknown. Did you mean 'adamw'?"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'?"),
        ({"loss": "focl"}, "Did you mean 'focal'?"),
        ({"balance": "weight"}, "Did you mean 'weights'?"),
        ({"recipe": "x-ray"}, "Did you mean 'xray'?"),
        ({"metric": "auroc"}, "Did you mean 'val_auroc'?"),
        ({"lr": 0}, "lr=0.0: expected a number above 0"),
        ({"lr": "fast"}, "lr='fast': expected a number"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"epochs": 2.5}, "epochs=2.5: expected a whole number"),
        ({"epochs": True}, "epochs=True: expected a whole number"),
        ({"epochs": 0}, "there is nothing to train"),
        ({"batch_size": 0}, "batch_size=0: expected 1 or more"),
        ({"ema": 1}, "ema=1.0: expected 0 to 0.99999"),
        ({"label_smoothing": 1}, "label_smoothing=1.0: expected 0 to 0.99"),
        ({"mixup": -1}, "mixup=-1.0: expected 0 or more"),
        ({"epochs": 1, "warmup_epochs": 2}, "the warm-up never ends"),
        ({"compile": "yes"}, "compile='yes': expected True or False"),
        ({"patience": None}, "patience=None: expected a whole number"),
    ],
)
def test_a_setting_that_cannot_be(settings, message):
    with pytest.raises(TrainingError, match=re.escape(message)):
        TrainConfig(**settings)


def test_a_yaml_files_settings_are_read_as_numbers():
    config = TrainConfig.from_dict({"lr": "1e-3", "epochs": "3", "weight_decay": 0, "trackers": "tensorboard"})
    assert (config.lr, config.epochs, config.weight_decay) == (0.001, 3, 0.0)
    assert config.trackers == ("tensorboard",)


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(TrainingError, match="Did you mean 'epochs'"):
        TrainConfig.from_dict({"epoch": 1})
