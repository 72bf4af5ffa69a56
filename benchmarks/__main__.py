"""Run all benchmarks, or those named on the command line."""

from __future__ import annotations

import importlib
import sys

NAMES = ("streaming",)


def main(names: list[str]) -> None:
    for name in names or NAMES:
        if name not in NAMES:
            sys.exit(f"unknown benchmark {name!r}; available: {', '.join(NAMES)}")
        print(f"== {name}")
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
