"""Training a hypernetwork: collect statistics, train, evaluate, export. `train_hypernet.py` is its command line."""

from __future__ import annotations

from .config import ConfigError, TrainingConfig
from .config_text import read_config
from .presets import PRESETS, World, register_preset

__all__ = ["PRESETS", "ConfigError", "TrainingConfig", "World", "read_config", "register_preset"]
