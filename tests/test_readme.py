"""The README's Python runs as it stands."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.pretrained
def test_the_first_example_runs_on_a_folder_like_the_one_shown(tmp_path, monkeypatch, pretrained_weights):
    rng = np.random.default_rng(0)
    for patient in range(80):
        folder = tmp_path / "my_images" / ("malignant" if patient % 2 else "benign")
        folder.mkdir(parents=True, exist_ok=True)
        for view in "ab":
            cv2.imwrite(str(folder / f"p{patient:02d}_{view}.png"), rng.integers(0, 256, (32, 32), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDVIT_WEIGHTS", str(pretrained_weights))
    example = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[0]
    variables: dict = {}
    exec(example, variables)
    assert variables["ds"].groups_known and variables["report"].choices["recall"].n_patients == 10
