"""Reading people's own pictures and writing PNG files."""

from __future__ import annotations

import numpy
import pytest
import torch
from PIL import Image

from hypertransport_core.files import FileError
from hypertransport_core.images import load_picture, save_picture


def _write(tmp_path, picture: Image.Image, name: str = "picture.png", **options):
    picture.save(tmp_path / name, **options)
    return load_picture(tmp_path / name)


def test_rgb_is_exact(tmp_path) -> None:
    values = numpy.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=numpy.uint8)
    read = _write(tmp_path, Image.fromarray(values))
    assert read.shape == (3, 5, 7) and read.dtype == torch.float32
    assert torch.equal((read * 255).round().to(torch.uint8), torch.from_numpy(values).permute(2, 0, 1))


def test_transparency_lies_over_white(tmp_path) -> None:
    values = numpy.zeros((1, 3, 4), dtype=numpy.uint8)
    values[0, :, 0] = 255
    values[0, :, 3] = (0, 128, 255)
    read = _write(tmp_path, Image.fromarray(values, "RGBA"))
    assert torch.allclose(read[0], torch.ones(1, 3), atol=1 / 255)
    assert torch.allclose(read[1], torch.tensor([[1.0, 127 / 255, 0.0]]), atol=2 / 255)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "CMYK", "YCbCr"])
def test_other_modes_have_three_channels_in_range(tmp_path, mode: str) -> None:
    picture = Image.linear_gradient("L").resize((20, 10)).convert("RGB").convert(mode)
    name = "picture.jpg" if mode in ("CMYK", "YCbCr") else "picture.png"
    read = _write(tmp_path, picture, name)
    assert read.shape == (3, 10, 20) and 0 <= read.min() < 0.3 and 0.7 < read.max() <= 1


def test_palette_with_transparency(tmp_path) -> None:
    picture = Image.new("P", (2, 1), 1)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((0, 0), 0)
    read = _write(tmp_path, picture, transparency=0)
    assert read[:, 0, 0].tolist() == [1.0, 1.0, 1.0] and read[:, 0, 1].tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("brightest", [200, 65535])
def test_sixteen_bit_keeps_its_brightness(tmp_path, brightest: int) -> None:
    values = numpy.linspace(0, brightest, 12, dtype=numpy.uint16).reshape(3, 4)
    read = _write(tmp_path, Image.fromarray(values))
    assert torch.allclose(read[1], torch.from_numpy(values.astype(numpy.float32)) / 65535, atol=1e-6)


def test_float_tiff(tmp_path) -> None:
    values = numpy.array([[0.0, 0.25], [numpy.nan, 1.0]], dtype=numpy.float32)
    read = _write(tmp_path, Image.fromarray(values), "picture.tiff")
    assert read[0].tolist() == [[0.0, 0.25], [0.0, 1.0]]


def test_camera_rotation_is_applied(tmp_path) -> None:
    picture = Image.new("RGB", (6, 3), "black")
    picture.putpixel((0, 0), (255, 255, 255))
    exif = picture.getexif()
    exif[0x0112] = 6
    read = _write(tmp_path, picture, exif=exif)
    assert read.shape == (3, 6, 3) and read[0, 0, 2] == 1 and read.sum() == 3


def test_animation_gives_its_first_frame(tmp_path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_picture(tmp_path / "a.gif")[:, 0, 0].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n" + bytes(20)])
def test_broken_file_is_one_sentence(tmp_path, content: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(FileError, match="broken.png cannot be read as a picture") as caught:
        load_picture(path)
    assert "\n" not in str(caught.value) and str(caught.value).count("broken.png") == 1


def test_every_truncation_is_refused_or_read_never_crashes(tmp_path) -> None:
    Image.effect_noise((40, 40), 80).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    for cut in range(0, len(data) - 20, max(1, len(data) // 50)):
        (tmp_path / "cut.png").write_bytes(data[:cut])
        with pytest.raises(FileError):
            load_picture(tmp_path / "cut.png")


def test_missing_file_folder_and_enormous_picture(tmp_path, monkeypatch) -> None:
    with pytest.raises(FileError, match="not there"):
        load_picture(tmp_path / "nothing.png")
    with pytest.raises(FileError, match="a folder"):
        load_picture(tmp_path)
    Image.new("L", (40, 40)).save(tmp_path / "large.png")
    for limit in (1000, 100):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(FileError, match="larger than"):
            load_picture(tmp_path / "large.png")


def test_png_round_trip_with_texts(tmp_path) -> None:
    image = torch.rand(3, 6, 5)
    save_picture(tmp_path / "deep" / "out.png", image, {"concept": "évening"})
    assert torch.allclose(load_picture(tmp_path / "deep" / "out.png"), image, atol=0.51 / 255)
    with Image.open(tmp_path / "deep" / "out.png") as picture:
        assert picture.text["concept"] == "évening"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out.png"]


def test_values_outside_are_clipped_and_nan_is_refused(tmp_path) -> None:
    save_picture(tmp_path / "out.png", torch.tensor([-1.0, 0.5, 2.0]).view(1, 1, 3).expand(3, 1, 3))
    before = (tmp_path / "out.png").read_bytes()
    assert load_picture(tmp_path / "out.png")[0, 0].tolist() == pytest.approx([0.0, 128 / 255, 1.0])
    for wrong in (torch.full((3, 2, 2), float("nan")), torch.rand(1, 3, 2, 2), torch.rand(4, 2, 2)):
        with pytest.raises(FileError, match="was not written"):
            save_picture(tmp_path / "out.png", wrong)
    assert (tmp_path / "out.png").read_bytes() == before
