"""The algebra of maps against closed forms in float64."""
from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hypertransport_core.sites import Site
from hypertransport_core.transport import MIN_INVERTIBLE_SCALE, AffineMap, FoldError, TransportError, TransportMaps

SITES = (Site("a", "mlp", 3), Site("b", "norm", 2), Site("c", "convolution", 4, 1))
WIDTH = 9
settings.register_profile("quick", max_examples=40, deadline=None)
settings.load_profile("quick")

strengths = st.floats(-2.0, 3.0, width=32)
seeds = st.integers(0, 2**20)
row_counts = st.integers(1, 3)


def maps_of(seed: int, rows: int = 1) -> TransportMaps:
    """Monotone maps like real ones: scales in [0.2, 3], shifts in [-2, 2]."""
    g = np.random.default_rng(seed)
    scale, shift = g.uniform(0.2, 3.0, (rows, WIDTH)), g.uniform(-2.0, 2.0, (rows, WIDTH))
    return TransportMaps(SITES, torch.tensor(scale), torch.tensor(shift), {"seed": seed})


def exact(maps: TransportMaps) -> tuple[np.ndarray, np.ndarray]:
    return maps.scale.numpy().astype(np.float64), maps.shift.numpy().astype(np.float64)


def assert_close(maps: TransportMaps, scale: np.ndarray, shift: np.ndarray) -> None:
    np.testing.assert_allclose(maps.scale.numpy(), scale, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(maps.shift.numpy(), shift, rtol=1e-5, atol=1e-5)


@given(seeds, row_counts, strengths)
def test_interpolation(seed, rows, strength):
    maps = maps_of(seed, rows)
    w, b = exact(maps)
    assert_close(maps.interpolate(strength), 1 + strength * (w - 1), strength * b)


@given(seeds, row_counts)
def test_interpolation_is_exact_at_both_ends(seed, rows):
    maps = maps_of(seed, rows)
    assert maps.interpolate(0.0).is_identity()
    full = maps.interpolate(1.0)
    assert torch.equal(full.scale, maps.scale) and torch.equal(full.shift, maps.shift)
    per_row = maps.interpolate(torch.tensor([0.0, 1.0][:rows] + [1.0] * (rows - 2)))
    assert per_row.row(0).is_identity()


@given(seeds, st.lists(strengths, min_size=1, max_size=3))
def test_one_strength_per_row(seed, values):
    lam = np.array(values)[:, None]
    for rows in {1, len(values)}:
        maps = maps_of(seed, rows)
        w, b = exact(maps)
        assert_close(maps.interpolate(torch.tensor(values)), 1 + lam * (w - 1), lam * b)


@given(seeds, seeds, row_counts)
def test_sequence(first, second, rows):
    m1, m2 = maps_of(first, rows), maps_of(second)
    (w1, b1), (w2, b2) = exact(m1), exact(m2)
    assert_close(m1.then(m2), w2 * w1, w2 * b1 + b2)
    z = torch.randn(rows, 5, 3, generator=torch.Generator().manual_seed(first))
    torch.testing.assert_close(m1.then(m2)["a"].apply(z), m2["a"].apply(m1["a"].apply(z)))


@given(seeds, row_counts)
def test_inverse(seed, rows):
    maps = maps_of(seed, rows)
    w, b = exact(maps)
    assert_close(maps.inverse(), 1 / w, -b / w)
    for both in (maps.then(maps.inverse()), maps.inverse().then(maps)):
        assert both.allclose(TransportMaps.identity(SITES, rows), atol=2e-5)


@given(seeds, seeds, strengths, strengths)
def test_sum_and_mix(first, second, u, v):
    m1, m2 = maps_of(first), maps_of(second)
    (w1, b1), (w2, b2) = exact(m1), exact(m2)
    total = TransportMaps.sum(m1, m2, weights=[u, v])
    assert_close(total, 1 + u * (w1 - 1) + v * (w2 - 1), u * b1 + v * b2)
    swapped = TransportMaps.sum(m2, m1, weights=[v, u])
    assert torch.equal(total.scale, swapped.scale) and torch.equal(total.shift, swapped.shift)
    if abs(u + v) > 0.1:
        assert_close(TransportMaps.mix([m1, m2], [u, v]), (u * w1 + v * w2) / (u + v), (u * b1 + v * b2) / (u + v))


@given(seeds, strengths)
def test_sum_of_one_is_interpolation_and_identity_is_neutral(seed, strength):
    maps, identity = maps_of(seed), TransportMaps.identity(SITES)
    assert TransportMaps.sum(maps, weights=[strength]).allclose(maps.interpolate(strength), atol=1e-5)
    for same in (identity.then(maps), maps.then(identity), TransportMaps.sum(maps, identity)):
        assert same.allclose(maps, atol=1e-6)


@pytest.mark.parametrize(("shape", "channel_dim"), [((2, 5, 3), -1), ((2, 3, 4, 5), 1), ((2, 6, 5, 3), -1)])
@pytest.mark.parametrize("rows", [None, 1, 2])
def test_apply_acts_on_the_channel_dimension(shape, channel_dim, rows):
    g = torch.Generator().manual_seed(0)
    size = (3,) if rows is None else (rows, 3)
    site_map = AffineMap(torch.randn(size, generator=g), torch.randn(size, generator=g))
    z = torch.randn(shape, generator=g)
    before, after = (t.movedim(channel_dim, -1).flatten(1, -2) for t in (z, site_map.apply(z, channel_dim)))
    scale, shift = (t.expand(2, 3)[:, None] for t in (site_map.scale, site_map.shift))
    torch.testing.assert_close(after, before * scale + shift)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_maps_are_fp32_and_activations_keep_their_dtype(dtype):
    site_map = AffineMap(torch.full((3,), 2.0, dtype=dtype), torch.ones(3, dtype=dtype))
    assert site_map.scale.dtype == site_map.shift.dtype == torch.float32
    out = site_map.apply(torch.ones(1, 2, 3, dtype=dtype))
    assert out.dtype == dtype and torch.equal(out, torch.full_like(out, 3.0))


def test_map_algebra_agrees_with_maps_algebra():
    m1, m2 = maps_of(1, 2), maps_of(2, 2)
    lam = torch.tensor([0.3, 2.0])
    for got, expected in [(m1["b"].then(m2["b"]), m1.then(m2)["b"]), (m1["b"].inverse(), m1.inverse()["b"]),
                          (m1["b"].interpolate(0.3), m1.interpolate(0.3)["b"]),
                          (m1["b"].interpolate(lam), m1.interpolate(lam)["b"])]:
        torch.testing.assert_close(got.scale, expected.scale)
        torch.testing.assert_close(got.shift, expected.shift)
    single = AffineMap(m1["a"].scale[0], m1["a"].shift[0]).interpolate(torch.tensor([0.0, 1.0]))
    assert single.scale.shape == single.shift.shape == (2, 3)
    assert torch.equal(AffineMap.identity(3).apply(torch.ones(1, 3)), torch.ones(1, 3))


def test_rows_stack_and_come_back_with_their_provenance():
    parts = [maps_of(1), maps_of(2), maps_of(3)]
    stacked = TransportMaps.stack(parts)
    assert stacked.rows == 3
    for i, part in enumerate(parts):
        assert torch.equal(stacked.row(i).scale, part.scale) and stacked.row(i).info == part.info
    assert torch.equal(stacked.row(-1).shift, parts[2].shift)


def test_maps_of_different_sites_combine_on_the_union():
    first = maps_of(1).onto(SITES[:2])
    second = maps_of(2).onto(SITES[1:])
    both = first.then(second)
    assert both.sites == SITES
    assert torch.equal(both["a"].scale, first["a"].scale) and torch.equal(both["c"].shift, second["c"].shift)
    assert "a" in both and "z" not in both and list(both) == ["a", "b", "c"] and len(both) == 3
    with pytest.raises(TransportError, match="'a' has 5 channels in one set of maps and 3"):
        first.then(TransportMaps.identity([Site("a", "mlp", 5)]))


def test_measures():
    maps = TransportMaps(SITES[:2], torch.tensor([[1.0, 1, 1, 4, 1]]), torch.zeros(1, 5))
    assert maps.site_norms() == {"a": 0.0, "b": pytest.approx(1.5)}
    assert maps.norm() == pytest.approx((9 / 10) ** 0.5)
    assert not maps.is_identity() and TransportMaps.identity(SITES, 2).is_identity()
    assert maps.channels == 5 and repr(maps) == "TransportMaps(2 sites, 5 channels, 1 row, norm 0.949)"
    assert not maps.allclose(TransportMaps.identity(SITES))


def test_provenance_is_json():
    maps = TransportMaps.sum(maps_of(1).then(maps_of(2).inverse()), maps_of(3).interpolate(0.5), weights=[1, 2])
    stacked = TransportMaps.stack([maps, maps]).interpolate(torch.tensor([0.25, 0.5]))
    assert json.loads(json.dumps(stacked.info)) == stacked.info


def test_gradients_reach_the_tensors():
    scale, shift = torch.ones(2, WIDTH, requires_grad=True), torch.zeros(2, WIDTH, requires_grad=True)
    maps = TransportMaps(SITES, scale, shift)
    other = maps_of(1)
    mixed = TransportMaps.mix([maps.then(other), other.then(maps).inverse()], [0.5, 1.0])
    made = mixed.interpolate(torch.tensor([0.5, 2.0]))
    assert made.requires_grad and not made.detach().requires_grad
    (made["b"].scale.sum() + made["b"].shift.sum()).backward()
    for grad in (scale.grad, shift.grad):
        assert grad[:, 3:5].abs().min() > 0 and grad[:, :3].abs().max() == 0
    assert torch.equal(made.to("cpu").scale, made.scale)


def flattened(m: TransportMaps) -> TransportMaps:
    """The maps with a scale of nearly 0 on the second channel of site b."""
    return TransportMaps(SITES, m.scale.index_fill(1, torch.tensor([4]), MIN_INVERTIBLE_SCALE / 2), m.shift)


@pytest.mark.parametrize(("call", "error", "words"), [
    (lambda m: flattened(m).inverse(), TransportError, "site 'b' is 5e-05"),
    (lambda m: flattened(m)["b"].inverse(), TransportError, "this map is 5e-05"),
    (lambda m: TransportMaps(SITES, m.scale[:, :5], m.shift[:, :5]), TransportError, "(rows, 9)"),
    (lambda m: TransportMaps(SITES, m.scale[0], m.shift[0]), TransportError, "(9,)"),
    (lambda m: TransportMaps((*SITES, SITES[0]), m.scale, m.shift), TransportError, "twice"),
    (lambda m: AffineMap(torch.ones(2), torch.ones(3)), TransportError, "(3,)"),
    (lambda m: m.interpolate(torch.ones(3)), TransportError, "3 strengths for 2 rows"),
    (lambda m: m.then(maps_of(1, 3)), TransportError, "2 and 3 rows"),
    (lambda m: TransportMaps.sum(m, m, weights=[1.0]), TransportError, "1 weights for 2 maps"),
    (lambda m: TransportMaps.sum(), TransportError, "no maps"),
    (lambda m: TransportMaps.mix([m, m], [1.0, -1.0]), TransportError, "add up to 0"),
    (lambda m: m.row(2), TransportError, "no row 2"),
    (lambda m: m["a"].fold_into(torch.ones(3, 3), None), FoldError, "2, 3"),
    (lambda m: m.row(0)["a"].fold_into(torch.ones(3, 3), None), FoldError, "no bias"),
])
def test_refusals_are_one_sentence_that_names_the_fault(call, error, words):
    with pytest.raises(error) as refusal:
        call(maps_of(7, 2))
    message = str(refusal.value)
    assert words in message and message.endswith(".") and ". " not in message
