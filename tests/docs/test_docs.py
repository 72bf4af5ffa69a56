"""The documentation names everything there is, its links lead somewhere, its commands run."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import layerstats
from layerstats.cli import app, run

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
#: In the order in which a reader follows them: later pages use what earlier ones wrote.
FOLLOWED = ("quickstart", "schedules", "training", "memory", "pictures")


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """docs/ext/reference.py, which makes the generated pages and needs no Sphinx."""
    spec = importlib.util.spec_from_file_location("reference", DOCS / "ext" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def generated(reference: ModuleType) -> dict[str, str]:
    pages: dict[str, str] = reference.pages()
    return pages


def public_names(file: Path) -> list[str]:
    """The names of a module's `__all__`, or what it imports `as` itself; read from its source."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    for node in body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id == "__all__":
            return list(ast.literal_eval(node.value))  # type: ignore[attr-defined]
    imports = [alias for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]
    return [alias.name for alias in imports if alias.asname == alias.name]


def doors() -> list[tuple[str, list[str]]]:
    """(room, names) of each room; a room whose door is empty is used through its modules."""
    package = ROOT / "layerstats"
    found = []
    for path in sorted(package.iterdir()):
        if path.name.startswith("_") or not (
            path.suffix == ".py" or (path / "__init__.py").exists()
        ):
            continue
        files = [path] if path.is_file() else [path / "__init__.py", *path.glob("*/__init__.py")]
        names = [name for file in files for name in public_names(file)]
        if path.is_dir() and not names:
            names = [name for file in path.glob("*.py") for name in public_names(file)]
        found.append((path.stem, names))
    return found


@pytest.mark.parametrize(("room", "names"), doors(), ids=[room for room, _ in doors()])
def test_every_public_name_of_a_room_is_on_its_page(
    room: str, names: list[str], generated: dict[str, str]
) -> None:
    entries = re.findall(r"^\.\. (?:auto\w+|py:data):: (\S+)", generated[f"api/{room}.rst"], re.M)
    assert len(entries) == len(set(entries))
    missing = set(names) - {entry.split(".")[-1] for entry in entries}
    assert not missing
    assert names


def test_the_front_door_is_listed_and_each_name_leads_to_its_entry(
    generated: dict[str, str], reference: ModuleType
) -> None:
    documented = reference.documented()
    for name in layerstats.__all__:
        [home] = re.findall(rf"`ls\.{name} <(\S+)>`", generated["api.md"])
        assert home in documented


def test_every_command_and_option_is_in_the_reference(generated: dict[str, str]) -> None:
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert len(names) > 8
    for name in names:
        assert f"## layerstats {name}\n" in generated["cli.md"]
    assert "--expected-active" in generated["cli.md"]


def test_the_tables_name_every_registered_entry(generated: dict[str, str]) -> None:
    from layerstats import metrics, plots
    from layerstats.schedules import LAWS, RULES
    from layerstats.schedules.exporters import EXPORTERS
    from layerstats.train import METHODS

    registries = {
        "metrics": metrics.METRICS,
        "rules": RULES,
        "sampling": LAWS,
        "exporters": EXPORTERS,
        "plots": plots.available(),
        "methods": METHODS,
    }
    for table, names in registries.items():
        rows = generated[f"tables/{table}.md"].splitlines()[2:]
        assert [re.match(r"\| `(.+?)` \|", row)[1] for row in rows] == list(names)  # type: ignore[index]
        assert len({row.replace("\\|", "").count("|") for row in rows}) == 1
        pages = [page.name for page in PAGES if f"tables/{table}.md" in page.read_text("utf-8")]
        assert len(pages) == 1, table


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path, generated: dict[str, str], reference: ModuleType) -> None:
    text = re.sub(r"```\w*\n.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    links += re.findall(r"\{download\}`[^<`]*<([^>]+)>`", text)
    links += re.findall(r"\{include\} (\S+)", page.read_text(encoding="utf-8"))
    for link in links:
        made = link.removeprefix("generated/") in generated
        assert link.startswith("https://") or made or (DOCS / link).exists(), link
    documented = {*reference.documented(), *(f"layerstats.{room}" for room, _ in doors())}
    for role in re.findall(r"\{py:\w+\}`(?:[^<`]*<)?([^>`]+)>?`", text):
        assert role in documented, role


def test_every_page_is_in_the_table_of_contents(generated: dict[str, str]) -> None:
    entries = re.findall(r"^([\w/]+)$", (DOCS / "index.md").read_text("utf-8"), re.M)
    assert {page.stem for page in PAGES} - {"index"} <= set(entries)
    rooms = re.findall(r"^(api/\w+)$", generated["api.md"], re.M)
    assert rooms == sorted(page.removesuffix(".rst") for page in generated if "api/" in page)


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_commands_and_python_run_on_a_checkpoint_of_ones_own(
    tmp_path: Path, moby_dick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a new reader would follow them, page by page in one directory; the model is tiny here."""
    from layerstats.demo_data import random_checkpoint

    random_checkpoint(tmp_path / "my-checkpoint")
    (tmp_path / "my-text.txt").write_text(moby_dick.read_text("utf-8")[:40_000], "utf-8")
    monkeypatch.chdir(tmp_path)
    count = 0
    for page in FOLLOWED:
        for block in blocks(page, "console"):
            block = block.replace("\\\n", " ")
            for command in re.findall(r"^\$ layerstats (.+)$", block, flags=re.MULTILINE):
                assert run(shlex.split(command)) == 0, command
                count += 1
        for code in blocks(page, "python"):
            exec(compile(code, f"docs/{page}.md", "exec"), {})
    assert count >= 15
    assert (tmp_path / "axolotl" / "axolotl-plugin.yml").exists()
    assert (tmp_path / "run" / "report.json").exists()


def test_docstrings_are_made_readable_and_code_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("sphinx", reason="Sphinx is not installed (dependency group docs)")
    monkeypatch.syspath_prepend(str(DOCS / "ext"))
    readable = importlib.import_module("docstrings").readable
    assert readable(["The norm ||W||_F of `a|b`, in meta.json."])[0] == (
        r"The norm \|\|W\|\|_F of `a|b`, in ``meta.json``."
    )
    assert readable(["*This* is 2*a*b."])[0] == r"*This* is 2\*a\*b."
    code = [">>> 1 | 2", "3"]
    assert readable(code)[:2] == code
    formula = ["   .. math:: |a|", "   + b"]
    assert readable(formula)[0] == "   .. math:: |a| + b"
    table = ["a.py    one", "bc.py   two"]
    assert readable(table)[:2] == ["``a.py``    one", "``bc.py``   two"]
    assert readable(table, tables=True)[2:4] == ["    a.py    one", "    bc.py   two"]


def test_sphinx_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="Sphinx is not installed (dependency group docs)")
    pytest.importorskip("myst_parser", reason="myst-parser is not installed (group docs)")
    pytest.importorskip("furo", reason="furo is not installed (dependency group docs)")
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-b", "html"]
    command += ["-d", str(tmp_path / "trees"), str(DOCS), str(tmp_path / "html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "html" / "generated" / "api" / "schedules.html").read_text("utf-8")
    assert 'id="layerstats.schedules.Schedule.active_layers"' in page
    loaded = re.findall(r'(?:src|href)="(https?://[^"]+)"[^>]*>', page)
    assert not [url for url in loaded if url.endswith((".js", ".css"))], "needs the network"
