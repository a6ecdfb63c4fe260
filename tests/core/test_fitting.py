"""Per-concept fits against closed forms, and LinEAS against the path that hypernetwork training takes."""
from __future__ import annotations

import pytest
import torch

from hypertransport_core.fitting import FitError, iti_c, least_squares_map, linear_act, lineas, mean_act
from hypertransport_core.hypernetworks import FreeMaps, Hypernetwork, build_hypernetwork
from hypertransport_core.measuring import MeasureError, frozen, levels_of, measure, pooled_samples
from hypertransport_core.objective import transport_loss
from hypertransport_core.transport import TransportMaps
from hypertransport_core.wasserstein import LossError, block_means, site_loss
from tests.support.tiny_backbone import TinyBackbone

SOURCE, TARGET = ["a blue cat", "a small boat"], ["a red storm", "a dark storm"]
SEEDS = list(range(8))


@pytest.fixture()
def backbone() -> TinyBackbone:
    return TinyBackbone()


def both(backbone: TinyBackbone, sites=None, **options) -> list[torch.Tensor]:
    return [pooled_samples(backbone, prompts, SEEDS, sites or backbone.sites(), **options) for prompts in (SOURCE,
                                                                                                           TARGET)]


def gap(backbone: TinyBackbone, maps: TransportMaps | None, seeds=SEEDS, steps: int = 1) -> float:
    """W2² between steered source and untouched target, on given seeds."""
    sites = backbone.sites()
    steered = pooled_samples(backbone, SOURCE, seeds, sites, maps=maps, steps=steps)
    target = pooled_samples(backbone, TARGET, seeds, sites, steps=steps)
    return sum(float(site_loss(s[None], block_means(t, len(seeds))[None], sites)) for s,
               t in zip(steered, target)) / steps


