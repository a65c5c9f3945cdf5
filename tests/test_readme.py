"""README: its commands, options, settings, snippets and examples work."""

import ast
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from batchline.cli.app import app
from batchline.cli.exit_codes import ExitCode
from batchline.client.batches import Batches
from batchline.client.files import Files
from batchline.flows.process_batch import process_batch
from batchline.models.analytics import BatchAnalytics
from batchline.models.batches import BatchResponse, BatchResultItem, RequestCounts
from batchline.models.settings import Settings, load_settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = ROOT / "examples"
EXAMPLES_README = (EXAMPLES / "README.md").read_text(encoding="utf-8")
FILES = sorted(EXAMPLES.glob("*.jsonl"))
REQUESTS = EXAMPLES / "requests.jsonl"

OF_OTHERS = {"OPENAI_BASE_URL", "OPENAI_API_KEY", "PREFECT_API_URL"}
"""Variables beside our own that the README may name; and those of AWS."""


def blocks(text: str, language: str = "") -> list[str]:
    """The text's code blocks in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def inline_codes(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", without_blocks(text))


def commands_of(text: str) -> list[str]:
    """Every `batchline …` that the text tells to type, in blocks and between words."""
    lines = [line.split("#")[0] for block in blocks(text, "sh") for line in block.splitlines()]
    typed = [part.strip() for line in lines for part in line.split("&&")] + inline_codes(text)
    return [command for command in typed if re.match(r"(\.venv/bin/)?batchline [a-z-]", command)]


def arguments_of(command: str) -> list[str]:
    """A command's arguments, with something in the place of what a reader fills in."""
    return [{"FILE": "x.jsonl", "ID": "batch-1"}.get(word, word) for word in shlex.split(command)[1:]]


def parse(arguments: list[str]) -> None:
    """Raise what the command line raises for arguments that it does not take."""
    app.parse_args(arguments, exit_on_error=False, print_error=False)


MAIN = [line for block in blocks(README, "sh") for line in block.splitlines() if line.startswith("python3 ")]
COMMANDS = sorted(set(commands_of(README) + commands_of(EXAMPLES_README)))
OPTIONS = sorted({code for code in inline_codes(README) if code.startswith("--")})
EXPORTS = [
    pair
    for block in blocks(README, "sh")
    for line in block.splitlines()
    if line.startswith("export ")
    for pair in shlex.split(line, comments=True)[1:]
]


# The two commands


def test_readme_has_one_run_and_one_test_command():
    assert [line.split("/")[-1].split()[0] for line in MAIN] == ["requests.jsonl", "pytest"]


@pytest.mark.parametrize("line", MAIN, ids=["run", "test"])
def test_main_command_creates_venv_and_installs_with_constraints(line):
    make, install, _ = line.split(" && ")
    assert shlex.split(make) == ["python3", "-m", "venv", ".venv"]
    pip, *options, project = shlex.split(install)
    assert (pip, options) == (".venv/bin/pip", ["install", "-q", "-c", "constraints.txt", "-e"])
    assert (ROOT / "constraints.txt").is_file()
    assert re.fullmatch(r"\.(\[dev\])?", project)


def test_run_command_uses_installed_script():
    program = MAIN[0].split(" && ")[-1].split()[0]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert program == ".venv/bin/batchline"
    assert "batchline" in scripts


def test_run_command_file_exists():
    assert (ROOT / MAIN[0].split()[-1]).samefile(REQUESTS)


