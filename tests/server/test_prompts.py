"""Prompts in the real server: a steered picture, what runs again when the slider moves, and mistakes answered in words."""
from __future__ import annotations

import time

import numpy as np
import pytest

import prompts
from comfy_server import Result, Server

pytestmark = pytest.mark.host


def array(server: Server, result: Result) -> np.ndarray:
    """The pictures of a result, uint8 (N, height, width, 3)."""
    assert result.status == "success", result.sentences() + result.traceback
    return np.stack([np.asarray(picture.convert("RGB")) for picture in server.pictures(result)])


def ran(prompt: dict, result: Result) -> set[str]:
    """Ids of the nodes that ran, the others came from the cache."""
    return {*prompt} - {*result.cached}


def test_a_concept_changes_the_picture_and_strength_0_does_not(server: Server) -> None:
    plain = array(server, server.run(prompts.picture()))
    full = array(server, server.run(prompts.steered()))
    off = array(server, server.run(prompts.steered(strength=0.0)))
    again = array(server, server.run(prompts.picture()))
    assert plain.shape == (1, 64, 64, 3)
    assert np.abs(full.astype(int) - plain).mean() > 2
    assert (off == plain).all() and (again == plain).all()


def test_moving_the_slider_encodes_and_loads_nothing_again(server: Server) -> None:
    server.run(prompts.steered(strength=0.5, seed=11))
    prompt = prompts.steered(strength=0.6, seed=11)
    assert ran(prompt, server.run(prompt)) == {prompts.STEER, "sample", "decode", prompts.SAVE}


def test_same_prompt_again_runs_nothing(server: Server) -> None:
    prompt = prompts.steered(strength=0.5, seed=12)
    server.run(prompt)
    assert ran(prompt, server.run(prompt)) == set()


def test_rows_of_a_batch_are_as_many_pictures(server: Server) -> None:
    assert array(server, server.run(prompts.steered(batch_size=3))).shape == (3, 64, 64, 3)


def test_file_of_another_kind_is_refused_before_the_run(server: Server) -> None:
    result = server.run(prompts.steered(file="postcard_judge.safetensors"))
    assert result.status == "refused"
    assert "postcard_judge.safetensors" in result.sentences()


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", b"\xff" * 64], ids=["empty", "text", "noise"])
def test_damaged_file_is_refused_before_the_run(server: Server, content: bytes) -> None:
    file = server.base / "models" / "hypertransport" / "damaged.safetensors"
    file.write_bytes(content)
    try:
        result = server.run(prompts.steered(file=file.name))
    finally:
        file.unlink()
    assert result.status == "refused"
    assert file.name in result.sentences()
    assert "Traceback" not in result.sentences()


def test_wrong_wire_is_refused_naming_both_kinds(server: Server) -> None:
    prompt = prompts.steered()
    prompt[prompts.STEER]["inputs"]["weights"] = ["concept", 0]
    result = server.run(prompt)
    assert result.status == "refused"
    assert "HYPERTRANSPORT" in result.sentences() and "CONCEPT" in result.sentences()


def test_empty_concept_is_answered_with_a_sentence(server: Server) -> None:
    result = server.run(prompts.steered(concept="  "))
    assert result.status in ("refused", "error")
    assert "expected words" in result.sentences() and len(result.sentences()) < 600, result.sentences()


def test_failed_run_leaves_nothing_behind(server: Server) -> None:
    before = array(server, server.run(prompts.picture(seed=21)))
    assert server.run(prompts.steered(concept="  ", seed=21)).status != "success"
    server.free()
    assert (array(server, server.run(prompts.picture(seed=21))) == before).all()


def test_interrupted_run_leaves_nothing_behind(server: Server) -> None:
    before = array(server, server.run(prompts.picture(seed=22)))
    queued = server.queue(prompts.steered(seed=22, steps=1000, batch_size=16))
    assert isinstance(queued, str)
    for _ in range(600):
        if server.get("/queue")["queue_running"]:
            server.interrupt()
        if server.history(queued):
            break
        time.sleep(0.05)
    assert server.wait(queued).status == "interrupted"
    server.free()
    assert (array(server, server.run(prompts.picture(seed=22))) == before).all()


def test_nothing_complains_in_the_log_of_a_good_run(server: Server) -> None:
    begun = len(server.log())
    assert server.run(prompts.steered(seed=31)).status == "success"
    assert server.complaints(begun) == []
