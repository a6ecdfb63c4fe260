"""Combine, Invert, Save and Load Maps in the real host."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pack import load_pack, pack_module, run_node

BACKBONE = {"family": "tiny", "fingerprint": {"structure": "a", "weights": {"w": "ff"}}}


@pytest.fixture(scope="module")
def pack() -> SimpleNamespace:
    load_pack()
    return SimpleNamespace(maps=pack_module("nodes.maps"), sockets=pack_module("nodes.sockets"), sites=pack_module("hypertransport_core.sites"),
                           transport=pack_module("hypertransport_core.transport"), files=pack_module("hypertransport_core.files"),
                           weights_io=pack_module("hypertransport_core.weights_io"))


@pytest.fixture()
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: SimpleNamespace) -> Path:
    """models/hypertransport and the output folder, both empty."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "hypertransport", ([str(tmp_path / "models" / "hypertransport")], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    (tmp_path / "models" / "hypertransport").mkdir(parents=True)
    return tmp_path


def make(pack: SimpleNamespace, seed: int = 0, steps: int = 1, rows: int = 1, name: str = "fog", backbone: dict = BACKBONE):
    g = torch.Generator().manual_seed(seed)
    sites = (pack.sites.Site("a", "mlp", 3), pack.sites.Site("b", "norm", 2, 1))
    maps = [pack.transport.TransportMaps(sites, 1 + 0.3 * torch.rand(rows, 5, generator=g), torch.randn(rows, 5, generator=g), {"concept": name})
            for _ in range(steps)]
    return pack.sockets.PredictedMaps(tuple(maps), backbone, (-0.5, 1.5), name)


def combine(pack: SimpleNamespace, *maps, how: str = "sum", weights=(1.0, 1.0, 1.0, 1.0)):
    names = ("first", "second", "third", "fourth")
    inputs = {name: m for name, m in zip(names, maps)} | {f"{name}_weight": w for name, w in zip(names, weights)}
    return run_node(pack.maps.CombineMaps, how=how, **inputs)[0]


def test_closed_forms(pack: SimpleNamespace) -> None:
    a, b, c = make(pack, 0), make(pack, 1), make(pack, 2)
    x, y, z = (m.steps[0] for m in (a, b, c))
    total = combine(pack, a, b, c, weights=(1.0, 0.5, -1.0, 9.0)).steps[0]
    torch.testing.assert_close(total.scale, 1 + (x.scale - 1) + 0.5 * (y.scale - 1) - (z.scale - 1))
    torch.testing.assert_close(total.shift, x.shift + 0.5 * y.shift - z.shift)
    mean = combine(pack, a, b, how="average", weights=(3.0, 1.0, 1.0, 1.0)).steps[0]
    torch.testing.assert_close(mean.shift, 0.75 * x.shift + 0.25 * y.shift)
    chain = combine(pack, a, b, how="sequence", weights=(1.0, 0.5, 1.0, 1.0)).steps[0]
    half = y.interpolate(0.5)
    torch.testing.assert_close(chain.scale, half.scale * x.scale)
    torch.testing.assert_close(chain.shift, half.scale * x.shift + half.shift)
    assert combine(pack, a, b, how="sequence").name == "fog then fog"


