"""Load HyperTransport, HyperTransport Steer, Predict Maps, Steer With Maps: as the host calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pack import pack_module, run_node
from steer_nodes import WIDTH, concept, make_weights, node, one_sentence, steer
from steering_checks import off


@pytest.fixture
def unet() -> Any:
    from tiny_hosts import tiny_host

    return tiny_host("sd15")


@pytest.fixture(params=[1, 2], ids=["one set of maps", "maps per step"])
def weights(request, unet, tmp_path) -> Any:
    return make_weights(unet, tmp_path / "weights.safetensors", steps=request.param)


# steering


def test_steer_is_predict_and_steer_with_maps(unet, weights):
    (maps,) = run_node(node("HyperTransportPredictMaps"), weights=weights, concept=concept(1))
    (with_maps,) = run_node(
        node("HyperTransportSteerWithMaps"),
        model=unet.model,
        maps=maps,
        strength=0.7,
        start_percent=0.0,
        end_percent=1.0,
    )
    picture = unet.sample(steer(unet, weights, concept(1), 0.7))
    assert torch.equal(picture, unet.sample(with_maps)) and off(picture, unet.sample()) > 1e-3
    assert len(maps.steps) == weights.hypernetwork.steps and maps.strength_range == (0.0, 1.5) and maps.name == "teal"
    assert maps.backbone["family"] == "sd15" and maps.rows == 1


def test_predicted_maps_are_the_hypernetworks(unet, weights):
    maps = pack_module("nodes.prediction").predict(weights, concept(1))
    for step, one in enumerate(maps.steps):
        expected = weights.maps_for(concept(1), step)
        assert torch.equal(one.scale, expected.scale) and torch.equal(one.shift, expected.shift)


def test_off_is_the_model_as_it_came(unet, weights):
    for options in (
        {"strength": 0.0},
        {"start_percent": 0.6, "end_percent": 0.6},
        {"start_percent": 0.8, "end_percent": 0.2},
        {"mask": torch.zeros(1, 64, 64)},
        {"early": 0.0, "middle": 0.0, "late": 0.0},
        dict.fromkeys(("self_attention", "cross_attention", "mlp", "norm", "convolution"), 0.0),
    ):
        assert steer(unet, weights, concept(1), **options) is unet.model


def test_a_fresh_hypernetwork_changes_nothing(unet, weights):
    fresh = pack_module("hypertransport_core.hypernetworks").build_hypernetwork(weights.hypernetwork.config())
    untrained = type(weights)(fresh, weights.means, weights.header, weights.path)
    assert steer(unet, untrained, concept(1)) is unet.model


def test_several_concepts_are_one_per_picture(unet, weights):
    noise = unet.noise(2)
    together = unet.sample(steer(unet, weights, concept(1, 2)), batch=2)
    for row, seed in enumerate((1, 2)):
        assert (
            off(together[row : row + 1], unet.sample(steer(unet, weights, concept(seed)), noise=noise[row : row + 1]))
            < 1e-4
        )


def test_the_slider_predicts_nothing_anew(unet, weights, monkeypatch):
    calls = []
    forward = type(weights.hypernetwork).raw
    monkeypatch.setattr(type(weights.hypernetwork), "raw", lambda self, *args: calls.append(1) or forward(self, *args))
    for strength in (0.1, 0.5, 1.0, 1.5):
        steer(unet, weights, concept(1), strength)
    assert len(calls) == weights.hypernetwork.steps
    steer(unet, weights, concept(2))
    assert len(calls) == 2 * weights.hypernetwork.steps
    steer(unet, weights, concept(1), -1.0)
    assert len(calls) == 2 * weights.hypernetwork.steps


def test_memory_of_maps_is_bounded_and_dies_with_the_weights(unet, weights):
    import gc
    import weakref

    prediction = pack_module("nodes.prediction")
    for seed in range(prediction.REMEMBERED + 5):
        prediction.predict(weights, concept(seed))
    assert len(prediction._memory[weights.hypernetwork]) == prediction.REMEMBERED
    alive, network = weakref.ref(weights.hypernetwork), weights.hypernetwork
    count = len(prediction._memory)
    assert network in prediction._memory
    del network
    fresh = type(weights)(
        pack_module("hypertransport_core.hypernetworks").build_hypernetwork(weights.hypernetwork.config()),
        {},
        weights.header,
    )
    prediction.predict(fresh, concept(1))
    assert len(prediction._memory) == count + 1
    del fresh
    gc.collect()
    assert len(prediction._memory) == count and alive() is not None


def test_maps_predicted_under_inference_mode_can_be_trained_with(unet, weights):
    with torch.inference_mode():
        maps = pack_module("nodes.prediction").predict(weights, concept(3))
    assert not any(one.scale.is_inference() or one.shift.is_inference() for one in maps.steps)


# refusals


def test_weights_of_another_family_are_refused_before_sampling(weights):
    from tiny_hosts import tiny_host

    other = tiny_host("pixart")
    with pytest.raises(
        ValueError, match="made for sd15 .* model is PixArtMS.* no such site .* connect the model it was made for"
    ) as refusal:
        steer(other, weights, concept(1))
    assert one_sentence(str(refusal.value))


def test_weights_of_another_checkpoint_are_refused_and_of_a_fine_tune_not(unet, weights, caplog):
    from tiny_hosts import TinyHost, build

    other = TinyHost("sd15", build("sd15", seed=1))
    for _ in range(2):
        with pytest.raises(ValueError, match="with other weights, .* 75%: connect the model it was made for"):
            steer(other, weights, concept(1))
    tuned = TinyHost("sd15", build("sd15"))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in tuned.network.parameters():
            p.add_(0.25 * p.abs().mean() * torch.randn(p.shape, generator=generator))
    assert steer(tuned, weights, concept(1)) is not tuned.model
    assert "fine-tune" in caplog.text


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_the_same_weights_in_few_bits_are_accepted(weights, dtype, caplog):
    from tiny_hosts import TinyHost, build

    few = TinyHost("sd15", build("sd15", getattr(torch, dtype), torch.float32))
    assert steer(few, weights, concept(1)) is not few.model and "fine-tune" not in caplog.text


def test_patched_steered_and_compiled_models_are_accepted(unet, weights):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    patched = unet.model.clone()
    state = patched.model.state_dict()
    keys = [k for k, v in state.items() if k.endswith("weight") and v.ndim == 2]
    patched.add_patches({k: ("diff", (0.3 * state[k].std() * torch.randn(state[k].shape),)) for k in keys})
    set_torch_compile_wrapper(patched, backend="eager")
    again = pack_module("nodes.interception").steer_model(
        patched, pack_module("nodes.prediction").predict(weights, concept(1))
    )
    assert (
        pack_module("nodes.interception").steer_model(
            again, pack_module("nodes.prediction").predict(weights, concept(2))
        )
        is not again
    )


def test_a_concept_of_another_encoder_is_refused(unet, weights):
    with pytest.raises(
        ValueError, match="reads concepts of the encoder 'test-encoder', the connected encoder is 'other'"
    ) as refusal:
        steer(unet, weights, concept(1, encoder="other"))
    assert one_sentence(str(refusal.value))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": float("nan")}, "strength is nan"),
        ({"start_percent": -0.1}, "start is at -0.1"),
        ({"end_percent": 1.2}, "end is at 1.2"),
        ({"scope": "some"}, "scope is 'some'"),
        ({"mode": "slow"}, "mode is 'slow'"),
        ({"mlp": float("inf")}, "'mlp' is inf"),
        ({"layers": "some"}, "layers are 'some'"),
        ({"curve": "0, high"}, "'high' in the curve '0, high' is no number"),
        ({"per_picture": "1, , nan"}, "'nan' in the factors per picture"),
        ({"mask": torch.full((1, 8, 8), 2.0)}, "values from 2 to 2"),
    ],
)
def test_values_out_of_range_are_refused_in_one_sentence(unet, weights, options, words):
    with pytest.raises(ValueError, match=words) as refusal:
        steer(unet, weights, concept(1), **options)
    assert one_sentence(str(refusal.value))


# loading


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """models/hypertransport, for one test."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "hypertransport", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("hypertransport", None)
    yield tmp_path
    folder_paths.filename_list_cache.pop("hypertransport", None)


