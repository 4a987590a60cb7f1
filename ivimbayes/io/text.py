"""Small text files, and text for messages."""

import json
from typing import Any


def read_json(text: str) -> Any:
    """Parse JSON; what is nested too deeply is a `ValueError`, as all else that is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def by(shape: tuple[int, ...]) -> str:
    """Write a shape in words."""
    return " x ".join(map(str, shape))


def one_line(error: BaseException) -> str:
    """Give an error's message in one line, not too long."""
    return " ".join(str(error).split())[:120] or type(error).__name__
