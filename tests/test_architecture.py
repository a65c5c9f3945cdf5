"""Rules of the packages: which imports which, which library is used where, names, docstrings and lengths."""

import ast
import graphlib
import json
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "batchline"

MAY_IMPORT = {
    "models": set(),
    "storage": {"models"},
    "upstream": {"models"},
    "analytics": {"models", "storage"},
    "report": {"analytics"},
    "steps": {"analytics", "report", "storage", "upstream"},
    "engine": {"steps"},
    "sync": {"engine"},
    "orchestration": {"engine"},
    "client": {"engine", "sync", "orchestration"},
    "tasks": {"engine", "orchestration"},
    "flows": {"tasks", "client"},
    "simulate": {"models"},
    "api": {"client"},
    "web": {"client", "api"},
    "cli": {"client", "flows", "simulate", "api", "web"},
}
"""From each package, the packages that it may import; with each of them, what that one may import."""

GATES = {
    "pyreqwest": {"upstream/transports/pyreqwest.py"},
    "httpx": {"upstream/transports/httpx.py"},
    "fsspec": {"storage/objects/"},
    "s3fs": {"storage/objects/s3_client.py", "storage/objects/s3_external.py"},
    "botocore": {"storage/objects/s3_client.py"},
    "aiohttp": {"storage/objects/s3_client.py"},
    "sqlalchemy": {"storage/records/"},
    "alembic": {"storage/records/database.py", "storage/records/migrations/"},
    "rich": {"cli/"},
    "cyclopts": {"cli/"},
    "pandas": {"analytics/"},
    "genai_prices": {"analytics/prices.py"},
    "jinja2": {"report/", "web/rendering.py"},
    "fastapi": {"api/", "web/"},
    "starlette": {"api/", "web/"},
    "uvicorn": {"api/", "cli/temporary_server.py"},
    "python_multipart": {"api/upload.py"},
    "jsonschema_rs": {"models/schema_check.py"},
    "prometheus_client": {"api/metrics.py"},
}
"""From each library to the files that alone may import it, or folders where the name ends in a slash."""

WITHOUT_PREFECT = ("models", "storage", "upstream", "analytics", "report", "steps", "engine", "sync", "simulate")

READS_ENVIRONMENT = {
    "models/settings.py",
    # It sets Prefect's variables before Prefect is imported, and reads none of ours.
    "cli/prefect_run.py",
}

SLOW_TO_IMPORT = ("alembic", "boto3", "botocore", "jinja2", "matplotlib", "pandas", "prefect", "pyarrow", "s3fs")


class Source(NamedTuple):
    """A file of the package; `name` is its path below it, `package` the first part of that."""

    name: str
    package: str
    text: str
    tree: ast.Module


def _sources() -> list[Source]:
    found = []
    for package in sorted(path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"):
        # `rglob` does not follow the links to the three packages at the top level, so each is resolved first.
        for path in sorted(package.resolve().rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            name = f"{package.name}/{path.relative_to(package.resolve())}"
            found.append(Source(name, package.name, text, ast.parse(text, name)))
    return found


SOURCES = _sources()


def imported(tree: ast.Module) -> Iterator[str]:
    """The full names of all modules that the file imports anywhere in it, relative ones with their dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from batchline.steps import validate` may name a module or a thing in one: take the longer form.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def packages_of(source: Source) -> set[str]:
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


def allowed(package: str) -> set[str]:
    """Packages that a package may import, those of the ones that it imports included."""
    found: set[str] = set()
    waiting = list(MAY_IMPORT[package])
    while waiting:
        found.add(nearest := waiting.pop())
        waiting += MAY_IMPORT[nearest] - found
    return found


def test_every_package_has_its_place_in_the_table():
    assert {source.package for source in SOURCES} == set(MAY_IMPORT)


def test_packages_import_only_what_the_table_allows():
    upward = {source.name: packages_of(source) - {source.package} - allowed(source.package) for source in SOURCES}
    assert {name: packages for name, packages in upward.items() if packages} == {}


@pytest.mark.parametrize("package", ["api", "web", "cli"])
def test_faces_reach_what_is_below_the_client_through_it(package):
    """`report` is not below it in this sense: the pages and the summary share its templates and words."""
    below = {"engine", "steps", "storage", "upstream", "analytics", "sync"}
    assert {
        source.name: packages_of(source) & below
        for source in SOURCES
        if source.package == package and packages_of(source) & below
    } == {}


def test_no_files_import_each_other_in_a_circle():
    files = {source.name.removesuffix("/__init__.py").removesuffix(".py"): source for source in SOURCES}

    def imports(name: str) -> set[str]:
        paths = (module.split(".")[1:] for module in imported(files[name].tree) if module.startswith("batchline."))
        # The longest form that is a file: what is imported may be a module, or a thing in one.
        found = {
            next(("/".join(path[:end]) for end in range(len(path), 0, -1) if "/".join(path[:end]) in files), "")
            for path in paths
        }
        return found - {"", name}

    sorter = graphlib.TopologicalSorter({name: imports(name) for name in files})
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_imports_are_absolute_and_use_package_name():
    wrong = [
        (source.name, name)
        for source in SOURCES
        for name in imported(source.tree)
        if name.split(".")[0] in {"", "flows", "tasks", "models"}
    ]
    assert wrong == []


@pytest.mark.parametrize("library", GATES)
def test_library_is_imported_only_by_its_gate_files(library):
    elsewhere = [
        source.name
        for source in SOURCES
        if library in libraries_of(source) and not in_gate(source.name, GATES[library])
    ]
    assert elsewhere == []


@pytest.mark.parametrize("package", WITHOUT_PREFECT)
def test_packages_below_the_tasks_know_nothing_of_prefect(package):
    assert [
        source.name for source in SOURCES if source.package == package and "prefect" in libraries_of(source)
    ] == []


def reads_environment(source: Source) -> bool:
    return any(
        isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "putenv", "environb"}
        for node in ast.walk(source.tree)
    ) or any(name in {"os.environ", "os.getenv"} for name in imported(source.tree))


def test_environment_is_read_only_by_settings():
    assert {source.name for source in SOURCES if reads_environment(source)} <= READS_ENVIRONMENT


def test_nineteen_of_twenty_files_have_at_most_400_lines():
    assert statistics.quantiles([source.text.count("\n") for source in SOURCES], n=20)[-1] <= 400


def test_functions_have_at_most_60_lines_and_nineteen_of_twenty_at_most_40():
    assert max(LENGTHS) <= 60
    assert statistics.quantiles(LENGTHS, n=20)[-1] <= 40


def test_function_length_median_is_at_most_10_lines():
    assert statistics.median(LENGTHS) <= 10


def test_no_two_classes_have_one_name():
    classes = Counter(
        node.name for source in SOURCES for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)
    )
    assert {name: count for name, count in classes.items() if count > 1} == {}


def test_local_run_does_not_import_slow_modules_at_start():
    program = "import json, sys, batchline.cli.run, batchline.engine.pipeline; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    assert set(json.loads(done.stdout)).isdisjoint(SLOW_TO_IMPORT)


def test_docstrings_of_functions_open_with_a_verb_or_a_noun():
    wrong = [
        f"{source.name}:{node.lineno} {docstring.split()[0]}"
        for source in SOURCES
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (docstring := ast.get_docstring(node))
        and docstring.split()[0] in {"What", "Whether", "How", "Which", "Where", "Who", "Whose", "Why", "When"}
    ]
    assert wrong == []
