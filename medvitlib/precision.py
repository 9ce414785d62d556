"""Which reduced precision pays here: decided by what the hardware computes, not by what it can emulate."""

import torch


def autocast_dtype(device: str | torch.device) -> torch.dtype | None:
    """The dtype for `torch.autocast` on this device, or None where float32 is the better choice.

    CUDA: bfloat16 from Ampere on, else float16 (which training needs a gradient scaler for). A T4 reports bfloat16
    as supported, but through emulation. CPU: bfloat16 with AVX512-BF16 or AMX; without either, autocast slows
    things down. Anything else: None.
    """
    device = torch.device(device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.bfloat16
    return None
