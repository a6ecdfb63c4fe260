"""The low-rank slider: it learns, leaves nothing behind, and lies in the file as it was fitted."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hypertransport_core.files import FileError, save_file
from hypertransport_core.fitting import FitError, LowRank, slider_lora
from hypertransport_core.sites import SiteError
from tests.support.tiny_backbone import TinyBackbone

SOURCE, TARGET = ["a blue cat", "a small boat"], ["a blue cat, storm", "a small boat, storm"]
SEEDS = list(range(8))


@pytest.fixture()
def backbone() -> TinyBackbone:
    return TinyBackbone()


def sampled(backbone: TinyBackbone, prompts: list[str], change: LowRank | None = None, strength: float = 1.0) -> Tensor:
    """Latents from seeds that no fit has seen."""
    conditioning, noise = backbone.encode(prompts), backbone.noise(range(900, 900 + len(prompts)))
    with torch.no_grad(), (change or LowRank({})).installed(backbone.network, strength):
        return backbone.sample(conditioning, noise, steps=2)


def test_it_learns_what_the_prompt_with_the_concept_does(backbone: TinyBackbone) -> None:
    losses: list[float] = []
    change = slider_lora(backbone, SOURCE, TARGET, SEEDS, iterations=150, batch=8, learning_rate=2e-2, steps=2,
                         progress=lambda iteration, loss: losses.append(loss))
    plain, wanted = sampled(backbone, SOURCE), sampled(backbone, TARGET)
    steered = sampled(backbone, SOURCE, change)
    assert (steered - wanted).square().mean() < 0.2 * (plain - wanted).square().mean()
    assert sum(losses[-20:]) < 0.3 * sum(losses[:20]) and len(losses) == 150
    half = sampled(backbone, SOURCE, change, 0.5)
    assert 0 < (half - plain).norm() < (steered - plain).norm()
    torch.testing.assert_close(sampled(backbone, SOURCE), plain, rtol=0, atol=0)
    torch.testing.assert_close(sampled(backbone, SOURCE, change, 0.0), plain, rtol=0, atol=0)


def test_a_fresh_slider_changes_nothing_and_the_same_seed_gives_the_same(backbone: TinyBackbone) -> None:
    one, two = (slider_lora(backbone, SOURCE, TARGET, SEEDS, iterations=1, rank=2, learning_rate=1e-9) for _ in range(2))
    torch.testing.assert_close(sampled(backbone, SOURCE, one), sampled(backbone, SOURCE), atol=1e-6, rtol=0)
    for path, (down, up) in one.layers.items():
        linear = backbone.network.get_submodule(path)
        assert down.shape == (2, linear.in_features) and up.shape == (linear.out_features, 2)
        assert torch.equal(down, two.layers[path][0]) and torch.equal(up, two.layers[path][1])
    assert len(one.layers) == sum(isinstance(module, torch.nn.Linear) for module in backbone.network.modules())
    assert not any(parameter.grad is not None for parameter in backbone.network.parameters())


def test_what_it_adds_is_up_down_times_strength(backbone: TinyBackbone) -> None:
    path, linear = next((p, m) for p, m in backbone.network.named_modules() if isinstance(m, torch.nn.Linear))
    down, up, x = torch.randn(2, linear.in_features), torch.randn(linear.out_features, 2), torch.randn(3, linear.in_features)
    with LowRank({path: (down, up)}).installed(backbone.network, -0.5):
        torch.testing.assert_close(linear(x), torch.nn.functional.linear(x, linear.weight - 0.5 * up @ down, linear.bias))
    with pytest.raises(SiteError), LowRank({"nowhere": (down, up)}).installed(backbone.network):
        pass


def test_it_is_the_same_from_a_file(backbone: TinyBackbone, tmp_path: Path) -> None:
    change = slider_lora(backbone, SOURCE, TARGET, SEEDS, iterations=2)
    change.save(tmp_path / "slider.safetensors")
    again = LowRank.load(tmp_path / "slider.safetensors")
    assert again.info == change.info and again.layers.keys() == change.layers.keys()
    assert all(torch.equal(a, b) for path in change.layers for a, b in zip(change.layers[path], again.layers[path]))
    save_file(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, "statistics", {})
    with pytest.raises(FileError):
        LowRank.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("options", [{"batch": 9}, {"iterations": 0}, {"rank": 0}, {"learning_rate": 1e30}])
def test_refusals(backbone: TinyBackbone, options: dict) -> None:
    with pytest.raises(FitError):
        slider_lora(backbone, SOURCE, TARGET, SEEDS, **{"iterations": 5, **options})
