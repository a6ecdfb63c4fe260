# ruff: noqa: T201 (a command speaks to a person)
"""What each picture of the help pages shows: one function for each file in web/docs/pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from picture_world import SCENE, SHOWN, World, pack_module  # first: it makes the modules of tests/support importable

import charts
import torch
from torch import Tensor

PAINTERS: dict[str, Callable[[World], Tensor]] = {}


def picture(paint: Callable[[World], Tensor]) -> Callable[[World], Tensor]:
    """Register what paints the picture of that name."""
    PAINTERS[paint.__name__.replace("_", "-")] = paint
    return paint


@picture
def load(world: World) -> Tensor:
    names = ("teal mosaic", "emerald crystals", "azure polka dots", "golden op art")
    return world.sheet(
        ["without", *names], [("", [world.show(world.model), *(world.show(world.steer(name)) for name in names)])]
    )


@picture
def steer(world: World) -> Tensor:
    strengths = (-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
    rows = [(name, [world.show(world.steer(name, strength)) for strength in strengths]) for name in SHOWN[:2]]
    return world.sheet([f"{strength:g}" for strength in strengths], rows)


@picture
def steer_kinds(world: World) -> Tensor:
    kinds = [
        kind
        for kind in pack_module("hypertransport_core.sites").SITE_KINDS
        if any(site.kind == kind for site in world.maps(SHOWN[0]).steps[0].sites)
    ]
    depths = ("early", "middle", "late")

    def only(name: str, names: Sequence[str]) -> Tensor:
        return world.show(world.steer(strength=1.0, **{other: float(other == name) for other in names}))

    everything = world.show(world.steer())
    rows = [
        ("only the kind", [everything, *(only(kind, kinds) for kind in kinds)]),
        ("only the depth", [everything, *(only(depth, depths) for depth in depths), *[None] * (len(kinds) - 3)]),
    ]
    first = world.sheet(["all", *(kind.replace("_", " ") for kind in kinds)], rows[:1])
    second = world.sheet(["all", *depths, *[""] * (len(kinds) - 3)], rows[1:])
    return torch.cat([first, second], 1)


@picture
def steer_percent(world: World) -> Tensor:
    ranges = ((0.0, 1.0), (0.0, 0.25), (0.0, 0.5), (0.5, 1.0), (0.75, 1.0))
    found = [world.show(world.steer(start_percent=start, end_percent=end), steps=8) for start, end in ranges]
    return world.sheet([f"{start:g} to {end:g}" for start, end in ranges], [("", found)])


@picture
def steer_mask(world: World) -> Tensor:
    columns, rows = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="xy")
    masks = {
        "right half": (columns > 0.5).float(),
        "soft edge": ((columns - 0.2) / 0.6).clamp(0, 1),
        "circle": (((columns - 0.5) ** 2 + (rows - 0.5) ** 2).sqrt() < 0.4).float(),
    }
    found = [world.show(world.steer(mask=mask)) for mask in masks.values()]
    shown = [mask.expand(3, 64, 64) for mask in masks.values()]
    return world.sheet(
        ["no mask", *masks], [("mask", [None, *shown]), ("picture", [world.show(world.steer()), *found])]
    )


@picture
def steer_with_maps(world: World) -> Tensor:
    strengths = (0.0, 0.5, 1.0, 1.5)
    maps = world.maps(SHOWN[2])
    return world.sheet(
        [f"{strength:g}" for strength in strengths], [("", [world.show(world.steer_with(maps, s)) for s in strengths])]
    )


@picture
def concept_encoder(world: World) -> Tensor:
    rows = []
    for name in ("crimson stripes", "copper halftone"):
        picture = world.reference(name)
        words, shown = world.concept(name), world.concept(images=picture)
        both = world.concept(name, images=picture)
        rows.append(
            (
                name,
                [
                    picture[0].movedim(-1, 0),
                    *(world.show(world.steer(concept), "a red house on the left") for concept in (words, shown, both)),
                ],
            )
        )
    return world.sheet(["a reference picture", "from words", "from the picture", "from both"], rows)


@picture
def mix_concepts(world: World) -> Tensor:
    first, second = (world.concept(name) for name in ("teal mosaic", "copper halftone"))
    shares = (1.0, 0.75, 0.5, 0.25, 0.0)
    mixed = [
        world.one("MixConcepts", concept_1=first, weight_1=share, concept_2=second, weight_2=1 - share)
        for share in shares
    ]
    apart = world.one("MixConcepts", concept_1=first, weight_1=1.0, concept_2=second, weight_2=-0.5)
    headings = ["teal mosaic", "3 : 1", "1 : 1", "1 : 3", "copper halftone", "mosaic less halftone"]
    return world.sheet(headings, [("", [world.show(world.steer(concept)) for concept in (*mixed, apart)])])


@picture
def load_encoder(world: World) -> Tensor:
    names = ("teal mosaic", "blueprint", "city at night", "copper halftone", "crimson stripes")
    words = torch.stack([world.concept(name).vector for name in names])
    shown = torch.stack([world.concept(images=world.reference(name, 3)).vector for name in names])
    # Words and pictures each lie in a corner of their own; what tells concepts apart is what remains without it.
    words, shown = (torch.nn.functional.normalize(v - v.mean(0), dim=1) for v in (words, shown))
    return charts.matrix((words @ shown.T).tolist(), names, names, "words against pictures: likeness")


@picture
def postcard(world: World) -> Tensor:
    prompts = (
        "a small red house on the left",
        "a large blue boat",
        "a green cat, sepia",
        "a yellow rocket, city at night",
        "a purple mushroom, snowy field at noon",
        "a white ghost, matrix code",
    )
    return world.sheet(
        prompts, [("", [world.show(world.model, prompt, seed=number) for number, prompt in enumerate(prompts)])]
    )


@picture
def empty_latent(world: World) -> Tensor:
    import torch.nn.functional as functional

    sizes = ((64, 64), (96, 64), (96, 96), (128, 128))
    found = []
    for width, height in sizes:
        latent = world.one("EmptyPostcardLatent", batch_size=1, width=width, height=height)
        one = world.show(world.model, "a red house on the left", latent=latent)
        found.append(functional.pad(one, (0, 128 - width, 0, 128 - height), value=0.94))
    return world.sheet([f"{width} x {height}" for width, height in sizes], [("", found)], upscale=1)


@picture
def predict_maps(world: World) -> Tensor:
    maps = world.maps(SHOWN[0])
    return charts.bars(site_sizes(maps), f"'{SHOWN[0]}': how far each site is moved, in the order of the network")


def site_sizes(maps: Any) -> list[tuple[str, str, float]]:
    """(path, kind, root mean square of scale - 1) of every site."""
    one = maps.steps[0]
    return [(site.path, site.kind, float((one[site.path].scale - 1).square().mean().sqrt())) for site in one.sites]


@picture
def postcard_reference(world: World) -> Tensor:
    names = ("teal mosaic", "city at night", "golden sunburst", "crimson gingham", "matrix code")
    drawn = [world.one("PostcardReference", concept=name, seed=5, pictures=3).movedim(-1, 1) for name in names]
    return world.sheet(names, [("", [pictures[row] for pictures in drawn]) for row in range(3)])


@picture
def combine_maps(world: World) -> Tensor:
    first, second = world.maps("charcoal crosshatching"), world.maps("violet flames")
    weights = {"first_weight": 1.0, "second_weight": 1.0}
    found = [
        world.one("CombineMaps", first=first, second=second, how=how, **weights)
        for how in ("sum", "sequence", "average")
    ]
    return world.sheet(
        ["charcoal crosshatching", "violet flames", "sum", "sequence", "average"],
        [("", [world.show(world.steer_with(maps)) for maps in (first, second, *found)])],
    )


NAMED = ("blueprint", "crimson stripes")  # named in the prompts of the pictures from which a concept is taken out


@picture
def steer_removal(world: World) -> Tensor:
    return taken_out(world, (0.0, -0.25, -0.5, -0.75, -1.0), lambda name, strength: world.steer(name, strength))


@picture
def invert_maps(world: World) -> Tensor:
    inverse = {name: world.one("InvertMaps", maps=world.maps(name)) for name in NAMED}
    strengths = (0.0, 0.25, 0.5, 0.75, 1.0)
    return taken_out(world, strengths, lambda name, strength: world.steer_with(inverse[name], strength))


def taken_out(world: World, strengths: Sequence[float], steered: Callable[[str, float], Any]) -> Tensor:
    """A row for each of NAMED, in the prompt of every picture of it; `steered` gives the model for name and strength."""
    rows = []
    for name in NAMED:
        prompt = f"{SCENE}, {name}"
        rows.append((f"prompt: {prompt}", [world.show(steered(name, strength), prompt) for strength in strengths]))
    return world.sheet([f"strength {strengths[0]:g}", *(f"{strength:g}" for strength in strengths[1:])], rows)


@lru_cache(maxsize=1)
def own_output() -> Path:
    """A folder that stands for ComfyUI's output and models/loras while pictures are made."""
    import folder_paths

    folder = Path(tempfile.mkdtemp())
    folder_paths.set_output_directory(str(folder))
    (folder / "loras").mkdir()
    folder_paths.folder_names_and_paths["loras"] = ([str(folder / "loras")], {".safetensors"})
    return folder


