"""One model without weights, of which one block at a time gets them: what the walks walk on.

`Stack` ties checkpoint, plan and meta model together: run the model around its blocks, load a
block, call it, free it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from layerstats.calibration import hf
from layerstats.calibration.embedding import RowFetch
from layerstats.checkpoint.stacks import canonical_names
from layerstats.errors import CheckpointError, LayerstatsError, MissingError, UsageError

if TYPE_CHECKING:
    from layerstats.checkpoint.reader import Checkpoint

__all__ = ["Stack"]


class _Reached(BaseException):
    """Raised where the first block would run."""


class Stack:
    """The text stack of a checkpoint with at most one block in memory.

    Parameters
    ----------
    checkpoint
        From `open_checkpoint`; its config.json is required.
    dtype, device
        Of weights and computation.

    Raises
    ------
    CheckpointError
        No config.json, quantised weights, an architecture that transformers does not know or that
        is an encoder-decoder, or weights that do not fit config.json.
    """

    def __init__(self, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device) -> None:
        self.checkpoint, self.dtype, self.device = checkpoint, dtype, device
        config = _usable_config(checkpoint)
        self.model = hf.build_model(config, checkpoint.index.directory, dtype=dtype)
        self.config = self.model.config.get_text_config(decoder=True)
        self._prefix, self.decoder = hf.find_decoder(self.model)
        name, self.blocks = hf.find_blocks(self.decoder, self.config)
        self.layers_path = f"{self._prefix}.{name}" if self._prefix else name
        shapes = {name: entry.shape for name, entry in checkpoint.index.entries.items()}
        self.plan = hf.make_plan(self.model, canonical_names(shapes))
        self._of_block: list[list[str]] = [[] for _ in self.blocks]
        outside: list[str] = []
        start = self._prefix + "." if self._prefix else ""
        for stored, target in self.plan.target.items():
            block = self._block_of(target)
            if block is not None:
                self._of_block[block].append(stored)
            elif target.startswith(start):
                outside.append(stored)
        self._tables = self._find_tables()
        lazy = set(self._tables.values())
        self._load([name for name in outside if name not in lazy])
        hf.make_buffers_real(self.model, self.decoder, device=device, skip=self.blocks)

    def run(self, ids: torch.Tensor) -> None:
        """Run the model around its blocks, which the caller has replaced, on token ids."""
        accepted = inspect.signature(self.decoder.forward).parameters
        options = {"use_cache": False} if "use_cache" in accepted else {}
        fetch = RowFetch(
            self._tables,
            lambda name, rows: self.checkpoint.read_some_rows(name, rows.tolist()),
            self.device,
            tokens=id(self.model.get_input_embeddings().weight),
        )
        with torch.no_grad(), fetch if self._tables else nullcontext():
            self.decoder(input_ids=ids.to(self.device), **options)

    def settle(self, ids: torch.Tensor) -> None:
        """Try whether rows of the embedding are enough to reach the blocks; load all of it if not.

        Raises
        ------
        LayerstatsError
            It comes there neither way.
        """
        error = self._reaches_blocks(ids)
        if error is None:
            return
        if isinstance(error, LayerstatsError) or not self._tables:
            raise self._failure(error, ids.shape[1]) from error
        names, self._tables = list(self._tables.values()), {}
        self._load(names)
        error = self._reaches_blocks(ids)
        if error is not None:
            raise self._failure(error, ids.shape[1]) from error

    def _reaches_blocks(self, ids: torch.Tensor) -> Exception | None:
        def forward(*args: Any, **kwargs: Any) -> None:
            state = args[0] if args else kwargs.get("hidden_states")
            if isinstance(state, torch.Tensor) and state.is_meta:
                msg = "its embedding has no values"
                raise RuntimeError(msg)
            raise _Reached

        with self.in_place_of_blocks(lambda _: forward):
            try:
                self.run(ids)
            except _Reached:
                return None
            except Exception as error:
                return error
        return RuntimeError("it calls none of its blocks")

    @contextmanager
    def in_place_of_blocks(self, make: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
        """Replace the forward of every block for the time of the context."""
        try:
            for number, block in enumerate(self.blocks):
                block.forward = make(number)
            yield
        finally:
            for block in self.blocks:
                block.__dict__.pop("forward", None)

    def load_block(self, number: int) -> dict[str, torch.Tensor]:
        """Load one block and return its parameters by their name in the model."""
        block = self.blocks[number]
        self._load(self._of_block[number])
        hf.make_buffers_real(self.model, block, device=self.device)
        prefix = f"{self.layers_path}.{number}."
        parameters: dict[str, torch.Tensor] = {
            prefix + name: value for name, value in block.named_parameters()
        }
        absent = [name for name, value in parameters.items() if value.is_meta]
        if absent:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            msg = (
                f"block {number}: no tensor of the checkpoint gives {absent[0]}{more}; "
                "the file is incomplete or stores this block's weights once for several blocks"
            )
            raise CheckpointError(msg)
        return parameters

    def free_block(self, number: int) -> None:
        """Give back the memory of one block."""
        hf.free(self.blocks[number])

    def block_prefix(self, target: str) -> str:
        """Return the name up to the block of one of its parameters, as in `model.layers.3.`."""
        return f"{self.layers_path}.{self._block_of(target)}."

    def parameter_shapes(self) -> Iterator[tuple[str, torch.Size]]:
        """Yield name and shape of each parameter of the blocks."""
        for number, block in enumerate(self.blocks):
            for name, value in block.named_parameters():
                yield f"{self.layers_path}.{number}.{name}", value.shape

    @property
    def attention(self) -> str:
        """The attention kernel that transformers chose: sdpa, eager, …."""
        return str(getattr(self.config, "_attn_implementation", None))

    @property
    def bidirectional(self) -> bool:
        """Whether every token sees every other (BERT-likes that are not decoders)."""
        return getattr(self.config, "is_decoder", None) is False and "bert" in str(
            self.config.model_type
        )

    def _failure(self, error: Exception, seq_len: int) -> LayerstatsError:
        if isinstance(error, LayerstatsError):
            return error
        left_out = {id(value) for block in self.blocks for value in block.parameters()}
        tables = set(self._tables)
        absent = [
            name
            for name, value in self.decoder.named_parameters(prefix=self._prefix)
            if value.is_meta and id(value) not in left_out and id(value) not in tables
        ]
        if absent:
            return CheckpointError(
                f"no tensor of the checkpoint gives {absent[0]}; the file is incomplete"
            )
        if isinstance(error, IndexError) or "out of bounds" in str(error):
            # RoBERTa starts to count its positions at 2, so that it has fewer than its config says.
            msg = (
                f"seq_len={seq_len} asks for more positions than the model has ({error}); "
                "pass a smaller seq_len (--seq-len)"
            )
            return UsageError(msg)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return LayerstatsError(
            f"{type(self.decoder).__name__} does not run on token ids alone: {lines[0]}"
        )

    def _load(self, names: list[str]) -> None:
        hf.load(
            self.model,
            self.plan,
            names,
            read=self.checkpoint.read,
            device=self.device,
            dtype=self.dtype,
        )

    def _block_of(self, target: str) -> int | None:
        rest = target.removeprefix(self.layers_path + ".")
        number = rest.partition(".")[0]
        if rest == target or not number.isdigit() or int(number) >= len(self.blocks):
            return None
        return int(number)

    def _find_tables(self) -> dict[int, str]:
        """Find embedding tables that can be read row by row: id of the parameter -> stored name."""
        if self.checkpoint.index.format != "safetensors":
            return {}
        inside = {id(module) for block in self.blocks for module in block.modules()}
        tables: dict[int, str] = {}
        for path, module in self.decoder.named_modules(prefix=self._prefix):
            if (
                not isinstance(module, nn.Embedding)
                or id(module) in inside
                or module.max_norm is not None
            ):
                continue
            sources = self.plan.sources(f"{path}.weight")
            if len(sources) == 1 and self.plan.pattern[sources[0]] is None:
                self._check_table(sources[0], module)
                tables[id(module.weight)] = sources[0]
        return tables

    def _check_table(self, name: str, module: nn.Embedding) -> None:
        stored, expected = self.checkpoint.index.entries[name].shape, tuple(module.weight.shape)
        if stored != expected:
            msg = (
                f"{name}: the file holds shape {list(stored)}, "
                f"config.json makes it {list(expected)}; "
                "weights and config.json do not belong together"
            )
            raise CheckpointError(msg)


def _usable_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return config.json, refusing what cannot be computed with."""
    directory = checkpoint.index.directory
    if checkpoint.config is None:
        msg = (
            f"{directory}: no config.json, without which the model cannot be run; "
            "put the model's config.json and tokenizer there, or leave out metrics of activations"
        )
        raise MissingError(msg)
    config = dict(checkpoint.config)
    if not config.get("model_type"):
        msg_0 = f"{directory}/config.json: no model_type, so the architecture is unknown"
        raise CheckpointError(msg_0)
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    for part in parts:
        for key in ("quantization_config", "compression_config"):
            if part.get(key):
                method = part[key].get("quant_method", key) if isinstance(part[key], dict) else key
                msg = (
                    f"{directory}: the weights are quantised ({method}); activations are "
                    "calibrated on unquantised weights only: dequantise the checkpoint first"
                )
                raise CheckpointError(msg)
    for matrix in checkpoint.layout.matrices:
        if matrix.layer is not None and matrix.scale_name is not None:
            msg = (
                f"{directory}: {matrix.name} is stored in {matrix.dtype} with a scale; "
                "activations are calibrated on unquantised weights only: dequantise it first"
            )
            raise CheckpointError(msg)
    return config
