"""The workflows that run as shipped, with the Postcard world and nothing else. make_workflows.py writes them."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graph_writer import BLUE, GREEN, GREY, ORANGE, PURPLE, Graph, Node, Out

PROMPT, SEED, SIDE = "a red house on the left", 7, 512
HYPERNETWORK = "postcard_hypernetwork.safetensors"
FOLDER = "HyperTransport/"  # in the host's output folder
FIT = {"site_set": "attention_mlp", "iterations": 40, "sampling_steps": 1}


class Scene:
    """The nodes that most workflows share: the model, a prompt, a latent; and how a picture comes of them."""

    def __init__(self, info: Mapping[str, Any], note: str, *, prompt: str = PROMPT, batch: int = 1, weights: bool = True, height: int = 240) -> None:
        self.graph = graph = Graph(info)
        self.note = graph.note(note, height=height)
        self.world = graph.node("HyperTransportPostcard")
        self.weights = graph.node("HyperTransportLoad", file=HYPERNETWORK) if weights else None
        self.latent = graph.node("HyperTransportEmptyPostcardLatent", batch_size=batch)
        clip = self.world.out("clip")
        self.prompt = graph.node("CLIPTextEncode", title="Prompt", clip=clip, text=prompt, width=320, height=110)
        self.negative = graph.node("CLIPTextEncode", title="Negative prompt (not used at cfg 1)", clip=clip, text="", width=320, height=90)

    def model_group(self) -> None:
        """The note, and below it the group of what everything starts from."""
        self.graph.corner(self.note, "Model", BLUE, [node for node in (self.world, self.weights, self.latent) if node is not None])

    def concept(self, text: str = "", height: int = 222, **more: Any) -> Node:
        """A Concept Encoder, with room for the line that it shows after a run."""
        return self.graph.node("HyperTransportConceptEncoder", encoder=self.world.out("encoder"), text=text, width=320, height=height, **more)

    def steer(self, model: Out, concept: Node, **more: Any) -> Node:
        """A HyperTransport Steer."""
        return self.graph.node("HyperTransportSteer", model=model, weights=self.weights.out(), concept=concept.out(), width=320, **more)

    def sample(self, model: Out, *, latent: Out | None = None, prompt: Node | None = None, scaled: bool = True, muted: bool = False) -> list[Node]:
        """KSampler, VAE Decode and, if `scaled`, Upscale."""
        sampler = self.graph.node(
            "KSampler", model=model, positive=(prompt or self.prompt).out(), negative=self.negative.out(), latent_image=latent or self.latent.out(),
            seed=SEED, steps=4, cfg=1.0, sampler_name="euler", scheduler="simple", width=300, muted=muted,
        )
        decode = self.graph.node("VAEDecode", samples=sampler.out(), vae=self.world.out("vae"), width=300, muted=muted)
        return [sampler, decode, self.scale(decode.out(), muted)] if scaled else [sampler, decode]

    def scale(self, image: Out, muted: bool = False) -> Node:
        """A picture eight times as large, its pixels crisp."""
        return self.graph.node(
            "ImageScale", title="Enlarge for viewing", image=image, upscale_method="nearest-exact", width_=SIDE, height_=SIDE, crop="disabled",
            width=300, muted=muted,
        )

    def row(self, title: str, colour: str, before: Sequence[list[Node]], model: Out, name: str, caption: str, at: tuple[int, int], muted: bool = False) -> int:
        """A group that samples `model` in one row, after the columns `before`; returns the y of the next row."""
        sampler, decode, scale = self.sample(model, muted=muted)
        picture = self.save(scale.out(), name, caption, 340, muted)
        _, low = self.graph.group(title, colour, *before, [sampler], [decode, scale], [picture], at=at)
        return low + 30

    def save(self, image: Out, name: str, title: str = "", side: int = 440, muted: bool = False) -> Node:
        """Save Image, large enough to see the picture."""
        return self.graph.node("SaveImage", title=title, images=image, filename_prefix=FOLDER + name, width=side, height=side + 70, muted=muted)

    def show(self, image: Out, title: str, side: int = 300, muted: bool = False) -> Node:
        """Preview Image, large enough to see the picture."""
        return self.graph.node("PreviewImage", title=title, images=image, width=side, height=side + 50, muted=muted)


def words(info: Mapping[str, Any]) -> Graph:
    scene = Scene(info, """\
## Steer a picture by a concept in words
Nothing to download: the small model comes with the pack.

