"""Numbers about maps, and that the picture shows them where it should."""
from __future__ import annotations

import pytest
import torch

from hypertransport_core.inspection import block_of, cosine, likeness, overall, site_sizes, summary
from hypertransport_core.plots import COLOURS, WIDTH, _ceiling, maps_plot
from hypertransport_core.sites import Site
from hypertransport_core.transport import TransportError, TransportMaps

SITES = (Site("input_blocks.1.1.transformer_blocks.0.attn1.to_out", "self_attention", 4),
         Site("middle_block.1.transformer_blocks.0.ff", "mlp", 2), Site("out.0", "norm", 3, 1))


def maps(seed: int = 0, rows: int = 1, sites=SITES) -> TransportMaps:
    g = torch.Generator().manual_seed(seed)
    width = sum(site.channels for site in sites)
    return TransportMaps(sites, 1 + 0.3 * torch.randn(rows, width, generator=g), torch.randn(rows, width, generator=g))


def painted(picture: torch.Tensor, kind: str) -> int:
    """Pixels in a kind's colour."""
    colour = torch.tensor(COLOURS[kind]).float()[:, None, None] / 255
    return int(((picture - colour).abs().amax(0) < 1e-3).sum())


def test_sizes_are_root_mean_squares_over_rows_and_stretches() -> None:
    one, two = maps(0, rows=2), maps(1, rows=2)
    found = site_sizes([one, two])[1]
    values = torch.cat([one.shift[:, 4:6], two.shift[:, 4:6]])
    assert found.site == SITES[1] and found.shift == pytest.approx(float(values.square().mean().sqrt()), rel=1e-5)
    assert site_sizes([TransportMaps.identity(SITES)])[0].scale == 0


def test_likeness() -> None:
    one = maps()
    opposite = TransportMaps(SITES, 2 - one.scale, -one.shift)
    assert all(abs(x.scale - 1) < 1e-6 and abs(x.shift - 1) < 1e-6 for x in likeness([one], [one]))
    assert all(abs(x.scale + 1) < 1e-5 and abs(x.shift + 1) < 1e-6 for x in likeness([one], [opposite]))
    assert overall([one], [opposite])[1] == pytest.approx(-1) and cosine(torch.zeros(3), torch.ones(3)) == 0
    part = maps(sites=SITES[1:])
    assert [x.site for x in likeness([one], [part])] == list(SITES[1:])
    with pytest.raises(TransportError, match="no site in common"):
        likeness([one], [maps(sites=(Site("blocks.0.mlp", "mlp", 2),))])
    with pytest.raises(TransportError, match="4 channels in one set of maps and 5"):
        likeness([one], [maps(sites=(Site(SITES[0].path, "self_attention", 5),))])


@pytest.mark.parametrize("path, block", [
    ("input_blocks.3.1.norm", ("input", "3")), ("middle_block.1.norm", ("middle", "")), ("out.0", ("out", "")),
    ("blocks.11.mlp", ("blocks", "11")), ("double_blocks.2.img_mlp", ("double", "2")), ("joint_blocks.0.x_block.mlp", ("joint", "0")),
    ("final_layer.norm_final", ("final_layer", "")), ("head.norm", ("head", "")), ("Odd.3", ("Odd", "3")), ("a", ("a", "")),
])
def test_blocks(path: str, block: tuple[str, str]) -> None:
    assert block_of(path) == block


@pytest.mark.parametrize("value, top", [(0.0, 1.0), (0.55, 0.6), (1.0, 1.0), (1.01, 1.5), (0.31, 0.4), (73.0, 80.0), (3e-5, 3e-5)])
def test_axes_end_at_round_numbers(value: float, top: float) -> None:
    assert _ceiling([value]) == pytest.approx(top)


def test_picture_shows_sizes() -> None:
    one = maps()
    picture = maps_plot([one], "fog")
    assert picture.shape[0] == 3 and picture.shape[2] == 2 * WIDTH and 0 <= picture.min() and picture.max() <= 1
    assert all(painted(picture, kind) > 500 for kind in ("self_attention", "mlp", "norm")) and not painted(picture, "cross_attention")
    weaker = TransportMaps(SITES, 1 + (one.scale - 1) * torch.tensor([[0.5] * 4 + [1.0] * 5]),
                           one.shift * torch.tensor([[0.5] * 4 + [1.0] * 5]))
    again = maps_plot([weaker], "fog")
    if again.shape == picture.shape:  # same axes: half the bar
        assert painted(again, "self_attention") < 0.8 * painted(picture, "self_attention")
    assert torch.equal(maps_plot([one], "fog"), picture)
    silent = maps_plot([TransportMaps.identity(SITES)])
    assert not any(painted(silent, kind) for kind in COLOURS)


def test_comparison_is_taller_and_many_or_odd_maps_are_drawn() -> None:
    alone, both = maps_plot([maps()], "a"), maps_plot([maps()], "a", [maps(1)], "b")
    assert both.shape[1] > alone.shape[1] + 200
    many = tuple(Site(f"double_blocks.{i}.img_mlp", "mlp", 2) for i in range(300))
    maps_plot([maps(sites=many)], "x" * 400, [maps(1, sites=many)], "öäü 漢字")
    maps_plot([maps(0, rows=3), maps(1, rows=3)], "")
    maps_plot([maps(sites=SITES[:1])], "one site", [maps(1)], "more sites")


def test_summary_in_words() -> None:
    text = summary([maps()], "fog", "postcard", [maps(1)], "rain")
    assert text.startswith("fog: 3 sites, 9 channels, made for postcard.") and "self-attention (1)" in text
    assert "Largest shift" in text and "Compared with rain" in text
    assert "These maps change nothing." in summary([TransportMaps.identity(SITES)])
    assert "2 concepts" in summary([maps(rows=2)]) and "2 stretches" in summary([maps(), maps(1)])
