from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hypertransport_core.commands import main
from hypertransport_core.encoders.base import EncoderError
from hypertransport_core.files import FileError
from hypertransport_core.images import save_picture
from hypertransport_core.pipeline import HYPERNETWORK_FILE, Pipeline, PipelineError, each_map, is_picture, steerings
from hypertransport_core.postcard.captions import TEMPLATES
from hypertransport_core.steering import Envelope
from hypertransport_core.transport import TransportMaps

from small_postcard import write_world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return Pipeline.load(folder)


@pytest.fixture(scope="module")
def maps(pipeline: Pipeline) -> TransportMaps:
    found = pipeline.maps(pipeline.embed_text("teal mosaic"))
    assert isinstance(found, TransportMaps)
    return found


def test_strength_zero_is_bit_identical_and_one_is_not(pipeline: Pipeline, maps: TransportMaps) -> None:
    plain = pipeline.generate("a red house", 3, steps=2)
    assert plain.shape == (1, 3, 64, 64) and 0 <= float(plain.min()) and float(plain.max()) <= 1
    assert torch.equal(plain, pipeline.generate("a red house", 3, maps, 0.0, steps=2))
    assert torch.equal(plain, pipeline.generate("a red house", 3, maps, torch.zeros(1), steps=2))
    assert torch.equal(plain, pipeline.generate("a red house", 3, maps, 1.0, steps=2, envelope=Envelope(0.2, 0.8)))
    assert float((plain - pipeline.generate("a red house", 3, maps, 1.0, steps=2)).abs().max()) > 1e-3
    assert torch.equal(plain, pipeline.generate("a red house", 3, steps=2)), "nothing is left behind"


def test_embedding_of_words_is_the_mean_over_phrasings(pipeline: Pipeline) -> None:
    vectors = pipeline.encoder.encode_text([template.format("neon") for template in TEMPLATES])
    expected = torch.nn.functional.normalize(vectors.mean(0), dim=-1)
    embedding = pipeline.embed_text("  neon ")
    assert (
        torch.allclose(embedding.vector, expected, atol=1e-6)
        and embedding.modality == "text"
        and embedding.source == "neon"
    )
    with pytest.raises(EncoderError):
        pipeline.embed_text("   ")


def test_pictures_by_path_and_tensor_agree(pipeline: Pipeline, tmp_path: Path) -> None:
    picture = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(0)) / 255
    save_picture(tmp_path / "own.png", picture)
    first, second = pipeline.embed_image(tmp_path / "own.png"), pipeline.embed_image(picture)
    assert (
        torch.allclose(first.vector, second.vector, atol=1e-5)
        and first.modality == "image"
        and first.source == "own.png"
    )
    several = pipeline.embed_image([picture, torch.rand(3, 20, 90)])
    assert several.vector.shape == (128,) and abs(float(several.vector.norm()) - 1) < 1e-5
    assert pipeline.embed(str(tmp_path / "own.png")).modality == "image" and pipeline.embed("neon").modality == "text"
    with pytest.raises(FileError):
        pipeline.embed("missing.png")


def test_modality_means_are_subtracted(pipeline: Pipeline) -> None:
    text, image = pipeline.embed_text("neon"), pipeline.embed_image(torch.rand(3, 64, 64))
    for embedding, mean in ((text, 0.01), (image, -0.01)):
        expected = torch.nn.functional.normalize(embedding.vector - mean, dim=-1)
        assert torch.allclose(pipeline.centred(embedding)[0], expected, atol=1e-6)
    mixed = pipeline.mix([text, image], [0.7, 0.3])
    parts = 0.7 * pipeline.centred(text)[0] + 0.3 * pipeline.centred(image)[0]
    assert torch.allclose(pipeline.centred(mixed)[0], torch.nn.functional.normalize(parts, dim=-1), atol=1e-5)


def test_several_concepts_in_one_batch_equal_single_runs(pipeline: Pipeline) -> None:
    embeddings = [pipeline.embed_text(words) for words in ("neon", "teal mosaic")]
    both = pipeline.maps(embeddings)
    assert both.rows == 2 and both.info["concept"] == "neon; teal mosaic"
    together = pipeline.generate("a red house", [1, 2], both, torch.tensor([1.0, 0.5]), steps=2)
    for number, strength in enumerate((1.0, 0.5)):
        alone = pipeline.generate("a red house", number + 1, pipeline.maps(embeddings[number]), strength, steps=2)
        assert torch.allclose(together[number], alone[0], atol=1e-4)
    chosen = pipeline.generate("a red house", [1, 2, 3], both, steps=1, rows=torch.tensor([1, -1, 0]))
    assert torch.allclose(chosen[1], pipeline.generate("a red house", 2, steps=1)[0], atol=1e-5)


