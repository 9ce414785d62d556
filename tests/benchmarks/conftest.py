"""The benchmarks are scripts in a folder of their own, and import one another from there."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