1. Press **Run**.
2. Move **strength** in *HyperTransport Steer*, press Run again. 0 is exactly the picture without steering, 1 the full concept; in between a part of it.
3. Write another concept into *Concept Encoder*, such as `golden sunburst` or `emerald halftone`, or another prompt.

Look at: the subject and its place stay, the look changes. Moving the slider encodes and predicts nothing again.""")
    concept = scene.concept("teal mosaic")
    scene.model_group()
    scene.graph.group("What to draw, and how", GREEN, [scene.prompt, scene.negative, concept])
    steer = scene.steer(scene.world.out("model"), concept)
    scene.graph.group("Steer", PURPLE, [steer])
    sampled = scene.sample(steer.out())
    scene.graph.group("Sample", ORANGE, sampled)
    scene.graph.group("Picture", GREY, [scene.save(sampled[-1].out(), "01_words", side=512)])
    return scene.graph


def reference_picture(info: Mapping[str, Any]) -> Graph:
    scene = Scene(info, """\
## Steer by a picture instead of words

1. Press **Run**: the look of the reference picture goes onto the house. No word names it.
2. Choose another look in *Postcard Reference*, or connect **Load Image** with a picture of your own instead.
3. Several pictures as a batch are averaged: raise *pictures*, and the look is told better from what stands on it.

Look at: what stands on the reference does not come along, its look does.""")
    reference = scene.graph.node("HyperTransportPostcardReference", concept="golden sunburst", seed=7, pictures=1, width=320)
    concept = scene.concept("", images=reference.out())
    scene.model_group()
    larger = scene.scale(reference.out())
    larger.width = 320
    scene.graph.group("Reference picture", GREEN, [reference, larger, scene.show(larger.out(), "The reference", 320)])
    scene.graph.group("Prompt and concept", GREEN, [scene.prompt, scene.negative, concept])
    steer = scene.steer(scene.world.out("model"), concept)
    scene.graph.group("Steer", PURPLE, [steer])
    sampled = scene.sample(steer.out())
    scene.graph.group("Sample", ORANGE, sampled)
    scene.graph.group("Picture", GREY, [scene.save(sampled[-1].out(), "02_reference_picture", "With its look", side=512)])
    return scene.graph


def strength_sheet(info: Mapping[str, Any]) -> Graph:
    scene = Scene(info, """\
## Several strengths and concepts on one labelled sheet
Sampled in a single pass with the same noise.

1. Press **Run**.
2. Write other **strengths** into *Strength Sheet*, such as `0, 0.5, 1, 1.5`, or other concepts, one per line, into *Concept Encoder*.
3. Set **rows** to `kinds of layers`: which layers carry a concept?

Look at: the column 0 is the same in every row, bit for bit: no steering. To the right the concept grows; the house stays.""")
    graph = scene.graph
    concept = scene.concept("teal mosaic\ngolden sunburst\nemerald halftone", mode="one per row", height=250)
    maps = graph.node("HyperTransportPredictMaps", weights=scene.weights.out(), concept=concept.out(), width=320)
    sheet = graph.node(
        "HyperTransportStrengthSheet", model=scene.world.out("model"), maps=maps.out(), latent=scene.latent.out(), strengths="0, 0.25, 0.5, 0.75, 1",
        width=320,
    )
    scene.model_group()
    graph.group("What to draw, and how", GREEN, [scene.prompt, scene.negative, concept])
    graph.group("Strengths and concepts", PURPLE, [maps, sheet])
    sampled = scene.sample(sheet.out("model"), latent=sheet.out("latent"), scaled=False)
    draw = graph.node("HyperTransportDrawSheet", images=sampled[-1].out(), sheet=sheet.out("sheet"), picture_size=192, title_=PROMPT, width=300)
    graph.group("Sample", ORANGE, [*sampled, draw])
    graph.group("Sheet", GREY, [graph.node("SaveImage", images=draw.out(), filename_prefix=FOLDER + "03_strength_sheet", width=720, height=600)])
    return graph


def two_concepts(info: Mapping[str, Any]) -> Graph:
    scene = Scene(info, """\
## Two concepts in one picture, in two ways

Above: *Mix Concepts* asks the hypernetwork for a concept **between** the two. Below: *Combine Maps* lets **both** act, each with its weight.

1. Press **Run** and compare.
2. Change the weights: 0 leaves a concept out, below 0 leads away from it. Only the direction of a mix counts; in *Combine Maps* 0.5 is half of the effect.

