"""weightwatcher's own alpha of one matrix: a second opinion, imported only when asked for.

The package prints on import and on every call, warns, and keeps module-wide state, so all of it is
kept behind a lock here.
"""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from typing import TYPE_CHECKING

from layerstats.errors import MissingError

if TYPE_CHECKING:
    import torch

__all__ = ["alpha"]

_LOCK = threading.Lock()


def alpha(weight: torch.Tensor) -> float:
    """Return the alpha that `weightwatcher.WeightWatcher().analyze` gives for one matrix.

    Parameters
    ----------
    weight
        Shape (out_features, in_features), floating point. weightwatcher reads it as float32, takes
        a float64 SVD, drops eigenvalues up to 1e-5 and searches xmin over all others; with fewer
        than 20 it uses another fit.

    Returns
    -------
    float
        Exponent; NaN where weightwatcher makes no fit.

    Raises
    ------
    MissingError
        The package is not installed.

    References
    ----------
    Martin, Peng, Mahoney (2021), Nature Communications 12, 4122.
    """
    with (
        _LOCK,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        return _analyze(weight)


def _analyze(weight: torch.Tensor) -> float:
    # weightwatcher attaches a handler to the root logger when imported; the caller's logging must
    # stay as it was.
    warnings.simplefilter("ignore")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        try:
            from weightwatcher import WeightWatcher
        except ImportError as error:
            msg = "alpha_weightwatcher needs a package: pip install weightwatcher"
            raise MissingError(msg) from error
        watcher = WeightWatcher(log_level=logging.CRITICAL)
        logging.getLogger("weightwatcher").setLevel(logging.CRITICAL)
        details = watcher.analyze(model={"matrix.weight": weight.float().cpu()})
    finally:
        root.handlers, root.level = handlers, level
    if len(details) != 1 or details["status"].iloc[0] != "success":
        return float("nan")
    return float(details["alpha"].iloc[0])
