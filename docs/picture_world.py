"""The Postcard world through the pack's own nodes, as the pictures of the help pages are made."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support")]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from pack import load_pack, pack_module, run_node  # noqa: E402

SCENE, SEED = "a red house", 7
SHOWN = ("teal mosaic", "charcoal crosshatching", "blueprint")  # concepts that show well; the first is used most


class World:
    """The Postcard model, its encoder and hypernetwork, out of the pack's own nodes."""

    def __init__(self) -> None:
        self.nodes = {
            node.GET_SCHEMA().node_id.removeprefix("HyperTransport"): node for node in load_pack().nodes.NODES
        }
        self.sheets = pack_module("hypertransport_core.sheets")
        self.model, self.clip, self.vae, self.encoder = self.run("Postcard")
        self.weights = self.one("Load", file="postcard_hypernetwork.safetensors")

    def run(self, node: str, **inputs: Any) -> tuple:
        """The outputs of a node."""
        return run_node(self.nodes[node], **inputs)

    def one(self, node: str, **inputs: Any) -> Any:
        """The first output of a node."""
        return self.run(node, **inputs)[0]

    def concept(self, text: str = "", **inputs: Any) -> Any:
        """Concept Encoder."""
        return self.one("ConceptEncoder", encoder=self.encoder, text=text, **inputs)

    def maps(self, concept: Any) -> Any:
        """Predict Maps, of words or a concept."""
        return self.one(
            "PredictMaps", weights=self.weights, concept=self.concept(concept) if isinstance(concept, str) else concept
        )

    def steer(self, concept: Any = SHOWN[0], strength: float = 1.0, **options: Any) -> Any:
        """HyperTransport Steer, by words or a concept."""
        concept = self.concept(concept) if isinstance(concept, str) else concept
        return self.one(
            "Steer",
            model=self.model,
            weights=self.weights,
            concept=concept,
            strength=strength,
            **{"start_percent": 0.0, "end_percent": 1.0, **options},
        )

    def steer_with(self, maps: Any, strength: float = 1.0, **options: Any) -> Any:
        """Steer With Maps."""
        return self.one(
            "SteerWithMaps",
            model=self.model,
            maps=maps,
            strength=strength,
            **{"start_percent": 0.0, "end_percent": 1.0, **options},
        )

    def text(self, prompt: str) -> Any:
        """CLIP Text Encode."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))

    def sample(
        self, model: Any, prompt: str = SCENE, *, seed: int = SEED, steps: int = 4, latent: Any = None, batch: int = 1
    ) -> Tensor:
        """KSampler and VAE Decode: (batch, 3, H, W)."""
        import comfy.sample

        latent = self.one("EmptyPostcardLatent", batch_size=batch) if latent is None else latent
        noise = comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))
        found = comfy.sample.sample(
            model,
            noise,
            steps,
            1.0,
            "euler",
            "simple",
            self.text(prompt),
            self.text(""),
            latent["samples"],
            seed=seed,
            disable_pbar=True,
        )
        return self.vae.decode(found).movedim(-1, 1)[:, :3].clamp(0, 1)

    def show(self, model: Any, prompt: str = SCENE, **options: Any) -> Tensor:
        """The first picture of `sample`."""
        return self.sample(model, prompt, **options)[0]

    def sheet(
        self, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Tensor | None]]], *, upscale: int = 2
    ) -> Tensor:
        """Pictures in rows with labels and headings."""
        return self.sheets.contact_sheet(
            [self.sheets.Row(list(pictures), label) for label, pictures in rows], list(columns), upscale=upscale
        )

    def reference(self, concept: str, count: int = 1) -> Tensor:
        """Drawn pictures of a concept on other scenes, (count, H, W, 3) as the host has them: a user's reference pictures."""
        scenes = ("a green tree", "a yellow boat", "a purple cat")
        found = [
            self.sample(self.model, f"{scene}, {concept}", seed=100 + number)
            for number, scene in zip(range(count), scenes)
        ]
        return torch.cat(found).movedim(1, -1)