def test_counts_that_do_not_fit_are_refused(pipeline: Pipeline, maps: TransportMaps) -> None:
    two = TransportMaps.stack([maps, maps])
    for arguments in ((["a", "b"], [1, 2, 3]), ([], [1]), ("a", [1, 2, 3], two), ("a", [1, 2, 3], maps, torch.ones(2))):
        with pytest.raises(PipelineError) as error:
            pipeline.generate(*arguments, steps=1)
        assert "\n" not in str(error.value)
    with pytest.raises(PipelineError):
        pipeline.generate("a", 1, steps=0)
    with pytest.raises(PipelineError):
        Pipeline(pipeline.backbone, pipeline.encoder).maps(pipeline.embed_text("neon"))


def test_maps_per_step_act_one_after_another(tmp_path: Path) -> None:
    pipeline = Pipeline.load(write_world(tmp_path, steps=2))
    maps = pipeline.maps(pipeline.embed_text("neon"))
    assert isinstance(maps, list) and len(maps) == 2 and not maps[0].allclose(maps[1])
    active = [[not one.is_off(level) for one in steerings(maps)] for level in (1.0, 0.75, 0.5, 0.25)]
    assert active == [[True, False], [True, False], [False, True], [False, True]]
    plain = pipeline.generate("a red house", 3, steps=2)
    only_first = pipeline.generate("a red house", 3, [maps[0], TransportMaps.identity(maps[0].sites)], steps=2)
    expected = pipeline.generate("a red house", 3, maps[0], steps=2, envelope=Envelope(1.0, 0.5))
    assert torch.allclose(only_first, expected, atol=1e-6) and not torch.equal(only_first, plain)
    assert torch.equal(plain, pipeline.generate("a red house", 3, maps, 0.0, steps=2))
    assert len(each_map(maps, TransportMaps.inverse)) == 2


def test_missing_and_foreign_files_are_refused_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    import shutil

    from hypertransport_core.weights_io import load_hypernetwork, save_hypernetwork

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    loaded = load_hypernetwork(copy / HYPERNETWORK_FILE)
    save_hypernetwork(
        copy / HYPERNETWORK_FILE,
        loaded.hypernetwork,
        family="postcard",
        fingerprint=loaded.header["backbone"]["fingerprint"],
        encoder_id="other",
    )
    cases = [(tmp_path, None), (copy, None), (folder, "nowhere.safetensors"), (folder, "postcard_clip.safetensors")]
    (copy / "postcard.safetensors").stat()
    for place, name in cases:
        with pytest.raises(FileError) as error:
            Pipeline.load(place, hypernetwork=name)
        assert "\n" not in str(error.value)
    (copy / HYPERNETWORK_FILE).unlink()
    with pytest.raises(FileError, match="0 hypernetworks"):
        Pipeline.load(copy)
    shutil.copy(folder / HYPERNETWORK_FILE, copy / "another_name.safetensors")
    assert Pipeline.load(copy).hypernetwork is not None
    assert Pipeline.load(copy, steered=False).hypernetwork is None


@pytest.mark.parametrize("command", [("evaluate", "--json"), ("results", "--output")])
def test_a_weights_folder_without_judge_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    if command[0] == "results":
        pytest.importorskip("matplotlib")
    assert main([*command, str(tmp_path / "numbers"), "--weights", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path} holds no postcard_judge.safetensors, expected the weights" in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_counts_as_a_picture(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"x")
    assert is_picture("a.PNG") and is_picture(str(tmp_path / "photo")) and is_picture(Path("anything"))
    assert (
        not is_picture("teal mosaic")
        and not is_picture(str(tmp_path))
        and not is_picture("x" * 5000)
        and not is_picture("a\0b")
    )


def test_unknown_words(pipeline: Pipeline) -> None:
    assert pipeline.unknown_words("teal mosaic") == [] and pipeline.unknown_words("teal quasarfoobar") == [
        "quasarfoobar"
    ]
