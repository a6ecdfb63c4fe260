"""What steering costs in ComfyUI, as tables for docs/performance.md. Not a test: nothing is asserted.

    python tests/bench/bench_nodes.py                        everything; an idle machine with 8 GB, some minutes
    python tests/bench/bench_nodes.py --small                the same with very small models, to try the script
    python tests/bench/bench_nodes.py --only server          Postcard in the real server
    python tests/bench/bench_nodes.py --only pixart --only sdxl
    OMP_NUM_THREADS=1 python tests/bench/bench_nodes.py --processor-time    while other work runs

Unsteered, live and folded runs take turns within one process, so that a change of the machine's speed hits all alike;
figures are medians, with the smallest and largest in brackets. The large models have random weights: only time counts.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import comfy_boot  # noqa: E402

MODES = ("unsteered", "live", "folded")
STRENGTHS = (0.8, 0.9)  # moved to and fro


@dataclass
class Times:
    """Seconds of one subject, by mode, one entry per repeat in the same order."""

    name: str
    runs: dict[str, list[float]] = field(default_factory=lambda: {mode: [] for mode in MODES})
    moves: dict[str, list[float]] = field(default_factory=lambda: {mode: [] for mode in MODES})

    def row(self) -> str:
        """A line of the table."""
        ratios = [
            [steered / plain for steered, plain in zip(self.runs[mode], self.runs["unsteered"])] for mode in MODES[1:]
        ]
        moves = [spread(self.moves[mode], " s") for mode in MODES[1:]]
        return " | ".join(
            ["", self.name, spread(self.runs["unsteered"], " s"), *map(spread, ratios), *moves, ""]
        ).strip()


def spread(values: Sequence[float], unit: str = "") -> str:
    """Median and range, in words."""
    return f"{statistics.median(values):.3f}{unit} ({min(values):.3f} to {max(values):.3f})" if values else "–"


def main() -> None:
    options = arguments()
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    missing = comfy_boot.boot()
    if missing:
        sys.exit(missing)
    wanted = options.only or ["server", "pixart", "sdxl"]
    machine = platform.processor() or platform.machine()
    clock = "processor time" if options.processor_time else "wall clock"
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, {clock}, {options.repeats} repeats.\n")
    rows, starts = [], []
    if "server" in wanted:
        times, starts = in_server(options)
        rows.append(times)
    rows += [full_size(name, options) for name in ("pixart", "sdxl") if name in wanted]
    print(
        "| model | unsteered | live ÷ unsteered | folded ÷ unsteered | strength moved, live | strength moved, folded |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(times.row() for times in rows))
    if starts:
        up, first = zip(*starts)
        print(
            f"\nServer start: up after {spread(up, ' s')}, first steered picture {spread(first, ' s')} after its start."
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="very small models and few repeats")
    parser.add_argument("--only", action="append", choices=("server", "pixart", "sdxl"))
    parser.add_argument("--repeats", type=int, help="turns of unsteered, live, folded (default 5, small 2)")
    parser.add_argument(
        "--steps", type=int, help="sampling steps (default 40 for Postcard, 4 for the others; small 4, 2)"
    )
    parser.add_argument("--px", type=int, default=512, help="picture side of the large models (default 512)")
    parser.add_argument("--batch", type=int, default=4, help="Postcards at once (default 4)")
    parser.add_argument("--threads", type=int, default=0, help="of torch in this process (default: torch's own choice)")
    parser.add_argument("--processor-time", action="store_true", help="count what the processor did, not the clock")
    options = parser.parse_args()
    options.repeats = options.repeats or (2 if options.small else 5)
    return options


def in_server(options: argparse.Namespace) -> tuple[Times, list[tuple[float, float]]]:
    """Postcard in the real server, and (seconds until it is up, until the first steered picture) of its starts."""
    import prompts
    from comfy_server import Server

    steps, seeds = options.steps or (4 if options.small else 40), itertools.count(1000)
    times, starts = Times(f"Postcard, {options.batch} pictures, {steps} steps, in the server"), []

    def prompt(mode: str, strength: float, seed: int, steps: int = steps) -> dict[str, Any]:
        about = {"seed": seed, "steps": steps, "batch_size": options.batch}
        if mode == "unsteered":
            return prompts.picture(**about)
        made = prompts.steered(strength=strength, **about)
        made[prompts.STEER]["inputs"]["mode"] = mode
        return made

    def seconds(server: Server, mode: str, strength: float, seed: int) -> float:
        before = server.processor_seconds()
        result = server.run(prompt(mode, strength, seed), timeout=600)
        if result.status != "success":
            sys.exit(result.sentences() + result.traceback)
        if options.processor_time:
            return server.processor_seconds() - before
        return result.seconds  # execution alone, by the server's clock

    with tempfile.TemporaryDirectory() as folder:
        for number in range(1 if options.small else 3):
            begun = time.monotonic()
            server = Server.start(Path(folder))

            def since(server: Server = server, begun: float = begun) -> float:
                return server.processor_seconds() if options.processor_time else time.monotonic() - begun

            try:
                up = since()
                if server.run(prompts.steered(seed=number)).status != "success":
                    sys.exit("the first picture failed:\n" + server.log()[-3000:])
                starts.append((up, since()))
                if number == 0:
                    for _ in range(options.repeats):
                        for mode in MODES:
                            seconds(server, mode, STRENGTHS[0], next(seeds))  # loads, predicts and folds
                            times.runs[mode].append(seconds(server, mode, STRENGTHS[0], next(seeds)))
                            if mode != "unsteered":  # the same noise: what runs is Steer and what comes after it
                                moved = seconds(server, mode, STRENGTHS[1], next(seeds) - 1)
                                times.moves[mode].append(max(0.0, moved - times.runs[mode][-1]))
                        print(times.row(), file=sys.stderr)  # so far: what is interrupted is not lost
            finally:
                server.stop()
    return times, starts


def full_size(name: str, options: argparse.Namespace) -> Times:
    """A large model with random weights in bf16, sampled as KSampler does, with random maps of moderate size."""
    from large_hosts import large_host
    from pack import pack_module

    host = tiny_model(name) if options.small else large_host(name, options.px)
    steps = options.steps or (2 if options.small else 4)
    maps, steer = host.maps(amount=0.02, site_set="attention_mlp"), pack_module("nodes.interception").steer_model
    parameters = sum(p.numel() for p in host.network.parameters())
    size = f"{parameters / 1e9:.2f} G parameters, {len(maps.steps[0])} sites, {8 * host.family.latent[1]} px"
    times = Times(f"{name}, {size}, {steps} steps, cfg 1")

    def model(mode: str, strength: float) -> Any:
        return host.model if mode == "unsteered" else steer(host.model, maps, strength, mode=mode)

    def seconds(run: Callable[[], Any]) -> float:
        clock = time.process_time if options.processor_time else time.perf_counter
        begun = clock()
        run()
        return clock() - begun

    for _ in range(options.repeats):
        for mode in MODES:
            one, other = (model(mode, strength) for strength in STRENGTHS)
            host.sample(one, steps=1, cfg=1.0)  # the host moves from one set of patches to the other
            once = seconds(lambda one=one: host.sample(one, steps=1, cfg=1.0))
            times.runs[mode].append(seconds(lambda one=one: host.sample(one, steps=steps, cfg=1.0)))
            if mode != "unsteered":
                moved = seconds(lambda other=other: host.sample(other, steps=1, cfg=1.0))
                times.moves[mode].append(max(0.0, moved - once))
    host.model.unpatch_model()
    return times


def tiny_model(name: str) -> Any:
    from tiny_hosts import TinyHost, build

    return TinyHost(name, build(name))


if __name__ == "__main__":
    main()
