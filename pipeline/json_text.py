"""JSON that may be anyone's: text that is nested too deeply is as damaged as text that is cut."""

import json
from typing import Any


def load_json(text: str | bytes) -> Any:
    """Return the value of JSON text; raises ValueError for anything else, however nested."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
