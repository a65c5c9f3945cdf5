"""The files of deploy/, the Dockerfile and docs/production.md fit each other and the code."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.settings.legacy import _get_settings_fields
from prefect.settings.models.root import Settings as PrefectSettings
from prefect.utilities.templating import apply_values
from test_readme import blocks, commands_of, parse

from batchline.api.health import router as health
from batchline.models.settings import Settings, load_settings

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
TEMPLATE = json.loads((DEPLOY / "kubernetes" / "base-job-template.json").read_text(encoding="utf-8"))
MANIFESTS = [
    document
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    if path.name != "prefect.yaml"
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]
IMAGE = f"registry.example.com/batchline:{PROJECT['version']}"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
LEAST_TO_STOP_S = load_settings().grace_s + 30

OF_OTHERS = {"OPENAI_BASE_URL", "OPENAI_API_KEY", "PREFECT_HOME"}
OF_PACKAGES = ("PREFECT_REDIS_", "PREFECT_INTEGRATIONS_KUBERNETES_")
"""Variables of packages that Prefect's server or worker has beside."""


def is_known(variable: str) -> bool:
    """Return True if batchline, Prefect or one of its packages reads the variable."""
    ours = {f"BATCHLINE_{name.upper()}" for name in Settings.model_fields}
    known = ours | OF_OTHERS | set(_get_settings_fields(PrefectSettings))
    return variable in known or variable.startswith(OF_PACKAGES)