@picture
def save_maps(world: World) -> Tensor:
    own_output()
    maps = world.maps(SHOWN[1])
    before = world.show(world.steer_with(maps))
    path = Path(
        world.one(
            "SaveMaps",
            maps=maps,
            filename_prefix="hypertransport/crosshatching",
            place="output",
            thumbnail=before.movedim(0, -1)[None],
        )
    )
    loaded = world.one("LoadMaps", maps_file=f"hypertransport/{path.name} [output]")
    after = world.show(world.steer_with(loaded))
    thumbnail = thumbnail_of(path)
    return world.sheet(
        ["without", "before saving", "thumbnail in the file", "loaded again"],
        [("", [world.show(world.model), before, thumbnail, after])],
    )


def thumbnail_of(path: Path) -> Tensor:
    """The picture inside a maps file, as it is there."""
    import base64
    import io

    import numpy
    from PIL import Image
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        data = file.metadata()["modelspec.thumbnail"].split(",", 1)[1]
    image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB").resize((64, 64), Image.Resampling.BOX)
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).float() / 255


@picture
def load_maps(world: World) -> Tensor:
    own_output()
    rows = []
    for name in SHOWN[1:]:
        path = Path(
            world.one("SaveMaps", maps=world.maps(name), filename_prefix=f"hypertransport/{name}", place="output")
        )
        loaded = world.one("LoadMaps", maps_file=f"hypertransport/{path.name} [output]")
        scenes = ("a red house", "a blue boat", "a green tree", "a yellow cup")
        rows.append((name, [world.show(world.steer_with(loaded), scene) for scene in scenes]))
    return world.sheet(scenes, rows)


