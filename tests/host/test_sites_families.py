"""Sites of every family at full size: counted as the guide says, really called, and of the checkpoints' dimensions."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hypertransport_core.backbones import host
from hypertransport_core.backbones.families import FAMILIES, family_network, family_sites
from hypertransport_core.commands import main
from hypertransport_core.sites import SITE_SETS, Site, SiteError, find_sites, site_module, total_channels
from hypertransport_core.transport import TransportMaps
from hypertransport_core.weights_io import save_maps

ROOT = Path(__file__).resolve().parents[2]
# Written here once more, so that the guide cannot follow a mistake of the code: (sites, channels) of
# attention_mlp, norm, mlp, all, everything.
COUNTS: dict[str, tuple[tuple[int, int], ...]] = {
    "sdxl": ((210, 249_600), (256, 294_080), (70, 83_200), (466, 543_680), (500, 571_200)),
    "sd15": ((48, 37_440), (109, 100_160), (16, 12_480), (157, 137_600), (201, 177_920)),
    "pixart": ((84, 96_768), (57, 65_664), (28, 32_256), (141, 162_432), (141, 162_432)),
    "flux": ((114, 350_208), (115, 353_280), (76, 233_472), (229, 703_488), (229, 703_488)),
    "sd3": ((94, 144_384), (96, 147_456), (47, 72_192), (190, 291_840), (190, 291_840)),
    "wan": ((90, 138_240), (91, 139_776), (30, 46_080), (181, 278_016), (181, 278_016)),
    "wan_14b": ((120, 614_400), (121, 619_520), (40, 204_800), (241, 1_233_920), (241, 1_233_920)),
    "hunyuan_image": ((120, 430_080), (121, 433_664), (80, 286_720), (241, 863_744), (241, 863_744)),
}
# Billions of parameters, as their authors give them; the host's name of the configuration.
MODELS = {
    "sdxl": (2.57, "SDXL"), "sd15": (0.86, "SD15"), "pixart": (0.61, "PixArtAlpha"), "flux": (11.9, "Flux"),
    "sd3": (2.03, "SD3"), "wan": (1.42, "WAN21_T2V"), "wan_14b": (14.3, "WAN21_T2V"),
    "hunyuan_image": (17.4, "HunyuanImage21"),
}  # fmt: skip
# Latent (C, ...), width of the text, keyword arguments of the network beside; PixArt wants a mean side above 32.
INPUTS: dict[str, tuple[tuple[int, ...], int, dict[str, tuple[int, ...]]]] = {
    "sdxl": ((4, 8, 8), 2048, {"y": (1, 2816)}),
    "sd15": ((4, 8, 8), 768, {}),
    "pixart": ((4, 34, 34), 4096, {}),
    "flux": ((16, 8, 8), 4096, {"y": (1, 768), "guidance": (1,)}),
    "sd3": ((16, 8, 8), 4096, {"y": (1, 2048)}),
    "wan": ((16, 1, 8, 8), 4096, {}),
    "wan_14b": ((16, 1, 8, 8), 4096, {}),
    "hunyuan_image": ((64, 4, 4), 3584, {}),
}
# Other checkpoints that the guide counts under the same family.
VARIANTS = {
    "schnell": ("flux", {"guidance_embed": False}, "FluxSchnell"),
    "sigma": (
        "pixart",
        {"image_model": "pixart_sigma", "micro_condition": False, "model_max_length": 300},
        "PixArtSigma",
    ),
    "wan i2v": ("wan_14b", {"model_type": "i2v", "in_dim": 36}, "WAN21_I2V"),
}
TINY_HUNYUAN = {
    "image_model": "hunyuan_video", "in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "vec_in_dim": None,
    "context_in_dim": 16, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [16, 16], "theta": 256, "qkv_bias": True, "guidance_embed": False, "byt5": False, "meanflow": False,
}  # fmt: skip


@cache
def full_size(name: str) -> nn.Module:
    return family_network(name)


def guide_table(header: str) -> list[list[str]]:
    """Cells of the table of docs/sites.md whose first line begins so; `|` inside code is written `\\|` there."""
    lines = (ROOT / "docs" / "sites.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(header))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_guide_counts_what_is_there() -> None:
    written: dict[tuple[str, str], tuple[int, int]] = {}
    for family, sets, sites, channels, floats, size in guide_table("| family | set | sites | channels | floats"):
        for site_set in re.findall(r"`(\w+)`", sets):
            written[family.strip("`"), site_set] = (number(sites), number(channels))
        assert number(floats) == 2 * number(channels)
        assert float(size.removesuffix(" MB")) == pytest.approx(8e-6 * number(channels), abs=0.1)
    assert written == {(name, s): counts for name in COUNTS for s, counts in zip(SITE_SETS, COUNTS[name], strict=True)}
    assert set(COUNTS) == set(FAMILIES) == set(MODELS) == set(INPUTS)


@pytest.mark.parametrize("name", FAMILIES)
def test_counts_and_dimensions(name: str) -> None:
    network = full_size(name)
    found = [find_sites(network, site_set) for site_set in SITE_SETS]
    assert tuple((len(sites), total_channels(sites)) for sites in found) == COUNTS[name]
    assert {t.device.type for t in [*network.parameters(), *network.buffers()]} == {"meta"}
    billions, _ = MODELS[name]
    assert sum(p.numel() for p in network.parameters()) / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_host_reads_the_same_dimensions_from_such_a_checkpoint(name: str) -> None:
    detected, kind = detect(full_size(name))
    assert kind == MODELS[name][1]
    config = dict(FAMILIES[name].config)
    assert detected.keys() <= config.keys() and {key: config[key] for key in detected} == detected


def detect(network: nn.Module) -> tuple[dict[str, Any], str]:
    """What the host's loader makes of a checkpoint of this network: its configuration and the configuration's name."""
    import comfy.model_detection

    weights = network.state_dict()
    kind = type(comfy.model_detection.model_config_from_unet(dict(weights), "")).__name__
    return comfy.model_detection.detect_unet_config(dict(weights), ""), kind


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpoints_of_one_architecture_have_the_same_sites(variant: str) -> None:
    name, changes, kind = VARIANTS[variant]
    network = replace(FAMILIES[name], config={**FAMILIES[name].config, **changes}).build()
    assert find_sites(network, "everything") == find_sites(full_size(name), "everything")
    assert detect(network)[1] == kind


def listen(network: nn.Module, sites: tuple[Site, ...]) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of what each site's module will put out from now on."""
    seen: dict[str, list[tuple[int, ...]]] = {site.path: [] for site in sites}
    for site in sites:
        site_module(network, site.path).register_forward_hook(
            lambda module, inputs, output, path=site.path: seen[path].append(tuple(output.shape))
        )
    return seen


