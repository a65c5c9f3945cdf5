"""Write `docs/settings.md`, `docs/commands.md` and `docs/faults.md` from the code: `python docs/generate.py`."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from batchline.cli.app import app
from batchline.models.settings import ModelPrice, Settings
from batchline.models.upstreams import Upstream
from batchline.simulate.fault_kinds import GROUPS, FaultKind, Repetition

SETTINGS = Path(__file__).with_name("settings.md")
COMMANDS = Path(__file__).with_name("commands.md")
FAULTS = Path(__file__).with_name("faults.md")

KINDS: dict[object, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    Decimal: "decimal",
    str: "text",
    SecretStr: "secret text",
    Path: "path",
    Upstream: "table",
    ModelPrice: "table",
}
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}

HEAD = """# Settings

Generated from `models/settings.py` and `models/upstreams.py` by `python docs/generate.py`; change those, not this
page.

A setting is read from these sources; the first one that has it is used:

1. arguments, in Python: `load_settings(chunk_requests=100)`;
2. environment variables, `BATCHLINE_` and the setting's name in capitals; an empty one counts as not set,
   but an empty `OPENAI_BASE_URL` or `BATCHLINE_BASE_URL` together with a key is refused, as requests would go to
   OpenAI;
3. the same variables in a file `.env` in the working directory;
4. the setting's name in `batchline.toml` in the working directory;
5. the setting's name in `config.toml` in the directory `BATCHLINE_HOME` (an environment variable), by default
   `~/.batchline`;
6. the default below.

Settings whose names end in `_s` are in seconds, those in `_bytes` in bytes. Write lists and tables as JSON in the
environment and in `.env` (`BATCHLINE_SOURCE_ROOTS='["/data", "s3://bucket/in"]'`), and as TOML values in TOML.
A variable that begins with `BATCHLINE_` but is not a setting is reported in the log, with the nearest setting.
Keep secrets out of files that are shared; batchline never shows, logs or stores them.

"""

COMMANDS_HEAD = """# Commands

Generated from the commands' help by `python docs/generate.py`; change that, not this page.

Results go to standard output, progress and messages to standard error. `--json` prints one JSON document, the
API's objects, alone on standard output. Lists are tables. A terminal that is too narrow for all columns shows the
first ones, and truncates long names; other outputs have every column in full, without colours.

The exit status is 0, or 2 for what cannot be done (bad usage, not found, not in that state), or 6 for a fault of
storage, database or network. Commands that run or watch a batch end with the exit status of `run` for its outcome.

"""

FAULTS_HEAD = """# Faults of upstreams

Generated from `batchline/simulate/fault_kinds.py` by `python docs/generate.py`; change that, not this page. A
test runs each kind through a batch and compares the result with this page.

Servers fail in many ways, and some failures look like a success. The simulator can send each of these faults:

```sh
batchline simulate --fault rate_limited=0.1 --fault empty_object=0.02     # shares of all requests
OPENAI_BASE_URL=http://127.0.0.1:8000/v1 batchline run requests.jsonl
```

A prompt can order a fault too: `simulate:fault=nan` orders it for each call, `simulate:once=nan` only for the
first, and `simulate:status=418` orders an HTTP status. In Python, use `SimulatorOptions(faults={"nan": 0.1})` from
`batchline.simulate`.

The last column of the tables is the outcome of a request that gets the fault at each call:

- A **code** is the `error.code` of its line in the error file. The number of calls follows: one if the same
  request would get the same answer, two for a complete answer that is wrong, `max_attempts` (8 by default) for a
  failure that may pass.
- A **mark** is a flaw of a success. The answer is kept; `finish_reason` and `mark` are in the results.
- A **pause** stops the batch with that code, because the request is not at fault. The request stays pending until
  `batchline batches resume ID`.
- **Success** means that nothing of the answer is lost.

The tables describe chat. Other endpoints get the same faults in their own words (`output: []` instead of
`choices: []`); a fault that an endpoint cannot have, such as `finish_length` of embeddings, changes nothing.

