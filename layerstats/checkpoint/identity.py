"""Which weights a checkpoint holds, told without reading them all."""

from __future__ import annotations

import hashlib

from layerstats.checkpoint.index import CheckpointIndex
from layerstats.errors import CheckpointError

__all__ = ["weights_sample_hash"]

_SAMPLE_BYTES = 4096


def weights_sample_hash(index: CheckpointIndex) -> str:
    """Return a sha256 over both ends (4 KiB each) of every tensor.

    Fine-tunes of one model have the same headers, so the header hash cannot tell them apart; this
    can, at the price of two short reads a tensor.

    Raises
    ------
    CheckpointError
        A file cannot be read.
    """
    digest = hashlib.sha256()
    for file in index.files:
        entries = sorted(
            (entry for entry in index.entries.values() if entry.file == file),
            key=lambda entry: entry.offset,
        )
        try:
            with file.open("rb") as stream:
                for entry in entries:
                    digest.update(entry.name.encode())
                    size = min(_SAMPLE_BYTES, entry.nbytes)
                    for start in (entry.offset, entry.offset + entry.nbytes - size):
                        stream.seek(start)
                        digest.update(stream.read(size))
        except OSError as error:
            msg = f"{file}: cannot be read ({error.strerror})"
            raise CheckpointError(msg) from error
    return digest.hexdigest()
