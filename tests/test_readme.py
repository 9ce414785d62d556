"""The README's Python runs as it is printed there, and so does the command after it."""

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from medvitlib.cli import main

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.pretrained
def test_the_first_example_runs_on_a_folder_like_the_one_shown(tmp_path, monkeypatch, pretrained_weights, capsys):
    rng = np.random.default_rng(0)
    for patient in range(80):
        folder = tmp_path / "my_images" / ("malignant" if patient % 2 else "benign")
        folder.mkdir(parents=True, exist_ok=True)
        for view in "ab":
            cv2.imwrite(str(folder / f"p{patient:02d}_{view}.png"), rng.integers(0, 256, (32, 32), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDVIT_WEIGHTS", str(pretrained_weights))
    text = README.read_text(encoding="utf-8")
    example = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    variables: dict = {}
    exec(example, variables)
    assert variables["ds"].groups_known and variables["report"].choices["recall"].n_patients == 10
    report = str(variables["report"])
    assert capsys.readouterr().out.endswith(f"\n{report}\n") and max(map(len, report.splitlines())) <= 80

    (tmp_path / "new_images").mkdir()
    for number in range(3):
        image = rng.integers(0, 256, (32, 32), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "new_images" / f"{number}.png"), image)
    (command,) = re.findall(r"^    \S*medvit (predict .*--out answers\.csv)$", text, re.MULTILINE)
    assert main(shlex.split(command)) == 0
    assert "not c" not in capsys.readouterr().out  # "not calibrated", "not checked"
    answers = pd.read_csv("answers.csv")
    assert len(answers) == 3 and answers["unlike"].isin([0, 1]).all() and (answers["distance"] > 0).all()
    assert answers["set"].isin(["benign", "malignant", "benign or malignant", "no class"]).all()
    assert main([*shlex.split(command), "--threshold", "certified"]) == 1
    assert "There is no certified threshold: 10 positive patients; at least" in capsys.readouterr().err
