"""What tests of steering in the host share: steering, how far pictures are apart, and steering that must change nothing."""

from __future__ import annotations

from typing import Any

import torch

from pack import pack_module


def steer(model: Any, maps: Any, strength: Any = 1.0, **options: Any) -> Any:
    return pack_module("nodes.interception").steer_model(model, maps, strength, **options)


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def identically(tiny: Any, model: Any) -> Any:
    """The model with identity maps installed, which `steer_model` would leave out."""
    interception = pack_module("nodes.interception")
    steering = interception.LiveSteering(tiny.identity(), scope="positive")
    steering.stretches.append(interception.Stretch(0.0, 1.0, interception.Steering(tiny.identity().steps[0])))
    return interception.install(model, steering)
