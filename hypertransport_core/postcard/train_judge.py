"""Train the judge of the Postcard world: `python -m hypertransport_core.postcard.train_judge --output weights/postcard_judge.safetensors`.

Renders only, from its own random stream; small shifts of light and a little noise and blur make it judge what is drawn and not
exact pixel values, because it is going to look at pictures a network made.
"""
from __future__ import annotations

import argparse
import logging
import sys
import time

import torch
from torch import Tensor, nn

from ..checkpoints import load_checkpoint, save_checkpoint
from .concepts import concepts
from .judge import ARCHITECTURES, Judge
from .render import Truth, random_truth, render
from .trainers import carried_out, trainer_options

log = logging.getLogger(__name__)


def blemished(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the pictures with a little noise, half with a slight blur, all with a slight change of light."""
    b = len(images)
    light = 1 + .06 * torch.randn(b, 1, 1, 1, generator=generator)
    tint = .02 * torch.randn(b, 3, 1, 1, generator=generator)
    noise = .06 * torch.rand(b, 1, 1, 1, generator=generator) * torch.randn(images.shape, generator=generator)
    soft = nn.functional.avg_pool2d(nn.functional.pad(images, (1,) * 4, mode="replicate"), 3, 1)
    share = (.7 * torch.rand(b, 1, 1, 1, generator=generator)) * (torch.rand(b, 1, 1, 1, generator=generator) < .5)
    return ((images * (1 - share) + soft * share) * light + tint + noise).clamp(0, 1)


def targets(truth: Truth) -> tuple[Tensor, Tensor, Tensor]:
    """Classes of concept (the last is *no concept*), subject and colour, int64 (B,) each."""
    return torch.where(truth.concept < 0, len(concepts()), truth.concept), truth.subject, truth.colour


@torch.no_grad()
def accuracy(judge: Judge, count: int = 2000, seed: int = 77_001) -> dict[str, float]:
    """Shares of fresh renders whose concept, subject and colour are named right."""
    truth = random_truth(count, torch.Generator().manual_seed(seed), generic=.02)
    hits: list[list[Tensor]] = [[], [], []]
    for i in range(0, count, 100):
        part = truth[i:i + 100]
        verdict = judge.eval().verdict(render(part))
        for store, probability, target in zip(hits, (verdict.concept, verdict.subject, verdict.colour), targets(part)):
            store.append((probability.argmax(1) == target).float())
    return {name: torch.cat(h).mean().item() for name, h in zip(("concept", "subject", "colour"), hits)}


def train(args: argparse.Namespace) -> None:
    """Train the judge, report how often it is right on fresh renders, write its file. Raises CheckpointError, FileError."""
    torch.manual_seed(args.seed)
    judge = Judge(architecture=args.architecture)
    judge.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # known to torch, not to its types
    optimiser = torch.optim.AdamW(judge.parameters(), args.rate, weight_decay=.02)
    g, first = torch.Generator().manual_seed(args.seed), 0
    if args.state.exists():
        state = load_checkpoint(args.state)
        judge.load_state_dict(state["judge"]), optimiser.load_state_dict(state["optimiser"]), g.set_state(state["rng"])
        first = state["step"]
    started = time.monotonic()
    for step in range(first, args.steps):
        judge.train()
        for group in optimiser.param_groups:
            group["lr"] = args.rate * min(1., (step + 1) / 100, max(.005, (args.steps - step) / (args.steps * .5)))
        truth = random_truth(args.batch, g, generic=.03)
        with torch.autocast("cpu", torch.bfloat16):
            logits = judge(blemished(render(truth), g).contiguous(memory_format=torch.channels_last))
        concept, subject, colour = (nn.functional.cross_entropy(part.float(), target, label_smoothing=.02)
                                    for part, target in zip(logits, targets(truth)))
        loss = concept + subject + colour
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if step % 100 == 0:
            log.info("step %d/%d loss %.3f %.0f/s", step, args.steps, loss.item(),
                     (step - first + 1) * args.batch / (time.monotonic() - started))
        if (step + 1) % args.save_every == 0 or step == args.steps - 1:
            save_checkpoint(args.state, {"judge": judge.state_dict(), "optimiser": optimiser.state_dict(), "rng": g.get_state(),
                                         "step": step + 1})
    rates = accuracy(judge)
    log.info("right on fresh renders: %s", rates)
    judge.save(args.output, {"training": {"steps": args.steps, "batch": args.batch, "seed": args.seed}, "accuracy": rates})


def main(argv: list[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = trainer_options(__doc__, "postcard_judge.safetensors", "judge.safetensors", seed=4242)
    parser.add_argument("--architecture", choices=tuple(ARCHITECTURES), default="blocks",
                        help="patches: of a second judge, together with another seed, --output and --state")
    parser.add_argument("--steps", type=int, default=1600, help="optimisation steps")
    parser.add_argument("--batch", type=int, default=64, help="renders in a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate")
    parser.add_argument("--save-every", type=int, default=500, help="steps between training states")
    return carried_out(train, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
