"""Reduced precision is chosen by what the hardware computes."""

import contextlib

import pytest
import torch

from medvitlib import precision
from medvitlib.precision import autocast_dtype


@pytest.mark.parametrize(("avx512", "amx", "expected"), [(0, 0, None), (1, 0, torch.bfloat16), (0, 1, torch.bfloat16)])
def test_a_processor_without_bfloat16_instructions_stays_in_float32(monkeypatch, avx512, amx, expected):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    assert autocast_dtype("cpu") is expected


@pytest.mark.parametrize(
    ("features", "expected"), [("fp asimd i8mm bf16 dgh", torch.bfloat16), ("fp asimd asimdhp", None), (None, None)]
)
def test_an_arm_processor_is_asked_through_the_kernel(monkeypatch, tmp_path, features, expected):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    if features:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: {features}\n\n")
    assert autocast_dtype("cpu") is expected


def test_a_torch_without_the_probes_means_float32(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert autocast_dtype("cpu") is None


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_emulated_bfloat16_does_not_count(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert autocast_dtype("cuda:0") is expected


def test_other_devices_stay_in_float32():
    assert autocast_dtype("mps") is None