def test_mean_act_moves_the_mean_of_a_first_site_exactly(backbone: TinyBackbone) -> None:
    source, target = (s[0] for s in both(backbone))
    maps = mean_act(backbone, backbone.sites(), SOURCE, TARGET, SEEDS)
    assert bool((maps.scale == 1).all())
    torch.testing.assert_close(maps.shift[0], target.mean(0) - source.mean(0))
    first = backbone.sites()[:1]
    moved = pooled_samples(backbone, SOURCE, SEEDS, first, maps=mean_act(backbone, first, SOURCE, TARGET, SEEDS))[0]
    torch.testing.assert_close(moved.mean(0), target.mean(0)[:8], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("direction", ["mean", "classifier"])
def test_iti_separates_source_from_target(backbone: TinyBackbone, direction: str) -> None:
    source, target = (s[0] for s in both(backbone))
    maps = iti_c(backbone, backbone.sites(), SOURCE, TARGET, SEEDS, direction=direction, strength=2.0)
    assert bool((maps.scale == 1).all())
    for where in maps.slices.values():
        shift = maps.shift[0, where]
        if where.start == 0:  # self-attention before any conditioning: the concept is not there yet
            assert not shift.any()
            continue
        theta = shift / shift.norm()
        along = [samples[:, where] @ theta for samples in (source, target)]
        assert along[1].mean() > along[0].mean()
        assert shift.norm().item() == pytest.approx(2 * torch.cat(along).std(correction=0).item(), rel=1e-4)
        if direction == "mean":
            difference = (target - source)[:, where].mean(0)
            torch.testing.assert_close(theta, difference / difference.norm(), atol=1e-5, rtol=1e-4)


def test_iti_of_equal_prompts_is_the_identity(backbone: TinyBackbone) -> None:
    assert iti_c(backbone, backbone.sites(), SOURCE, SOURCE, SEEDS, direction="mean").is_identity()


def test_least_squares_map_is_the_best_line_and_recovers_an_affine_map() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(32, 4, generator=generator), torch.randn(32, 4, generator=generator) * 3 + 1
    fit = least_squares_map(source, target)
    assert fit.scale.min() >= 0

    def cost(scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return ((source * scale + shift).sort(0).values - target.sort(0).values).square().mean(0)

    for d_scale, d_shift in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)):
        assert bool((cost(fit.scale, fit.shift) < cost(fit.scale + d_scale, fit.shift + d_shift)).all())
    mixed = (source * torch.tensor([0.0, 0.5, 2.0, 1.0]) + 3)[torch.randperm(32, generator=generator)]
    fit = least_squares_map(source, mixed)
    torch.testing.assert_close(fit.scale, torch.tensor([0.0, 0.5, 2.0, 1.0]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fit.shift, torch.full((4,), 3.0), atol=1e-5, rtol=1e-4)


def test_a_constant_source_is_only_shifted() -> None:
    fit = least_squares_map(torch.full((8, 1), 1000.1), torch.arange(8.0)[:, None])
    assert fit.scale.item() == 1 and fit.shift.item() == pytest.approx(3.5 - 1000.1, abs=1e-3)
    assert least_squares_map(torch.zeros(4, 1), torch.ones(4, 1)).shift.item() == 1


def test_linear_act_at_once_is_the_closed_form(backbone: TinyBackbone) -> None:
    source, target = (s[0] for s in both(backbone))
    maps, fit = linear_act(backbone, backbone.sites(), SOURCE, TARGET, SEEDS,
                           incremental=False), least_squares_map(source, target)
    torch.testing.assert_close(maps.scale[0], fit.scale)
    torch.testing.assert_close(maps.shift[0], fit.shift)


def test_incremental_in_one_pass_equals_site_by_site(backbone: TinyBackbone) -> None:
    sites = backbone.sites()  # listed in the order in which the network calls them
    by_hand = linear_act(backbone, sites, SOURCE, TARGET, SEEDS, groups=len(sites), batch=4)
    backbone.calls = 0
    one_pass = linear_act(backbone, sites, SOURCE, TARGET, SEEDS)
    assert backbone.calls == 2  # targets, then all sites
    assert one_pass.allclose(by_hand, rtol=1e-3, atol=1e-4)
    at_once = linear_act(backbone, sites, SOURCE, TARGET, SEEDS, incremental=False)
    assert one_pass[sites[0].path].scale.equal(at_once[sites[0].path].scale) and not one_pass.allclose(at_once,
                                                                                                       atol=1e-2)
    backwards = linear_act(backbone, sites[::-1], SOURCE, TARGET, SEEDS)
    assert backwards.onto(sites).allclose(one_pass)  # calls count, not the list


def test_incremental_reaches_the_target_where_at_once_overshoots(backbone: TinyBackbone) -> None:
    sites, before = backbone.sites(), gap(backbone, None)
    incremental = gap(backbone, linear_act(backbone, sites, SOURCE, TARGET, SEEDS))
    at_once = gap(backbone, linear_act(backbone, sites, SOURCE, TARGET, SEEDS, incremental=False))
    assert incremental < 0.1 * before and incremental < at_once
    grouped = gap(backbone, linear_act(backbone, sites, SOURCE, TARGET, SEEDS, groups=2))
    assert incremental <= grouped * 1.01


def test_the_network_is_left_as_it_was(backbone: TinyBackbone) -> None:
    class Cancelled(Exception):
        pass

    def cancel(*_: object) -> None:
        raise Cancelled

    backbone.network.train()
    before = {name: p.clone() for name, p in backbone.network.named_parameters()}
    for fit in (linear_act, lineas):
        with pytest.raises(Cancelled):
            fit(backbone, backbone.sites(), SOURCE, TARGET, SEEDS, progress=cancel)
    assert all(module.training and "forward" not in module.__dict__ for module in backbone.network.modules())
    for name, parameter in backbone.network.named_parameters():
        assert parameter.requires_grad and parameter.grad is None and torch.equal(parameter, before[name])


def test_lineas_lowers_the_loss_and_repeats_itself(backbone: TinyBackbone) -> None:
    losses: list[float] = []
    fit = dict(iterations=60, batch=8, learning_rate=0.2)
    maps = lineas(backbone, backbone.sites(), SOURCE, TARGET, SEEDS, progress=lambda i, loss: losses.append(loss),
                  **fit)
    assert len(losses) == 60 and losses[0] == pytest.approx(gap(backbone, None), rel=1e-4)
    assert gap(backbone, maps) < 0.1 * losses[0] and maps.rows == 1 and not maps.requires_grad
    assert gap(backbone, maps, seeds=range(100, 116)) < 0.1 * gap(backbone, None, seeds=range(100, 116))
    again = lineas(backbone, backbone.sites(), SOURCE, TARGET, SEEDS, **fit)
    assert torch.equal(maps.scale, again.scale) and torch.equal(maps.shift, again.shift)


def test_lineas_minibatches_depend_on_the_seed_alone(backbone: TinyBackbone) -> None:
    fit = dict(iterations=5, batch=4, learning_rate=0.05)
    first, same, other = (lineas(backbone, backbone.sites(), SOURCE, TARGET, SEEDS, seed=seed, **fit) for seed in (1, 1,
                                                                                                                   2))
    assert torch.equal(first.shift, same.shift) and not torch.equal(first.shift, other.shift)


def test_lineas_of_equal_laws_stays_at_the_identity(backbone: TinyBackbone) -> None:
    maps = lineas(backbone, backbone.sites(), SOURCE, SOURCE, SEEDS, iterations=10, batch=8)
    assert maps.norm() < 1e-3


@pytest.mark.parametrize("options", [{"steps": 2}, {"normalise": True}, {"pooling": "mean_std"}, {"paired_weight": 1.0},
                                     {"steps": 2, "chunk": 3}])
def test_lineas_variants_lower_their_loss(backbone: TinyBackbone, options: dict) -> None:
    losses: list[float] = []
    lineas(backbone, backbone.sites(), SOURCE, TARGET, SEEDS, iterations=25, learning_rate=0.05,
           progress=lambda i, loss: losses.append(loss), **options)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("options", [{}, {"chunk": 3}, {"paired_weight": 1.0}, {"normalise": True}])
def test_an_amplified_loss_gives_the_same_maps(backbone: TinyBackbone, options: dict) -> None:
    fits, losses = [], []
    for factor in (None, 2.0**20):
        fits.append(lineas(backbone, backbone.sites(), SOURCE, TARGET, SEEDS, iterations=5, learning_rate=0.05, loss_scale=factor,
                           progress=lambda i, loss: losses.append(loss), **options))
    assert fits[0].allclose(fits[1], rtol=1e-3, atol=1e-4) and losses[:5] == pytest.approx(losses[5:], rel=1e-4)


def test_an_overflow_lowers_the_amplification(backbone: TinyBackbone) -> None:
    from hypertransport_core.fitting.lineas import FP16_LOSS_SCALE, _Amplifier

    backbone.compute_dtype = torch.float16
    amplifier, parameter = _Amplifier(backbone, None), torch.zeros(2, requires_grad=True)
    assert amplifier.factor == FP16_LOSS_SCALE
    parameter.grad = torch.tensor([1.0, float("inf")])
    assert not amplifier.undo(parameter) and amplifier.factor == FP16_LOSS_SCALE / 4
    parameter.grad = torch.full((2,), FP16_LOSS_SCALE / 2)
    assert amplifier.undo(parameter) and parameter.grad.tolist() == [2.0, 2.0]
    amplifier.factor, parameter.grad = 1.0, torch.tensor([1.0, float("nan")])
    with pytest.raises(FitError, match="not a finite number"):
        amplifier.undo(parameter)


# The objective itself


def material(backbone: TinyBackbone, concepts: int, steps: int = 2, pooling: str = "mean"):
    """(conditioning, noise, targets, paired targets, levels) of K concepts with 8 samples each."""
    levels, sites = levels_of(backbone, steps), backbone.sites()
    wanted = [["a red storm"], ["green fog", "fog"]][:concepts]
    targets = torch.stack([block_means(pooled_samples(backbone, prompts, range(16), sites, steps=steps,
                                                      pooling=pooling), 8)
                           for prompts in wanted])
    noise = backbone.noise(SEEDS).repeat(concepts, 1, 1, 1)
    paired = backbone.denoise(noise, levels[0], backbone.encode([p[0] for p in wanted for _ in SEEDS])).detach()
    return backbone.encode(SOURCE * (4 * concepts)), noise, targets, paired, levels


def free_maps(sites, rows: int) -> TransportMaps:
    generator = torch.Generator().manual_seed(5)
    width = sum(site.channels for site in sites)
    return TransportMaps(sites, (1 + 0.2 * torch.randn(rows, width, generator=generator)).requires_grad_(),
                         (0.3 * torch.randn(rows, width, generator=generator)).requires_grad_())


def gradients(loss: torch.Tensor, maps: TransportMaps) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [maps.scale, maps.shift]))


