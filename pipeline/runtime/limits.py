"""Limits of a process, raised as far as the system allows."""

import resource

from pipeline.errors import ConfigError


def allow_open_files(needed: int, cure: str) -> None:
    """Raise this process's limit of open files to `needed`; raises ConfigError if it may not be that high."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        except (ValueError, OSError):
            raise ConfigError(
                f"this needs up to {needed} open files, but the system allows {hard}: {cure}, "
                "or raise the limit (ulimit -Hn, as the administrator)"
            ) from None
