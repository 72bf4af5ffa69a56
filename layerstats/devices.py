"""Where to compute: the name of a device, checked."""

from __future__ import annotations

import torch

from layerstats.errors import UsageError

__all__ = ["check_device"]


def check_device(name: str) -> torch.device:
    """Return the torch device of a name, refusing one that is unknown or not there.

    Raises
    ------
    UsageError
        Neither cpu nor cuda, or more CUDA devices than there are.

    Examples
    --------
    >>> check_device("cpu")
    device(type='cpu')
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        msg = f"unknown device {name!r}; give cpu, cuda or cuda:N"
        raise UsageError(msg) from error
    if device.type not in ("cpu", "cuda"):
        msg = f"device {name!r} is not supported; give cpu, cuda or cuda:N"
        raise UsageError(msg)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        msg = f"device {name!r} is not there: torch sees {count} CUDA devices; give cpu"
        raise UsageError(msg)
    return device