@pytest.mark.parametrize("chunk", [3, 8])
@pytest.mark.parametrize("pooling", ["mean", "mean_std", "mean_quarters"])
def test_chunks_have_the_loss_and_gradient_of_the_whole(backbone: TinyBackbone, chunk: int, pooling: str) -> None:
    conditioning, noise, targets, paired, levels = material(backbone, 2, pooling=pooling)
    maps, options = free_maps(backbone.sites(), 2), dict(pooling=pooling, paired_targets=paired, paired_weight=0.5)
    results = []
    for size in (None, chunk):
        loss = transport_loss(backbone, maps, conditioning, noise, targets, backbone.sites(), levels, chunk=size,
                              **options)
        results.append([loss.detach(), *gradients(loss, maps)])
    for whole, parts in zip(*results):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_concepts_together_are_the_mean_of_each_alone(backbone: TinyBackbone) -> None:
    conditioning, noise, targets, _, levels = material(backbone, 2)
    maps, sites = free_maps(backbone.sites(), 2), backbone.sites()
    together = transport_loss(backbone, maps, conditioning, noise, targets, sites, levels)
    alone = [transport_loss(backbone, maps.row(k), conditioning[8 * k:8 * k + 8], noise[8 * k:8 * k + 8],
                            targets[k:k + 1],
                            sites, levels) for k in range(2)]
    torch.testing.assert_close(together, (alone[0] + alone[1]) / 2)
    found = measure(backbone, conditioning, noise, sites, levels, maps=maps, rows=torch.arange(2).repeat_interleave(8))
    by_site_loss = [site_loss(seen.unflatten(0, (2, 8)), targets[:, s], sites) for s, seen in enumerate(found.features)]
    torch.testing.assert_close(together, sum(by_site_loss) / 2)


