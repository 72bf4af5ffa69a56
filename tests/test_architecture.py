"""The house rules that a machine can check: floors, circles, sizes, where prints and "
"heavy imports may stand."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "layerstats"
MODULES = sorted(PACKAGE.rglob("*.py"))

#: Room (first part of the module's path) -> floor. An import goes to a lower floor or stays in its
#: room.
FLOORS = {
    "errors": 0,
    "checkpoint": 1,
    "devices": 1,
    "numerics": 1,
    "stats": 1,
    "runs": 1,
    "weightwatcher_alpha": 1,
    "metrics": 2,
    "calibration": 2,
    "schedules": 2,
    "correlation": 2,
    "layer_switch": 2,
    "trust": 2,
    "measurement": 3,
    "plots": 3,
    "train": 3,
    "demo_data": 3,
    "report": 3,
    "integrations": 3,
    "cli": 4,
    "__main__": 5,
    "__init__": 5,
}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def name_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE.parent).with_suffix("")
    parts = list(relative.parts)
    if parts[-1] == "__init__" and len(parts) > 2:
        parts = parts[:-1]
    return ".".join(parts)


def imports(path: Path, *, at_top_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checked = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    nodes = (
        tree.body if at_top_only else [node for node in ast.walk(tree) if id(node) not in checked]
    )
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def inside(name: str) -> str | None:
    """The module of ours that an imported name stands for."""
    if name.split(".")[0] != "layerstats":
        return None
    known = {name_of(path) for path in MODULES}
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_only_go_down(path: Path) -> None:
    me = name_of(path)
    for target in {inside(name) for name in imports(path)} - {
        None,
        "layerstats",
        "layerstats.__init__",
    }:
        assert target is not None
        if room(target) != room(me):
            assert FLOORS[room(target)] < FLOORS[room(me)], f"{me} imports {target}"


def test_no_import_circles() -> None:
    graph = {
        name_of(path): {inside(n) for n in imports(path)} - {None, name_of(path)}
        for path in MODULES
    }

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        for target in graph[module]:
            # A room's own door imports its modules; that they sit below it is no circle.
            if target and target != "layerstats" and not module.startswith(target + "."):
                walk(target, (*trail, module))

    for module in graph:
        walk(module, ())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = node.body[0] if ast.get_docstring(node) else None
            first = (docstring.end_lineno or 0) + 1 if docstring else node.lineno
            assert (node.end_lineno or 0) - first < 60, f"{node.name} is too long"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_forbidden_words(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {name.split(".")[0] for name in imports(path)}
    if room(name_of(path)) != "plots":
        assert "matplotlib" not in top
    assert not top & {"pickle", "dill", "shelve"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "np.random.seed", "random.seed"}
            # torch's own random state may be set only where it is put back.
            assert called != "torch.manual_seed" or "fork_rng" in path.read_text(encoding="utf-8")
            if room(name_of(path)) != "cli":
                assert called != "print"
            remote = [keyword for keyword in node.keywords if keyword.arg == "trust_remote_code"]
            assert all(ast.unparse(keyword.value) == "False" for keyword in remote)


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import layerstats", {"torch", "matplotlib", "transformers", "weightwatcher", "pandas"}),
        (
            "from layerstats.cli import run; run(['inspect', 'nowhere'])",
            {"torch", "matplotlib", "pandas"},
        ),
        ("from layerstats.cli import run; run(['--help'])", {"torch", "matplotlib", "pandas"}),
        ("import layerstats.measurement", {"matplotlib", "transformers", "weightwatcher"}),
    ],
)
def test_light_doors_stay_light(code: str, absent: set[str]) -> None:
    script = f"import sys\n{code}\nprint(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not absent & set(done.stderr.split())
