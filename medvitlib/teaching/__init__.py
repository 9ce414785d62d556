"""The two-layer teaching model, trained on rendered CT slices: 0.4 MB that are installed with the library.

It is there to be opened, drawn and broken, not to be believed: its images were rendered, so it says nothing about any
patient. model.json has its figures on rendered patients it has not seen.
`python -m medvitlib.teaching` trains it anew.
"""

from pathlib import Path

from torch import nn

from medvitlib.models.saved import load_model

FOLDER = Path(__file__).parent


def load_teaching_model() -> tuple[nn.Module, dict]:
    """The trained `transformer_classifier`, 99,010 parameters, for grey images of 224 px.

    Returns:
        the model in evaluation mode, carrying `.architecture` and `.preprocessing`; and what its model.json says:
        classes, the positive one, temperature, thresholds and, under "trained", on what and how well.

    Raises:
        MedvitError: its files are missing or damaged.
    """
    return load_model(FOLDER)