All three transports have these outcomes; [limits.md](limits.md#answers-that-break-rules-of-http) lists the broken
rules of HTTP that they treat differently.

"Described by" names servers whose public documentation describes the fault, and standards that allow it. Other
servers may do the same. A batch also pauses if many requests in a row fail in the same way
(`max_identical_failures`).

"""

UPSTREAMS_HEAD = """
## One upstream or several

Without `upstreams`, requests go to one server: `base_url` (or `OPENAI_BASE_URL`) with `api_key` (or
`OPENAI_API_KEY`). With `upstreams`, those two and the three settings after them (`max_in_flight`, `max_attempts`,
`request_timeout_s`) have no effect, and each request goes to the first upstream that serves its model:

```toml
[[upstreams]]
name = "local"
base_url = "http://localhost:8000/v1"
models = ["llama-3.1-8b"]
max_in_flight = 256

[[upstreams]]
name = "openai"
base_url = "https://api.openai.com/v1"
api_key = "sk-..."
requests_per_minute = 500
```

The fields of an upstream:

"""

PRICES_HEAD = """
## Prices

`prices` has a table for each model, which overrides batchline's own price list. Amounts are per million tokens, in
one currency for all models:

```toml
[prices."llama-3.1-8b"]
input = "0.05"
output = "0.08"
```

"""


def settings_page() -> str:
    """The whole page, as Markdown."""
    return "".join(
        [
            HEAD,
            *_table(Settings, ("Setting", "In the environment", "Kind", "Default", "Meaning")),
            UPSTREAMS_HEAD,
            *_table(Upstream, ("Field", "Kind", "Default", "Meaning")),
            PRICES_HEAD,
            *_table(ModelPrice, ("Field", "Kind", "Default", "Meaning")),
        ]
    )


def commands_page() -> str:
    """The whole page of commands, as Markdown."""
    made = app.generate_docs(output_format="markdown", usage_name="batchline")
    # Its own head repeats what `batchline --help` says; what follows is a section a command.
    return COMMANDS_HEAD + made[made.index("## batchline run") :].rstrip() + "\n"


def faults_page() -> str:
    """The whole page of faults, as Markdown."""
    return FAULTS_HEAD + "\n".join(_fault_section(title, kinds) for title, kinds in GROUPS.items())


def _fault_section(title: str, kinds: tuple[FaultKind, ...]) -> str:
    columns = ("Kind", "Sent", "Described by", "What batchline makes of it")
    rows = [(f"`{kind.name}`", kind.sent, kind.reported or "-", _fault_outcome(kind)) for kind in kinds]
    return f"## {title}\n\n" + "".join(_row(row) for row in (columns, ("---",) * len(columns), *rows))


def _fault_outcome(kind: FaultKind) -> str:
    outcome = kind.outcome
    if outcome.pause is not None:
        text = f"pause `{outcome.pause}`, one call"
    elif outcome.code is None:
        text = "success" if outcome.mark is None else f"success, marked `{outcome.mark}`"
    else:
        separator = "" if outcome.repetition is Repetition.PATIENT else ","
        text = f"`{outcome.code}`{separator} {outcome.repetition}"
    wait = "waits as long as the reply asks" if kind.asks_wait else ""
    return "; ".join(part for part in (text, wait, kind.note) if part)


def variable(name: str, field: FieldInfo) -> str:
    """The environment variable of that setting."""
    return str(field.validation_alias or f"BATCHLINE_{name.upper()}")


def _table(model: type[BaseModel], columns: tuple[str, ...]) -> Iterator[str]:
    yield _row(columns)
    yield _row(["---"] * len(columns))
    for name, field in model.model_fields.items():
        cells = [_kind(field), _default(field), field.description or ""]
        if model is Settings:
            shown = "" if field.validation_alias else f"`{name}`"
            yield _row([shown, f"`{variable(name, field)}`", *cells])
        else:
            yield _row([f"`{name}`", *cells])


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _kind(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(rule, name):,}"
        for rule in field.metadata
        for name, sign in SIGNS.items()
        if getattr(rule, name, None) is not None
    ]
    return ", ".join([_kind_name(field.annotation), *bounds])


def _kind_name(annotation: Any) -> str:
    if isinstance(annotation, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is dict:
        return f"table of {_kind_name(arguments[1])}s"
    if origin is Literal:
        return " or ".join(f"`{each}`" for each in arguments)
    if origin in {list, tuple, frozenset}:
        return f"list of {_kind_name(arguments[0])}s"
    return KINDS[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is PydanticUndefined:
        return "`~/.batchline`" if field.annotation is Path else "none"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    if isinstance(field.default, int | float):
        return f"{field.default:,}".removesuffix(".0")
    return _text(field.default)


def _text(value: Any) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, tuple):
        return ", ".join(f"`{part}`" for part in value) or "none"
    if value is None or value == "":
        return "none"
    return f"`{value}`"


if __name__ == "__main__":
    SETTINGS.write_text(settings_page(), encoding="utf-8")
    COMMANDS.write_text(commands_page(), encoding="utf-8")
    FAULTS.write_text(faults_page(), encoding="utf-8")
