"""Settings from what a user writes: a TOML file, or the text of a flag."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from ..toml_files import parse
from .config import ConfigError, TrainingConfig, check_names


def read_config(path: str | Path) -> dict[str, Any]:
    """The keys and values of a TOML file of settings, names checked. Raises ConfigError."""
    path = Path(path)
    try:
        values = parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            f"The settings {path} cannot be read ({error.strerror or error}), expected a TOML file: check the path."
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"The settings {path} are not proper TOML ({str(error).rstrip('.')}), expected lines like `steps = "
            "2000`: correct it."
        ) from error
    check_names(values, str(path))
    return values


def parse_value(name: str, text: str) -> Any:
    """The value of a flag's text in the type of its field. Raises ConfigError."""
    default: Any = next(spec.default for spec in fields(TrainingConfig) if spec.name == name)
    if isinstance(default, bool):
        if text.lower() in ("true", "yes", "1", "on"):
            return True
        if text.lower() in ("false", "no", "0", "off"):
            return False
        raise ConfigError(f"{name} is '{text}', expected true or false: correct it.")
    if isinstance(default, str):
        return text
    try:
        return type(default)(text)
    except ValueError:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise ConfigError(f"{name} is '{text}', expected {kind}: correct it.") from None