Look at: the mix is calmer, the sum stronger; with opposite concepts they differ most.""")
    graph, model = scene.graph, scene.world.out("model")
    first, second = scene.concept("teal mosaic"), scene.concept("golden sunburst")
    scene.model_group()
    graph.group("Prompt and two concepts", GREEN, [first, second], [scene.prompt, scene.negative])
    left = graph.right
    mix = graph.node("HyperTransportMixConcepts", concept_1=first.out(), weight_1=1.0, concept_2=second.out(), weight_2=1.0, width=300, height=244)
    steer = scene.steer(model, mix)
    low = scene.row("A concept between the two", PURPLE, [[mix], [steer]], steer.out(), "04_mixed", "Between the two", (left, 0))
    maps = [graph.node("HyperTransportPredictMaps", weights=scene.weights.out(), concept=one.out(), width=300) for one in (first, second)]
    combine = graph.node(
        "HyperTransportCombineMaps", first=maps[0].out(), second=maps[1].out(), how="sum", first_weight=0.7, second_weight=0.7, width=300
    )
    both = graph.node("HyperTransportSteerWithMaps", model=model, maps=combine.out(), width=320)
    scene.row("Both at once", PURPLE, [[*maps, combine], [both]], both.out(), "04_combined", "Both at once", (left, low))
    return graph


def removal(info: Mapping[str, Any]) -> Graph:
    scene = Scene(info, """\
## Take a concept away
The prompt asks for crimson gingham; *HyperTransport Steer* with a **negative strength** takes it out.

1. Press **Run** and compare: above with the concept, below without it.
2. Move the **strength**: 0 is the picture above, -1 takes the concept away, in between a part of it goes.
3. Write another concept, into the prompt and into *Concept Encoder*.

Look at: the checks go, the house stays. The shipped weights have learned this (`removal_share`).

The muted row is to compare: *Invert Maps*, the exact inverse, which often spoils more. Select it (Ctrl + drag), press **Ctrl + M**.""",
                  prompt=PROMPT + ", crimson gingham", height=300)
    graph, model = scene.graph, scene.world.out("model")
    concept = scene.concept("crimson gingham")
    scene.model_group()
    graph.group("Prompt and concept", GREEN, [scene.prompt, scene.negative, concept])
    left = graph.right
    low = scene.row("As the prompt says", ORANGE, [], model, "05_before", "As the prompt says", (left, 0))
    steer = scene.steer(model, concept, strength=-1.0)
    low = scene.row("The concept taken away", PURPLE, [[steer]], steer.out(), "05_removed", "Without the concept", (left, low))
    maps = graph.node("HyperTransportPredictMaps", weights=scene.weights.out(), concept=concept.out(), width=320, muted=True)
    inverse = graph.node("HyperTransportInvertMaps", maps=maps.out(), width=320, muted=True)
    undo = graph.node("HyperTransportSteerWithMaps", model=model, maps=inverse.out(), strength=1.0, width=320, muted=True)
    scene.row("The exact inverse, to compare: muted", GREY, [[maps, inverse], [undo]], undo.out(), "05_inverse", "By the inverse", (left, low), True)
    return graph


def region_mask(info: Mapping[str, Any]) -> Graph:
    scene = Scene(info, """\
## Another concept in each half
A mask says where a concept acts: 1 = fully, 0 = not at all. Two Steer nodes in a row, one with the mask, one with its inverse.

1. Press **Run**.
2. Change the white part in *Mask* (its width, and x in *MaskComposite*), or raise *right* in *FeatherMask* for a softer border.

Look at: masks act inside the network, on a grid of 16 × 16 and coarser; so a border is a few pixels soft and what crosses it fits.""",
                  prompt="a large red house in the middle")
    graph = scene.graph
    ground = graph.node("SolidMask", title="Nowhere", value=0.0, width_=64, height_=64, width=300)
    white = graph.node("SolidMask", title="Mask", value=1.0, width_=32, height_=64, width=300)
    mask = graph.node("MaskComposite", destination=ground.out(), source=white.out(), x=0, y=0, operation="add", width=300)
    soft = graph.node("FeatherMask", mask=mask.out(), right=4, width=300)
    inverse = graph.node("InvertMask", title="The other half", mask=soft.out(), width=300)
    seen = graph.node("MaskPreview", title="Where the first concept acts", mask=soft.out(), width=320, height=280)
    first, second = scene.concept("golden sunburst"), scene.concept("teal mosaic")
    scene.model_group()
    left = graph.right
    _, low = graph.group("Prompt", GREEN, [scene.prompt], [scene.negative])
    graph.group("Mask", GREY, [ground, white, mask], [soft, inverse, seen], at=(left, low + 30))
    one = scene.steer(scene.world.out("model"), first, mask=soft.out())
    two = scene.steer(one.out(), second, mask=inverse.out())
    graph.group("Left half", PURPLE, [first, one])
    graph.group("Right half", PURPLE, [second, two])
    sampled = scene.sample(two.out())
    graph.group("Sample", ORANGE, sampled)
    graph.group("Picture", GREY, [scene.save(sampled[-1].out(), "06_region_mask", side=512)])
    return graph


def early_or_late(info: Mapping[str, Any]) -> Graph:
    scene = Scene(info, """\