def test_gradient_agrees_with_finite_differences(backbone: TinyBackbone) -> None:
    conditioning, noise, targets, _, levels = material(backbone, 1, steps=1)
    sites, maps = backbone.sites(), free_maps(backbone.sites(), 1)

    def loss_at(scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return transport_loss(backbone, TransportMaps(sites, scale, shift), conditioning, noise, targets, sites, levels)

    loss = loss_at(maps.scale, maps.shift)
    slopes, step = gradients(loss, maps), 1e-2
    direction = [g / g.norm() for g in slopes]
    with torch.no_grad():
        ends = [loss_at(maps.scale + s * direction[0], maps.shift + s * direction[1]) for s in (step, -step)]
    expected = sum((g * d).sum() for g, d in zip(slopes, direction))
    assert float((ends[0] - ends[1]) / (2 * step)) == pytest.approx(float(expected), rel=2e-2)


def test_later_steps_start_from_the_steered_rollout_without_its_gradient(backbone: TinyBackbone) -> None:
    conditioning, noise, targets, _, levels = material(backbone, 1)
    sites, maps = backbone.sites(), free_maps(backbone.sites(), 1)
    found = measure(backbone, conditioning, noise, sites, levels, maps=maps, need_clean=True)
    x = 0.5 * found.first_clean.detach() + 0.5 * noise
    second = measure(backbone, conditioning, x, sites, [0.5], maps=maps).features[0]
    torch.testing.assert_close(found.features[1], second, atol=1e-5, rtol=1e-4)
    one = transport_loss(backbone, maps, conditioning, noise, targets[:, 1:], sites, levels, measured=[1])
    direct = transport_loss(backbone, maps, conditioning, x, targets[:, 1:], sites, [0.5])
    for a, b in zip(gradients(one, maps), gradients(direct, maps)):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)


def test_one_set_of_maps_per_step(backbone: TinyBackbone) -> None:
    conditioning, noise, targets, _, levels = material(backbone, 1)
    sites, maps = backbone.sites(), [free_maps(backbone.sites(), 1), free_maps(backbone.sites(), 1)]
    for chunk in (None, 3):
        loss = transport_loss(backbone, maps, conditioning, noise, targets, sites, levels, chunk=chunk)
        shared = transport_loss(backbone, maps[0], conditioning, noise, targets, sites, levels)
        torch.testing.assert_close(loss, shared)
        parts, whole = [gradients(loss, m) for m in maps] if chunk is None else [
            torch.autograd.grad(loss, [m.scale, m.shift], retain_graph=True) for m in maps], gradients(shared, maps[0])
        for i in range(2):
            torch.testing.assert_close(parts[0][i] + parts[1][i], whole[i], atol=1e-6, rtol=1e-3)


def test_paired_term_is_zero_where_the_prediction_is_that_of_the_concept(backbone: TinyBackbone) -> None:
    conditioning, noise, targets, _, levels = material(backbone, 1, steps=1)
    sites, identity = backbone.sites(), TransportMaps.identity(backbone.sites())
    own = backbone.denoise(noise, levels[0], conditioning).detach()
    arguments = (backbone, identity, conditioning, noise, targets, sites, levels)
    plain = transport_loss(*arguments)
    torch.testing.assert_close(transport_loss(*arguments, paired_targets=own, paired_weight=2.0), plain)
    torch.testing.assert_close(transport_loss(*arguments, paired_targets=own + 0.5, paired_weight=2.0), plain + 0.5)


