"""Classify 2-D medical images with Vision Transformers, and be able to defend the result.

    data -> models -> training -> evaluation -> explain: each room knows only those before it.

`medvitlib.data.open_dataset` and `split`, `medvitlib.models.zoo.build`, `medvitlib.training.probe.fit_probe` and
`medvitlib.evaluate.evaluate` are the few calls a notebook makes; `medvitlib.evaluation` takes plain arrays;
`medvitlib.explain` shows where a model looks.
"""
