"""Settings: where they come from, which comes first, and what a wrong one says."""

import json
import logging
import os
import runpy
import traceback
from decimal import Decimal
from pathlib import Path

import pytest

from batchline.models.environment import unknown_variables
from batchline.models.errors import InvalidInput
from batchline.models.settings import ModelPrice, Settings, home_directory, load_settings, to_environment
from batchline.models.upstreams import Upstream

ROOT = Path(__file__).parent.parent
SECRET = "hunter2"

TEXTS = {
    "home": "/srv/batchline",
    "storage_url": "s3://bucket/prefix",
    "database_url": "postgresql://me:hunter2@db/batchline",
    "s3_endpoint_url": "http://localhost:8333",
    "s3_region": "eu-central-1",
    "s3_access_key_id": "id",
    "s3_secret_access_key": "hunter2",
    "base_url": "http://localhost:8000/v1",
    "api_key": "hunter2",
    "openai_base_url": "http://localhost:8000/v1",
    "openai_api_key": "hunter2",
    "prefect_api_url": "http://localhost:4200/api",
    "min_completion_window": "2m",
    "max_completion_window": "6d",
    "max_paused": "3d",
    "deployment": "process-batch/nightly",
    "task_runner": "dask",
    "task_runner_address": "tcp://scheduler:8786",
    "serve_via": "deployment",
}
PLAIN = {
    "trust_working_directory": True,
    "max_in_flight": 3,
    "max_attempts": 4,
    "request_timeout_s": 5.5,
    "run_past_window": True,
    "share_budgets": False,
    "max_line_bytes": 6,
    "max_requests": 7,
    "max_file_bytes": 8,
    "max_reported_errors": 9,
    "max_member_bytes": 19,
    "chunk_requests": 10,
    "chunk_bytes": 11,
    "flush_interval_s": 12.5,
    "flush_bytes": 13,
    "lease_s": 14.5,
    "grace_s": 15.5,
    "source_still_s": 17.5,
    "processes": 18,
}
NESTED = {
    "upstreams": [{"name": "a", "base_url": "http://localhost:1/v1", "models": ["m"], "api_key": "hunter2"}],
    "endpoints": ["/v1/embeddings"],
    "source_roots": ["/data", "s3://bucket/in"],
    "prices": {"gpt-4.1": {"input": 2, "output": 8}},
}
EXAMPLES = TEXTS | PLAIN | NESTED
FIELDS = Settings.model_fields
DOCS = runpy.run_path(str(ROOT / "docs" / "generate.py"))

