"""Learning the mean of other hypernetworks' maps: the distance, the student, what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hypertransport_core.files import load_file, save_file
from hypertransport_core.training import ConfigError, TrainingConfig, cli, disk, export, memory
from hypertransport_core.training.batches import draw, mixed
from hypertransport_core.training.distilling import Teachers
from hypertransport_core.training.loop import Trainer
from hypertransport_core.training.meter import Meter
from hypertransport_core.transport import TransportMaps
from hypertransport_core.weights_io import load_hypernetwork
from tests.training.test_learning import trainer


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> tuple[Path, list[Path]]:
    """(data, weights files) of two short trainings with other seeds."""
    folder = tmp_path_factory.mktemp("teachers")
    files = []
    for seed in (0, 1):
        run, files = folder / f"seed-{seed}", [*files, folder / f"teacher-{seed}.safetensors"]
        arguments = ["--preset", "tiny", "--output", run, "--data", folder / "data", "--seed", seed, "--collect-seed", 0]
        arguments += ["--steps", 30, "--strip-concepts", 0, "--learning-rate", 1e-2, "--export", files[-1]]
        assert cli.main(list(map(str, arguments))) == 0
    return folder / "data", files


def student(folder: Path, teachers: tuple[Path, list[Path]], **changes) -> Trainer:
    data, files = teachers
    return trainer(folder, data, teachers=", ".join(map(str, files)), **changes)


def test_maps_are_the_mean_of_the_teachers(tmp_path, teachers):
    one = student(tmp_path, teachers)
    embeddings = one.bank.all_text()[:5]
    alone = [load_hypernetwork(file).hypernetwork(embeddings) for file in teachers[1]]
    found = one.teachers.maps(embeddings, None)
    assert not alone[0].allclose(alone[1], rtol=1e-2)
    torch.testing.assert_close(found.scale, (alone[0].scale + alone[1].scale) / 2)
    torch.testing.assert_close(found.shift, (alone[0].shift + alone[1].shift) / 2)


def test_the_distance_is_the_mean_squared_difference_of_what_is_transported(tmp_path, teachers):
    one = student(tmp_path, teachers)
    wanted = one.teachers.maps(one.bank.all_text()[:2], None)
    maps = TransportMaps.identity(wanted.sites, 2)
    z = one.teachers.mean + one.teachers.std * torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    for row, found in enumerate(one.teachers.distance(maps, wanted)):
        errors, start = [], 0
        for site in wanted.sites:
            where = slice(start, start + site.channels)
            off = (wanted.scale[row, where] - 1) * z[:, where] + wanted.shift[row, where]
            errors.append(float(off.square().mean() / one.teachers.std[0, where].square().mean()))
            start += site.channels
        assert float(found) == pytest.approx(sum(errors) / len(errors), rel=0.02)
    assert float(one.teachers.distance(wanted, wanted).abs().max()) == 0


@pytest.mark.parametrize("changes", [{}, {"embedding_mix": 0.5}, {"standardise": False}])
def test_a_student_learns_them_without_the_base_model(tmp_path, teachers, monkeypatch, changes):
    one = student(tmp_path, teachers, steps=300, learning_rate=3e-3, head_learning_rate=1e-2, **changes)
    every = one.bank.all_text()
    wanted = one.teachers.maps(every, None)
    before = one.teachers.distance(one.network(every), wanted).mean().item()
    assert before == pytest.approx(float(one.teachers.distance(TransportMaps.identity(wanted.sites), wanted).mean()))
    monkeypatch.setattr(one.world.backbone, "denoise", lambda *a, **k: pytest.fail("the base model was run"))
    for _ in range(300):
        found = one.advance()
    after = float(one.teachers.distance(one.average(every), wanted).mean())
    assert after < 0.1 * before and found["loss"] < 0.3 * before and found["transport"] == found["paired"] == 0


def test_teachers_with_maps_per_step(tmp_path):
    data, file = tmp_path / "data", tmp_path / "teacher.safetensors"
    arguments = ["--preset", "tiny", "--maps-per-step", "true", "--output", tmp_path / "run", "--data", data, "--steps", 10]
    assert cli.main(list(map(str, [*arguments, "--strip-concepts", 0, "--export", file]))) == 0
    one = trainer(tmp_path / "student", data, teachers=str(file), maps_per_step=True)
    assert one.teachers.mean.shape[0] == 2
    first = one.advance()["loss"]
    for _ in range(40):
        last = one.advance()["loss"]
    assert last < first


def test_the_command_writes_a_student_that_names_its_teachers(tmp_path, teachers, train):
    data, files = teachers
    names = ["--teachers", ",".join(map(str, files)), "--embedding-mix", 0.25, "--data", data]
    assert train(tmp_path / "whole", *names, "--steps", 8) == 0
    header = load_hypernetwork(tmp_path / "whole/hypernetwork.safetensors").header
    training = header["training"]
    assert [each["step"] for each in training["teachers"]] == [30, 30]
    assert [each["settings"]["seed"] for each in training["teachers"]] == [0, 1]
    assert training["settings"]["embedding_mix"] == 0.25 and str(tmp_path.parent) not in str(header)
    # stopped and resumed it is the same
    assert train(tmp_path / "parts", *names, "--steps", 8, "--stage", "train") == 0
    for path in (tmp_path / "parts/checkpoints").glob("step-00000008*"):
        path.unlink()
    assert train(tmp_path / "parts", *names, "--steps", 8, "--resume", "latest") == 0
    both = [load_hypernetwork(tmp_path / name / "hypernetwork.safetensors").hypernetwork for name in ("whole", "parts")]
    for a, b in zip(both[0].parameters(), both[1].parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("changes", [{}, {"maps_per_step": True, "levels_per_step": 2}])
def test_the_memory_plan_reckons_with_teachers_and_without_the_base_model(tmp_path, teachers, changes):
    data, files = teachers
    if changes:
        files = [tmp_path / "teacher.safetensors"]
        arguments = ["--preset", "tiny", "--maps-per-step", "true", "--output", tmp_path / "run", "--data", data, "--steps", 2]
        assert cli.main(list(map(str, [*arguments, "--strip-concepts", 0, "--export", files[0]]))) == 0
    one = student(tmp_path / "student", (data, files), concepts_per_step=128, **changes)
    plan = memory.device_plan(one.world, one.data, one.config)
    alone = memory.device_plan(one.world, one.data, one.config.with_values({"teachers": ""}))
    sizes = [sum(p.numel() * 4 for p in file.hypernetwork.parameters()) for file in one.teachers.files]
    assert sum(sizes) < plan.states - alone.states < 1.5 * sum(sizes) + 1e5 and plan.rows == plan.training.of(9) == 0
    one.advance()  # the optimiser makes its moments
    one.network.zero_grad(set_to_none=True)
    with Meter() as meter:
        one.advance()
    assert 0.6 * plan.graph < meter.peak < 1.05 * plan.graph
    text = "\n".join(memory.describe_plan(one.world, one.data, one.config, disk.disk_plan(one.world, one.data, one.config), plan))
    assert "optimiser, teachers" in text and "activations" not in text
    with pytest.raises(ConfigError) as error:
        memory._check_device(one.world, one.data, one.config, plan, plan.lasting + max(plan.graph / 3, plan.outside.of(1)))
    chosen = int(re.search(r"set concepts_per_step to (\d+)", str(error.value))[1])
    less = memory.device_plan(one.world, one.data, one.config.with_values({"concepts_per_step": chosen}))
    assert 1 <= chosen < 128 and less.graph < max(plan.graph / 3, plan.outside.of(1))


def test_the_command_recommends_the_strengths_of_the_teachers(tmp_path, teachers, train):
    data, files = teachers
    for index, file in enumerate(files):
        tensors, header = load_file(file)
        save_file(tmp_path / f"{index}.safetensors", tensors, "hypernetwork", {**header, "strength_range": [-0.5, 1.5]})
    names = ["--teachers", ",".join(str(tmp_path / f"{index}.safetensors") for index in range(len(files)))]
    assert train(tmp_path / "run", *names, "--data", data, "--steps", 2) == 0
    assert load_hypernetwork(tmp_path / "run/hypernetwork.safetensors").strength_range == (-0.5, 1.5)


def test_a_student_recommends_the_strengths_that_most_teachers_were_trained_for(teachers):
    file = load_hypernetwork(teachers[1][0])
    config = TrainingConfig(teachers="a, b", store_predictions=True, transport_weight=0.0, paired_weight=1.0, removal_share=0.2)
    for lows, expected in ([-1.0, -1.0, -1.0, 0.0], -1.0), ([-1.0, 0.0], 0.0), ([0.0, 0.0, -1.0], 0.0):
        files = [replace(file, header={**file.header, "strength_range": [low, 1.0]}) for low in lows]
        assert export._strengths(config, files) == (expected, 1.0)
    assert export._strengths(config, []) == (-1.0, 1.0)


def test_blends_lie_between_two_embeddings():
    embeddings = torch.nn.functional.normalize(torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    assert torch.equal(mixed(embeddings, 0.0, torch.Generator().manual_seed(1)), embeddings)
    found = mixed(embeddings, 0.5, torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(64))
    same = (found == embeddings).all(1)
    assert 20 < int(same.sum()) < 44
    for blend, own in zip(found[~same], embeddings[~same]):
        # in the plane of its own and one other, and between them
        planes = torch.linalg.det(torch.stack([blend.expand(64, 3), own.expand(64, 3), embeddings], 1)).abs()
        planes[(embeddings == own).all(1)] = 1
        assert float(planes.min()) < 1e-5
        assert float(blend @ own) >= float(own @ embeddings[int(planes.argmin())]) - 1e-4


def test_draws_without_blends_are_what_they_were(tmp_path, teachers):
    one = student(tmp_path, teachers)
    plain = draw(3, one.bank, 8, 2, one.config)
    blended = draw(3, one.bank, 8, 2, one.config.with_values({"embedding_mix": 1.0}))
    assert plain.concepts == blended.concepts and plain.seeds == blended.seeds and plain.scenes == blended.scenes
    assert torch.equal(plain.strengths, blended.strengths) and not torch.equal(plain.embeddings, blended.embeddings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"site_set": "norm"}, "set site_set"),
        ({"maps_per_step": True}, "expected the run's .* sites and 2"),
        ({"training_concepts": 6}, "subtracts other means"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(tmp_path, teachers, train, capsys, changes, words):
    data, files = teachers
    if "site_set" in changes:
        data = tmp_path / "norms"
    given = [part for name, value in changes.items() for part in ("--" + name.replace("_", "-"), str(value).lower())]
    assert train(tmp_path / "run", "--teachers", files[0], "--data", data, *given) == 1
    text = capsys.readouterr().err.strip().splitlines()[-1]
    assert "The teacher" in text and re.search(words, text) and text.endswith(".")


def test_other_refusals(tmp_path, teachers, train, capsys):
    with pytest.raises(ConfigError, match="without teachers"):
        TrainingConfig(embedding_mix=0.1, teachers=" , ")
    assert TrainingConfig(teachers=" a.safetensors,, b ").teacher_files() == ["a.safetensors", "b"]
    assert train(tmp_path / "run", "--teachers", tmp_path / "nowhere.safetensors", "--data", teachers[0]) == 1
    assert "nowhere.safetensors" in capsys.readouterr().err
    for extra in (("--dry-run",), ()):  # before an hour of collecting, not after it
        assert train(tmp_path / "fresh", "--teachers", tmp_path / "nowhere.safetensors", *extra) == 1
        assert "nowhere.safetensors" in capsys.readouterr().err and not list(tmp_path.glob("fresh/data/*"))
    one = student(tmp_path / "again", teachers)
    with pytest.raises(ConfigError, match="other means"):
        Teachers(one.data, one.config, {name: mean + 0.1 for name, mean in one.bank.means.items()})
    nearly = {name: 1.01 * mean for name, mean in one.bank.means.items()}
    assert Teachers(one.data, one.config, nearly).files  # the same pictures from another machine
