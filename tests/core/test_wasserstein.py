"""The loss against brute force in numpy, and the two exact identities it rests on."""
from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hypertransport_core.sites import Site
from hypertransport_core.wasserstein import (LossError, block_means, channel_coefficients, coarsen, inverse_variance,
                                             rank_targets, site_loss, wasserstein2)

SITES = (Site("blocks.0.attn", "self_attention", 3), Site("blocks.0.mlp", "mlp", 5))


def samples(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def full_distance(source: np.ndarray, target: np.ndarray) -> float:
    """W2² of two empirical laws by the definition through quantile functions: repeat both to a common count."""
    count = np.lcm(len(source), len(target))
    quantiles = [np.repeat(np.sort(v), count // len(v)) for v in (source, target)]
    return float(np.mean((quantiles[0] - quantiles[1]) ** 2))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 5), seed=st.integers(0, 10_000))
def test_equals_the_best_of_all_assignments(n: int, seed: int) -> None:
    source, target = samples(n, 2, seed=seed), samples(n, 2, seed=seed + 1)
    ours = wasserstein2(source, block_means(target, n))
    for channel in range(2):
        costs = [np.mean((source[:, channel].numpy() - target[list(p), channel].numpy()) ** 2)
                 for p in itertools.permutations(range(n))]
        assert ours[channel].item() == pytest.approx(min(costs), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(n=st.sampled_from([1, 2, 4, 8]), k=st.integers(1, 5), seed=st.integers(0, 10_000))
def test_block_means_give_the_full_distance_up_to_the_within_block_variance(n: int, k: int, seed: int) -> None:
    source, target = samples(n, 3, seed=seed), samples(n * k, 3, seed=seed + 1) * 2 + 1
    ours = wasserstein2(source, block_means(target, n))
    for channel in range(3):
        blocks = np.sort(target[:, channel].numpy()).reshape(n, k)
        constant = np.mean(blocks.var(axis=1))
        expected = full_distance(source[:, channel].numpy(), target[:, channel].numpy())
        assert ours[channel].item() + constant == pytest.approx(expected, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(m=st.sampled_from([16, 32, 64]), seed=st.integers(0, 10_000))
def test_tables_nest(m: int, seed: int) -> None:
    target = samples(m, 4, seed=seed)
    for fine, coarse in ((16, 8), (16, 4), (8, 4), (16, 1)):
        torch.testing.assert_close(coarsen(block_means(target, fine), coarse), block_means(target, coarse))


def test_gradient_of_all_targets_equals_that_of_their_block_means() -> None:
    source = samples(8, 5).float().requires_grad_()
    target = samples(32, 5, seed=1).float()
    wasserstein2(source, block_means(target, 8)).sum().backward()
    repeated = source.detach().clone().requires_grad_()
    wasserstein2(repeated.repeat_interleave(4, 0), block_means(target, 32)).sum().backward()
    torch.testing.assert_close(source.grad, repeated.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_microbatches_accumulate_the_full_gradient(chunk: int) -> None:
    full = samples(16, 6).requires_grad_()
    targets = block_means(samples(32, 6, seed=1), 16)
    wasserstein2(full, targets).sum().backward()
    parts = full.detach().clone().requires_grad_()
    aligned, total = rank_targets(parts, targets), 0.0
    for start in range(0, 16, chunk):
        loss = (parts[start:start + chunk] - aligned[start:start + chunk]).square().sum() / 16
        loss.backward()
        total += loss.item()
    torch.testing.assert_close(parts.grad, full.grad, rtol=1e-12, atol=1e-14)
    assert total == pytest.approx(wasserstein2(full, targets).sum().item(), rel=1e-12)


def test_equal_laws_cost_nothing_and_a_shift_costs_its_square() -> None:
    source = samples(8, 3)
    shuffled = source[torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])]
    assert wasserstein2(shuffled, block_means(source, 8)).abs().max() == 0
    torch.testing.assert_close(wasserstein2(source, block_means(source + 1.5, 8)),
                               torch.full((3,), 2.25, dtype=torch.float64))


def test_ranking_ties_uses_every_target_once() -> None:
    targets = block_means(samples(4, 2), 4)
    aligned = rank_targets(torch.zeros(4, 2, dtype=torch.float64), targets)
    torch.testing.assert_close(aligned.sort(0).values, targets)


def test_leading_dimensions_are_independent() -> None:
    source, target = samples(2, 3, 8, 4), samples(2, 3, 16, 4, seed=1)
    together, aligned = wasserstein2(source, block_means(target, 8)), rank_targets(source, block_means(target, 8))
    for i, j in itertools.product(range(2), range(3)):
        torch.testing.assert_close(together[i, j], wasserstein2(source[i, j], block_means(target[i, j], 8)))
        torch.testing.assert_close(aligned[i, j], rank_targets(source[i, j], block_means(target[i, j], 8)))


def test_every_site_weighs_the_same() -> None:
    source, targets = samples(2, 4, 8).float(), block_means(samples(2, 4, 8, seed=1), 4).float()
    distance = wasserstein2(source, targets)
    expected = ((distance[:, :3].mean(1) + distance[:, 3:].mean(1)) / 2).mean()
    torch.testing.assert_close(site_loss(source, targets, SITES), expected)
    weighted = ((distance[:, :3].mean(1) * 3 + distance[:, 3:].mean(1)) / 4).mean()
    torch.testing.assert_close(site_loss(source, targets, SITES, weights=[3.0, 1.0]), weighted)


def test_several_moments_share_the_weight_of_their_site() -> None:
    source, targets = samples(1, 4, 16).float(), block_means(samples(1, 4, 16, seed=1), 4).float()
    halves = [site_loss(source[..., s], targets[..., s], SITES) for s in (slice(0, 8), slice(8, 16))]
    torch.testing.assert_close(site_loss(source, targets, SITES), (halves[0] + halves[1]) / 2)


def test_inverse_variance_makes_the_loss_independent_of_channel_units() -> None:
    source, targets = samples(1, 8, 8).float(), block_means(samples(1, 8, 8, seed=1), 8).float()
    std, units = source[0].std(0), torch.logspace(-1, 1, 8)
    plain = site_loss(source, targets, SITES, channel_weight=inverse_variance(std))
    scaled = site_loss(source * units, targets * units, SITES, channel_weight=inverse_variance(std * units))
    torch.testing.assert_close(plain, scaled)
    assert inverse_variance(torch.tensor([0.0, 1.0, 1.0])).isfinite().all()


def test_half_precision_tables_are_computed_in_single() -> None:
    table = block_means(samples(32, 4), 16).half()
    assert coarsen(table, 8).dtype == torch.float32
    assert rank_targets(samples(16, 4).float(), table).dtype == torch.float32


@pytest.mark.parametrize("broken, words", [
    (lambda: block_means(torch.zeros(10, 2), 4), "divides 10"),
    (lambda: coarsen(torch.zeros(8, 2), 0), "8 sorted values"),
    (lambda: wasserstein2(torch.zeros(4, 2), torch.zeros(8, 2)), "coarsen the targets"),
    (lambda: channel_coefficients(SITES, 9), "have 8"),
    (lambda: channel_coefficients(SITES, 8, weights=[1.0]), "1 site weights for 2 sites"),
    (lambda: channel_coefficients(SITES, 8, channel_weight=torch.ones(3)), r"must be \(8,\)"),
])
def test_refusals_say_what_to_do(broken, words: str) -> None:
    with pytest.raises(LossError, match=words):
        broken()
