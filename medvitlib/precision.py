"""Which reduced precision pays here: decided by what the hardware computes, not by what it can emulate."""

import platform
import re
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")


def autocast_dtype(device: str | torch.device) -> torch.dtype | None:
    """The dtype for `torch.autocast` on this device, or None where float32 is the better choice.

    CUDA: bfloat16 from Ampere on, else float16 (which training needs a gradient scaler for). A T4 reports bfloat16
    as supported, but through emulation. CPU: bfloat16 with AVX512-BF16 or AMX, or ARM's BF16 on Linux; without them,
    autocast slows things down. Anything else, Apple's GPU among it: None.
    """
    device = torch.device(device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu" and _cpu_computes_bfloat16():
        return torch.bfloat16
    return None


def _cpu_computes_bfloat16() -> bool:
    if platform.machine() == "aarch64":  # torch's probes are for x86; macOS says "arm64" and stays in float32
        features = re.findall(r"^Features\s*:(.*)", CPUINFO.read_text(), re.M) if CPUINFO.is_file() else []
        return any("bf16" in line.split() for line in features)
    # private, yet the same from torch 2.6 to 2.15; where one goes away (`bool()` is False), float32 is what remains
    return any(getattr(torch.cpu, probe, bool)() for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
