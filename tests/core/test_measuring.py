"""One rollout of the untouched network: which prompt, which seed, which level, and what is refused."""

from __future__ import annotations

import pytest
import torch

from hypertransport_core.capture import MOMENTS, PooledCapture
from hypertransport_core.measuring import MeasureError, levels_of, measure, next_latents, pooled_samples
from tests.support.tiny_backbone import TinyBackbone

PROMPTS, SEEDS = ["a boat", "a cat", "a house"], list(range(8))


@pytest.fixture()
def backbone() -> TinyBackbone:
    return TinyBackbone()


@pytest.mark.parametrize("pooling", ["mean", "mean_std", "mean_quarters"])
def test_numbers_are_those_of_the_untouched_network(backbone: TinyBackbone, pooling: str) -> None:
    samples = pooled_samples(backbone, PROMPTS, SEEDS, backbone.sites(), steps=2, pooling=pooling, batch=3)
    assert samples.shape == (2, 8, 48 * MOMENTS[pooling]) and samples.dtype == torch.float32
    conditioning, x = backbone.encode([PROMPTS[i % 3] for i in SEEDS]), backbone.noise(SEEDS)
    for number, (level, following) in enumerate(((1.0, 0.5), (0.5, 0.0))):
        with torch.no_grad(), PooledCapture(backbone.network, backbone.sites(), pooling) as capture:
            clean = backbone.denoise(x, level, conditioning)
        torch.testing.assert_close(samples[number], capture.features())
        x = next_latents(x, clean, level, following)


def test_samples_take_prompts_in_turn_with_their_own_seed(backbone: TinyBackbone) -> None:
    both = pooled_samples(backbone, ["a boat", "a cat"], [3, 4, 5], backbone.sites(), batch=2)
    alone = pooled_samples(backbone, ["a boat"], [5], backbone.sites())
    assert both.shape == (1, 3, 48)
    torch.testing.assert_close(both[:, 2:], alone)


def test_every_level_costs_one_call_a_batch(backbone: TinyBackbone) -> None:
    pooled_samples(backbone, PROMPTS, SEEDS, backbone.sites(), steps=2, batch=4)
    assert backbone.calls == 2 * 2  # batches, levels


def test_the_network_is_left_as_it_was(backbone: TinyBackbone) -> None:
    backbone.network.train()
    samples = pooled_samples(backbone, PROMPTS, SEEDS, backbone.sites())
    assert backbone.network.training and not samples.requires_grad
    assert all(parameter.requires_grad for parameter in backbone.network.parameters())


@pytest.mark.parametrize("prompts, words", [(["x"] * 9, "9 prompts"), ([], "0 prompts"), ("a text", "single text")])
def test_prompts_that_do_not_fit_the_seeds(backbone: TinyBackbone, prompts, words: str) -> None:
    with pytest.raises(MeasureError, match=words) as refusal:
        pooled_samples(backbone, prompts, SEEDS, backbone.sites(), name="'fire'")
    assert "'fire'" in str(refusal.value) and "\n" not in str(refusal.value) and backbone.calls == 0


@pytest.mark.parametrize("steps", [[], [2], [-1]])
def test_steps_that_are_not_there(backbone: TinyBackbone, steps: list[int]) -> None:
    with pytest.raises(MeasureError, match="of 2 noise levels"):
        measure(backbone, backbone.encode(["a cat"]), backbone.noise([1]), backbone.sites(), levels_of(backbone, 2), measured=steps)