def test_load_lists_hypernetworks_only(folder, unet):
    make_weights(unet, folder / "a.safetensors")
    maps_io = pack_module("hypertransport_core.weights_io")
    maps_io.save_maps(folder / "maps.safetensors", unet.maps().steps[0])
    (folder / "broken.safetensors").write_bytes(b"no")
    load = node("HyperTransportLoad")
    assert load.INPUT_TYPES()["required"]["file"][1]["options"] == ["a.safetensors"]
    (loaded,) = run_node(load, file="a.safetensors")
    assert (
        repr(loaded) == "HypernetworkFile('a.safetensors', for sd15, 66 sites)"
        and loaded.hypernetwork.embedding_dim == WIDTH
    )
    assert load.validate_inputs(file="a.safetensors") is True
    for name, words in (
        ("maps", "is a 'transport_maps' file"),
        ("broken", "broken.safetensors"),
        ("gone", "is not in models/hypertransport"),
    ):
        message = load.validate_inputs(file=f"{name}.safetensors")
        assert isinstance(message, str) and words in message and one_sentence(message.replace(str(folder), ""))


def test_a_changed_file_is_loaded_anew_and_an_unchanged_one_not(folder, unet):
    import os

    load, path = node("HyperTransportLoad"), folder / "a.safetensors"
    make_weights(unet, path)
    first = load.fingerprint_inputs(file="a.safetensors")
    assert load.fingerprint_inputs(file="a.safetensors") == first
    os.utime(path, (1, 1))
    assert load.fingerprint_inputs(file="a.safetensors") != first
    path.unlink()
    assert isinstance(load.fingerprint_inputs(file="a.safetensors"), str)


# texts


def test_every_input_and_output_is_described():
    for name in (
        "HyperTransportLoad",
        "HyperTransportSteer",
        "HyperTransportPredictMaps",
        "HyperTransportSteerWithMaps",
    ):
        schema = node(name).GET_SCHEMA()
        assert schema.description and schema.display_name
        for entry in (*schema.inputs, *schema.outputs):
            assert entry.tooltip and entry.tooltip.endswith("."), (name, entry.id)
            if hasattr(entry, "min"):
                assert "0 =" in entry.tooltip and " to " in entry.tooltip, (name, entry.id)


def test_what_sockets_carry_prints_short(unet, weights):
    maps = pack_module("nodes.prediction").predict(weights, concept(1))
    steered = steer(unet, weights, concept(1), mask=torch.eye(4))
    interception = pack_module("nodes.interception")
    (live,) = steered.get_wrappers(interception.WrappersMP.APPLY_MODEL, interception.KEY)
    assert all(len(repr(thing)) < 400 for thing in (weights, maps, live)) and "teal" in repr(maps)
