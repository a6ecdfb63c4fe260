"""Train the Postcard text-to-image model: `python -m hypertransport_core.postcard.train_generator --output weights/postcard.safetensors`.

Flow matching with prediction of the clean picture: x_t = (1 - t) x0 + t noise, half of every batch at t = 1, where everything is
decided. Subject pixels weigh more than background, because they are few and carry the shapes. Resumable at any moment.
"""
from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import files
from ..checkpoints import load_checkpoint, save_checkpoint
from .captions import captions
from .clip import PostcardCLIP
from .coupling import PATCH, place_of, to_latents, warmth_of
from .model import KIND
from .render import random_truth, render, subject_mask
from .trainers import carried_out, trainer_options
from .unet import PostcardUNet, UNetConfig

log = logging.getLogger(__name__)
SUBJECT_WEIGHT = 4.0


def example(count: int, generator: torch.Generator) -> tuple[list[str], Tensor, Tensor, Tensor, Tensor]:
    """One batch: captions, clean latents x0 (B, 48, 16, 16), noise, times t (B,), pixel weights (B, 48, 16, 16)."""
    truth = random_truth(count, generator)
    noise = torch.randn(count, 48, 16, 16, generator=generator)
    said = captions(truth, generator, plain=.35)
    truth = replace(truth, place=torch.where(said.names_place, truth.place, place_of(noise)), warmth=warmth_of(noise))
    x0 = to_latents(render(truth))
    weight = nn.functional.pixel_unshuffle(1 + (SUBJECT_WEIGHT - 1) * subject_mask(truth).expand(-1, 3, -1, -1), PATCH)
    t = torch.rand(count, generator=generator).mul(.95).add(.05)
    t[:count // 2] = 1.0
    return said.texts, x0, noise, t, weight / weight.mean()


def split_parameters(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices of the hidden layers (for Muon) and everything else (for AdamW)."""
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in network.named_parameters():
        inner = p.ndim >= 2 and not name.startswith(("input_blocks.0.", "out.", "time_embed."))
        (hidden if inner else rest).append(p)
    return hidden, rest


@torch.no_grad()
def orthogonalised(gradient: Tensor, rounds: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix to `gradient` (rows, columns), roughly: Newton-Schulz of Muon (Jordan et al. 2024), in bf16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = gradient.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(rounds):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x).to(gradient.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, for matrices and convolutions (as matrices (out, in * k * k)).

    torch.optim.Muon takes two-dimensional parameters only; this one flattens convolutions.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = .95, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                m = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(m, group["momentum"]).reshape(p.shape[0], -1)
                # The factor makes the update's size per entry like Adam's, so both share one learning rate.
                scale = .2 * math.sqrt(max(ahead.shape))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(orthogonalised(ahead).reshape(p.shape), alpha=-group["lr"] * scale)


class Training:
    """Network, running mean of its weights, optimisers and the random stream: all that a checkpoint holds."""

    def __init__(self, config: UNetConfig, *, rate: float, seed: int, optimiser: str = "muon", compile: bool = False) -> None:
        torch.manual_seed(seed)
        self.network = PostcardUNet(config)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # known to torch, not to its types
        self.forward = torch.compile(self.network) if compile else self.network
        self.average = [p.detach().clone() for p in self.network.parameters()]
        hidden, rest = split_parameters(self.network)
        if optimiser == "muon":
            self.optimisers = [Muon(hidden, rate), torch.optim.AdamW(rest, rate, betas=(.9, .98), weight_decay=0.)]
        else:
            self.optimisers = [torch.optim.AdamW(hidden + rest, rate, betas=(.9, .98), weight_decay=.01)]
        self.rate, self.step, self.pictures = rate, 0, 0
        self.generator = torch.Generator().manual_seed(seed)

    def state(self) -> dict[str, object]:
        """What `load` takes: all that training needs to go on as if it had not stopped."""
        return {"network": self.network.state_dict(), "average": self.average, "optimisers": [o.state_dict() for o in self.optimisers],
                "rng": self.generator.get_state(), "step": self.step, "pictures": self.pictures, "config": self.network.config.to_dict()}

    def load(self, state: dict) -> None:
        """Take over a state of the same dimensions."""
        self.network.load_state_dict(state["network"])
        self.average = [a.clone() for a in state["average"]]
        for optimiser, saved in zip(self.optimisers, state["optimisers"]):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["rng"])
        self.step, self.pictures = state["step"], state["pictures"]

    def advance(self, clip: PostcardCLIP, batch: int, factor: float) -> float:
        """One optimisation step; returns the loss."""
        texts, x0, noise, t, weight = example(batch, self.generator)
        s = t[:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                context = clip.text_tokens(clip.tokenize(texts)[0])
            out = self.forward((1 - s) * x0 + s * noise, t * 1000, context)
        loss = (weight * (out.float() - x0).square()).mean()
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = self.rate * factor
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        self.pictures += batch
        decay = min(.999, self.step / (self.step + 20))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.network.parameters()], 1 - decay)
        return loss.item()

    def averaged(self) -> dict[str, Tensor]:
        """State dict with the running means in place of the weights."""
        names = [n for n, _ in self.network.named_parameters()]
        return self.network.state_dict() | dict(zip(names, self.average))


def save_model(path: Path, weights: dict[str, Tensor], config: UNetConfig, training: dict[str, object]) -> None:
    """The shipped file: fp16 weights under the names of Stable Diffusion's UNet, `model.diffusion_model.` left out."""
    files.save_file(path, {k: v.detach().half().contiguous() for k, v in weights.items()}, KIND, {"config": config.to_dict(), "training": training}, {})


def _factor(step: int, steps: int, cooldown: float) -> float:
    """Warm-up over 200 steps, then level, then linearly to nearly zero over the last `cooldown` share."""
    return min(1., (step + 1) / 200) * min(1., max(.01, (steps - step) / max(1., steps * cooldown)))


def train(args: argparse.Namespace) -> None:
    """Train the model, writing state and weights file on the way. Raises CheckpointError, FileError."""
    clip = PostcardCLIP.load(args.clip)
    config = UNetConfig(model_channels=args.channels, num_res_blocks=args.res_blocks, transformer_depth=(0, 1))
    run = Training(config, rate=args.rate, seed=args.seed, optimiser=args.optimiser, compile=args.compile)
    if args.state.exists():
        run.load(load_checkpoint(args.state))
    log.info("%.1f M parameters, from step %d", sum(p.numel() for p in run.network.parameters()) / 1e6, run.step)
    started, first, smooth = time.monotonic(), run.step, None
    while run.step < args.steps:
        loss = run.advance(clip, args.batch, _factor(run.step, args.steps, args.cooldown))
        smooth = loss if smooth is None else .98 * smooth + .02 * loss
        if run.step % 50 == 0:
            rate = (run.step - first) / (time.monotonic() - started)
            log.info("step %d/%d loss %.4f %.1f pictures/s, %.0f min left", run.step, args.steps, smooth, rate * args.batch,
                     (args.steps - run.step) / rate / 60)
        if run.step % args.save_every == 0 or run.step == args.steps:
            save_checkpoint(args.state, run.state())
            save_model(args.output, run.averaged(), config,
                       {"steps": run.step, "pictures": run.pictures, "seed": args.seed, "optimiser": args.optimiser})


def main(argv: list[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = trainer_options(__doc__, "postcard.safetensors", "generator.safetensors", seed=0)
    parser.add_argument("--clip", type=Path, default=Path("weights/postcard_clip.safetensors"), help="whose words it reads")
    parser.add_argument("--steps", type=int, default=2900, help="optimisation steps")
    parser.add_argument("--cooldown", type=float, default=.35, help="share of the steps over which the learning rate falls")
    parser.add_argument("--batch", type=int, default=48, help="pictures in a step")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate")
    parser.add_argument("--optimiser", choices=["muon", "adamw"], default="muon")
    parser.add_argument("--channels", type=int, default=96, help="width of the first level, a multiple of 32")
    parser.add_argument("--res-blocks", type=int, default=1, help="residual blocks per level")
    parser.add_argument("--compile", action="store_true",
                        help="torch.compile: about 15 %% faster on a CPU, after a minute of compiling; needs a C++ compiler")
    parser.add_argument("--save-every", type=int, default=500, help="steps between training states")
    return carried_out(train, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
