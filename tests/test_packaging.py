"""Packaging: links, wheel, entrypoints, versions."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
LINKED = ("flows", "models", "tasks")
SHIPPED = {".py", ".typed", ".mako", ".ini", ".html", ".css", ".js", ".json", ".svg"}

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
REQUIREMENTS = [*map(Requirement, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])]
LOCKED = dict(
    line.split("==", 1) for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line
)
ENTRYPOINTS = [
    deployment["entrypoint"]
    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
]

MODULES = [each.rpartition(".")[::2] for each in ENTRYPOINTS]
PATHS = [f"{module.removeprefix('batchline.').replace('.', '/')}.py:{flow}" for module, flow in MODULES]
"""The flows by their files, as other people's deployments may name them."""

# `-P` keeps the working directory off the module path: only what Prefect itself adds counts.
LOAD = """
import sys
from prefect.flows import load_flow_from_entrypoint
flows = [load_flow_from_entrypoint(each) for each in sys.argv[1:]]
import batchline
print(*(flow.name for flow in flows), batchline.__file__)
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, check=True, cwd=ROOT, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of the checkout as a worker has it, with nothing installed from it."""
    for name in ("batchline", *LINKED):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / "checkout" / name, symlinks=True, ignore=ignored)
    return tmp_path / "checkout"


def load(*entrypoints: str, cwd: Path, home: Path, path: Path | None = None) -> str:
    """Load the entrypoints in a new Python as Prefect does, and return what it prints."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PYTHON"))}
    env |= {"PREFECT_HOME": str(home), "PREFECT_LOGGING_LEVEL": "WARNING", "DO_NOT_TRACK": "1"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    command = [sys.executable, "-P", "-c", LOAD, *entrypoints]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("room", LINKED)
def test_top_level_package_is_linked_by_relative_symlink(room):
    assert (ROOT / "batchline" / room).readlink() == Path("..", room)
    assert (ROOT / "batchline" / room).samefile(ROOT / room)


@pytest.mark.parametrize("room", LINKED)
def test_symlink_is_stored_as_symlink_in_git(room):
    git = ["git", "ls-files", "--stage", f"batchline/{room}"]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert listed.stdout.startswith("120000 ")


@pytest.mark.parametrize("path", sorted((ROOT / "flows").glob("*.py")), ids=lambda path: path.name)
def test_flow_file_is_not_named_like_standard_module(path):
    # Prefect loads a flow's file with its folder first on the module path.
    assert path.stem not in sys.stdlib_module_names


@pytest.mark.parametrize("room", LINKED)
@pytest.mark.parametrize("statement", ["import {0}", "from {0} import x", "from {0}.x import y", "import {0}.x"])
def test_linter_rejects_bare_package_import(room, statement):
    ruff = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--quiet",
        "--select",
        "TID251",
        "--stdin-filename",
        "tests/x.py",
        "-",
    ]
    done = subprocess.run(ruff, cwd=ROOT, input=statement.format(room) + "\n", capture_output=True, text=True)
    assert f"batchline.{room}" in done.stdout


@pytest.mark.system
def test_wheel_has_one_top_level_name(wheel):
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert names == {"batchline", f"batchline-{version('batchline')}.dist-info"}


@pytest.mark.system
def test_wheel_contains_every_package_file(wheel):
    rooms = [path for path in (ROOT / "batchline").iterdir() if path.is_dir() and path.name != "__pycache__"]
    files = {
        f"batchline/{room.name}/{path.relative_to(room.resolve()).as_posix()}"
        for room in rooms
        for path in room.resolve().rglob("*")
        if path.suffix in SHIPPED
    }
    archive = zipfile.ZipFile(wheel)
    held = {name for name in archive.namelist() if name.startswith("batchline/")}
    assert held == files | {"batchline/__init__.py", "batchline/py.typed"}
    assert archive.read("batchline/flows/process_batch.py") == (ROOT / "flows" / "process_batch.py").read_bytes()
    assert any(name.startswith("batchline/storage/records/migrations/versions/") for name in held)


@pytest.mark.system
@pytest.mark.parametrize("entrypoint", PATHS)
def test_path_entrypoint_loads_from_bare_checkout(entrypoint, checkout, tmp_path):
    assert str(checkout / "batchline") in load(entrypoint, cwd=checkout, home=tmp_path / "home")


@pytest.mark.system
def test_path_entrypoints_load_despite_foreign_modules_of_same_name(checkout, tmp_path):
    strangers = tmp_path / "site"
    strangers.mkdir()
    for room in LINKED:
        (strangers / f"{room}.py").write_text("raise ImportError('a stranger')\n")
    found = load(*PATHS, cwd=checkout, home=tmp_path / "home", path=strangers)
    assert str(checkout / "batchline") in found


@pytest.mark.system
def test_entrypoints_load_from_installed_wheel(wheel, tmp_path):
    site = tmp_path / "site"
    install = ["install", "--quiet", "--no-index", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, capture_output=True)
    assert str(site / "batchline") in load(*ENTRYPOINTS, cwd=tmp_path, home=tmp_path / "home", path=site)


@pytest.mark.parametrize("entrypoint", PATHS)
def test_entrypoint_is_function_in_flows_folder(entrypoint):
    path, _, name = entrypoint.partition(":")
    assert path.startswith("flows/")
    assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_dependency_has_lower_and_upper_bound(requirement):
    operators = {rule.operator for rule in requirement.specifier}
    assert {"<", ">="} <= operators


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_constraints_pin_dependency_to_allowed_version(requirement):
    locked = {normal(name): locked_version for name, locked_version in LOCKED.items()}
    assert locked[normal(requirement.name)] in requirement.specifier


def test_constraints_contain_only_version_pins():
    assert [
        line for line in LOCKED.items() if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", "==".join(line))
    ] == []


def test_constraints_do_not_contain_project():
    assert "batchline" not in LOCKED


def test_installed_prefect_is_the_pinned_version():
    assert version("prefect") == LOCKED["prefect"] == "3.8.8"


def test_installed_fastapi_is_compatible_with_prefect_server():
    assert version("fastapi") in Requirement("fastapi<0.151").specifier


def test_pre_commit_hooks_use_locally_installed_tools():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    assert {hook["language"] for repo in config["repos"] for hook in repo["hooks"]} == {"system"}


def test_ci_script_is_executable_and_valid_bash():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)