def test_lineas_is_the_hypernetwork_path_with_free_maps(backbone: TinyBackbone) -> None:
    """Same loss, same gradient on the maps, and the same maps after the same number of optimiser steps."""
    sites = backbone.sites()
    source, target = (s[0] for s in both(backbone))
    losses: list[float] = []
    fitted = lineas(backbone, sites, SOURCE, TARGET, SEEDS, iterations=3, batch=8, learning_rate=0.05,
                    progress=lambda i, loss: losses.append(loss))
    network: Hypernetwork = build_hypernetwork({"kind": "free", "sites": sites, "embedding_dim": 4})
    network.set_source(source.mean(0), source.std(0, correction=0))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.05, betas=(0.9, 0.9))
    targets, embedding = block_means(target, 8)[None], torch.randn(1, 4)
    rates = [0.05 * (1e-3 + (1 - 1e-3) * (1 + torch.cos(torch.tensor(torch.pi * i / 3)).item()) / 2) for i in range(3)]
    with frozen(backbone.network):
        for i in range(3):
            optimiser.param_groups[0]["lr"] = rates[i]
            loss = transport_loss(backbone, network(embedding), backbone.encode(SOURCE * 4), backbone.noise(SEEDS),
                                  targets,
                                  sites, [1.0])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            assert losses[i] == pytest.approx(loss.item(), rel=1e-5)
    assert fitted.allclose(network(embedding), rtol=1e-4, atol=1e-5)


def test_gradient_on_the_maps_does_not_depend_on_who_made_them(backbone: TinyBackbone) -> None:
    conditioning, noise, targets, _, levels = material(backbone, 1)
    sites, made = backbone.sites(), []
    mlp = build_hypernetwork({"kind": "mlp", "sites": sites, "embedding_dim": 4, "width": 8, "bottleneck": 4})
    torch.nn.init.normal_(mlp.head.weight, std=0.2, generator=torch.Generator().manual_seed(0))
    predicted = mlp(torch.randn(1, 4, generator=torch.Generator().manual_seed(1)))
    leaves = TransportMaps(sites, predicted.scale.detach().requires_grad_(), predicted.shift.detach().requires_grad_())
    for maps in (predicted, leaves):
        loss = transport_loss(backbone, maps, conditioning, noise, targets, sites, levels)
        made.append([loss.detach(), *gradients(loss, maps)])
    for a, b in zip(*made):
        assert torch.equal(a, b)


@pytest.mark.parametrize("broken, error, words", [
    (lambda b: lineas(b, b.sites(), SOURCE, TARGET, SEEDS, batch=2), FitError, "at least 4"),
    (lambda b: lineas(b, b.sites(), SOURCE, TARGET, SEEDS, batch=5), FitError, "divide"),
    (lambda b: lineas(b, b.sites(), SOURCE, TARGET, SEEDS, iterations=0), FitError, "must be positive"),
    (lambda b: linear_act(b, b.sites(), SOURCE, TARGET, SEEDS, groups=-1), FitError, "-1 groups"),
    (lambda b: iti_c(b, b.sites(), SOURCE, TARGET, SEEDS, direction="up"), FitError, "mean or classifier"),
    (lambda b: least_squares_map(torch.zeros(4, 2), torch.zeros(8, 2)), FitError, "as many of both"),
    (lambda b: mean_act(b, b.sites(), [], TARGET, SEEDS), MeasureError, "0 prompts for the source"),
    (lambda b: measure(b, b.encode(SOURCE), b.noise([1, 2]), b.sites(), [1.0], measured=[1]), MeasureError, "1 noise "
                                                                                                            "levels"),
    (lambda b: transport_loss(b, TransportMaps.identity(b.sites(), 3), b.encode(SOURCE), b.noise([1, 2]),
                              torch.zeros(3, 1, 48),
                              b.sites(), [1.0]), LossError, "3 rows of maps"),
    (lambda b: transport_loss(b, TransportMaps.identity(b.sites()), b.encode(SOURCE), b.noise([1, 2]),
                              torch.zeros(1, 2, 2, 48),
                              b.sites(), [1.0]), LossError, "concepts, measured steps"),
    (lambda b: transport_loss(b, TransportMaps.identity(b.sites()), b.encode(SOURCE), b.noise([1, 2]),
                              torch.zeros(1, 2, 48),
                              b.sites(), [1.0], paired_weight=1.0), LossError, "both or neither"),
])
def test_refusals_say_what_to_do(backbone: TinyBackbone, broken, error, words: str) -> None:
    with pytest.raises(error, match=words):
        broken(backbone)


def test_free_maps_of_several_concepts(backbone: TinyBackbone) -> None:
    conditioning, noise, targets, _, levels = material(backbone, 2)
    free = FreeMaps(backbone.sites(), 4, concepts=2)
    transport_loss(backbone, free(torch.zeros(2, 4)), conditioning, noise, targets, backbone.sites(), levels).backward()
    assert free.values.grad.isfinite().all() and bool((free.values.grad != 0).any(-1).all())