def check_calls(sites: tuple[Site, ...], seen: Mapping[str, list[tuple[int, ...]]]) -> None:
    assert [path for path, shapes in seen.items() if len(shapes) != 1] == []
    for site in sites:
        (shape,) = seen[site.path]
        assert shape[site.channel_dim] == site.channels and len(shape) == (3 if site.channel_dim == -1 else 4), site


@pytest.mark.parametrize("name", FAMILIES)
def test_every_site_is_called_once_at_full_size(name: str) -> None:
    network = family_network(name)  # its own: it is listened to
    sites = find_sites(network, "everything")
    seen = listen(network, sites)
    latent, width, others = INPUTS[name]
    with torch.inference_mode(), torch.device("meta"):
        keywords = {key: torch.empty(shape) for key, shape in others.items()}
        inputs = (torch.empty(1, *latent), torch.empty(1), torch.empty(1, 6, width))
    with torch.inference_mode():
        assert network(*inputs, **keywords).shape == (1, *latent)
    check_calls(sites, seen)


@pytest.mark.parametrize("name", ["sdxl", "sd15", "pixart", "flux", "sd3", "wan", "hunyuan_image"])
def test_every_site_of_a_small_model_is_called_and_does_something(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the host's sampler, with numbers: another output there, another picture."""
    import tiny_hosts

    if name == "hunyuan_image":
        small = tiny_hosts.Family("HunyuanImage21", TINY_HUNYUAN, (64, 8, 8), 16)
        monkeypatch.setitem(tiny_hosts.FAMILIES, name, small)
    tiny = tiny_hosts.TinyHost(name, tiny_hosts.build(name))
    sites = find_sites(tiny.network, "everything")
    full = find_sites(full_size(name), "everything")
    assert {general(site.path) for site in full} == {general(site.path) for site in sites}
    seen = listen(tiny.network, sites)
    untouched = tiny.sample(steps=1, cfg=1.0)
    check_calls(sites, seen)
    without_effect = []
    for site in sites:
        module = site_module(tiny.network, site.path)
        handle = module.register_forward_hook(lambda module, inputs, output: output * 0.5 + 0.1)
        if torch.equal(tiny.sample(steps=1, cfg=1.0), untouched):
            without_effect.append(site.path)
        handle.remove()
    assert without_effect == []


def general(path: str) -> str:
    return re.sub(r"(?<![^.])\d+(?![^.])", "N", path)


def test_examples_of_the_guide() -> None:
    rows = guide_table("| family | set | expression")
    assert len(rows) == 6
    for family, site_set, expression, sites, _ in rows:
        found = find_sites(full_size(family.strip("`")), site_set.strip("`"), pattern=expression.strip("`"))
        assert len(found) == number(sites), expression


def test_norms_with_weights_are_those_the_guide_names() -> None:
    def weighted(name: str) -> set[str]:
        norms = find_sites(full_size(name), "norm")
        modules = {site.path: site_module(full_size(name), site.path) for site in norms}
        return {general(path) for path, module in modules.items() if module.weight is not None}

    for name in ("sdxl", "sd15"):
        assert weighted(name) == {general(site.path) for site in find_sites(full_size(name), "norm")}
    assert weighted("wan") == {"blocks.N.norm3"}
    assert not any(weighted(name) for name in ("pixart", "flux", "sd3", "hunyuan_image"))


def test_sdxl_norms_by_kind() -> None:
    norms = find_sites(full_size("sdxl"), "norm")
    transformer = [s for s in norms if "transformer_blocks" in s.path]
    residual = [s for s in norms if s.path.endswith((".in_layers.0", ".out_layers.0"))]
    entry = [s for s in norms if s.path.endswith(".1.norm")]
    assert [(len(part), total_channels(part)) for part in (transformer, residual, entry)] == [
        (210, 249_600), (34, 33_280), (11, 10_880)]  # fmt: skip
    assert {s.path for s in norms} - {s.path for s in (*transformer, *residual, *entry)} == {"out.0"}


def test_size_of_a_maps_file(tmp_path: Path) -> None:
    sites = find_sites(full_size("sdxl"), "norm")
    width = total_channels(sites)
    save_maps(tmp_path / "maps.safetensors", TransportMaps(sites, torch.ones(1, width), torch.zeros(1, width)))
    size = (tmp_path / "maps.safetensors").stat().st_size
    assert f"{size / 1e6:.1f} MB" == next(row[5] for row in guide_table("| family | set | sites") if row[1] == "`norm`")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["sites", *arguments])
    return code, *capsys.readouterr()


