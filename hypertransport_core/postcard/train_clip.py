"""Train the Postcard CLIP: `python -m hypertransport_core.postcard.train_clip --output weights/postcard_clip.safetensors`.

Three stages. First the words, contrastively: captions against a learned table of the truth (what a postcard shows), a few
minutes that need no pixels. Then the pictures, contrastively: renders against captions in the now fixed space of the words, so
that the text-to-image model, which reads the words, may be trained before the pictures are learned. Last the two are aligned:
the words' last projection, which the text-to-image model does not read, is solved for by least squares so that a concept's words
land on its pictures. Codes of words alone are arbitrary; what looks alike is near in the pictures' space, and that is what lets
a hypernetwork generalise to concepts it never saw.

A second CLIP, of another seed, size and stream of postcards, only measures: `--seed 1 --size small --output
weights/postcard_clip_2.safetensors --state runs/postcard/clip_2.safetensors`.
"""
from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from .captions import TEMPLATES, captions, vocabulary
from .clip import LAYERS, PostcardCLIP
from .concepts import concepts, split
from .render import COLOURS, PLACES, SIZE_NAMES, Truth, random_truth, render
from .subjects import SUBJECTS
from .trainers import carried_out, trainer_options

log = logging.getLogger(__name__)
ALIGN_SEED = 5
SIZES = {"full": LAYERS, "small": {"text": 2, "vision": 4}}  # layers; small: of a CLIP that only measures
_FIELDS = {"subject": len(SUBJECTS), "colour": len(COLOURS), "size": len(SIZE_NAMES), "place": len(PLACES), "concept": len(concepts()) + 1}


class TruthTable(nn.Module):
    """What a postcard shows, as a unit vector: the sum of one learned vector per named fact, through a small network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vectors = nn.ModuleDict({name: nn.Embedding(count + 1, 256) for name, count in _FIELDS.items()})
        self.head = nn.Sequential(nn.LayerNorm(256), nn.Linear(256, 512), nn.GELU(), nn.Linear(512, width))
        self.readers = nn.ModuleDict({name: nn.Linear(width, count) for name, count in _FIELDS.items()})

    def forward(self, facts: dict[str, Tensor]) -> Tensor:
        """Facts by name, class indices (B,) each -> unit vectors (B, width)."""
        return nn.functional.normalize(self.head(sum(self.vectors[k](v) for k, v in facts.items())), dim=-1)

    def reading_loss(self, vectors: Tensor, facts: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of naming every known fact from the vector alone: keeps all facts in it, not only the telling ones."""
        losses = []
        for name, count in _FIELDS.items():
            known = facts[name] < count
            if known.any():
                losses.append(nn.functional.cross_entropy(self.readers[name](vectors[known] * 8), facts[name][known]))
        return torch.stack(losses).mean()


def named_facts(truth: Truth, scene: Tensor, place: Tensor) -> dict[str, Tensor]:
    """The facts a caption states, as class indices; a fact it leaves open has the index after the last."""
    concept = torch.where(truth.concept < 0, _FIELDS["concept"] - 1, truth.concept)
    facts = {"subject": (truth.subject, scene), "colour": (truth.colour, scene), "size": (truth.size, scene), "place": (truth.place, place),
             "concept": (concept, torch.ones_like(scene))}
    return {name: torch.where(known, value, _FIELDS[name]) for name, (value, known) in facts.items()}


