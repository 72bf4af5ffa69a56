"""Runs by itself, with the standard library only: generators of word problems -> jsonl files.

`python problem_writer.py PACKAGE OUT COUNTS`: PACKAGE holds the files of reasoning-gym in `FILES`
and what they import, COUNTS is JSON, file -> number of problems. The last file gets templates that
the others do not. What is drawn here is drawn with `Random.random`, whose numbers Python promises
to keep; the generators draw with `randint` and `choice`, which have long stayed the same.
"""

import ast
import importlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

_FOLDER = "reasoning_gym/arithmetic/gsm_symbolic"
_GENERATORS = ("generators_00_49", "generators_50_99")
#: What is read or imported of the package.
FILES = tuple(f"{_FOLDER}/{name}.py" for name in ("gsm_symbolic", *_GENERATORS))
#: Share of the templates that are kept for the last file: one in so many.
_NEW_ONE_IN = 8
_TRIES = 200

_ENDS_WITH_NUMBER = re.compile(r"\n#### (-?[0-9][0-9,]*(?:\.[0-9]+)?)$")
_LONG_DECIMALS = re.compile(r"\.[0-9]{7}")

Generator = Callable[[Random, float], dict[str, Any]]
Problem = dict[str, Any]


def read_generators(package: Path) -> dict[int, Generator]:
    """Return the generators that the package lists as sound, by the number of their template."""
    source = (package / FILES[0]).read_text(encoding="utf-8")
    sound = next(
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "tasks_ok"
    )
    sys.path.insert(0, str(package))
    modules = [
        importlib.import_module(f"{_FOLDER}/{name}".replace("/", ".")) for name in _GENERATORS
    ]
    found = {
        int(name.removeprefix("generate_")): value
        for module in modules
        for name, value in vars(module).items()
        if re.fullmatch("generate_[0-9]+", name)
    }
    return {number: found[number] for number in sorted(sound)}


def shuffled(values: Iterable[Any], seed: int) -> list[Any]:
    """Return the values in an order drawn from the seed."""
    draw = Random(seed)
    return [value for _, _, value in sorted((draw.random(), n, v) for n, v in enumerate(values))]


def acceptable(question: str, answer: str) -> bool:
    r"""Tell whether a problem ends in a number of at least 0 and has no endless decimals.

    Examples
    --------
    >>> [acceptable("q", text) for text in ("a\n#### 3", "a\n#### -3", "a", "0.3333333\n#### 1")]
    [True, False, False, False]
    """
    found = _ENDS_WITH_NUMBER.search(answer)
    return (
        found is not None
        and not found[1].startswith("-")
        and not _LONG_DECIMALS.search(question + answer)
    )


def draw_problems(
    generators: dict[int, Generator], templates: list[int], seed: int, seen: set[str]
) -> Iterator[Problem]:
    """Yield problems, the templates in turn, of questions that are not yet in `seen`.

    A template that gives nothing new in many tries is left out from then on.
    """
    left = list(templates)
    tries = itertools.count()
    for turn in itertools.count():
        if not left:
            return
        for number in list(left):
            for _ in range(_TRIES):
                made = generators[number](Random(f"{seed}/{number}/{turn}/{next(tries)}"), 1.0)
                question, answer = made["question"], made["metadata"]["answer_cot"]
                if question not in seen and acceptable(question, answer):
                    seen.add(question)
                    yield {"question": question, "answer": answer, "template": number}
                    break
            else:
                left.remove(number)


def write(package: Path, out: Path, counts: dict[str, int]) -> None:
    """Write the files; no question is in two of them."""
    generators = read_generators(package)
    order = shuffled(generators, seed=0)
    new = len(order) // _NEW_ONE_IN
    seen: set[str] = set()
    *common, last = counts
    for seed, file in enumerate(counts, 1):
        templates = order[:new] if file == last and common else order[new:]
        problems = itertools.islice(draw_problems(generators, templates, seed, seen), counts[file])
        lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in problems]
        if len(lines) < counts[file]:
            msg = f"{file}: only {len(lines)} of {counts[file]} problems"
            raise ValueError(msg)
        text = "".join(shuffled(lines, seed))
        (out / file).write_bytes(text.encode("utf-8"))


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
