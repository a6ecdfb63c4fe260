"""What training and steering cost at the size of DMD2, as one table for docs/performance.md. Not a test.

    python tests/bench/bench_training.py --json gpu.json     on a GPU: SDXL with 2.57 G parameters, 1024 px
    python tests/bench/bench_training.py --small             very small models, also on a CPU, to try the script

No files are needed: base model and concept encoder (CLIP ViT-L/14) have their true dimensions and random weights,
prompts become fixed random vectors, and nothing is decoded. Settings are those of the preset dmd2-1step. Figures are
medians with the smallest and the largest; what has no room in the device's memory is said so, and the rest goes on.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import comfy_boot  # noqa: E402
import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

PRESET = "dmd2-1step"
NAMES = ("teal mosaic", "crimson stripes", "golden dots", "pale linen", "moss")  # K to train on, one for validation
FIT_STEPS, SHORT_FITS, FIT_BATCH = 1000, (1, 5), 4  # LinEAS's own batch
MODES = ("unsteered", "live", "folded")
GB = 1e9


@dataclass(frozen=True)
class Size:
    """How large and how often. product: side of the large product; least: samples in a pass where memory is short."""

    model: str = "large"
    product: int = 8192
    sampling_steps: int = 4
    repeats: int = 7
    least: int = 1
    changes: Mapping[str, Any] | None = None


SMALL = Size(
    "small", 512, 2, 3, 2,
    {"prompts_per_concept": 4, "blocks": 4, "samples_per_concept": 4, "concepts_per_step": 2, "width": 16,
     "bottleneck": 8},
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A line of the table. key: of the JSON, with `.median` where it varies; kind: the unit; goal: what it should be."""

    key: str
    words: str
    kind: str = "s"
    goal: str = ""
    met: Callable[[float], bool] | None = None


ROWS = (
    Row("product.tflops", "a large bf16 product", "TFLOP/s"),
    Row("train.step_seconds", "a training step"),
    Row("train.tflop", "matrix work of a step, with what checkpointing repeats", "TFLOP"),
    Row("ratio.train_rate_over_product", "matrix rate of a step ÷ the product's", "%", "≥ 40 %", lambda v: v >= 0.4),
    Row("memory.plan_bytes", "memory of training, as planned before it starts", "GB"),
    Row("memory.train_bytes", "most memory in a step, whole concepts in a pass", "GB"),
    Row("memory.least_bytes", "most memory in a step, the smallest parts", "GB", "≤ 24 GB", lambda v: v <= 24 * GB),
    Row("collect.concepts_per_second", "concepts collected", "/s"),
    Row("predict.seconds", "predicting one concept: encode, hypernetwork, install"),
    Row("predict.encode_seconds", "encoding it"),
    Row("predict.hypernetwork_seconds", "one pass of the hypernetwork"),
    Row("predict.install_seconds", "installing its maps and taking them away"),
    Row("fit.seconds", "fitting it with LinEAS, 1000 steps"),
    Row("ratio.fit_over_predict", "fitting ÷ predicting", "x", "≥ 10,000", lambda v: v >= 10_000),
    Row("picture.seconds", "sampling unsteered"),
    Row("ratio.live_over_unsteered", "live ÷ unsteered", "x", "≤ 1.02", lambda v: v <= 1.02),
    Row("ratio.folded_over_unsteered", "folded ÷ unsteered", "x", "≤ 1.00", lambda v: v <= 1.005),
)