def test_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, "--family", "sdxl", "--set", "norm", "--json", "-")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"family": "sdxl", "set": "norm", "sites": 256, "channels": 294_080}
    target = tmp_path / "numbers.json"
    assert run(capsys, "--family", "pixart", "--json", str(target)) == (0, "", "")
    expected = {"family": "pixart", "set": "attention_mlp", "sites": 84, "channels": 96_768}
    assert json.loads(target.read_text(encoding="utf-8")) == expected


def test_tables_and_lists(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--family", "sd15")
    assert code == 0 and [line.split() for line in out.splitlines()[1:]] == [
        [site_set, str(sites), f"{channels:,}", f"{2 * channels:,}"]
        for site_set, (sites, channels) in zip(SITE_SETS, COUNTS["sd15"], strict=True)
    ]
    code, out, _ = run(capsys, "--family", "flux", "--set", "norm", "--sites", r"^double_blocks\.3\.", "--list")
    assert code == 0 and [line.split() for line in out.splitlines()] == [
        [f"double_blocks.3.{name}", "norm", "3072"] for name in ("img_norm1", "img_norm2", "txt_norm1", "txt_norm2")
    ]
    code, out, _ = run(capsys, "--family", "wan", "--sites", "^head")
    assert code == 0 and [line.split()[:2] for line in out.splitlines()[1:]] == [
        ["attention_mlp", "0"], ["norm", "1"], ["mlp", "0"], ["all", "1"], ["everything", "1"]]  # fmt: skip
    code, out, _ = run(capsys)
    assert code == 0 and all(line.startswith(name) for name, line in zip(FAMILIES, out.splitlines()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--family", "sdxl", "--sites", "nowhere"], "matching 'nowhere'"),
        (["--family", "sdxl", "--sites", "("], "not a regular expression"),
        (["--family", "sdxl", "--set", "norms"], "'norms'"),
        (["--family", "dalle"], "'dalle'"),
        (["--family", "sdxl", "--json", "-", "--list"], "not allowed with"),
        (["--set", "norm"], "--family"),
        (["--family", "wan", "--json", "no such folder/x.json"], "cannot be written"),
    ],
)
def test_refusals(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2 and not out and words in err and err.count("\n") == 1


def test_unknown_family() -> None:
    with pytest.raises(SiteError, match="no family 'dalle'"):
        family_sites("dalle")


def checkout(place: Path) -> Path:
    (place / "comfy").mkdir(parents=True)
    (place / "comfy" / "model_base.py").touch()
    return place


def test_where_the_host_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(host, "PACK", tmp_path / "around" / "custom_nodes" / "pack")
    assert host.find_host()[0] is None and "COMFYUI_PATH" in host.find_host()[1]
    places = [checkout(tmp_path / "comfy" / "ComfyUI")]
    assert host.find_host()[0] == places[0]
    places.append(checkout(tmp_path / "around"))
    assert host.find_host()[0] == places[1]
    monkeypatch.setenv("COMFYUI_PATH", "~/named")
    assert host.find_host() == (None, "COMFYUI_PATH=~/named holds no ComfyUI")
    places.append(checkout(tmp_path / "named"))
    assert host.find_host()[0] == places[2]


def test_without_a_host(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "comfy.model_management")
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    before = list(sys.path)
    code, out, err = run(capsys, "--family", "sdxl")
    assert code == 2 and not out and "holds no ComfyUI" in err and "unset" in err and sys.path == before
    monkeypatch.setenv("COMFYUI_PATH", str(checkout(tmp_path)))
    monkeypatch.setattr(sys, "path", before)  # what is added goes away with the test
    monkeypatch.setitem(sys.modules, "comfy.cli_args", None)
    code, out, err = run(capsys, "--family", "sdxl")
    assert code == 2 and not out and "requirements.txt" in err and err.count("\n") == 1


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """From a home folder where `comfy` is not the host's package but the folder around it, as comfy-cli installs it."""
    (tmp_path / "comfy").mkdir()
    wanted = ["--family", "pixart", "--set", "norm", "--json", "-"]
    command = [sys.executable, "-m", "hypertransport_core", "sites", *wanted]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COMFYUI_PATH": str(host.find_host()[0])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert json.loads(done.stdout) == {"family": "pixart", "set": "norm", "sites": 57, "channels": 65_664}, done.stderr
    assert done.returncode == 0 and done.stdout.count("\n") == 1
