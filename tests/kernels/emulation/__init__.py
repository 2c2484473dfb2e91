"""Runs the CUDA kernels on the CPU; see emulator.py."""

from tests.kernels.emulation.emulator import ORDERS, EmulationBuildError, EmulationError, Emulator, emulation
from tests.kernels.emulation.mutation import survivors
from tests.kernels.emulation.sanitizer import libasan, run_sanitized

__all__ = ["ORDERS", "EmulationBuildError", "EmulationError", "Emulator", "emulation", "libasan", "run_sanitized",
           "survivors"]
