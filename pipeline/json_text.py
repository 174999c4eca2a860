"""JSON as files of this project have it, and JSON that may be anyone's: too deep nesting is damage, too."""

import json
from typing import Any


def load_json(text: str | bytes) -> Any:
    """Return the value of JSON text; raises ValueError for anything else, however nested."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def json_bytes(values: Any) -> bytes:
    """Return values as the indented text of a JSON file."""
    return (json.dumps(values, indent=2) + "\n").encode()
