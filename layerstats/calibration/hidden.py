"""The hidden states of all windows between two blocks: in memory, or on disk above a budget.

The temporary file has no name as soon as it is open (POSIX), so it goes with the process however it
ends. It is read and written window by window; it is not mapped, so its pages never count as memory
of the process.
"""

from __future__ import annotations

import io
import tempfile
from types import TracebackType
from typing import Any

import torch

from layerstats.errors import LayerstatsError

__all__ = ["HiddenStates"]


class HiddenStates:
    """Keep one tensor per window, all of the same shape and dtype.

    Parameters
    ----------
    count
        Number of windows.
    budget_bytes
        Total size above which the states live in a temporary file (in `TMPDIR`).
    """

    def __init__(self, count: int, *, budget_bytes: int) -> None:
        self.count = count
        self.budget_bytes = budget_bytes
        self._memory: list[torch.Tensor | None] = [None] * count
        self._file: io.FileIO | None = None
        self._like: torch.Tensor | None = None

    @property
    def on_disk(self) -> bool:
        """Whether the states were spilled."""
        return self._file is not None

    def put(self, window: int, state: torch.Tensor) -> None:
        """Keep the state of a window (moved to the CPU); it replaces the one before."""
        state = state.detach().to("cpu").contiguous()
        if self._like is None:
            self._like = torch.empty_like(state, device="meta")
            total = self.count * state.numel() * state.element_size()
            if total > self.budget_bytes:
                self._file = self._open(total)
        elif state.shape != self._like.shape or state.dtype != self._like.dtype:
            before, now = tuple(self._like.shape), tuple(state.shape)
            msg = f"hidden states change from {before} to {now} between windows"
            raise LayerstatsError(msg)
        if self._file is None:
            self._memory[window] = state
            return
        self._seek(window)
        rest = _bytes_of(state)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._no_room(error) from error

    def get(self, window: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the state of a window on a device; the caller may overwrite it."""
        if self._file is None:
            state = self._memory[window]
            assert state is not None
            return state.to(device)
        assert self._like is not None
        state = torch.empty_like(self._like, device="cpu")
        self._seek(window)
        rest = _bytes_of(state)
        while rest:
            done = self._file.readinto(rest)
            if not done:
                msg = "the temporary file of hidden states was cut short by someone else"
                raise LayerstatsError(msg)
            rest = rest[done:]
        return state.to(device)

    def close(self) -> None:
        """Forget everything and delete the file."""
        self._memory = []
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> HiddenStates:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _seek(self, window: int) -> None:
        assert self._file is not None
        assert self._like is not None
        self._file.seek(window * self._like.numel() * self._like.element_size())

    def _open(self, total: int) -> io.FileIO:
        file: io.FileIO | None = None
        try:
            # Unbuffered: what cannot be written is told here and not at close.
            file = tempfile.TemporaryFile(prefix="layerstats-", buffering=0)  # noqa: SIM115
            file.truncate(total)
        except OSError as error:
            if file is not None:
                file.close()
            raise self._no_room(error) from error
        return file

    def _no_room(self, error: OSError) -> LayerstatsError:
        return LayerstatsError(
            f"cannot keep the hidden states in {tempfile.gettempdir()} ({error.strerror}); "
            "set TMPDIR to a roomier disk, raise hidden_budget_bytes or ask for fewer samples"
        )


def _bytes_of(state: torch.Tensor) -> memoryview[Any]:
    """View a contiguous CPU tensor as bytes (also bfloat16, which numpy does not know)."""
    return state.view(torch.uint8).numpy().reshape(-1).data