WRONG = {
    "home": None,
    "storage_url": None,
    "database_url": None,
    "s3_endpoint_url": None,
    "prefect_api_url": None,
    "s3_region": None,
    "s3_access_key_id": None,
    "s3_secret_access_key": None,
    "base_url": "hunter2",
    "api_key": "hunter2 ",
    "openai_base_url": "hunter2",
    "openai_api_key": "hunter2 ",
    "upstreams": '[{"base_url": "hunter2"}]',
    "prices": '{"m": {"input": "hunter2"}}',
    "endpoints": "hunter2",
    "source_roots": "hunter2",
    "task_runner_address": None,
}
"""A wrong text for each setting; none where every text is right. For those that are missing, any word is wrong."""


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """An empty working and home directory, and no variable that is a setting."""
    for name in os.environ:
        if name.startswith(("BATCHLINE_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / ".batchline").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def variable(name: str) -> str:
    return DOCS["variable"](name, FIELDS[name])


def as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def as_toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value)


def expected(name: str) -> object:
    """Return the setting's value when its example is passed as an argument."""
    return getattr(Settings.model_validate({FIELDS[name].validation_alias or name: EXAMPLES[name]}), name)


def test_every_setting_has_an_example():
    assert set(EXAMPLES) == set(FIELDS)


def test_example_differs_from_default():
    assert [name for name in FIELDS if expected(name) == getattr(Settings(), name)] == []


def test_settings_survive_environment_round_trip(monkeypatch):
    chosen = Settings.model_validate({FIELDS[name].validation_alias or name: EXAMPLES[name] for name in FIELDS})

    for name, text in to_environment(chosen).items():
        monkeypatch.setenv(name, text)

    assert load_settings() == chosen


def test_each_setting_is_read_from_environment_unless_empty(monkeypatch):
    for name in FIELDS:
        with monkeypatch.context() as environment:
            environment.setenv(variable(name), as_text(EXAMPLES[name]))
            assert getattr(load_settings(), name) == expected(name), name
            environment.setenv(variable(name), "")
            assert getattr(load_settings(), name) == getattr(Settings(), name), name


def test_each_setting_is_read_from_dotenv_file():
    for name in FIELDS:
        Path(".env").write_text(f"UNRELATED=1\n{variable(name)}='{as_text(EXAMPLES[name])}'\n")
        assert getattr(load_settings(), name) == expected(name), name


def test_each_setting_is_read_from_toml():
    for name in (name for name, field in FIELDS.items() if field.validation_alias is None):
        Path("batchline.toml").write_text(f"{name} = {as_toml(EXAMPLES[name])}\n")
        assert getattr(load_settings(), name) == expected(name), name


def write_all_sources(monkeypatch) -> None:
    Path(home_directory(), "config.toml").write_text("max_requests = 1\n")
    Path("batchline.toml").write_text("max_requests = 2\n")
    Path(".env").write_text("BATCHLINE_MAX_REQUESTS=3\n")
    monkeypatch.setenv("BATCHLINE_MAX_REQUESTS", "4")


def test_nearer_source_overrides_farther_ones(monkeypatch):
    write_all_sources(monkeypatch)
    assert load_settings(max_requests=5).max_requests == 5
    assert load_settings().max_requests == 4
    monkeypatch.delenv("BATCHLINE_MAX_REQUESTS")
    assert load_settings().max_requests == 3
    Path(".env").unlink()
    assert load_settings().max_requests == 2
    Path("batchline.toml").unlink()
    assert load_settings().max_requests == 1


def test_home_toml_is_read_from_batchline_home(tmp_path, monkeypatch):
    (tmp_path / "config.toml").write_text("max_requests = 6\n")
    monkeypatch.setenv("BATCHLINE_HOME", str(tmp_path))
    assert load_settings().max_requests == 6


def test_tilde_in_home_expands_to_user_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("BATCHLINE_HOME", "~/elsewhere")
    assert load_settings().home == home_directory() == tmp_path / "home" / "elsewhere"


def test_storage_and_database_default_to_home():
    settings = load_settings(home="/srv/b")
    assert (settings.effective_storage_url, settings.effective_database_url) == (
        "/srv/b/storage",
        "sqlite:////srv/b/batchline.db",
    )


def test_default_settings_have_no_upstream():
    assert load_settings().all_upstreams == ()


def test_openai_variables_define_single_upstream(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert load_settings(max_in_flight=7).all_upstreams == (
        Upstream(base_url="http://localhost:8000/v1", api_key="k", max_in_flight=7),
    )


def test_api_key_alone_selects_openai(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert [server.base_url for server in load_settings().all_upstreams] == ["https://api.openai.com/v1"]


@pytest.mark.parametrize("name", ["OPENAI_BASE_URL", "BATCHLINE_BASE_URL"])
@pytest.mark.parametrize("file", [None, ".env"])
def test_api_key_with_empty_base_url_is_rejected(name, file, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "hunter2")
    if file:
        Path(file).write_text(f"{name}=\n")
    else:
        monkeypatch.setenv(name, "")
    with pytest.raises(InvalidInput, match=f"{name} is set but empty") as refused:
        load_settings()
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("BATCHLINE_MAX_IN_FLIGTH", "BATCHLINE_MAX_IN_FLIGHT"),
        ("BATCHLINE_MAX_INFLIGHT", "BATCHLINE_MAX_IN_FLIGHT"),
        ("batchline_storage_uri", "BATCHLINE_STORAGE_URL"),
        ("BATCHLINE_OPENAI_API_KEY", "OPENAI_API_KEY"),
        ("BATCHLINE_IMAGE", None),
        ("BATCHLINE_PRICES__M", "known"),
        ("batchline_grace_s", "known"),
        ("BATCHLINE_SERVICE_PORT_HTTP", "known"),
        ("BATCHLINE_API_SERVICE_HOST", "known"),
        ("BATCHLINE_PORT_80_TCP_ADDR", "known"),
        ("OTHER", "known"),
    ],
)
def test_unknown_variable_is_found_with_nearest_setting(name, nearest):
    found = unknown_variables([name], map(variable, FIELDS))
    assert found == ({} if nearest == "known" else {name: nearest})


def test_batchline_variables_override_openai_variables(monkeypatch):
    for prefix, host in (("OPENAI", "theirs"), ("BATCHLINE", "ours")):
        monkeypatch.setenv(f"{prefix}_BASE_URL", f"http://{host}/v1")
        monkeypatch.setenv(f"{prefix}_API_KEY", host)
    assert load_settings().all_upstreams == (Upstream(base_url="http://ours/v1", api_key="ours"),)


def test_upstreams_setting_replaces_single_upstream(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://theirs/v1")
    listed = Upstream(name="a", base_url="http://ours/v1")
    assert load_settings(upstreams=[listed]).all_upstreams == (listed,)


def test_settings_copy_uses_updated_upstreams():
    settings = load_settings()
    assert settings.all_upstreams == ()
    listed = Upstream(base_url="http://localhost:1/v1")
    assert settings.model_copy(update={"upstreams": [listed]}).all_upstreams == (listed,)


def test_model_is_routed_to_first_upstream_that_serves_it():
    a = Upstream(name="a", base_url="http://a", models={"m"})
    b = Upstream(name="b", base_url="http://b", models={"m", "n"})
    settings = load_settings(upstreams=[a, b])
    assert [settings.upstream_for(model) for model in ("m", "n", "o", None)] == [a, b, None, a]


def test_disallowed_endpoint_is_rejected_with_allowed_ones():
    with pytest.raises(InvalidInput, match=r"/v1/images'; allowed are /v1/chat/completions, ") as refused:
        load_settings().require_endpoint("/v1/images")
    assert refused.value.param == "endpoint"


def test_prices_are_exact_decimals():
    assert load_settings(prices={"m": {"input": "0.1"}}).prices == {"m": ModelPrice(input=Decimal("0.1"))}


def wrong_texts() -> dict[str, str]:
    texts = {name: WRONG.get(name, SECRET) for name in FIELDS}
    return {name: text for name, text in texts.items() if text is not None}


def test_invalid_value_is_rejected_by_name_without_showing_it(monkeypatch):
    for name, text in wrong_texts().items():
        with monkeypatch.context() as environment:
            environment.setenv(variable(name), text)
            with pytest.raises(InvalidInput) as refused:
                load_settings()
        assert name in str(refused.value).lower()
        assert SECRET not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("api_key = hunter2", r"batchline\.toml: Invalid value \(at line 1"),
        ("max_inflight = 3", r"batchline\.toml has no such setting: max_inflight"),
        ("OPENAI_API_KEY = 'k'", r"batchline\.toml has no such setting: OPENAI_API_KEY"),
        ("max_in_flight = 'hunter2'", "max_in_flight: "),
        ("[[upstreams]]\nname = 'a'", r"upstreams\.0\.base_url: "),
        ("upstreams = [{base_url = 'http://a'}, {base_url = 'http://b'}]", r"upstreams: .*same name \(default\)"),
        ("min_completion_window = '2h'\nmax_completion_window = '1h'", "min_completion_window is above"),
    ],
)
def test_invalid_toml_file_reports_problem(toml, says):
    Path("batchline.toml").write_text(toml)
    with pytest.raises(InvalidInput, match=says) as refused:
        load_settings()
    assert SECRET not in str(refused.value)


