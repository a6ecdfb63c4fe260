"""Many random graphs in one server: none fails, memory stays flat, and a picture without steering never changes.

The run that everybody makes is short; `HYPERTRANSPORT_SOAK=200 pytest tests/server/test_soak.py -s` is the long one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from comfy_server import NoServer, Server
from random_graphs import RandomGraphs, control

pytestmark = pytest.mark.host
PROMPTS = int(os.environ.get("HYPERTRANSPORT_SOAK", "25"))
EVERY = 5  # prompts between two controls
SETTLED = 0.4  # of the run: until then caches fill, at most 32 concepts' maps among them
# MB per prompt. A Postcard model left behind each time would be 36, the maps of a concept 0.07, those of
# most prompts more; a short run tells the first only.
MOST = 0.1 if PROMPTS >= 200 else 8.0
MB = 2**20


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own, whose memory no other test has used."""
    try:
        running = Server.start(tmp_path_factory.mktemp("soak"))
    except NoServer as reason:
        pytest.skip(f"no ComfyUI host: {reason}")
    yield running
    running.stop()


def picture(server: Server) -> np.ndarray:
    """What the control shows, uint8 (2, 64, 64, 3), sampled anew each time."""
    prompt = control()
    result = server.run(prompt)
    assert result.status == "success", result.sentences() + result.traceback
    sampler = next(key for key, node in prompt.items() if node["class_type"] == "KSampler")
    assert sampler not in result.cached, "the host kept the picture of before, so nothing is shown by it"
    return np.stack([np.asarray(one.convert("RGB")) for one in server.pictures(result)])


def test_random_graphs_one_after_another(fresh: Server) -> None:
    graphs, begun = RandomGraphs(seed=2024), len(fresh.log())
    before, memory, failed = picture(fresh), [], []
    for number in range(PROMPTS):
        prompt, words = graphs.next()
        result = fresh.run(prompt, timeout=300)
        if result.status != "success":
            where = prompt.get(result.failed, {}).get("class_type")
            failed.append(f"{number}: {words}\n   {result.status} at {where}: {result.sentences()}")
        if number % EVERY == EVERY - 1:
            assert (picture(fresh) == before).all(), f"the unsteered picture changed after prompt {number}: {words}"
            memory.append((number + 1, fresh.memory() / MB))
    settled = np.array([point for point in memory if point[0] >= SETTLED * PROMPTS])
    slope = float(np.polyfit(settled[:, 0], settled[:, 1], 1)[0])
    (first, low), (_, high) = memory[0], memory[-1]
    print(f"\n{PROMPTS} prompts: {low:.0f} MB after {first}, {high:.0f} MB at the end, {slope:+.3f} MB per prompt")
    assert not failed, "\n".join(failed)
    assert fresh.complaints(begun) == []
    assert slope < MOST, memory


def test_the_same_seed_gives_the_same_graphs(tmp_path: Path) -> None:
    one, other = RandomGraphs(3), RandomGraphs(3)
    assert [one.next() for _ in range(20)] == [other.next() for _ in range(20)]
    assert control() == control()
