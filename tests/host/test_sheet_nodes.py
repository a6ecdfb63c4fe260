"""Strength Sheet and Draw Sheet: rows = single runs, labels where they belong."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pack import load_pack, pack_module, run_node


@pytest.fixture(scope="module")
def pack() -> SimpleNamespace:
    load_pack()
    return SimpleNamespace(sheets=pack_module("nodes.sheets"), interception=pack_module("nodes.interception"),
                           error=pack_module("hypertransport_core.sheets").SheetError)


@pytest.fixture(scope="module")
def tiny() -> Any:
    from tests.support.tiny_hosts import tiny_host

    return tiny_host("sd15")


def sample(tiny: Any, model: Any, latent: dict, seed: int = 3) -> torch.Tensor:
    """What a KSampler node does with a latent."""
    import comfy.sample

    with torch.inference_mode():
        noise = comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))
        return comfy.sample.sample(model, noise, 2, 3.0, "euler", "simple", tiny.cond(11), tiny.cond(12), latent["samples"], disable_pbar=True, seed=seed)


@pytest.mark.parametrize("rows, steps", [(1, 1), (3, 1), (2, 2)])
def test_rows_are_the_single_runs(pack: SimpleNamespace, tiny: Any, rows: int, steps: int) -> None:
    maps, strengths = tiny.maps(rows=rows, steps=steps), [0.0, 0.5, 1.0, -0.3]
    model, latent, sheet = run_node(pack.sheets.StrengthSheet, model=tiny.model, maps=maps, latent={"samples": tiny.latent(1)},
                                    strengths="0, .5 1;-0.3")
    assert sheet.strengths == (0.0, 0.5, 1.0, -0.3) and sheet.pictures == rows * 4 == latent["samples"].shape[0]
    together = sample(tiny, model, latent)
    base = sample(tiny, tiny.model, {"samples": tiny.latent(1)})
    assert (together[2] - base[0]).abs().max() > 0.01 * base.abs().max()
    for i in range(rows):
        one = maps.change(lambda m: m.row(i))
        for j, strength in enumerate(strengths):
            alone = sample(tiny, pack.interception.steer_model(tiny.model, one, strength), {"samples": tiny.latent(1)})
            assert (together[4 * i + j] - alone[0]).abs().max() < 1e-4 * base.abs().max()  # another batch size rounds otherwise
    untouched = sample(tiny, tiny.model, latent)
    assert all(torch.equal(together[4 * i], untouched[4 * i]) for i in range(rows))  # strength 0 in the same batch: bit for bit


def test_all_rows_get_the_noise_of_the_first(pack: SimpleNamespace) -> None:
    import comfy.sample

    latent = {"samples": torch.rand(3, 4, 8, 8), "batch_index": [5, 6, 7], "noise_mask": torch.rand(3, 64, 64)}
    batch = pack.sheets.repeated(latent, 4)
    assert batch["batch_index"] == [5] * 4 and batch["noise_mask"].shape == (1, 64, 64) and latent["samples"].shape[0] == 3
    assert all(torch.equal(row, latent["samples"][0]) for row in batch["samples"])
    noise = comfy.sample.prepare_noise(batch["samples"], 9, batch["batch_index"])
    assert torch.equal(noise[0], noise[3]) and torch.equal(noise[0], comfy.sample.prepare_noise(latent["samples"], 9, [5, 6, 7])[0])


@pytest.mark.parametrize("name, rows, expected", [("fog", 1, ("fog",)), ("fog; rain", 2, ("fog", "rain")), ("fog", 2, ("concept 1", "concept 2"))])
def test_concepts_are_named(pack: SimpleNamespace, tiny: Any, name: str, rows: int, expected: tuple) -> None:
    maps = tiny.maps(rows=rows)
    named = type(maps)(maps.steps, {}, (0.0, 1.0), name)
    assert pack.sheets.concept_names(named) == expected
    parts = type(maps.steps[0]).stack([tiny.maps(seed=i).change(lambda m: type(m)(m.sites, m.scale, m.shift, {"concept": f"c{i}"})).steps[0] for i in range(3)])
    assert pack.sheets.concept_names(type(maps)((parts,))) == ("c0", "c1", "c2")


@pytest.mark.parametrize("size", [(64, 64), (100, 60), (1024, 768)])
@pytest.mark.parametrize("concepts", [("",), ("teal mosaic", "fog")])
def test_drawn(pack: SimpleNamespace, size: tuple[int, int], concepts: tuple[str, ...]) -> None:
    plan = pack.sheets.SheetPlan((0.0, 0.5, 1.0), concepts)
    image, = run_node(pack.sheets.DrawSheet, images=torch.rand(plan.pictures, *size, 3), sheet=plan, picture_size=256, title="One house")
    assert image.ndim == 4 and image.shape[0] == 1 and image.shape[-1] == 3 and 0 <= image.min() and image.max() <= 1
    factor = max(1, 256 // max(size)) if max(size) <= 256 else 256 / max(size)
    assert image.shape[1] > len(concepts) * size[0] * factor * 0.99 and image.shape[2] > 3 * size[1] * factor * 0.99


def test_refusals(pack: SimpleNamespace, tiny: Any) -> None:
    latent = {"samples": tiny.latent(1)}
    for text, words in (("0, half", "'half'"), ("", "''"), ("0, inf", "'inf'"), (", ".join(["1"] * 300), "300 pictures")):
        with pytest.raises(ValueError, match=words):
            run_node(pack.sheets.StrengthSheet, model=tiny.model, maps=tiny.maps(), latent=latent, strengths=text)
    with pytest.raises(pack.error, match="Got 2 pictures for a sheet of 3"):
        run_node(pack.sheets.DrawSheet, images=torch.rand(2, 8, 8, 3), sheet=pack.sheets.SheetPlan((0.0, 0.5, 1.0), ("a",)))
    assert "2 rows x strengths 0, 1" in repr(pack.sheets.SheetPlan((0.0, 1.0), ("a", "b")))


@pytest.mark.parametrize("rows, alone", [
    ("kinds of layers", ("self_attention", "cross_attention", "mlp", "norm", "convolution")), ("thirds of the depth", ("early", "middle", "late")),
])
def test_layers_in_rows_are_the_single_runs(pack: SimpleNamespace, tiny: Any, rows: str, alone: tuple[str, ...]) -> None:
    """A row with everything, then one per kind or third, each what Steer With Maps does with the others at 0."""
    maps = tiny.maps(amount=0.1)
    maps = type(maps)(maps.steps, {}, (0.0, 1.0), "teal")
    latent = {"samples": tiny.latent(1)}
    model, batch, plan = run_node(pack.sheets.StrengthSheet, model=tiny.model, maps=maps, latent=latent, strengths="0.5, 1", rows=rows)
    alone = tuple(name for name in alone if name in ("early", "middle", "late") or any(site.kind == name for site in maps.steps[0].sites))
    assert plan.concepts == ("teal", *(f"only {name.replace('_', ' ')}" for name in alone)) and plan.pictures == batch["samples"].shape[0]
    pictures = sample(tiny, model, batch)
    steer = next(node for node in load_pack().nodes.NODES if node.GET_SCHEMA().node_id == "HyperTransportSteerWithMaps")
    for i, name in enumerate((None, *alone)):
        for j, strength in enumerate((0.5, 1.0)):
            others = {} if name is None else {other: 0.0 for other in alone if other != name}
            single, = run_node(steer, model=tiny.model, maps=maps, strength=strength, start_percent=0.0, end_percent=1.0, **others)
            torch.testing.assert_close(pictures[2 * i + j], sample(tiny, single, latent)[0], rtol=1e-3, atol=1e-3)


def test_layers_of_several_concepts_are_named(pack: SimpleNamespace, tiny: Any) -> None:
    maps, names = pack.sheets.layers_apart(tiny.maps(rows=2), ("fog", "teal"), ("mlp",))
    assert names == ("fog", "fog, only mlp", "teal", "teal, only mlp") and maps.rows == 4
    untouched = [site for site in maps.steps[0].sites if site.kind != "mlp"]
    for row in (1, 3):
        assert maps.steps[0].row(row).onto(untouched).is_identity() and not maps.steps[0].row(row).is_identity()