def main() -> None:
    options = arguments()
    size = SMALL if options.small else Size()
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    core = modules(device)
    subject = Subject.build(core, options, size, device)
    found: dict[str, Any] = about(subject)
    parts = (product, collecting, training, least_memory, predicting, fitting, sampling)
    with tempfile.TemporaryDirectory() as folder:
        subject.folder = Path(folder)
        for part in parts:
            print(f"measuring: {part.__name__.replace('_', ' ')}", file=sys.stderr, flush=True)
            try:
                found |= part(subject)
            except torch.OutOfMemoryError:
                found[f"no_room.{part.__name__}"] = True
                print(f"  no room: {part.__name__} is left out", file=sys.stderr, flush=True)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    print(words(found))
    print(table(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="very small models and few repeats")
    parser.add_argument("--px", type=int, default=1024, help="picture side (default 1024; with --small always 64)")
    parser.add_argument("--device", default="", help="cuda, cpu ... (default: the GPU where there is one)")
    parser.add_argument("--steps", type=int, help="training steps measured (default 7, small 3)")
    parser.add_argument("--fit-chunk", type=int, default=0, help="samples per call while fitting (default: all 4)")
    parser.add_argument("--whole-fit", action="store_true", help="fit all 1000 steps instead of extrapolating from 5")
    parser.add_argument("--json", metavar="FILE", help="write all numbers to FILE")
    return parser.parse_args()


def modules(device: torch.device) -> SimpleNamespace:
    """ComfyUI for this device, and what is measured. Ends the program without a ComfyUI."""
    comfy_boot.mend_torchvision()
    from hypertransport_core.backbones import host

    try:
        host.make_importable(device.type)
    except host.HostError as error:
        sys.exit(str(error))
    comfy_boot.boot()  # finds it imported, and leaves the device as it is
    from hypertransport_core.benchmarks import timing
    from hypertransport_core.training import config, data, host_recipes, loop, memory, meter

    return SimpleNamespace(timing=timing, config=config, data=data, host_recipes=host_recipes, loop=loop,
                           memory=memory, meter=meter)  # fmt: skip


@dataclass
class Subject:
    """One base model in one world, with what was measured of it so far."""

    core: SimpleNamespace
    options: argparse.Namespace
    size: Size
    host: Any
    world: Any
    config: Any
    clock: Any
    rate: float = 0.0
    predict: tuple[float, ...] = ()
    folder: Path = Path()
    data: Any = None
    trainer: Any = None

    @classmethod
    def build(cls, core: SimpleNamespace, options: argparse.Namespace, size: Size, device: torch.device) -> Subject:
        """The model, and a world of as many concepts as a step takes and one more."""
        import large_hosts
        from random_worlds import random_world

        px = 64 if options.small else options.px
        recipe = {**core.host_recipes.RECIPES[PRESET].all_settings, **(size.changes or {})}
        without = {"images_per_concept": 0, "image_share": 0.0, "strip_concepts": 0, "tensorboard": False}
        config = core.config.TrainingConfig().with_values(
            {**recipe, **without, "preset": PRESET, "resolution": px, "device": str(device), "validation_concepts": 1}
        )
        host = large_hosts.small_host("sdxl", device) if options.small else large_hosts.large_host("sdxl", px, device)
        encoder = None if options.small else vit_l(device)
        world = random_world(host, config, NAMES[: config.concepts_per_step], NAMES[-1:], encoder, least=77)
        return cls(core, options, size, host, world, config, core.timing.Clock(device))

    @property
    def device(self) -> torch.device:
        return self.clock.device

    def memory_of(self, work: Callable[[], Any]) -> int:
        """The most bytes at once while something runs: on a GPU all that PyTorch has allocated, elsewhere weights and
        tensors as counted."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            work()
            return int(torch.cuda.max_memory_allocated(self.device))
        kept = (self.host.network, self.trainer.network, self.trainer.average)
        weights = sum(p.numel() * p.element_size() for module in kept for p in module.parameters())
        with self.core.meter.Meter() as meter:
            work()
        return int(weights + meter.peak)


def vit_l(device: torch.device) -> Any:
    """A CLIP of ViT-L/14's dimensions, random weights, with the host's tokenizer."""
    import comfy.sd1_clip
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    from hypertransport_core.encoders.transformers_clip import TransformersClipEncoder

    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    config = CLIPConfig(text_config=text, vision_config={**vision, "patch_size": 14}, projection_dim=768)
    tokenizer = CLIPTokenizer.from_pretrained(str(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"))
    return TransformersClipEncoder(CLIPModel(config).requires_grad_(False).to(device), tokenizer)


def about(subject: Subject) -> dict[str, Any]:
    config, size, cuda = subject.config, subject.size, subject.device.type == "cuda"
    return {
        "about.device": torch.cuda.get_device_name(subject.device) if cuda else platform.machine(),
        "about.torch": torch.__version__,
        "about.threads": torch.get_num_threads(),
        "about.parameters": sum(p.numel() for p in subject.host.network.parameters()),
        "about.px": config.resolution,
        "about.small": subject.options.small,
        "about.product_side": size.product,
        "about.sampling_steps": size.sampling_steps,
        "about.rows": config.concepts_per_step * config.samples_per_concept,
        "about.concepts": config.concepts_per_step,
        "about.rows_per_pass": config.rows_per_pass(),
        "about.prompts": config.prompts_per_concept,
    }


def product(subject: Subject) -> dict[str, Any]:
    """The rate of one large product of bf16 matrices, which nothing else can exceed by much."""
    n, timing = subject.size.product, subject.core.timing
    one, other = (torch.randn(n, n, device=subject.device, dtype=torch.bfloat16) for _ in range(2))
    times = timing.interleaved({"": lambda: one @ other}, subject.size.repeats, subject.clock, 0.2)[""]
    rates = [2 * n**3 / seconds for seconds in times]
    subject.rate = sorted(rates)[len(rates) // 2]
    return timing.spread("product.tflops", [rate / 1e12 for rate in rates])


def collecting(subject: Subject) -> dict[str, Any]:
    """Concepts collected one by one, behind the generic class, which warms up."""
    timing, world = subject.core.timing, subject.world
    subject.data = subject.core.data.DataFolder(subject.folder / "data", world, subject.config)
    subject.data.collect(())
    times = [subject.clock.seconds(partial(subject.data.collect, [one])) for one in world.concepts.everything]
    return timing.spread("collect.concepts_per_second", [1 / seconds for seconds in times])


def trainer_of(subject: Subject, **changes: Any) -> Any:
    config = subject.config.with_values(changes)
    return subject.core.loop.Trainer(subject.world, subject.data, config, subject.folder / "run")


def training(subject: Subject) -> dict[str, Any]:
    """Steps as the preset makes them, their matrix work, and their memory beside the plan's."""
    subject.trainer = trainer = trainer_of(subject)
    timing, count = subject.core.timing, subject.options.steps or subject.size.repeats
    plan = subject.core.memory.device_plan(subject.world, subject.data, trainer.config)
    most = subject.memory_of(trainer.advance)  # which warms up too
    with FlopCounterMode(display=False) as counter:
        trainer.advance()
    work = counter.get_total_flops()
    times = timing.interleaved({"step": trainer.advance}, count, subject.clock, 0)["step"]
    found = {"train.tflop": work / 1e12, "memory.plan_bytes": plan.peak - plan.program, "memory.train_bytes": most}
    found |= timing.spread("train.step_seconds", times)
    rates = [work / seconds / subject.rate for seconds in times]
    return found | timing.spread("ratio.train_rate_over_product", rates)


def least_memory(subject: Subject) -> dict[str, Any]:
    """The same step in the smallest parts."""
    subject.trainer = None
    subject.trainer = trainer_of(subject, samples_per_pass=subject.size.least)
    return {"memory.least_bytes": subject.memory_of(subject.trainer.advance), "about.least": subject.size.least}


def predicting(subject: Subject) -> dict[str, Any]:
    """From words to maps on the network, whole and in parts."""
    from hypertransport_core.encoders.base import centred
    from hypertransport_core.encoders.concept import concept_from_text
    from hypertransport_core.steering import Steering

    network, means = subject.trainer.average, subject.trainer.bank.means
    encoder, base, timing = subject.world.encoder, subject.world.backbone.network, subject.core.timing

    def encode() -> Any:
        return concept_from_text(encoder, NAMES[0]).vector

    @torch.no_grad()
    def maps(vector: Any) -> Any:
        return network(centred(vector.float().cpu(), "text", means)[None].to(subject.device))

    def install(found: Any) -> None:
        with Steering(found).installed(base, batch=1, dtype=torch.bfloat16):
            pass

    vector = encode()
    ready = maps(vector)
    cases: dict[str, Callable[[], Any]] = {
        "predict.seconds": lambda: install(maps(encode())),
        "predict.encode_seconds": encode,
        "predict.hypernetwork_seconds": lambda: maps(vector),
        "predict.install_seconds": lambda: install(ready),
    }
    times = timing.interleaved(cases, 5 * subject.size.repeats, subject.clock)
    subject.predict = tuple(times["predict.seconds"])
    return {key: value for name, values in times.items() for key, value in timing.spread(name, values).items()}


def fitting(subject: Subject) -> dict[str, Any]:
    """LinEAS for one concept at the same sites: 32 samples, batches of 4, 1000 steps or a few, extrapolated."""
    from hypertransport_core.fitting import lineas

    subject.trainer = None
    world, whole, timing = subject.world, subject.options.whole_fit, subject.core.timing
    source, count = list(world.scenes), len(world.scenes)
    target = world.in_concept(source, NAMES[0])

    def fit(iterations: int) -> Any:
        with subject.core.data.arithmetic(subject.config, subject.device):
            return lineas(world.backbone, subject.data.sites, source, target, range(count), iterations=iterations,
                          batch=FIT_BATCH, chunk=subject.options.fit_chunk or None, learning_rate=0.02)  # fmt: skip

    fit(1)
    few, more = SHORT_FITS
    if whole:
        seconds = [subject.clock.seconds(lambda: fit(FIT_STEPS))]
    else:
        times = timing.interleaved({"few": lambda: fit(few), "more": lambda: fit(more)}, 3, subject.clock, 0)
        steps = [max(0.0, b - a) / (more - few) for a, b in zip(times["few"], times["more"])]
        seconds = [a + (FIT_STEPS - few) * step for a, step in zip(times["few"], steps)]
    once = sorted(subject.predict)[len(subject.predict) // 2]
    found = timing.spread("fit.seconds", seconds)
    found |= timing.spread("ratio.fit_over_predict", [one / once for one in seconds])
    return {**found, "fit.extrapolated": not whole}


def sampling(subject: Subject) -> dict[str, Any]:
    """As KSampler does, through the nodes' own steering, random maps on the same sites; modes take turns."""
    from pack import pack_module

    host, timing, steps = subject.host, subject.core.timing, subject.size.sampling_steps
    maps, steer = host.maps(amount=0.02, site_set="norm"), pack_module("nodes.interception").steer_model
    words = host.cond(11, tokens=77)
    models = {m: host.model if m == "unsteered" else steer(host.model, maps, 1.0, mode=m) for m in MODES}
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    for number in range(subject.size.repeats):
        for mode in MODES if number % 2 == 0 else MODES[::-1]:
            host.sample(models[mode], steps=1, cfg=1.0, positive=words)  # the host goes over to this model's patches
            run = partial(host.sample, models[mode], steps=steps, cfg=1.0, positive=words)
            times[mode].append(subject.clock.seconds(run))
    host.model.unpatch_model()
    found = timing.spread("picture.seconds", times["unsteered"])
    for mode in MODES[1:]:
        found |= timing.spread(f"ratio.{mode}_over_unsteered", timing.ratio(times[mode], times["unsteered"]))
    return found


def words(found: Mapping[str, Any]) -> str:
    """What was measured, on what."""
    small = ", very small models: the numbers mean nothing" if found["about.small"] else ""
    return (
        f"{found['about.device']}, {found['about.threads']} threads, torch {found['about.torch']}{small}. SDXL of "
        f"{found['about.parameters'] / 1e9:.3g} G parameters at {found['about.px']} px, bf16; a step is "
        f"{found['about.concepts']} concepts, {found['about.rows']} samples, {found['about.rows_per_pass']} a pass; "
        f"the product's side is {found['about.product_side']}; a concept is collected from {found['about.prompts']} "
        f"prompts; {found['about.sampling_steps']} sampling steps.\n"
    )


def table(found: Mapping[str, Any]) -> str:
    """Median, range, goal, and whether it is reached; what was not measured is a dash."""
    lines = ["| what | median | smallest to largest | goal | reached |", "| --- | --- | --- | --- | --- |"]
    for row in ROWS:
        values = [found.get(f"{row.key}.{part}") for part in ("median", "min", "max")]
        values = values if values[0] is not None else [found.get(row.key), None, None]
        median, low, high = (written(value, row.kind) for value in values)
        note = " (extrapolated)" if found.get("fit.extrapolated") and "fit" in row.key else ""
        judged = row.met is not None and values[0] is not None and not found["about.small"]
        reached = ("yes" if row.met(values[0]) else "no") if judged else ""
        span = f"{low} to {high}" if values[1] is not None else ""
        lines.append(f"| {row.words}{note} | {median} | {span} | {row.goal} | {reached} |")
    return "\n".join(lines)


def written(value: float | None, kind: str) -> str:
    if value is None:
        return "–"
    if kind == "s":
        return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
    if kind == "GB":
        return f"{value / GB:.3g} GB"
    if kind == "%":
        return f"{100 * value:.3g} %"
    number = f"{value:,.0f}" if value >= 1000 else f"{value:.3f}" if kind == "x" else f"{value:.3g}"
    return number if kind == "x" else f"{number} {kind}"


if __name__ == "__main__":
    main()
