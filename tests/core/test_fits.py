"""Fits per concept are kept, found again, and timed only where this run made them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hypertransport_core.evaluation import runner
from hypertransport_core.evaluation.fits import Fitter, FitSettings
from hypertransport_core.evaluation.methods import Methods
from hypertransport_core.pipeline import Pipeline

from small_postcard import write_world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("weights"))


def test_fits_are_kept_and_found_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.load(folder)
    settings = FitSettings(batch=4, cache=tmp_path, iterations=(2, 1))
    first = Fitter(pipeline, pipeline.hypernetwork.sites, settings)
    maps = first.lineas("neon", 2)
    monkeypatch.setattr("hypertransport_core.fitting.lineas", lambda *a, **k: pytest.fail("fitted again"))
    again = Fitter(pipeline, pipeline.hypernetwork.sites, settings)
    assert again.lineas("neon", 2).allclose(maps) and again.seconds == pytest.approx(first.seconds) and again.from_cache
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BaseException, match="fitted again"):  # a damaged file is no fit
        Fitter(pipeline, pipeline.hypernetwork.sites, settings).lineas("neon", 2)
    with pytest.raises(BaseException, match="fitted again"):  # nor is one with other settings
        Fitter(pipeline, pipeline.hypernetwork.sites, FitSettings(batch=8, cache=tmp_path)).lineas("neon", 2)


def test_a_slider_is_kept_and_found_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.load(folder)
    settings = FitSettings(batch=4, cache=tmp_path, slider_iterations=1)
    first = Fitter(pipeline, pipeline.hypernetwork.sites, settings).slider("neon")
    monkeypatch.setattr("hypertransport_core.fitting.slider_lora", lambda *a, **k: pytest.fail("fitted again"))
    again = Fitter(pipeline, pipeline.hypernetwork.sites, settings)
    assert again.slider("neon").info == first.info and again.from_cache
    assert all(torch.equal(pair[1], again.slider("neon").layers[path][1]) for path, pair in first.layers.items())


def test_only_fits_of_this_run_are_timed(folder: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.load(folder)
    settings = FitSettings(batch=4, cache=tmp_path, iterations=(2, 1))
    progress = runner.Progress(1000.0, quiet=True)
    kept = Fitter(pipeline, pipeline.hypernetwork.sites, settings, progress, progress.more)
    assert not kept.has("lineas", "neon", 2)
    assert kept.lineas("neon", 2) is kept.lineas("neon", 2) and kept.has("lineas", "neon", 2)
    assert (progress.done, progress.total) == (24, 1000)  # 2 steps of 4 samples, forward and backward; once
    progress = runner.Progress(1000.0, quiet=True)
    fitter = Fitter(pipeline, pipeline.hypernetwork.sites, settings, progress, progress.more)
    assert fitter.has("lineas", "neon", 2) and not fitter.has("lineas", "neon", 1) and not fitter.has("lineas", "sepia", 2)
    fitter.lineas("neon", 2)
    assert (progress.done, progress.total) == (0, 1000) and not fitter.fresh("lineas:", 2)
    fitter.seconds["lineas:neon", 2] = 1e6  # what the cache says of another day
    found = runner.speed(Methods(pipeline, fitter), ["neon"], fitter)
    assert 0 < found["speed.fit_seconds"] < 1e5 and len(fitter.fresh("lineas:", 2)) == 1
    assert fitter.settings.cache == tmp_path and (progress.done, progress.total) == (24, 1024)
    for path in tmp_path.glob("lineas-neon-2-*"):
        path.write_bytes(path.read_bytes()[:100])
    progress = runner.Progress(1000.0, quiet=True)
    damaged = Fitter(pipeline, pipeline.hypernetwork.sites, settings, progress, progress.more)
    assert damaged.has("lineas", "neon", 2)
    damaged.lineas("neon", 2)
    assert (progress.done, progress.total) == (24, 1024)
