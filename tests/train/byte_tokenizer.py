"""A byte-level tokenizer of transformers, with or without BOS, EOS and chat template."""

from __future__ import annotations

from typing import Any

__all__ = ["BOS", "CHATML", "EOS", "REWRITING", "byte_tokenizer"]

BOS, EOS = 256, 257

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
#: Puts an empty thought before the last answer only, as Qwen3's does.
REWRITING = (
    "{% for m in messages %}<|{{ m.role }}|>\n"
    "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}<end>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def byte_tokenizer(*, bos: bool = True, eos: bool = True, template: str | None = None) -> Any:
    """One token a byte, ids 0-255; `<s>` is put before a text unless told not to."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from layerstats.checkpoint.bpe_tokenizer import byte_alphabet

    vocabulary = {sign: number for number, sign in enumerate(byte_alphabet())}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<s>", "</s>"])
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", BOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>" if eos else None,
        chat_template=template,
    )
