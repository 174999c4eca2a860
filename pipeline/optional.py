"""Libraries that only a part of the project needs. One may be missing, or fail in any way when imported."""

import importlib
from typing import Any

from pipeline.errors import ConfigError


def optional_library(what: str, name: str, package: str, otherwise: str = "") -> Any:
    """Import the library `name`, which `what` needs and `package` installs; raises ConfigError.

    `otherwise` ends the message with another way out.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:  # a damaged installation raises anything
        library, reason = name.partition(".")[0].replace("_", "-"), str(error).partition("\n")[0]
        state = f"cannot be imported ({type(error).__name__}: {reason}): install another version of it"
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            state = f"is not installed: pip install {package}"
        raise ConfigError(f"{what} needs {library}, which {state}{otherwise}") from None