## Only in the first or only in the last steps
*start_percent* and *end_percent* say from where to where in the noise schedule a concept acts.

1. Press **Run** and compare the three rows.
2. Move the border: `end_percent` of the first row and `start_percent` of the second.
3. Or fade out: right-click the last *HyperTransport Steer*, *Show Advanced*, and write `1, 0` into **curve**.

Look at: the early half decides on large shapes and colours, the late half on texture. Both halves together are the whole.""")
    graph = scene.graph
    concept = scene.concept("teal mosaic")
    scene.model_group()
    graph.group("What to draw, and how", GREEN, [scene.prompt, scene.negative, concept])
    left, low = graph.right, 0
    for name, title, start, end in (("early", "Early: 0 to 0.5", 0.0, 0.5), ("late", "Late: 0.5 to 1", 0.5, 1.0), ("whole", "All steps: 0 to 1", 0.0, 1.0)):
        steer = scene.steer(scene.world.out("model"), concept, start_percent=start, end_percent=end)
        low = scene.row(title, PURPLE, [[steer]], steer.out(), f"07_{name}", title, (left, low))
    return graph


def concept_per_row(info: Mapping[str, Any]) -> Graph:
    scene = Scene(info, """\
## Another concept for every picture of a batch
In one sampling pass: three in words and one shown by a picture.

1. Press **Run**: four pictures. Click one to see it large, the arrows go on.
2. Change the lines. *Empty Postcard Latent* needs as many rows as there are lines and pictures.

Look at: each row has its own noise and its own concept. The encoder's *mode* is `one per row`; with `average` all four would be one concept.""",
                  batch=4, prompt="a large red rocket in the middle")
    graph = scene.graph
    reference = graph.node("HyperTransportPostcardReference", concept="desert at dusk", seed=5, pictures=1, width=320)
    concept = scene.concept("teal mosaic\ngolden sunburst\nemerald halftone", mode="one per row", images=reference.out(), height=250)
    scene.model_group()
    graph.group("What to draw, and how", GREEN, [scene.prompt, scene.negative], [reference, concept])
    steer = scene.steer(scene.world.out("model"), concept)
    graph.group("Steer", PURPLE, [steer])
    sampled = scene.sample(steer.out())
    graph.group("Sample", ORANGE, sampled)
    graph.group("Pictures", GREY, [scene.save(sampled[-1].out(), "08_concept", side=520)])
    return graph


def save_load_export(info: Mapping[str, Any]) -> Graph:
    scene = Scene(info, """\
## Keep a concept as a small file
For Load Maps or, as a LoRA, for people without this pack.

1. Press **Run**: the maps go to `models/hypertransport`, the LoRA to `models/loras`; both nodes then say where.
2. The two rows below are muted, as their files are not there before. Now select both (Ctrl + drag), press **Ctrl + M**, and **Run** again.

Look at: all three pictures are the same. With the files neither hypernetwork nor encoder is needed. After more runs choose the newest file (R: refresh).""",
                  height=290)
    graph, model = scene.graph, scene.world.out("model")
    concept = scene.concept("teal mosaic")
    maps = graph.node("HyperTransportPredictMaps", weights=scene.weights.out(), concept=concept.out(), width=320)
    scene.model_group()
    graph.group("What to draw, and how", GREEN, [scene.prompt, scene.negative, concept])
    left = graph.right
    steer = graph.node("HyperTransportSteerWithMaps", model=model, maps=maps.out(), width=320)
    low = scene.row("Make the maps, and a picture with them", PURPLE, [[maps], [steer]], steer.out(), "09_original", "Steered", (left, 0))
    right = graph.right
    picture = next(node for node in reversed(graph.nodes) if node.type == "VAEDecode")
    keep = graph.node("HyperTransportSaveMaps", maps=maps.out(), filename_prefix="postcard_teal_mosaic", thumbnail=picture.out(), width=340, height=190)
    export = graph.node("HyperTransportExportLora", model=model, maps=maps.out(), filename_prefix="postcard_teal_mosaic_lora", width=340, height=280)
    graph.group("Save and export", GREEN, [keep, export], at=(right, 0))
    load = graph.node("HyperTransportLoadMaps", maps_file="postcard_teal_mosaic_00001.safetensors", width=320, muted=True)
    again = graph.node("HyperTransportSteerWithMaps", model=model, maps=load.out(), width=320, muted=True)
    low = scene.row("Load the maps: muted until they are there", GREY, [[load], [again]], again.out(), "09_loaded", "From the maps file", (left, low), True)
    lora = graph.node("LoraLoaderModelOnly", model=model, lora_name="postcard_teal_mosaic_lora_00001.safetensors", strength_model=1.0, width=320, muted=True)
    scene.row("Load the LoRA, by a stock node: muted until it is there", GREY, [[lora]], lora.out(), "09_lora", "From the LoRA", (left, low), True)
    return graph


