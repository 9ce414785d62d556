"""What this process may use of the machine it runs on."""

import os


def cores() -> int:
    """CPU cores that this process may use; the machine may have more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