def test_stretches_of_noise_level_are_aligned(pack: SimpleNamespace) -> None:
    a, b = make(pack, 0, steps=2), make(pack, 1, steps=3)
    found = combine(pack, a, b).steps
    assert len(found) == 6
    for i, maps in enumerate(found):
        torch.testing.assert_close(maps.shift, a.steps[i // 3].shift + b.steps[i // 2].shift)


def test_maps_of_different_models_are_refused(pack: SimpleNamespace) -> None:
    other = make(pack, 1, backbone={"family": "sdxl", "fingerprint": {"weights": {"w": "0f"}}}, name="rain")
    with pytest.raises(ValueError, match="'fog' were made for tiny and the maps 'rain' for sdxl"):
        combine(pack, make(pack), other)
    assert combine(pack, make(pack), make(pack, backbone={})).backbone == BACKBONE  # unknown ones pass


def test_inverse(pack: SimpleNamespace) -> None:
    maps = make(pack, steps=2)
    inverse, = run_node(pack.maps.InvertMaps, maps=maps)
    for there, back in zip(maps.steps, inverse.steps):
        assert there.then(back).allclose(pack.transport.TransportMaps.identity(there.sites), atol=1e-5)
    assert inverse.name == "without fog" and inverse.backbone == BACKBONE
    flat = maps.change(lambda m: pack.transport.TransportMaps(m.sites, torch.tensor([[1.0, 1, 1, 0, 1]]), m.shift))
    with pytest.raises(ValueError, match="site 'b'"):
        run_node(pack.maps.InvertMaps, maps=flat)


def test_what_the_refused_inverse_of_a_sum_suggests_can_be_done(pack: SimpleNamespace) -> None:
    def half(seed: int):  # two of these sum up to a scale of 0, as no single map of a hypernetwork has
        return make(pack, seed).change(lambda m: pack.transport.TransportMaps(m.sites, torch.full_like(m.scale, 0.5), m.shift))

    a, b = half(0), half(1)
    with pytest.raises(ValueError, match="before combining them, or lower their weights"):
        run_node(pack.maps.InvertMaps, maps=combine(pack, a, b))
    (before,), (after,) = (run_node(pack.maps.InvertMaps, maps=maps) for maps in (a, b))
    combine(pack, before, after)
    both, back = combine(pack, a, b, how="sequence").steps[0], combine(pack, after, before, how="sequence").steps[0]
    assert both.then(back).allclose(pack.transport.TransportMaps.identity(both.sites), atol=1e-5)
    for joint in (combine(pack, a, b, weights=(0.9, 0.9)), combine(pack, a, b, how="average")):
        inverse, = run_node(pack.maps.InvertMaps, maps=joint)
        assert joint.steps[0].then(inverse.steps[0]).allclose(pack.transport.TransportMaps.identity(both.sites), atol=1e-5)


@pytest.mark.parametrize("steps, rows", [(1, 1), (3, 2)])
def test_save_and_load(pack: SimpleNamespace, folders: Path, steps: int, rows: int) -> None:
    maps = make(pack, steps=steps, rows=rows)
    paths = [Path(run_node(pack.maps.SaveMaps, maps=maps, filename_prefix="styles/fog", place="models")[0]) for _ in range(2)]
    assert [p.name for p in paths] == ["fog_00001.safetensors", "fog_00002.safetensors"]
    assert pack.maps.list_maps() == ["styles/fog_00001.safetensors", "styles/fog_00002.safetensors"]
    again, = run_node(pack.maps.LoadMaps, maps_file="styles/fog_00001.safetensors")
    assert len(again.steps) == steps and again.backbone == BACKBONE and again.strength_range == (-0.5, 1.5) and again.name == "fog"
    for new, old in zip(again.steps, maps.steps):
        assert torch.equal(new.scale, old.scale) and torch.equal(new.shift, old.shift) and new.sites == old.sites and new.info == old.info


def test_output_folder_and_thumbnail(pack: SimpleNamespace, folders: Path) -> None:
    picture = torch.rand(2, 500, 700, 4)
    path = Path(run_node(pack.maps.SaveMaps, maps=make(pack), filename_prefix="hypertransport/x", place="output", thumbnail=picture)[0])
    assert path.parent == folders / "output" / "hypertransport"
    name, = pack.maps.list_maps()
    assert name == "hypertransport/x_00001.safetensors [output]" and pack.maps.LoadMaps.validate_inputs(name) is True
    texts = pack.files.read_header(path)[1]
    assert texts["modelspec.title"] == "fog" and texts["modelspec.thumbnail"].startswith("data:image/jpeg;base64,/9j/")
    assert len(texts["modelspec.thumbnail"]) < 100_000
    stamp = pack.maps.LoadMaps.fingerprint_inputs(name)
    pack.weights_io.save_maps(path, make(pack, 3, rows=2).steps)
    assert pack.maps.LoadMaps.fingerprint_inputs(name) != stamp


def test_only_maps_are_listed_and_strangers_refused(pack: SimpleNamespace, folders: Path) -> None:
    from safetensors.torch import save_file

    models = folders / "models" / "hypertransport"
    save_file({"x": torch.zeros(1)}, models / "a.safetensors")
    (models / "b.safetensors").write_bytes(b"junk")
    pack.files.save_file(models / "c.safetensors", {"x": torch.zeros(1)}, "statistics", {})
    assert pack.maps.list_maps() == []
    for name in ("gone.safetensors", "../../secret.safetensors [output]", ""):
        words = pack.maps.LoadMaps.validate_inputs(name)
        assert isinstance(words, str) and "is not in " in words and "refresh" in words
    with pytest.raises(pack.files.FileError, match="'statistics' file, expected 'transport_maps'"):
        run_node(pack.maps.LoadMaps, maps_file="c.safetensors")


@pytest.mark.parametrize("prefix", ["../x", "", "/etc/x", "a/../../x"])
def test_names_that_leave_the_folder_are_refused(pack: SimpleNamespace, folders: Path, prefix: str) -> None:
    with pytest.raises(pack.files.FileError, match="expected a name below"):
        run_node(pack.maps.SaveMaps, maps=make(pack), filename_prefix=prefix, place="models")
