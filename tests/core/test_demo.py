from __future__ import annotations

import argparse
import socket
from pathlib import Path

import numpy
import pytest
from PIL import Image

from hypertransport_core.commands import COMMANDS, demo, main, sentence
from hypertransport_core.pipeline import Pipeline

from small_postcard import write_world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("weights"))


def run(folder: Path, output: Path, *arguments: str) -> int:
    return main(["demo", "--weights", str(folder), "--output", str(output), "--steps", "1", *arguments])


def pixels(path: Path) -> numpy.ndarray:
    with Image.open(path) as image:
        return numpy.array(image)


def test_words_of_a_prompt_that_were_never_taught_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = ("--concept", "neon", "--strength", "1")
    assert run(folder, tmp_path / "a", "--prompt", "a red quasarfoobar", *some) == 0
    assert "never taught 'quasarfoobar' in a prompt" in capsys.readouterr().err
    assert run(folder, tmp_path / "b", "--prompt", "a red house", *some) == 0
    assert not capsys.readouterr().err


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The one sentence on stderr of a refused command."""
    printed = capsys.readouterr()
    assert code == 2 and printed.out == ""
    text = printed.err.strip()
    assert text.endswith(".") and "\n" not in text and "Traceback" not in text
    return text


def test_default_sheet_and_single_pictures(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, tmp_path, "--strength", "0", "--strength", "1") == 0
    singles = sorted((tmp_path / "demo").glob("*.png"))
    assert len(singles) == 2 * (len(demo.CONCEPTS) + 1)
    assert pixels(tmp_path / "demo.png").shape[0] > 4 * 192
    assert "8 pictures" in capsys.readouterr().out
    zero = [path for path in singles if path.stem.endswith("strength0")]
    assert len(zero) == 4 and all(numpy.array_equal(pixels(zero[0]), pixels(path)) for path in zero)
    assert not numpy.array_equal(
        pixels(zero[0]), pixels(zero[0].with_name(zero[0].name.replace("strength0", "strength1")))
    )
    with Image.open(zero[0]) as image:
        assert image.info["prompt"] == demo.PROMPT and image.info["strength"] == "0"


def test_a_picture_does_not_depend_on_what_else_is_asked(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path / "a", "--concept", "neon", "--strength", "0.5") == 0
    assert (
        run(
            folder,
            tmp_path / "b",
            "--concept",
            "sepia",
            "--concept",
            "neon",
            "--strength",
            "1",
            "--strength",
            "0.5",
            "--seed",
            "7",
            "--seed",
            "8",
        )
        == 0
    )
    (one,) = (tmp_path / "a" / "demo").glob("*_neon_seed7_strength0.5.png")
    (other,) = (tmp_path / "b" / "demo").glob("*_neon_seed7_strength0.5.png")
    assert numpy.array_equal(pixels(one), pixels(other))
    assert len(list((tmp_path / "b" / "demo").glob("*.png"))) == 8


@pytest.mark.parametrize(
    "mode, size, suffix",
    [
        ("RGBA", (300, 200), "png"),
        ("L", (17, 40), "png"),
        ("P", (1, 1), "gif"),
        ("RGB", (800, 60), "jpg"),
        ("I;16", (64, 64), "png"),
        ("CMYK", (50, 50), "jpg"),
        ("LA", (33, 33), "png"),
    ],
)
def test_a_users_own_photo(folder: Path, tmp_path: Path, mode: str, size: tuple[int, int], suffix: str) -> None:
    path = tmp_path / f"my photo.{suffix}"
    Image.new(mode, size, 3).save(path) if mode in ("L", "P", "I;16") else Image.new(mode, size).save(path)
    assert run(folder, tmp_path / "out.png", "--concept", str(path), "--strength", "1") == 0
    assert (tmp_path / "out.png").is_file() and len(list((tmp_path / "out").glob("01_my-photo*.png"))) == 1


def test_nothing_is_fetched(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert run(folder, tmp_path, "--strength", "1") == 0


def test_mix_and_remove(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    Image.new("RGB", (20, 20), "red").save(picture)
    assert run(folder, tmp_path, "--mix", f"neon:0.5,{picture}:0.5", "--strength", "1", "--remove") == 0
    assert run(folder, tmp_path, "--remove", "--concept", "neon", "--strength", "0", "--strength", "1") == 0
    (single,) = (tmp_path / "remove").glob("01_neon_*strength-1.png")
    with Image.open(single) as image:
        assert image.info["prompt"] == f"{demo.PROMPT}, neon" and image.info["removed"] == "True"
        assert image.info["strength"] == "-1"


def test_removing_is_a_strength_below_0_on_a_prompt_that_names_the_concept(folder: Path, tmp_path: Path) -> None:
    """The untouched maps, whatever the sign that was asked for: 0.5, -0.5 and a double of them are one column."""
    strengths = ("--strength", "0", "--strength", "0.5", "--strength", "-0.5", "--strength", "1")
    assert run(folder, tmp_path, "--remove", "--concept", "neon", *strengths) == 0
    named = ("--prompt", f"{demo.PROMPT}, neon", "--concept", "neon", "--strength", "0", "--strength", "-0.5", "--strength", "-1")
    assert run(folder, tmp_path, *named) == 0
    removed, plain = ({path.name: pixels(path) for path in (tmp_path / kind).glob("*.png")} for kind in ("remove", "demo"))
    assert sorted(removed) == sorted(plain) and len(removed) == 3
    assert all(numpy.array_equal(removed[name], plain[name]) for name in plain)
    assert len({picture.tobytes() for picture in removed.values()}) == 3


def test_the_sheet_says_what_is_shown(folder: Path) -> None:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    options = parser.parse_args(["--weights", str(folder), "--remove"])
    pipeline = Pipeline.load(options.weights)
    assert "taken away by strengths below 0" in demo._subtitle(options, pipeline)
    headings = [demo._heading(strength) for strength in demo._checked_strengths(None, remove=True)]
    assert headings == ["unsteered", "strength -0.25", "strength -0.5", "strength -0.75", "strength -1"]
    assert "removal_share" in " ".join(parser.format_help().split())


def test_mixes_are_parsed() -> None:
    assert demo.parse_mix("a b:0.5, c : -1,d") == [("a b", 0.5), ("c", -1.0), ("d", 1.0)]
    assert demo.parse_mix("C:\\x\\y.png:0.25") == [("C:\\x\\y.png", 0.25)]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--mix", "a:,b:1"),
        ("--mix", "a:1,,b:1"),
        ("--mix", "neon:1,neon:-1"),
        ("--mix", ""),
        ("--prompt", " "),
        ("--concept", ""),
        ("--concept", "   "),
        ("--concept", "quasarfoobar"),
        ("--concept", "missing.png"),
        ("--strength", "nan"),
        ("--strength", "x"),
        ("--strength", "1e9"),
        ("--seed", "-1"),
        ("--seed", "1.5"),
        ("--steps", "0"),
        ("--nonsense",),
        ("--weights", "nowhere"),
        ("--hypernetwork", "nowhere"),
        ("--mix", "neon:0,sepia:0"),
    ],
)
def test_refusals_are_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    refused(capsys, run(folder, tmp_path / "out", *arguments))
    assert not (tmp_path / "out").exists()


def test_broken_pictures_are_one_sentence(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 90).save(whole)
    for name, content in (("empty.png", b""), ("text.jpg", b"not a picture"), ("cut.png", whole.read_bytes()[:800])):
        (tmp_path / name).write_bytes(content)
        assert name in refused(capsys, run(folder, tmp_path / "out", "--concept", str(tmp_path / name)))


def test_an_output_that_cannot_be_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    refused(capsys, run(folder, tmp_path / "file", "--concept", "neon", "--strength", "1"))


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--list"]) == 0
    printed = capsys.readouterr().out
    assert "teal mosaic*" in printed and "mushroom" in printed and "color treatments" in printed


def test_defaults_are_held_out() -> None:
    from hypertransport_core.postcard.concepts import split

    assert {*demo.CONCEPTS, demo.REFERENCE} <= set(split()["heldout"])
    assert demo.reference_picture("neon").shape == (3, 64, 64)


def test_bad_command_lines(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, main([]))
    refused(capsys, main(["dmeo"]))
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
    assert sentence("a thing\nis wrong") == "A thing is wrong."
