"""What holds the rooms apart: who imports whom, who touches what, and how long things get."""

import ast
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "batchline"

BELOW = {
    "models": set(),
    "storage": {"models"},
    "upstream": {"models"},
    "steps": {"models", "storage", "upstream"},
    "sources": {"models", "storage", "upstream", "steps"},
    "orchestration": {"models", "storage", "upstream", "steps"},
    "tasks": {"models", "storage", "upstream", "steps", "orchestration"},
    "operations": {"models", "storage", "upstream", "steps", "sources", "orchestration"},
    "flows": {
        *("models", "storage", "upstream", "steps", "sources", "orchestration", "tasks", "operations"),
    },
    "simulate": {"models"},
    "api": {"models", "storage", "upstream", "operations"},
    "web": {"models", "storage", "steps", "operations", "api"},
    "cli": {
        *("models", "storage", "upstream", "steps", "sources", "orchestration", "tasks", "flows", "operations"),
        *("simulate", "api", "web"),
    },
}
"""From each room, the rooms that it may import beside itself."""

GATES = {
    "pyreqwest": {"upstream/pyreqwest_transport.py"},
    "httpx": {"upstream/httpx_transport.py"},
    "fsspec": {"storage/"},
    "s3fs": {"storage/s3.py"},
    "botocore": {"storage/s3.py"},
    "aiohttp": {"storage/s3.py"},
    "sqlalchemy": {"storage/"},
    "alembic": {"storage/database.py", "storage/migrations/"},
    "rich": {"cli/"},
    "cyclopts": {"cli/"},
    "pandas": {"steps/"},
    "genai_prices": {"steps/prices.py"},
    "jinja2": {"steps/report/", "web/rendering.py"},
    "fastapi": {"api/", "web/"},
    "starlette": {"api/", "web/"},
    "uvicorn": {"api/", "cli/prefect_server.py"},
    "python_multipart": {"api/upload.py"},
    "prometheus_client": {"api/metrics.py"},
}
"""From each library to the files that alone may import it, or folders where the name ends in a slash."""

WITHOUT_PREFECT = ("models", "storage", "upstream", "steps", "sources", "simulate")

READS_ENVIRONMENT = {
    "models/settings.py",
    # It sets Prefect's variables before Prefect is imported, and reads none of ours.
    "cli/prefect_run.py",
}

SLOW_TO_IMPORT = ("alembic", "boto3", "botocore", "jinja2", "matplotlib", "pandas", "prefect", "pyarrow", "s3fs")


class Source(NamedTuple):
    """A file of the package; `name` is its path below it, `room` the first part of that."""

    name: str
    room: str
    text: str
    tree: ast.Module


def _sources() -> list[Source]:
    found = []
    for room in sorted(path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"):
        # `rglob` does not follow the links to the three rooms at the top level, so each is resolved first.
        for path in sorted(room.resolve().rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            name = f"{room.name}/{path.relative_to(room.resolve())}"
            found.append(Source(name, room.name, text, ast.parse(text, name)))
    return found


SOURCES = _sources()


def imported(tree: ast.Module) -> Iterator[str]:
    """The full names of all modules that the file imports anywhere in it, relative ones with their dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from batchline.steps import lifecycle` may name a module or a thing in one: take the longer form.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms_of(source: Source) -> set[str]:
    parts = (name.split(".") for name in imported(source.tree))
    return {part[1] for part in parts if part[0] == "batchline" and len(part) > 1}


def libraries_of(source: Source) -> set[str]:
    return {name.split(".")[0] for name in imported(source.tree)}


def in_gate(name: str, gate: set[str]) -> bool:
    return any(name == place or (place.endswith("/") and name.startswith(place)) for place in gate)


def functions(source: Source) -> Iterator[tuple[str, int]]:
    """Name and length in lines of each function, decorators left out."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


LENGTHS = [lines for source in SOURCES for _, lines in functions(source)]


def test_every_room_has_its_place_in_the_order():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= set(BELOW)


def test_imports_go_downward_only():
    upward = {source.name: rooms_of(source) - {source.room} - BELOW[source.room] for source in SOURCES}
    assert {name: rooms for name, rooms in upward.items() if rooms} == {}


def test_imports_are_absolute_and_by_the_packages_name():
    wrong = [
        (source.name, name)
        for source in SOURCES
        for name in imported(source.tree)
        if name.split(".")[0] in {"", "flows", "tasks", "models"}
    ]
    assert wrong == []


@pytest.mark.parametrize("library", GATES)
def test_a_library_is_imported_in_its_own_place_only(library):
    elsewhere = [
        source.name
        for source in SOURCES
        if library in libraries_of(source) and not in_gate(source.name, GATES[library])
    ]
    assert elsewhere == []


@pytest.mark.parametrize("room", WITHOUT_PREFECT)
def test_what_lies_below_the_tasks_knows_nothing_of_prefect(room):
    assert [source.name for source in SOURCES if source.room == room and "prefect" in libraries_of(source)] == []


def reads_environment(source: Source) -> bool:
    return any(
        isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "putenv", "environb"}
        for node in ast.walk(source.tree)
    ) or any(name in {"os.environ", "os.getenv"} for name in imported(source.tree))


def test_the_environment_is_read_by_the_settings_only():
    assert {source.name for source in SOURCES if reads_environment(source)} <= READS_ENVIRONMENT


def test_a_file_has_at_most_400_lines():
    assert [source.name for source in SOURCES if source.text.count("\n") > 400] == []


def test_nineteen_of_twenty_functions_have_at_most_40_lines():
    assert statistics.quantiles(LENGTHS, n=20)[-1] <= 40


def test_half_of_the_functions_have_at_most_10_lines():
    assert statistics.median(LENGTHS) <= 10


def test_a_local_run_imports_nothing_slow_before_its_first_request():
    program = "import json, sys, batchline.cli.run, batchline.steps.local; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    assert set(json.loads(done.stdout)).isdisjoint(SLOW_TO_IMPORT)
