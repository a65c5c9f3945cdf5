"""Help and version: what a newcomer asks first."""

import inspect
import re
from importlib.metadata import version

import pytest
from helpers.command_line import run_batchline

from batchline.cli.run import run
from batchline.cli.show import show
from batchline.cli.simulate import SimulateOptions
from batchline.cli.validate import validate
from batchline.models.options import BatchOptions
from batchline.simulate import SimulatorOptions

COMMANDS = {"run": run, "validate": validate, "show": show}


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def options_of(command: str) -> list[str]:
    parameters = inspect.signature(COMMANDS[command]).parameters.values()
    names = [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    batch_options = BatchOptions.model_fields if "options" in names else {}
    return [option(name) for name in (*names, *batch_options) if name != "options"]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]], ids=["nothing", "long", "short"])
def test_help_lists_commands_with_descriptions(arguments, run_cli):
    ended = run_cli(*arguments)
    assert ended.status == 0
    for command in ("run", "validate", "show", "simulate", "db"):
        assert re.search(rf"^│ {command} +[A-Z]\w+ ", ended.out, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_help_lists_options_with_descriptions(command, run_cli):
    ended = run_cli(command, "--help")
    assert ended.status == 0
    for name in options_of(command):
        assert re.search(rf"^│ {name}(?: STR| INT| CHOICE)? +[A-Z]", ended.out, re.MULTILINE), name


def test_run_help_lists_every_exit_status(run_cli):
    told = " ".join(run_cli("run", "--help").out.split())
    assert [status for status in "023456" if not re.search(rf"\b{status} [a-z]", told)] == []


def test_simulate_help_lists_every_option(run_cli):
    ended = run_cli("simulate", "--help")
    names = {"fault" if name == "faults" else name for name in SimulatorOptions.model_fields}
    assert [name for name in names if option(name) not in ended.out] == []


def test_simulate_help_shows_default_port(run_cli):
    told = " ".join(run_cli("simulate", "--help").out.replace("│", " ").split())
    assert f"[default: {SimulateOptions().port}]" in told
    assert SimulateOptions().port == 8000


def test_db_help_lists_upgrade(run_cli):
    assert "upgrade  Bring the database's schema up to this version" in run_cli("db", "--help").out


def test_version_option_prints_package_version():
    ended = run_batchline("--version")
    assert (ended.status, ended.out) == (0, f"{version('batchline')}\n")
