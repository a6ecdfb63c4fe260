"""Importing `transformers` beside a torchvision that does not fit the installed torch.

`transformers` imports torchvision for whatever model is asked for, as soon as it is installed. One that was built for another
torch stops there ("operator torchvision::nms does not exist"), although nothing here needs it: pictures are prepared as tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

NAME = "torchvision"


@contextmanager
def set_aside() -> Iterator[None]:
    """Inside the block a torchvision that cannot be imported looks as if it were not installed; a working one stays.

    What `transformers` then remembers is that there is none, so its first import belongs inside. Nothing is changed that
    outlives the block.
    """
    if works():
        yield
        return
    sys.modules[NAME] = None  # type: ignore[assignment]  # Python's own sign for "not there"
    try:
        yield
    finally:
        if sys.modules.get(NAME, NAME) is None:
            del sys.modules[NAME]


def works() -> bool:
    """Whether torchvision can be imported, or is not installed at all; what a failed import left behind is removed."""
    if sys.modules.get(NAME) is not None:
        return True
    before = set(sys.modules)
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name == NAME:
            return True
    except Exception:  # a broken installation fails in many ways
        pass
    else:
        return True
    for name in set(sys.modules) - before:
        if name.split(".")[0] == NAME:
            del sys.modules[name]
    return False