def contrast(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss: unit vectors (B, E) twice, of which row i belongs to row i; `scale` multiplies the cosines."""
    logits = a @ b.T * scale
    target = torch.arange(len(a))
    return (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2


def _schedule(step: int, steps: int, warm: int = 100) -> float:
    return min(1.0, (step + 1) / warm) * min(1.0, (steps - step) / (steps * .4))


def train(clip: PostcardCLIP, table: TruthTable, *, stage: str, steps: int, batch: int, rate: float, seed: int, state_file: Path,
          save_every: int = 500, size: str = "full") -> None:
    """Train the ``text`` or the ``vision`` stage in place; continues from `state_file` when that holds this stage."""
    vision = stage == "vision"
    params = [p for n, p in clip.named_parameters() if ("vision" in n or "visual" in n) == vision and "logit_scale" not in n] + list(table.parameters())
    scale = clip.model.logit_scale
    groups: list[dict[str, Any]] = [{"params": params}, {"params": [scale], "weight_decay": 0.}]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(.9, .98), weight_decay=.02)
    g, first = torch.Generator().manual_seed(2 * seed + vision), 0  # no stage of one seed is like a stage of another
    if state_file.exists() and (state := load_checkpoint(state_file))["stage"] == stage:
        clip.load_state_dict(state["clip"]), table.load_state_dict(state["table"]), optimiser.load_state_dict(state["optimiser"])
        g.set_state(state["rng"])
        first = state["step"]
    clip.train()
    started, seen = time.monotonic(), 0
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * _schedule(step, steps)
        truth = random_truth(batch, g)
        said = captions(truth, g, concept_only=.3)
        facts = named_facts(truth, said.names_scene, said.names_place)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(not vision):
                text = clip.encode_text(said.texts)
            if vision:
                other = clip.encode_images(render(truth))
                readable = named_facts(truth, torch.ones(batch, dtype=torch.bool), torch.ones(batch, dtype=torch.bool))
                reading = table.reading_loss(other, readable)
            else:
                other = table(facts)
                reading = table.reading_loss(text, facts)
        loss = contrast(text.float(), other.float(), scale.exp().clamp(max=60)) + .5 * reading
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        seen += batch
        if step % 100 == 0 or step == steps - 1:
            log.info("%s step %d/%d loss %.3f (reading %.3f) %.0f/s", stage, step, steps, loss.item(), reading.item(), seen / (time.monotonic() - started))
        if (step + 1) % save_every == 0 or step == steps - 1:
            save_checkpoint(state_file, {"seed": seed, "size": size, "stage": stage, "step": step + 1, "clip": clip.state_dict(), "table": table.state_dict(),
                                         "optimiser": optimiser.state_dict(), "rng": g.get_state()})


def stages_left(wanted: list[str], reached: str | None) -> list[str]:
    """The wanted stages, without the words when the state already is in the pictures' stage, for which they must stay fixed."""
    return [stage for stage in wanted if not (stage == "text" and reached == "vision")]


@torch.no_grad()
def align(clip: PostcardCLIP, *, per_concept: int = 8, seed: int = ALIGN_SEED, ridge: float = 1e-3) -> float:
    """Solve the text projection so that words land on their pictures; returns the mean cosine of bare concepts to theirs.

    Weighted ridge regression from pooled text states (192) to picture embeddings (128): every concept's names in every template
    to the mean of its renders (weight 4), and full captions to their own render (weight 1). Token states stay as they are.
    """
    clip.eval()
    everything = concepts()
    g = torch.Generator().manual_seed(seed)
    truth = random_truth(len(everything) * per_concept, g, generic=0.)
    truth.concept = torch.arange(len(everything)).repeat_interleave(per_concept)
    pictures = torch.cat([clip.encode_images(render(truth[i:i + 128])) for i in range(0, len(truth), 128)])
    means = nn.functional.normalize(pictures.unflatten(0, (-1, per_concept)).mean(1), dim=-1)
    names = [(k, template.format(words)) for k, c in enumerate(everything) for words in (c.name, c.name, *c.phrases) for template in TEMPLATES]
    texts = [text for _, text in names] + captions(truth, g).texts
    goal = torch.cat([means[[k for k, _ in names]], pictures])
    weight = torch.cat([torch.full((len(names), 1), 4.), torch.ones(len(pictures), 1)])
    ids = clip.tokenize(texts)[0]
    states = torch.cat([clip.model.text_model(input_ids=part, attention_mask=(part != 0).long()).pooler_output.float() for part in ids.split(256)])
    gram = (states * weight).T @ states
    solution = torch.linalg.solve(gram + ridge * gram.diagonal().mean() * torch.eye(len(gram)), (states * weight).T @ goal)
    clip.model.text_projection.weight.copy_(solution.T)
    return nn.functional.cosine_similarity(states[:len(names)] @ solution, goal[:len(names)]).mean().item()


def concept_renders(names: Sequence[str], per_concept: int = 8, seed: int = 99) -> Truth:
    """Truths of fresh renders, so many of each of these concepts."""
    index = torch.tensor([i for i, c in enumerate(concepts()) if c.name in names]).repeat_interleave(per_concept)
    truth = random_truth(len(index), torch.Generator().manual_seed(seed), generic=0.)
    truth.concept = index
    return truth


@torch.no_grad()
def retrieval(clip: PostcardCLIP, names: tuple[str, ...], per_concept: int = 8, seed: int = 99) -> float:
    """Share of pictures whose nearest bare-concept text, among the concepts of the same category, is the right one."""
    clip.eval()
    everything = concepts()
    text = clip.encode_text([c.name for c in everything])
    truth = concept_renders(names, per_concept, seed)
    pictures = torch.cat([clip.encode_images(render(truth[i:i + 128])) for i in range(0, len(truth), 128)])
    scores = pictures @ text.T
    kinds = [c.category for c in everything]
    same = torch.tensor([[kinds[j] == kinds[i] for j in range(len(kinds))] for i in truth.concept.tolist()])
    return (scores.masked_fill(~same, -9).argmax(1) == truth.concept).float().mean().item()


def train_stages(args: argparse.Namespace) -> None:
    """The wanted stages one after another, then the weights file and how well it retrieves. Raises CheckpointError, FileError."""
    torch.manual_seed(args.seed)
    clip = PostcardCLIP(vocabulary(), SIZES[args.size])
    clip.model.set_attn_implementation("eager")  # the fused kernel's backward is several times slower on a CPU
    table = TruthTable(clip.width)
    reached = None
    if args.state.exists():
        state = load_checkpoint(args.state)
        made = (state.get("seed", args.seed), state.get("size", "full"))
        if made != (args.seed, args.size):
            raise CheckpointError(f"{args.state} holds a training with the seed {made[0]} in the size {made[1]}, expected the "
                                  f"seed {args.seed} and the size {args.size}: name another --state")
        clip.load_state_dict(state["clip"]), table.load_state_dict(state["table"])
        reached = state["stage"]
    for stage in stages_left(args.stages, reached):
        if stage == "align":
            cosine = align(clip, seed=ALIGN_SEED + 1000 * args.seed)
            log.info("words aligned with pictures, mean cosine of bare concepts %.3f", cosine)
            continue
        train(clip, table, stage=stage, steps=getattr(args, f"{stage}_steps"), batch=args.batch * (2 if stage == "text" else 1),
              rate=1e-3 if stage == "text" else 8e-4, seed=args.seed, state_file=args.state, save_every=args.save_every, size=args.size)
    clip.save(args.output, dtype=torch.float16, header={"training": training_of(args)})
    for part, names in split().items():
        log.info("picture to concept words within category, %s: %.3f", part, retrieval(clip, names))


def training_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the weights file says about its training."""
    return {name: getattr(args, name) for name in ("seed", "size", "stages", "text_steps", "vision_steps", "batch")}


def main(argv: list[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = trainer_options(__doc__, "postcard_clip.safetensors", "clip.safetensors", seed=0)
    parser.add_argument("--size", choices=tuple(SIZES), default="full",
                        help="small: of a second CLIP that only measures, together with another seed, --output and --state")
    parser.add_argument("--stages", nargs="+", default=["text", "vision", "align"], choices=["text", "vision", "align"])
    parser.add_argument("--text-steps", type=int, default=450, help="of words against the truth, without pixels")
    parser.add_argument("--vision-steps", type=int, default=600, help="of pictures against words")
    parser.add_argument("--batch", type=int, default=128, help="postcards in a step; twice as many captions in the first stage")
    parser.add_argument("--save-every", type=int, default=500, help="steps between training states")
    return carried_out(train_stages, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