def test_unreadable_toml_file_is_named_in_error():
    Path("batchline.toml").write_bytes(b"\xff")
    with pytest.raises(InvalidInput, match=r"batchline\.toml: "):
        load_settings()


def test_unreadable_dotenv_file_is_named_in_error():
    Path(".env").write_bytes(b"A=\xff")
    with pytest.raises(InvalidInput, match=r"\.env is not UTF-8"):
        load_settings()


def test_all_invalid_settings_are_reported_together(monkeypatch):
    monkeypatch.setenv("BATCHLINE_MAX_REQUESTS", "many")
    monkeypatch.setenv("BATCHLINE_GRACE_S", "-1")
    with pytest.raises(InvalidInput, match=r"max_requests: .*; grace_s: "):
        load_settings()


SECRET_SETTINGS = {
    "database_url": "postgresql://me:hunter2@db/b",
    "s3_access_key_id": "hunter2",
    "s3_secret_access_key": "hunter2",
    "api_key": "hunter2",
    "OPENAI_API_KEY": "hunter2",
    "upstreams": [{"base_url": "http://a", "api_key": "hunter2", "headers": {"x-key": "hunter2"}}],
}


@pytest.mark.parametrize("name", SECRET_SETTINGS)
def test_secret_is_hidden_in_settings_repr_and_dumps(name):
    settings = load_settings(**{name: SECRET_SETTINGS[name]})
    assert settings.all_upstreams is not None
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_secret_is_hidden_in_logs(caplog):
    settings = load_settings(**SECRET_SETTINGS)
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("batchline").info("settings %s, upstreams %r", settings, settings.all_upstreams)
    assert "base_url" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("model", [Settings, Upstream, ModelPrice], ids=lambda model: model.__name__)