@picture
def export_lora(world: World) -> Tensor:
    import comfy.sd
    import comfy.utils

    own_output()
    maps = world.maps(SHOWN[0])
    path = world.one("ExportLora", model=world.model, maps=maps, strength=1.0, filename_prefix="concept", form="small")
    file = comfy.utils.load_torch_file(path)
    rows = []
    for name, model_of in (
        ("Steer With Maps", lambda s: world.steer_with(maps, s)),
        ("LoRA, stock loader", lambda s: comfy.sd.load_lora_for_models(world.model, None, file, s, 0.0)[0]),
    ):
        rows.append((name, [world.show(model_of(strength)) for strength in (0.0, 0.5, 1.0, 1.5)]))
    return world.sheet(["0", "0.5", "1", "1.5"], rows)


@picture
def fit_maps(world: World) -> Tensor:
    latent = world.one("EmptyPostcardLatent", batch_size=1)
    schema = world.nodes["FitMaps"].GET_SCHEMA()
    prompts = next(entry.default for entry in schema.inputs if entry.id == "generic_prompts")
    rows = []
    for method, iterations in (("LinEAS", 150), ("Linear-AcT", 1), ("Mean-AcT", 1)):
        maps, report = world.run(
            "FitMaps",
            model=world.model,
            clip=world.clip,
            latent=latent,
            concept="crimson stripes",
            method=method,
            site_set="attention_mlp",
            iterations=iterations,
            sampling_steps=4,
            generic_prompts=prompts,
        )
        print("   ", report)
        label = f"{method}, {iterations} iterations" if method == "LinEAS" else method
        rows.append((label, [world.show(world.steer_with(maps, strength)) for strength in (0.0, 0.5, 1.0)]))
    return world.sheet(["0", "0.5", "1"], rows)


