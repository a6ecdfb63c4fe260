"""Random valid API prompts of this pack's nodes around the Postcard world, the same for the same seed.

    graphs = RandomGraphs(seed=1)
    prompt, words = graphs.next()      # words: what is in it, for a failing test's message

Every graph samples, decodes and shows; with chances below it also combines, inverts, inspects, saves or exports maps.
"""

from __future__ import annotations

import random
from typing import Any

TEXTS = (
    "teal mosaic",
    "neon",
    "charcoal crosshatching",
    "blueprint",
    "crimson stripes",
    "desert at dusk",
    "teal",
    "a mosaic of copper",
)
SCENES = (
    "a red house",
    "a small blue boat on the left",
    "a cat",
    "an orange fish",
    "a large green cactus",
    "a white car on the right",
)
SHOWN = ("teal mosaic", "azure brushstrokes", "charcoal woodcut")
KINDS = ("self_attention", "cross_attention", "mlp", "norm", "convolution", "early", "middle", "late")
Link = list[Any]


def control(seed: int = 99) -> dict[str, Any]:
    """The unsteered prompt whose picture must stay the same; its seed is in no random graph."""
    graph = Graph(random.Random(seed))
    graph.world(batch=2)
    return graph.finish(graph.model, steps=4, seed=10**6 + seed, cfg=3.0, sampler="euler", batch=2)


