from __future__ import annotations

import re
from dataclasses import fields

import pytest
import torch

from hypertransport_core.training import ConfigError, TrainingConfig, cli, read_config
from hypertransport_core.training.presets import precision_of
from hypertransport_core.toml_files import dump, parse
from tests.training import worlds


def refusal(capsys, *arguments: str) -> str:
    assert cli.main([*arguments]) == 1
    text = capsys.readouterr().err.strip()
    assert text.startswith("error: ") and "\n" not in text and text.endswith("."), text
    assert "expected" in text
    return text


def test_predictions_are_stored_only_where_they_serve(tmp_path, capsys):
    start = ["--preset", "tiny", "--output", str(tmp_path / "run"), "--store-predictions", "true"]
    assert "store_predictions is on with paired_weight = 0" in refusal(capsys, *start, "--paired-weight", "0")
    assert 'inputs = "own"' in refusal(capsys, *start, "--inputs", "own")


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--steps", "many", "steps is 'many', expected a whole number"),
        ("--steps", "0", "steps is 0, expected 1 to"),
        ("--learning-rate", "nan", "learning_rate is nan"),
        ("--image-share", "1.5", "image_share is 1.5, expected 0 to 1"),
        ("--site-set", "knees", "site_set is 'knees', expected one of attention_mlp"),
        ("--hypernetwork", "oracle", "expected one of mlp, perceiver"),
        ("--early-stop", "maybe", "early_stop is 'maybe', expected true or false"),
        ("--blocks", "3", "blocks is 3, expected a divisor of the 8 samples"),
        ("--samples-per-concept", "3", "samples_per_concept is 3, expected a divisor of blocks = 8"),
        ("--levels-per-step", "3", "levels_per_step is 3, expected at most sampling_steps = 2"),
        ("--partial-share", "0.5", "partial_share is 0.5 with store_predictions = false"),
        ("--training-samples", "8", "training_samples is 8 with store_predictions = false"),
        ("--training-samples", "99", "training_samples is 99, expected at most prompts_per_concept = 8"),
        ("--removal-share", "0.5", "removal_share is 0.5 with store_predictions = false"),
        ("--preset", "moon", "preset is 'moon', expected one of comfyui, dmd2"),
        ("--device", "toaster", "device is 'toaster', expected auto, cpu"),
        ("--scenes", "nowhere.txt", "scenes is 'nowhere.txt', expected a file"),
        ("--concepts", "nowhere.json", "concepts is 'nowhere.json', expected a file"),
    ],
)
def test_bad_values_are_refused_in_one_sentence(tmp_path, capsys, monkeypatch, flag, value, words):
    if flag == "--device":
        from hypertransport_core.training.presets import device_of, register_preset

        monkeypatch.setitem(
            __import__("hypertransport_core.training.presets", fromlist=["PRESETS"]).PRESETS, "tiny", None
        )
        register_preset("tiny", lambda config: (device_of(config), worlds.tiny_world(config))[1], worlds.SMALL)
    assert words in refusal(capsys, "--preset", "tiny", "--output", str(tmp_path / "run"), flag, value)
    assert not (tmp_path / "run").exists()


def test_unknown_keys_name_the_nearest_one(tmp_path, capsys):
    file = tmp_path / "settings.toml"
    file.write_text('preset = "tiny"\nlerning_rate = 0.1\n')
    assert "unknown key 'lerning_rate', expected perhaps 'learning_rate'" in refusal(
        capsys, "--config", str(file), "--output", str(tmp_path / "run")
    )
    file.write_text("steps = \n")
    assert "not proper TOML" in refusal(capsys, "--config", str(file), "--output", str(tmp_path / "run"))
    assert "cannot be read" in refusal(
        capsys, "--config", str(tmp_path / "none.toml"), "--output", str(tmp_path / "run")
    )
    file.write_text('steps = "12"\n')
    assert "steps is '12', expected a whole number" in refusal(
        capsys, "--config", str(file), "--output", str(tmp_path / "run")
    )


def test_an_output_is_needed(capsys):
    assert "output is empty" in refusal(capsys, "--preset", "tiny")


@pytest.mark.parametrize(
    "values",
    [
        {"transport_weight": 0.0, "paired_weight": 0.0},
        {"image_share": 0.5, "images_per_concept": 0},
        {"steps": True},
        {"steps": 1.0},
        {"title": 3},
        {"ema": 1.0},
    ],
)
def test_the_class_itself_checks(values):
    with pytest.raises(ConfigError, match="expected"):
        TrainingConfig(**values)


def test_settings_survive_their_file(tmp_path):
    config = TrainingConfig(output='runs/a "b" \\ ü\n', learning_rate=1e-5, early_stop=True, seed=7)
    (tmp_path / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    assert TrainingConfig(**read_config(tmp_path / "config.toml")) == config


def test_flags_override_the_file_and_the_file_the_preset(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text('preset = "tiny"\nsteps = 5\nwidth = 64\n')
    arguments = cli.parser().parse_args(
        ["--config", str(file), "--output", str(tmp_path), "--steps", "9", "--early-stop"]
    )
    config = cli.resolved(arguments)
    assert (config.steps, config.width, config.bottleneck, config.early_stop) == (
        9,
        64,
        worlds.SMALL["bottleneck"],
        True,
    )


def test_every_setting_has_a_flag_a_meaning_and_a_range():
    text = cli.parser().format_help()
    for spec in fields(TrainingConfig):
        assert f"--{spec.name.replace('_', '-')}" in text
        assert spec.metadata["help"]
        if type(spec.default) in (int, float):
            assert spec.metadata["low"] <= spec.default <= spec.metadata["high"]


def test_written_toml_is_read_back():
    values = {"a": 'x"\\\n\x7f\u20ac', "b": True, "c": 1, "d": 1e-7, "e": ["x", 2.5]}
    assert parse(dump(values)) == values
    assert re.search(r"^# note$", dump({"a": 1}, {"a": "note"}), re.M)


@pytest.mark.parametrize(
    ("precision", "device", "units", "expected"),
    [
        ("auto", "cpu", {"amx_bf16": True}, "bf16"),
        ("auto", "cpu", {"amx_bf16": False}, "fp32"),
        ("auto", "cpu", {}, "fp32"),
        ("auto", "cpu", None, "fp32"),  # a PyTorch that cannot tell
        ("auto", "cuda", {}, "bf16"),
        ("bf16", "cpu", {}, "bf16"),
        ("fp32", "cuda", {"amx_bf16": True}, "fp32"),
    ],
)
def test_bf16_is_for_devices_that_are_faster_in_it(
    monkeypatch: pytest.MonkeyPatch, precision: str, device: str, units: dict[str, bool] | None, expected: str
) -> None:
    if units is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    assert precision_of(TrainingConfig(precision=precision), torch.device(device)) == expected


@pytest.mark.parametrize("arguments", [("--stage", "nope"), ("--nowhere", "1")])
def test_a_command_line_that_cannot_be_read_is_one_sentence(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    text = capsys.readouterr().err.strip()
    assert stop.value.code == 1 and "\n" not in text and arguments[0] in text and text.endswith("`train_hypernet.py --help`.")