def test_ci_finds_test_command_in_readme():
    pattern = re.search(r"grep -m 1 -E '([^']+)' README\.md", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert pattern
    assert next(line for line in README.splitlines() if re.search(pattern[1], line)) == MAIN[1]


# Commands, options, statuses


def test_readme_has_commands_to_check():
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_command_is_accepted_by_cli(command):
    parse(arguments_of(command))


def test_invalid_command_is_detected():
    with pytest.raises(Exception, match="--everything"):
        parse(arguments_of("batchline run --everything FILE"))


@pytest.mark.parametrize("option", OPTIONS)
def test_readme_option_is_accepted_by_run(option):
    parse(["run", "x.jsonl", *shlex.split(option)] if "--resume" not in option else ["run", *shlex.split(option)])


@pytest.mark.parametrize("path", re.findall(r"examples/[\w.-]+", README + EXAMPLES_README))
def test_readme_example_file_exists(path):
    assert (ROOT / path).is_file()


def test_readme_mentions_every_command():
    told = {command.split()[1] for command in COMMANDS}
    assert {name for name in app if not name.startswith("-")} <= told


def test_exit_status_table_lists_each_status_once():
    assert [int(status) for status in re.findall(r"^\| (\d) \|", README, re.MULTILINE)] == sorted(ExitCode)


def test_readme_summary_counts_match_example_file():
    told = re.search(r"^requests +([\d,]+): ([\d,]+) completed, 0 failed$", README, re.MULTILINE)
    assert told
    assert {int(number.replace(",", "")) for number in told.groups()} == {len(requests_of(REQUESTS))}


def test_readme_summary_rows_exist_in_cli_summary():
    (block,) = [block for block in blocks(README) if block.startswith("batch ")]
    files = ("cli/summary.py", "report/report_data.py")
    source = "".join((ROOT / "batchline" / name).read_text(encoding="utf-8") for name in files)
    rows = [re.split(r" {2,}", line)[0] for line in block.splitlines()]
    assert [name for name in rows if f'"{name}"' not in source] == []


@pytest.mark.parametrize(
    ("folder", "target"),
    [
        (folder, target)
        for folder, text in ((ROOT, README), (EXAMPLES, EXAMPLES_README))
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text)
        if "://" not in target
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_readme_link_target_exists(folder, target):
    assert (folder / target).exists()


# Settings and snippets


@pytest.mark.parametrize("pair", EXPORTS)
def test_exported_variable_is_known(pair):
    name = pair.partition("=")[0]
    fields = {f"BATCHLINE_{field.upper()}" for field in Settings.model_fields}
    assert name in fields | OF_OTHERS or name.startswith("AWS_")


@pytest.mark.parametrize("pair", [pair for pair in EXPORTS if pair.startswith(("BATCHLINE_", "OPENAI_"))])
def test_exported_value_is_accepted(pair, monkeypatch):
    name, _, value = pair.partition("=")
    monkeypatch.setenv(name, value.replace("…", "x"))
    assert load_settings().all_upstreams or "URL" in name or name == "BATCHLINE_MAX_IN_FLIGHT"


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\bBATCHLINE_[A-Z_]+\b", README))))
def test_readme_setting_exists(name):
    assert name.removeprefix("BATCHLINE_").lower() in Settings.model_fields


def test_toml_snippet_loads_as_settings(tmp_path):
    (snippet,) = blocks(README, "toml")
    (tmp_path / "batchline.toml").write_text(snippet.replace("…", "x"), encoding="utf-8")

    servers = load_settings().all_upstreams

    assert [server.name for server in servers] == [table["name"] for table in tomllib.loads(snippet)["upstreams"]]
    assert servers[0].serves("qwen2.5-7b-instruct")
    assert not servers[0].serves("gpt-4o-mini")


SNIPPETS = [ast.parse(snippet) for snippet in blocks(README, "python")]
per_snippet = pytest.mark.parametrize(
    "snippet", SNIPPETS, ids=[f"snippet {at}" for at in range(1, len(SNIPPETS) + 1)]
)


def test_readme_has_python_snippet():
    assert SNIPPETS


@per_snippet
def test_python_snippet_imports_resolve(snippet):
    imports = [node for node in ast.walk(snippet) if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        module = importlib.import_module(str(node.module))
        assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


CALLS = {
    "process_batch": process_batch.fn,
    **{f"client.files.{name}": getattr(Files, name) for name in ("create",)},
    **{f"client.batches.{name}": getattr(Batches, name) for name in ("create", "wait", "results", "retry")},
}


@per_snippet
def test_python_snippet_call_arguments_are_valid(snippet):
    calls = [node for node in ast.walk(snippet) if isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS]
    assert calls
    for call in calls:
        function = CALLS[ast.unparse(call.func)]
        itself = [] if function is process_batch.fn else ["self"]
        named = {str(each.arg): "" for each in call.keywords}
        inspect.signature(function).bind(*itself, *call.args, **named)


@per_snippet
def test_python_snippet_attributes_exist(snippet):
    read = {ast.unparse(node) for node in ast.walk(snippet) if isinstance(node, ast.Attribute)}
    known = {f"batch.{name}" for name in BatchResponse.model_fields}
    known |= {f"batch.request_counts.{name}" for name in RequestCounts.model_fields}
    known |= {f"batch.analytics.{name}" for name in BatchAnalytics.model_fields}
    known |= {f"item.{name}" for name in BatchResultItem.model_fields} | {"file.id"}
    known |= {"client.files", "client.batches", *CALLS}
    assert {name for name in read if name.split(".")[0] in {"batch", "item", "file", "client"}} <= known


# Examples


def requests_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def asked_by(body: dict) -> str:
    """Return the question of a request, without the parameters of its answer."""
    return json.dumps(body.get("messages") or body.get("input") or body["prompt"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_example_file_passes_validate(path):
    command = [str(Path(sys.executable).with_name("batchline")), "validate", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_examples_readme_counts_match_file(path):
    requests = requests_of(path)
    assert f"| `{path.name}` | {len(requests)} to `{requests[0]['url']}` |" in EXAMPLES_README


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_example_requests_are_unique(path):
    asked = Counter(asked_by(request["body"]) for request in requests_of(path))
    assert [text for text, times in asked.items() if times > 1] == []


def test_examples_cover_several_models_and_endpoints():
    requests = [request for path in FILES for request in requests_of(path)]
    assert len(requests_of(REQUESTS)) >= 200
    assert len({request["body"].get("model") for request in requests_of(REQUESTS)}) >= 5
    assert len({request["url"] for request in requests}) >= 5


def test_examples_cover_tools_formats_and_long_conversations():
    bodies = [request["body"] for request in requests_of(REQUESTS)]
    members = Counter(member for body in bodies for member in body)
    assert min(members[name] for name in ("response_format", "tools", "temperature", "max_tokens")) >= 5
    assert sum(len(body["messages"]) > 2 for body in bodies) >= 10
    assert sum(not json.dumps(body, ensure_ascii=False).isascii() for body in bodies) >= 50