def variables_in(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def manifest(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in MANIFESTS if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pod(name: str) -> dict[str, Any]:
    return manifest("Deployment", name)["spec"]["template"]["spec"]


def container(name: str) -> dict[str, Any]:
    (only,) = pod(name)["containers"]
    return only


# Variables and units


def test_production_page_shows_env_files_unchanged():
    shown = [dict(line.split("=", 1) for line in block.splitlines()) for block in blocks(PAGE, "ini")]
    assert shown == [variables_in(DEPLOY / "systemd" / name) for name in ("prefect-server.env", "batchline.env")]


@pytest.mark.parametrize("path", sorted((DEPLOY / "systemd").glob("*.env")), ids=lambda path: path.name)
def test_env_file_variables_are_known(path):
    assert [name for name in variables_in(path) if not is_known(name)] == []


def test_unknown_variable_is_detected():
    assert not is_known("PREFECT_SERVER_API_AUTHSTRING")
    assert not is_known("BATCHLINE_DATABASE")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_unit(unit, tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    text = unit.read_text(encoding="utf-8").replace("/opt/batchline/bin", str(Path(sys.executable).parent))
    (tmp_path / unit.name).write_text(text, encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", tmp_path / unit.name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_unit_uses_existing_env_files_and_documented_command(unit):
    text = unit.read_text(encoding="utf-8")
    files = re.findall(r"^EnvironmentFile=/etc/batchline/(.+)$", text, re.MULTILINE)
    assert files
    assert all((unit.parent / name).is_file() for name in files)
    (command,) = re.findall(r"^ExecStart=/opt/batchline/bin/(.+)$", text, re.MULTILINE)
    assert command in PAGE or unit.name == "batchline-serve.service"
    assert unit.name in PAGE


@pytest.mark.parametrize("name", ["batchline-worker", "batchline-serve"])
def test_unit_stop_timeout_covers_grace_period(name):
    text = (DEPLOY / "systemd" / f"{name}.service").read_text(encoding="utf-8")
    assert int(re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)[0]) >= LEAST_TO_STOP_S


def test_nginx_accepts_its_configuration(tmp_path):
    nginx, openssl = shutil.which("nginx", path="/usr/sbin:/usr/bin"), shutil.which("openssl")
    if nginx is None or openssl is None:
        pytest.skip("there is no nginx or openssl")
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-keyout", "x.key", "-out", "x.crt"]
    subprocess.run([openssl, *made], cwd=tmp_path, check=True, capture_output=True)
    servers = (DEPLOY / "nginx" / "batchline.conf").read_text(encoding="utf-8")
    servers = re.sub(r"/etc/ssl/\w+\.example\.com", str(tmp_path / "x"), servers)
    head = f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off;"
    (tmp_path / "nginx.conf").write_text(f"{head} {servers} }}", encoding="utf-8")
    done = subprocess.run([nginx, "-t", "-c", tmp_path / "nginx.conf"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The page


@pytest.mark.parametrize("command", sorted(set(commands_of(PAGE))))
def test_production_page_command_is_accepted_by_cli(command):
    parse([{"ID": "batch-1", "URL": "https://x.example.com"}.get(word, word) for word in shlex.split(command)[1:]])


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE))))
def test_production_page_link_target_exists(target):
    assert (ROOT / "docs" / target).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\bdeploy/(?:systemd|kubernetes|nginx)/[\w.-]+\w", PAGE))))
def test_production_page_deploy_file_exists(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\b(?:BATCHLINE|PREFECT)_[A-Z_]+[A-Z]\b", PAGE))))
def test_production_page_variable_is_known(name):
    assert is_known(name)


# The image


def test_image_copies_exist_and_match_dockerignore():
    copied = [
        path
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
        for path in line.split()
    ]
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(copied) == sorted(allowed)
    assert all((ROOT / path).exists() for path in copied)


def test_image_uses_minimum_python_known_extras_and_constraints():
    assert set(re.findall(r"^FROM python:([\d.]+)-slim", DOCKERFILE, re.MULTILINE)) == {
        PROJECT["requires-python"].removeprefix(">=")
    }
    assert re.findall(r"^ARG EXTRAS=(\w+)$", DOCKERFILE, re.MULTILINE)[0] in PROJECT["optional-dependencies"]
    assert "pip install --no-cache-dir --constraint constraints.txt" in DOCKERFILE


def test_image_runs_as_numeric_non_root_user():
    assert re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE) == ["1000"]
    assert "--uid 1000" in DOCKERFILE


# Kubernetes


def test_deployments_use_image_of_this_version():
    deployments = yaml.safe_load((DEPLOY / "kubernetes" / "prefect.yaml").read_text(encoding="utf-8"))[
        "deployments"
    ]
    assert {each["work_pool"]["job_variables"]["image"] for each in deployments} == {IMAGE}
    assert {container(name)["image"] for name in ("batchline-worker", "batchline-serve")} == {IMAGE}
    assert TEMPLATE["variables"]["properties"]["image"]["default"] == IMAGE
    assert re.findall(r"registry\.example\.com/\S+", PAGE) == [IMAGE] * 2


def test_manifests_share_namespace_and_names_with_job_template():
    defaults = {name: each.get("default") for name, each in TEMPLATE["variables"]["properties"].items()}
    namespaced = [each for each in MANIFESTS if each["kind"] != "Namespace"]
    assert {each["metadata"]["namespace"] for each in namespaced} == {defaults["namespace"]}
    assert manifest("Namespace", defaults["namespace"])
    assert manifest("ConfigMap", defaults["settings"])
    assert manifest("ServiceAccount", defaults["service_account_name"])
    assert manifest("ServiceAccount", pod("batchline-worker")["serviceAccountName"])
    for name in ("batchline-worker", "batchline-serve"):
        assert container(name)["envFrom"] == [
            {"configMapRef": {"name": defaults["settings"]}},
            {"secretRef": {"name": defaults["secrets"]}},
        ]


def test_pod_variables_are_known_and_not_secret():
    told = list(manifest("ConfigMap", "batchline")["data"])
    told += [each["name"] for name in ("batchline-worker", "batchline-serve") for each in container(name)["env"]]
    assert [name for name in told if not is_known(name)] == []
    secrets = {
        f"BATCHLINE_{name.upper()}" for name, field in Settings.model_fields.items() if "Secret" in str(field)
    }
    assert "BATCHLINE_DATABASE_URL" in secrets
    assert secrets & set(told) == set()


def test_serve_port_matches_probes_and_service():
    serve, (port,) = container("batchline-serve"), container("batchline-serve")["ports"]
    assert serve["args"][0] == "batchline"
    parse(serve["args"][1:])
    assert str(port["containerPort"]) == serve["args"][serve["args"].index("--port") + 1]
    probes = {serve[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert probes == {"/healthz", "/readyz"}
    assert probes <= {route.path for route in health.routes}
    assert {serve[f"{kind}Probe"]["httpGet"]["port"] for kind in ("startup", "liveness", "readiness")} == {
        port["name"]
    }
    service = manifest("Service", "batchline-serve")["spec"]
    assert service["ports"][0]["targetPort"] == port["name"]
    labels = manifest("Deployment", "batchline-serve")["spec"]["template"]["metadata"]["labels"]
    assert service["selector"] == labels
    assert pod("batchline-serve")["terminationGracePeriodSeconds"] >= LEAST_TO_STOP_S


def test_worker_uses_work_pool_of_deployments():
    arguments = container("batchline-worker")["args"]
    made = re.findall(r"^prefect work-pool create (\S+) --type kubernetes", PAGE, re.MULTILINE)
    deployed = yaml.safe_load((DEPLOY / "kubernetes" / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    assert {arguments[arguments.index("--pool") + 1], *made} == {each["work_pool"]["name"] for each in deployed}


def test_kubernetes_deployments_match_prefect_yaml():
    def deployments(path: Path) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"]
        for each in found:
            each["work_pool"]["job_variables"].pop("image", None)
        return found

    assert deployments(DEPLOY / "kubernetes" / "prefect.yaml") == deployments(ROOT / "prefect.yaml")


def test_job_template_placeholders_match_variables():
    places = set(re.findall(r"{{ (\w+) }}", json.dumps(TEMPLATE["job_configuration"])))
    assert places == set(TEMPLATE["variables"]["properties"])
    assert TEMPLATE["variables"]["properties"]["grace_s"]["default"] >= LEAST_TO_STOP_S


def test_prefect_worker_builds_job_with_our_settings_from_template():
    worker = pytest.importorskip("prefect_kubernetes.worker")
    defaults = {name: each.get("default") for name, each in TEMPLATE["variables"]["properties"].items()}
    chosen = {name: value for name, value in defaults.items() if value is not None} | {"env": {"A": "b"}}
    filled = apply_values(TEMPLATE["job_configuration"], chosen)
    job = worker.KubernetesWorkerJobConfiguration.model_validate(filled)
    job.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="some run"))

    (only,) = job.job_manifest["spec"]["template"]["spec"]["containers"]
    assert only["args"] == ["python", "-m", "prefect.engine"]
    assert only["envFrom"] == container("batchline-worker")["envFrom"]
    assert {"name": "A", "value": "b"} in only["env"]
    assert job.job_manifest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == defaults["grace_s"]
