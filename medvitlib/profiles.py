"""What a notebook's profile means for the machine it runs on."""

from medvitlib.errors import MedvitError

PROFILES = ("quick", "real", "full")


def start(profile: str, seed: int = 0) -> dict:
    """Seed torch and choose the hardware of a profile.

    `quick` always computes in float32 on two CPU threads, so that the outputs committed with a notebook can be
    compared with those of another machine; `real` and `full` take whatever is fastest.

    Returns:
        Keyword arguments for `fit_probe` and `evaluate`: `device` and `precision`.
    """
    if profile not in PROFILES:
        raise MedvitError(f"profile is one of {', '.join(PROFILES)}; {profile!r} was given.")
    import torch  # here, for the batch runner reads PROFILES and should start at once

    torch.manual_seed(seed)
    if profile != "quick":
        return {"device": None, "precision": "auto"}
    torch.set_num_threads(2)
    return {"device": "cpu", "precision": None}
