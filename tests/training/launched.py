"""`launched.py N [SETTINGS]`: the command line on the tiny world in N processes at once, forked after the imports.

They find each other as those of a launcher do; with APART in the environment each is on its own. MISHAPS says what
befalls them: `kill:collect:3:1` kills process 1 when it is about to collect its fourth concept, `interrupt:train:7:0`
sends process 0 a Ctrl-C at step 7, `full:save:8:0` fills its disk while it writes that checkpoint. RECORD names a file
in which every collected concept becomes a line, OTHER_SEED_IN a process with another seed. The last line that is printed holds the exit statuses.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import accelerate  # noqa: F401  # once, before the processes part
import torch

from hypertransport_core import checkpoints
from hypertransport_core.training import cli, data, loop
from tests.training import worlds


def befall(what: str, *_: Any) -> None:
    if what == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "disk")
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "interrupt": signal.SIGINT}[what])


def arrange(mishap: str, number: int) -> None:
    """Make a mishap happen in this process, if it is meant."""
    what, place, count, who = mishap.split(":")
    if int(who) != number:
        return
    if place == "train":
        advance = loop.Trainer.advance

        def advancing(self: loop.Trainer) -> dict[str, float]:
            if self.step == int(count):
                befall(what)
            return advance(self)

        loop.Trainer.advance = advancing  # type: ignore[method-assign]
    elif place == "save":
        write = checkpoints._write

        def writing(tensors: Any, path: str, metadata: Any) -> None:
            if f"step-{int(count):08d}" in path:
                befall(what)
            write(tensors, path, metadata=metadata)

        checkpoints._write = writing
    else:
        collect, seen = data.DataFolder._collect_concept, []

        def collecting(self: data.DataFolder, concept: Any) -> None:
            if len(seen) == int(count):
                befall(what)
            seen.append(concept)
            collect(self, concept)

        data.DataFolder._collect_concept = collecting  # type: ignore[method-assign]


def record(file: str) -> None:
    """Note what this process collects, a little slowly, so that others come to it too."""
    collect = data.DataFolder._collect_concept

    def collecting(self: data.DataFolder, concept: Any) -> None:
        time.sleep(0.03)
        collect(self, concept)
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(f"{os.getpid()} {concept.name}\n")

    data.DataFolder._collect_concept = collecting  # type: ignore[method-assign]


def one(number: int, count: int, port: int, arguments: list[str]) -> int:
    """What one of the processes does."""
    torch.set_num_threads(1)
    if "APART" in os.environ:
        arguments = [*arguments, "--output", f"{os.environ['APART']}/{number}"]
    else:
        ranks = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ.update({name: str(value) for name, value in ranks.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test")
    if "RECORD" in os.environ:
        record(os.environ["RECORD"])
    if os.environ.get("OTHER_SEED_IN") == str(number):
        arguments = [*arguments, "--seed", "5"]
    for mishap in os.environ.get("MISHAPS", "").split():
        arrange(mishap, number)
    return cli.main(["--preset", "tiny", *arguments])


def main() -> None:
    count, arguments = int(sys.argv[1]), sys.argv[2:]
    assert worlds.SMALL["device"] == "cpu"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for number in range(count):
        child = os.fork()
        if not child:
            status = 99
            try:
                status = one(number, count, port, arguments)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(statuses))


if __name__ == "__main__":
    main()
