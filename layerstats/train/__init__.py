"""The bundled trainer: fine-tuning with layer sampling, and what a run leaves behind.

config.py holds the settings, loop.py the loop; methods.py says who trains when, step.py is one
optimizer step, galore.py the low-rank optimizer, data.py the batches, run_directory.py the files.
"""

from __future__ import annotations

from layerstats.train.config import METHODS, TrainConfig
from layerstats.train.finish import TrainResult
from layerstats.train.galore import GaLoreAdamW
from layerstats.train.loop import train
from layerstats.train.methods import Trainee, make_trainee
from layerstats.train.run_directory import RunDirectory

__all__ = [
    "METHODS",
    "GaLoreAdamW",
    "RunDirectory",
    "TrainConfig",
    "TrainResult",
    "Trainee",
    "make_trainee",
    "train",
]
