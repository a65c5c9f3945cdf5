"""The JSON-Schema-Test-Suite, which the source package of jsonschema carries, for all drafts that are checked."""

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from batchline.models.schema_check import find_text_violation, is_checkable

SOURCE = "jsonschema==4.26.0"
DRAFTS = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}
REMOTE = "//localhost:1234/"
"""The host of all schemas that the suite expects a validator to fetch, which ours never does."""


class Case(NamedTuple):
    """A case of the suite: a text that fits its schema or does not."""

    name: str
    schema: bytes
    text: str
    is_valid: bool


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=jsonschema", SOURCE]
    subprocess.run([*command, "--dest", folder], check=True, timeout=280)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("*/json/tests"))


def cases(folder: Path, draft: str) -> Iterator[Case]:
    for path in sorted((folder / draft).glob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            schema: Any = group["schema"]
            if isinstance(schema, dict):
                schema = {"$schema": DRAFTS[draft]} | schema
            for case in group["tests"]:
                name = f"{path.name}: {group['description']}: {case['description']}"
                yield Case(name, json.dumps(schema).encode(), json.dumps(case["data"]), case["valid"])


@pytest.mark.parametrize("draft", DRAFTS)
def test_every_case_of_the_draft_is_judged_rightly(suite, draft):
    all_cases = list(cases(suite, draft))
    unchecked = [case for case in all_cases if not is_checkable(case.schema)]
    wrong = [
        case.name for case in all_cases if (find_text_violation(case.schema, case.text) is None) != case.is_valid
    ]

    assert [case.name for case in unchecked if REMOTE not in case.schema.decode()] == []
    assert sorted(set(wrong) - {case.name for case in unchecked}) == []
    assert len(all_cases) - len(unchecked) > 550