def fit(info: Mapping[str, Any]) -> Graph:
    scene = Scene(info, """\
## A concept without a hypernetwork
*Fit Maps* learns it from prompts alone, for any model you load. Here in about twenty seconds on one core.

1. Press **Run** and wait; the bar shows progress, and it can be cancelled.
2. Change the concept or the prompts. More *iterations* are better and slower. *Mean-AcT* and *Linear-AcT* take seconds and are weaker.
3. Keep what you like with *Save Maps*.

Look at: above plain, below steered, with the same noise. The prompt does not name the concept.""", weights=False)
    graph, model = scene.graph, scene.world.out("model")
    fitted = graph.node(
        "HyperTransportFitMaps", model=model, clip=scene.world.out("clip"), latent=scene.latent.out(), concept="teal mosaic", method="LinEAS",
        **FIT, width=420, height=760,
    )
    scene.model_group()
    graph.group("Prompt", GREEN, [scene.prompt, scene.negative])
    graph.group("Learn the concept", PURPLE, [fitted])
    steer = graph.node("HyperTransportSteerWithMaps", model=model, maps=fitted.out("maps"), strength=0.8, width=320)
    graph.group("Steer", PURPLE, [steer])
    plain, sampled = scene.sample(model), scene.sample(steer.out())
    graph.group("Sample", ORANGE, plain, sampled)
    pictures = [(plain, "10_plain", "Without"), (sampled, "10_fitted", "With the fitted maps")]
    graph.group("Pictures", GREY, [scene.save(row[-1].out(), name, title, 330) for row, name, title in pictures])
    return graph


def inspect(info: Mapping[str, Any]) -> Graph:
    scene = Scene(info, """\
## Where in the network does a concept act, and how strongly?

1. Press **Run**. The plot has one bar per place of the network, from the first block to the last; the black marks are the second concept.
2. Write other concepts, and compare what is alike with what is not.

Look at: the cosines. Two colours of one pattern are alike in many places, a pattern and a landscape in few.""")
    graph = scene.graph
    graph.nodes = [node for node in graph.nodes if node not in (scene.latent, scene.prompt, scene.negative)]
    scene.latent = None
    scene.model_group()
    concepts = scene.concept("teal mosaic"), scene.concept("crimson gingham")
    graph.group("Two concepts", GREEN, concepts)
    maps = [graph.node("HyperTransportPredictMaps", title=title, weights=scene.weights.out(), concept=one.out(), width=300)
            for title, one in zip(("Maps of the first", "Maps of the second"), concepts)]
    look = graph.node("HyperTransportInspectMaps", maps=maps[0].out(), second_maps=maps[1].out(), width=300)
    graph.group("Maps", PURPLE, [*maps, look])
    plot = graph.node("SaveImage", title="Plot", images=look.out("plot"), filename_prefix=FOLDER + "11_inspect", width=760, height=640)
    told = graph.node("PreviewAny", title="In words", source=look.out("summary"), width=760, height=240)
    graph.group("Plot and summary", GREY, [plot, told])
    return graph


SHIPPED: dict[str, Callable[[Mapping[str, Any]], Graph]] = {
    "01_words": words, "02_reference_picture": reference_picture, "03_strength_sheet": strength_sheet, "04_two_concepts_mixed": two_concepts,
    "05_removal": removal, "06_region_mask": region_mask, "07_early_or_late_steps": early_or_late, "08_one_concept_per_row": concept_per_row,
    "09_save_load_export_lora": save_load_export, "10_fit_without_hypernetwork": fit, "11_inspect": inspect,
}
