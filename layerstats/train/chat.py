"""A conversation -> text in parts: what the assistant says is trained on, the rest is only read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["BadExample", "ChatTemplate", "Conversation", "conversation", "find_template"]

Parts = tuple[tuple[str, bool], ...]
Messages = list[dict[str, Any]]


class BadExample(Exception):
    """A line that cannot be used; it is counted and named, and reading goes on."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """The text of a conversation in (text, trained on) parts.

    `begin` and `end` say whether BOS and EOS are still to be put around it.
    """

    parts: Parts
    begin: bool
    end: bool


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The chat template of a tokenizer."""

    tokenizer: Any

    def render(self, messages: Messages, *, open_turn: bool = False) -> str:
        """Return the text of messages; with `open_turn` it ends where the assistant begins.

        Raises
        ------
        BadExample
            The template refuses the messages.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=open_turn
            )
        except Exception as error:  # a template raises what it likes
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
            msg = f"the chat template refuses it: {reason}"
            raise BadExample(msg) from error
        return str(text)


def find_template(tokenizer: Any) -> ChatTemplate | None:
    """Return the tokenizer's chat template, or None if it has none."""
    return ChatTemplate(tokenizer) if getattr(tokenizer, "chat_template", None) else None


def conversation(messages: Any, template: ChatTemplate | None) -> Conversation:
    r"""Cut a conversation into parts, through a chat template or in plain words.

    Plain: each turn is its role and content, ``User: ...``, with a blank line between turns. An
    assistant's turn begins to count after ``Assistant:`` and ends with the blank line or EOS.

    Parameters
    ----------
    messages
        List of ``{"role": str, "content": str}``, at least one of them the assistant's.
    template : ChatTemplate or None

    Raises
    ------
    BadExample
        The messages are something else, or the template refuses or rewrites them.

    Examples
    --------
    >>> turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    >>> conversation(turns, None).parts
    (('User: 2 + 2?\n\nAssistant:', False), (' 4', True))
    """
    _check(messages)
    if template is None:
        return Conversation(_plain_parts(messages), begin=True, end=True)
    parts = _template_parts(messages, template)
    eos = getattr(template.tokenizer, "eos_token", None)
    spoken = [text for text, trained in parts if trained]
    # Where the template's sign for the end of a turn is EOS, a second one would be wrong.
    return Conversation(parts, begin=False, end=not (eos and eos in spoken[-1]))


def _check(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        msg = "messages is not a list of turns"
        raise BadExample(msg)
    spoken = 0
    for number, message in enumerate(messages, 1):
        fields = message if isinstance(message, dict) else {}
        role, content = fields.get("role"), fields.get("content")
        if not isinstance(role, str) or not role.strip() or not isinstance(content, str):
            msg = f"message {number} has no role and content that are text"
            raise BadExample(msg)
        if role == "assistant":
            spoken += 1
            if not content.strip():
                msg = f"message {number}: the assistant's content is empty"
                raise BadExample(msg)
    if not spoken:
        msg = "no message of the assistant"
        raise BadExample(msg)


def _plain_parts(messages: Messages) -> Parts:
    parts: list[tuple[str, bool]] = []
    read = ""
    for number, message in enumerate(messages):
        read += f"{message['role'].capitalize()}:"
        gap = "" if number == len(messages) - 1 else "\n\n"
        said = f" {message['content']}{gap}"
        if message["role"] == "assistant":
            parts += [(read, False), (said, True)]
            read = ""
        else:
            read += said
    return (*parts, (read, False)) if read else tuple(parts)


def _template_parts(messages: Messages, template: ChatTemplate) -> Parts:
    """Find the assistant's turns in the text of the whole conversation.

    A turn begins where the text of the messages before it ends, with the opening of an answer, and
    reads as it does at the end of a conversation: opening, content, closing. Some templates
    (Qwen3's) put more before the content of the last turn than of earlier ones.
    """
    whole = template.render(messages)
    parts: list[tuple[str, bool]] = []
    done = 0
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = template.render(messages[:number], open_turn=True)
        alone = template.render(messages[: number + 1])
        content = message["content"].strip()
        at = alone.find(content, len(before))
        turns = [alone[len(before) :], alone[at:]] if at >= 0 else []
        found = [turn for turn in turns if whole.startswith(turn, len(before))]
        if not (found and whole.startswith(before) and alone.startswith(before)):
            msg = f"the chat template rewrites message {number + 1}; give it as prompt+response"
            raise BadExample(msg)
        parts += [(whole[done : len(before)], False), (found[0], True)]
        done = len(before) + len(found[0])
    return (*parts, (whole[done:], False)) if done < len(whole) else tuple(parts)