def test_every_setting_has_a_description(model):
    assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_settings_page_is_up_to_date():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == DOCS["settings_page"](), "run `python docs/generate.py`"


def test_commands_page_is_up_to_date(monkeypatch):
    monkeypatch.setattr("sys.argv", ["batchline"])  # which usage lines are cut by
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert page == DOCS["commands_page"](), "run `python docs/generate.py`"


def test_faults_page_is_up_to_date():
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    assert page == DOCS["faults_page"](), "run `python docs/generate.py`"


def test_every_setting_is_on_settings_page():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert [name for name in FIELDS if f"| `{variable(name)}` |" not in page] == []


KEYS = ("BATCHLINE_API_KEY", "OPENAI_API_KEY")
ADDRESSES = {
    ".env": {
        "OPENAI_BASE_URL": "OPENAI_BASE_URL=http://elsewhere/v1\n",
        "BATCHLINE_BASE_URL": "BATCHLINE_BASE_URL=http://elsewhere/v1\n",
    },
    "batchline.toml": {"base_url": 'base_url = "http://elsewhere/v1"\n'},
}
PLACES = [(file, name) for file, names in ADDRESSES.items() for name in names]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(("file", "name"), PLACES)
def test_environment_api_key_is_not_sent_to_working_directory_base_url(file, name, key, monkeypatch):
    monkeypatch.setenv(key, "hunter2")
    Path(file).write_text(ADDRESSES[file][name])

    with pytest.raises(InvalidInput, match="BATCHLINE_TRUST_WORKING_DIRECTORY") as raised:
        load_settings()

    assert all(word in str(raised.value) for word in (file, "http://elsewhere/v1"))
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(("file", "name"), PLACES)
def test_home_or_argument_api_key_not_sent_to_working_directory_base_url(file, name):
    Path(file).write_text(ADDRESSES[file][name])
    with pytest.raises(InvalidInput, match="working directory"):
        load_settings(api_key="hunter2")
    home_directory().mkdir(parents=True, exist_ok=True)
    (home_directory() / "config.toml").write_text('api_key = "hunter2"\n')
    with pytest.raises(InvalidInput, match="working directory"):
        load_settings()


@pytest.mark.parametrize(("file", "name"), PLACES)
def test_api_key_is_sent_to_working_directory_base_url_if_trusted(file, name, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "hunter2")
    Path(file).write_text(ADDRESSES[file][name])
    with Path("batchline.toml").open("a") as toml:
        toml.write("trust_working_directory = true\n")
    with pytest.raises(InvalidInput, match="working directory"):
        load_settings()

    monkeypatch.setenv("BATCHLINE_TRUST_WORKING_DIRECTORY", "true")

    assert [server.base_url for server in load_settings().all_upstreams] == ["http://elsewhere/v1"]


@pytest.mark.parametrize("key_file", [".env", "batchline.toml"])
@pytest.mark.parametrize(("file", "name"), PLACES)
def test_working_directory_api_key_is_sent_to_working_directory_base_url(file, name, key_file):
    Path(file).write_text(ADDRESSES[file][name])
    with Path(key_file).open("a") as more:
        more.write('api_key = "hunter2"\n' if key_file.endswith("toml") else "OPENAI_API_KEY=hunter2\n")

    assert len(load_settings().all_upstreams) == 1


def test_environment_base_url_overrides_working_directory_and_gets_key(monkeypatch):
    Path(".env").write_text("OPENAI_BASE_URL=http://elsewhere/v1\n")
    monkeypatch.setenv("OPENAI_API_KEY", "hunter2")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://here/v1")

    assert [server.base_url for server in load_settings().all_upstreams] == ["http://here/v1"]
