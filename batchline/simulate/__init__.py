"""Simulator: an OpenAI-compatible server with plausible answers, for demos, tests and benchmarks."""

from batchline.simulate.options import SimulatorOptions
from batchline.simulate.process import Simulator
from batchline.simulate.server import serve

__all__ = ["Simulator", "SimulatorOptions", "serve"]