@picture
def strength_sheet(world: World) -> Tensor:
    maps = world.maps(world.concept("\n".join(SHOWN), mode="one per row"))
    latent = world.one("EmptyPostcardLatent", batch_size=1)
    model, batch, sheet = world.run(
        "StrengthSheet", model=world.model, maps=maps, latent=latent, strengths="0, 0.33, 0.67, 1, 1.33"
    )
    images = world.sample(model, latent=batch).movedim(1, -1)
    return world.one("DrawSheet", images=images, sheet=sheet, picture_size=128)[0].movedim(-1, 0)


@picture
def draw_sheet(world: World) -> Tensor:
    latent = world.one("EmptyPostcardLatent", batch_size=1)
    maps = world.maps("violet flames")
    model, batch, sheet = world.run("StrengthSheet", model=world.model, maps=maps, latent=latent, strengths="0 0.5 1")
    images = world.sample(model, "a large blue boat", latent=batch).movedim(1, -1)
    return world.one(
        "DrawSheet", images=images, sheet=sheet, picture_size=200, title="a large blue boat: violet flames"
    )[0].movedim(-1, 0)


@picture
def one_step(world: World) -> Tensor:
    from tiny_hosts import tiny_host

    model = tiny_host("pixart").model  # random weights, but the schedule of every PixArt and SDXL
    sampling = model.get_model_object("model_sampling")
    noise, stock, ours = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)), [], []
    for timestep in range(20, 1000, 20):
        _, sigmas = world.run("OneStep", model=model, timestep=timestep)
        for full, line in ((False, stock), (True, ours)):
            start = sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), full)
            line.append((timestep, float(sampling.calculate_input(sigmas[0], start).std())))
    return charts.lines(
        {"One-Step Sampling": ours, "stock sampler": stock},
        "timestep",
        "spread of what the network gets (1 is right)",
        marks=[(399, "399, 400")],
        names_right=True,
    )


@picture
def dmd2_sigmas(world: World) -> Tensor:
    from tiny_hosts import tiny_host

    model = tiny_host("sdxl").model  # random weights, but the schedule of every SDXL
    sampling = model.get_model_object("model_sampling")
    curve = [(step, float(sampling.sigma(torch.tensor(float(step))))) for step in (*range(0, 1000, 10), 999)]
    sigmas = world.one("DMD2Sigmas", model=model)
    points = [(step, float(sigma)) for step, sigma in zip((999, 749, 499, 249), sigmas)]
    return charts.lines(
        {"noise levels of SDXL": curve}, "timestep", "sigma", marks=[(x, f"{y:.2f}") for x, y in points]
    )


@picture
def inspect_maps(world: World) -> Tensor:
    plot = world.one("InspectMaps", maps=world.maps("teal mosaic"), second_maps=world.maps("copper halftone"))
    return plot[0].movedim(-1, 0)