class RandomGraphs:
    """A stream of prompts."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def next(self) -> tuple[dict[str, Any], str]:
        """(prompt, what is in it)."""
        chance = self.chance
        graph, batch = Graph(chance), chance.choice((1, 1, 2, 3, 4))
        graph.world(batch)
        if chance.random() < 0.15:
            return graph.sheet(), " ".join(graph.words)
        model = graph.model
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            model = graph.steered(model, batch)
        if chance.random() < 0.1:
            graph.export()
        seed, steps, cfg = chance.randrange(10**6), chance.choice((1, 2, 4)), chance.choice((1.0, 1.0, 3.0))
        sampler = chance.choice(("euler", "euler", "heun", "dpmpp_2m", "euler_ancestral"))
        prompt = graph.finish(model, steps=steps, seed=seed, cfg=cfg, sampler=sampler, batch=batch)
        return prompt, " ".join(graph.words)


class Graph:
    """One prompt as it grows. Methods that add nodes return the link to what they make."""

    def __init__(self, chance: random.Random) -> None:
        self.chance, self.nodes, self.words = chance, {}, []
        self.live_before = False  # folding comes before live steering, so it is refused after one

    def add(self, kind: str, output: int = 0, **inputs: Any) -> Link:
        """A node; a link to one of its outputs."""
        key = f"{len(self.nodes) + 1}"
        self.nodes[key] = {
            "class_type": kind,
            "inputs": {name: value for name, value in inputs.items() if value is not None},
        }
        return [key, output]

    def world(self, batch: int) -> None:
        """What every graph has."""
        self.model = self.add("HyperTransportPostcard")
        key = self.model[0]
        self.clip, self.vae, self.encoder = [key, 1], [key, 2], [key, 3]
        self.weights = self.add("HyperTransportLoad", file="postcard_hypernetwork.safetensors")
        self.latent = self.add("HyperTransportEmptyPostcardLatent", batch_size=batch, width=64, height=64)

    def concept(self, rows: int = 1) -> Link:
        """A concept of one row or of `rows`, from words, pictures or both, now and then mixed of two."""
        chance = self.chance
        if rows > 1:
            return self.add(
                "HyperTransportConceptEncoder",
                encoder=self.encoder,
                text="\n".join(chance.choices(TEXTS, k=rows)),
                mode="one per row",
            )
        if chance.random() < 0.2:
            self.words.append("mix")
            return self.add(
                "HyperTransportMixConcepts",
                concept_1=self.concept(),
                weight_1=1.0,
                concept_2=self.concept(),
                weight_2=chance.choice((-0.4, 0.0, 0.3, 0.7)),
            )
        how = chance.choice(("words", "words", "words", "picture", "both"))
        self.words.append(how)
        text = "" if how == "picture" else "\n".join(chance.sample(TEXTS, chance.choice((1, 1, 2))))
        count = chance.choice((1, 3))
        images = (
            None
            if how == "words"
            else self.add(
                "HyperTransportPostcardReference",
                concept=chance.choice(SHOWN),
                seed=chance.randrange(100),
                pictures=count,
            )
        )
        weights = (
            ", ".join(f"{chance.uniform(0.2, 1):.2f}" for _ in range(count)) if images and chance.random() < 0.3 else ""
        )
        return self.add(
            "HyperTransportConceptEncoder",
            encoder=self.encoder,
            text=text,
            mode="average",
            images=images,
            image_weights=weights,
        )

    def maps(self, rows: int = 1) -> Link:
        """Maps, perhaps combined or inverted."""
        chance = self.chance
        maps = self.add("HyperTransportPredictMaps", weights=self.weights, concept=self.concept(rows))
        if chance.random() < 0.3:
            how = chance.choice(("sum", "sequence", "average"))
            self.words.append(how)
            second = self.add("HyperTransportPredictMaps", weights=self.weights, concept=self.concept())
            maps = self.add(
                "HyperTransportCombineMaps",
                first=maps,
                second=second,
                how=how,
                first_weight=1.0,
                second_weight=chance.choice((0.3, 0.8, 1.0)),
            )
        elif chance.random() < 0.2:  # a sum of maps may squash a channel to nothing, which has no inverse
            self.words.append("inverted")
            maps = self.add("HyperTransportInvertMaps", maps=maps)
        if chance.random() < 0.15:
            self.words.append("inspected")
            plot = self.add("HyperTransportInspectMaps", maps=maps)
            self.add("PreviewAny", source=[plot[0], 1])
        if rows == 1 and chance.random() < 0.1:
            self.words.append("saved")
            self.add("HyperTransportSaveMaps", maps=maps, filename_prefix="soak/maps", place="output")
        return maps

    def how(self, rows: int) -> dict[str, Any]:
        """Inputs of a steering node: strength, range, curve, layers, factors, mask, scope and a mode that goes with them."""
        chance = self.chance
        start = chance.choice((0.0, 0.0, 0.0, 0.2, 0.5))
        options: dict[str, Any] = {
            "strength": round(chance.choice((0.0, 1.0, chance.uniform(-2, 2), chance.uniform(0, 1))), 2),
            "start_percent": start,
            "end_percent": chance.choice((1.0, 1.0, 1.0, 0.75, start)),
            **{kind: round(chance.uniform(0, 2), 2) for kind in KINDS if chance.random() < 0.15},
        }
        if chance.random() < 0.2:
            options["curve"] = chance.choice(("0.5", "1, 0", "0, 1, 0.5"))
        if chance.random() < 0.2:
            options["layers"] = chance.choice(("all", "late", "middle", "early and middle"))
        if rows > 1 and chance.random() < 0.3:
            options["per_picture"] = ", ".join(f"{chance.uniform(-1, 1):.1f}" for _ in range(rows))
        if chance.random() < 0.25:
            options["mask"] = self.mask()
        if chance.random() < 0.4:
            options["scope"] = chance.choice(("both", "positive", "negative"))
        whole = (
            (options["start_percent"], options["end_percent"]) == (0.0, 1.0)
            and options.get("scope", "both") == "both"
            and not {"mask", "curve"} & set(options)
        )
        foldable = whole and rows == 1 and not self.live_before  # all sites of the shipped maps are, too
        options["mode"] = chance.choice(("live", "auto", "folded") if foldable else ("live", "auto"))
        self.live_before = self.live_before or options["mode"] != "folded"
        self.words.append(" ".join(f"{name}={value}" for name, value in options.items()))
        return options

    def mask(self) -> Link:
        """A mask of one of a few kinds, all zero and all one among them."""
        chance = self.chance
        value = chance.choice((0.0, 0.5, 1.0))
        whole = self.add("SolidMask", value=value, width=64, height=64)
        if chance.random() < 0.3:
            return whole
        part = self.add("SolidMask", value=1.0, width=32, height=48)
        return self.add(
            "MaskComposite",
            destination=whole,
            source=part,
            x=chance.choice((0, 16, 32)),
            y=chance.choice((0, 8)),
            operation=chance.choice(("add", "subtract")),
        )

    def steered(self, model: Link, batch: int) -> Link:
        """One more steering node behind `model`."""
        rows = batch if batch > 1 and self.chance.random() < 0.3 else 1
        if self.chance.random() < 0.6:
            return self.add(
                "HyperTransportSteer", model=model, weights=self.weights, concept=self.concept(rows), **self.how(rows)
            )
        return self.add("HyperTransportSteerWithMaps", model=model, maps=self.maps(rows), **self.how(rows))

    def sheet(self) -> dict[str, Any]:
        """A strength sheet in place of a steering node."""
        rows = self.chance.choice((1, 2))
        self.words.append(f"sheet of {rows}")
        plan = self.add(
            "HyperTransportStrengthSheet",
            model=self.model,
            maps=self.maps(rows),
            latent=self.latent,
            strengths=self.chance.choice(("0, 1", "0, 0.5, 1", "-1 0 1 2")),
            rows=self.chance.choice(("concepts", "concepts", "kinds of layers", "thirds of the depth")),
        )
        self.latent = [plan[0], 1]
        prompt = self.finish(
            plan,
            steps=self.chance.choice((1, 2)),
            seed=self.chance.randrange(10**6),
            cfg=1.0,
            sampler="euler",
            batch=0,
            show=False,
        )
        drawn = self.add(
            "HyperTransportDrawSheet", images=self.decoded, sheet=[plan[0], 2], picture_size=64, title="soak"
        )
        self.add("PreviewImage", images=drawn)
        return prompt

    def export(self) -> None:
        """Some maps as a LoRA."""
        self.words.append("exported")
        self.add(
            "HyperTransportExportLora",
            model=self.model,
            maps=self.maps(),
            strength=1.0,
            filename_prefix="soak/lora",
            form="small",
        )

    def finish(
        self, model: Link, *, steps: int, seed: int, cfg: float, sampler: str, batch: int, show: bool = True
    ) -> dict[str, Any]:
        """Sample, decode and show; the finished prompt."""
        self.words.append(f"batch={batch} steps={steps} cfg={cfg} {sampler} seed={seed}")
        positive = self.add("CLIPTextEncode", clip=self.clip, text=self.chance.choice(SCENES))
        negative = self.add("CLIPTextEncode", clip=self.clip, text="")
        sampled = self.add(
            "KSampler",
            model=model,
            positive=positive,
            negative=negative,
            latent_image=self.latent,
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler_name=sampler,
            scheduler="simple",
            denoise=1.0,
        )
        self.decoded = self.add("VAEDecode", samples=sampled, vae=self.vae)
        if show:
            self.add("PreviewImage", images=self.decoded)
        return self.nodes
