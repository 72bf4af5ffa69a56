"""Silence around transformers: nothing is printed, and every global switch is put back."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["quiet"]

#: transformers reads this switch to load without a thread pool; then one tensor at a time is in
#: flight.
_SERIAL_LOADING = "HF_DEACTIVATE_ASYNC_LOAD"


@contextmanager
def quiet(device: torch.device) -> Iterator[None]:
    """Silence transformers and keep its hands off global state; everything is as before afterwards.

    Covers its verbosity, progress bars, Python warnings, serial loading, random state, thread
    count, and (on CUDA) deterministic kernels.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_bars_off, threads = are_progress_bars_disabled(), torch.get_num_threads()
    serial = os.environ.get(_SERIAL_LOADING)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cuda = [device] if device.type == "cuda" else []
    with warnings.catch_warnings(), torch.random.fork_rng(devices=cuda), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            torch.manual_seed(0)
            logging.set_verbosity_error()
            logging.disable_progress_bar()
            os.environ[_SERIAL_LOADING] = "1"
            if cuda:
                # Experts add their results with index_add, which by default sums in any order on
                # CUDA.
                torch.use_deterministic_algorithms(True, warn_only=True)
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.set_num_threads(threads)
            if serial is None:
                os.environ.pop(_SERIAL_LOADING, None)
            else:
                os.environ[_SERIAL_LOADING] = serial
            if bars:
                logging.enable_progress_bar()
            if hub_bars_off:
                disable_progress_bars()
            logging.set_verbosity(verbosity)
