"""The files of cluster/: do they parse, fit their schemas, and call what is there?"""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import typer.main
import yaml

from rlhf_ray.cli import app
from rlhf_ray.durable.staging import is_url

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT.parent / "shared" / "schemas"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
IMAGE = "rlhf-ray:0.1.0-gpu"


def named(path: Path) -> str:
    return path.relative_to(CLUSTER).as_posix()


def objects(name: str) -> list[dict[str, Any]]:
    """The documents of a YAML file, with the parameter filled in as `envsubst` does."""
    text = (CLUSTER / name).read_text(encoding="utf-8").replace("${IMAGE}", IMAGE)
    return list(yaml.safe_load_all(text))


def ray_specs() -> list[dict[str, Any]]:
    """The cluster of raycluster.yaml, and that of rayjob.yaml."""
    (cluster,), (job,) = objects("kuberay/raycluster.yaml"), objects("kuberay/rayjob.yaml")
    return [cluster["spec"], job["spec"]["rayClusterSpec"]]


def pods() -> Iterator[dict[str, Any]]:
    for spec in ray_specs():
        yield spec["headGroupSpec"]["template"]["spec"]
        yield from (group["template"]["spec"] for group in spec["workerGroupSpecs"])
    yield objects("kuberay/job.yaml")[0]["spec"]["template"]["spec"]


# Schemas


def strict(schema: Any) -> Any:
    """The schema, closed to fields it does not name, as the Kubernetes server prunes them."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def kuberay(kind: str) -> jsonschema.Draft202012Validator:
    path = SCHEMAS / f"{kind.lower()}s.v1.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there: KubeRay's schemas lie beside the repository")
    return jsonschema.Draft202012Validator(strict(json.loads(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("kind", ["RayJob", "RayCluster"])
def test_a_manifest_fits_the_schema_of_kuberay(kind: str) -> None:
    (manifest,) = objects(f"kuberay/{kind.lower()}.yaml")
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", kind)
    kuberay(kind).validate(manifest)


@pytest.mark.parametrize(
    "path",
    [("spec", "backofLimit"), ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "x")],
)
def test_a_field_that_kuberay_does_not_know_would_be_found(path: tuple[str, ...]) -> None:
    validator = kuberay("RayJob")
    (manifest,) = objects("kuberay/rayjob.yaml")
    inside = manifest
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = 1
    with pytest.raises(jsonschema.ValidationError, match=path[-1]):
        validator.validate(manifest)


@pytest.mark.parametrize("name", ["ray-up/aws.yaml", "ray-up/on_prem.yaml"])
def test_a_cluster_file_fits_the_schema_of_ray_up(name: str) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    (found,) = objects(name)
    jsonschema.validate(found, schema)
    assert found["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "--env=RAY_AUTH_MODE=token" in found["docker"]["run_options"]
    types = found.get("available_node_types", {})
    assert all(one.get("min_workers", 0) == one.get("max_workers", 0) for one in types.values())


@pytest.mark.parametrize("path", FILES, ids=named)
def test_every_file_parses(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    if path.suffix == ".yaml":
        assert all(isinstance(one, dict) for one in objects(named(path)))
    elif path.suffix == ".json":
        assert isinstance(json.loads(text), dict)


# What they say


@pytest.mark.parametrize("spec", ray_specs(), ids=["raycluster", "rayjob"])
def test_a_cluster_asks_for_a_token_and_has_its_nodes_from_the_beginning(
    spec: dict[str, Any],
) -> None:
    assert spec["authOptions"] == {"mode": "token"}
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]


def test_the_job_ends_for_good_where_trying_again_cannot_help() -> None:
    (job,) = objects("kuberay/job.yaml")
    spec = job["spec"]
    pod = spec["template"]["spec"]
    first, second = spec["podFailurePolicy"]["rules"]
    assert first["action"] == "FailJob"
    assert first["onExitCodes"] == {
        "containerName": pod["containers"][0]["name"], "operator": "In", "values": [2, 65, 78],
    }  # fmt: skip
    assert second["action"] == "Ignore"
    assert spec["backoffLimit"] > 0
    assert pod["restartPolicy"] == "Never", "without it Kubernetes refuses a podFailurePolicy"


def test_the_ray_job_leaves_trying_again_to_the_script_that_sees_exit_codes() -> None:
    (job,) = objects("kuberay/rayjob.yaml")
    assert job["spec"]["backoffLimit"] == 0
    assert shlex.split(job["spec"]["entrypoint"])[:2] == ["bash", "/opt/rlhf_ray/cluster/retry.sh"]
    for name in ("gpu", "cpu"):
        text = (CLUSTER / f"Dockerfile.{name}").read_text()
        assert "WORKDIR /opt/rlhf_ray\n" in text
        assert "cluster/retry.sh" in text


def test_the_job_submits_to_the_cluster_beside_it_with_its_token() -> None:
    (cluster,), (job,) = objects("kuberay/raycluster.yaml"), objects("kuberay/job.yaml")
    name = cluster["metadata"]["name"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert f"--address=http://{name}-head-svc:8265" in container["command"]
    (token,) = container["env"]
    assert token["name"] == "RAY_AUTH_TOKEN"
    assert token["valueFrom"] == {"secretKeyRef": {"name": name, "key": "auth_token"}}


def test_all_pods_see_the_runs_and_none_is_root() -> None:
    (claim,) = objects("kuberay/storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False}
        volumes = {one["name"]: one for one in pod["volumes"]}
        assert {one["name"] for one in container["volumeMounts"]} == set(volumes)
        if container["name"] != "submit":
            claimed = volumes["runs"]["persistentVolumeClaim"]["claimName"]
            assert claimed == claim["metadata"]["name"]


def test_images_are_parameters_with_a_version_and_no_registry() -> None:
    images = {container["image"] for pod in pods() for container in pod["containers"]}
    images |= {objects(f"ray-up/{name}.yaml")[0]["docker"]["image"] for name in ("aws", "on_prem")}
    assert images == {IMAGE}
    for name in ("gpu", "cpu"):
        lines = (CLUSTER / f"Dockerfile.{name}").read_text().splitlines()
        assert [line for line in lines if line.startswith("FROM")] == ["FROM ${BASE}"]
        (base,) = [line.removeprefix("ARG BASE=") for line in lines if line.startswith("ARG BASE")]
        assert re.fullmatch(r"[a-z]+(/[a-z]+)?:\d[\w.-]+", base)
    for path in FILES:
        assert ":latest" not in path.read_text(encoding="utf-8"), named(path)


@pytest.mark.parametrize("name", ["gpu", "cpu"])
def test_an_image_copies_what_is_there_and_keeps_no_root(name: str) -> None:
    lines = (CLUSTER / f"Dockerfile.{name}").read_text().splitlines()
    copied = [one for line in lines if line.startswith("COPY") for one in line.split()[1:-1]]
    assert copied
    assert [one for one in copied if not (ROOT / one).exists()] == []
    assert [line for line in lines if line.startswith("USER")] == ["USER ray"]


@pytest.mark.parametrize("path", FILES, ids=named)
def test_nothing_listens_everywhere_and_no_key_lies_around(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "0.0.0.0" not in text
    assert not re.search(r"PRIVATE KEY|AKIA[0-9A-Z]{16}|\b[0-9a-f]{40,}\b", text)
    assert not re.search(r"^\s*(password|token|secret)\s*[:=]", text, re.MULTILINE | re.IGNORECASE)


# Commands of ours


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Every `rlhf-ray ...` of cluster/, as (file, words)."""
    readme = (CLUSTER / "README.md").read_text(encoding="utf-8")
    shown = "\n".join(re.findall(r"^```sh\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE))
    for line in [*shown.splitlines(), *re.findall(r"`(rlhf-ray [^`]* [^`]*)`", readme)]:
        if line.startswith("rlhf-ray"):
            yield "README.md", shlex.split(line, comments=True)
    (job,), (ray_job,) = objects("kuberay/job.yaml"), objects("kuberay/rayjob.yaml")
    yield "job.yaml", job["spec"]["template"]["spec"]["containers"][0]["command"]
    yield "rayjob.yaml", shlex.split(ray_job["spec"]["entrypoint"])[2:]
    script = (CLUSTER / "slurm" / "train.sbatch").read_text(encoding="utf-8")
    (call,) = re.findall(r'^\s+(rlhf-ray .*) "\$@" &$', script, re.MULTILINE)
    (usage,) = re.findall(r"train\.sbatch (-c .*) \[KEY=VALUE", script)
    yield "train.sbatch", shlex.split(f"{call} {usage}")


@pytest.mark.parametrize(("name", "words"), list(command_lines()), ids=lambda one: str(one)[:50])
def test_every_command_line_is_ours(name: str, words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    assert words[0] == "rlhf-ray"
    context = command.commands[words[1]].make_context(words[1], words[2:])
    place = context.params["run_dir"]
    assert place is None or is_url(place) or Path(place).is_absolute()
    # What is no option is a key of the recipe, so a misspelt option would end up here.
    assert all(re.fullmatch(r"[a-z_.]+=\S+", one) for one in context.args)


def test_there_are_commands_of_all_kinds() -> None:
    found = [name for name, _ in command_lines()]
    assert found.count("README.md") >= 4
    assert {"job.yaml", "rayjob.yaml", "train.sbatch"} <= set(found)


def test_every_link_of_the_page_resolves() -> None:
    links = re.findall(r"\]\(([^)]+)\)", (CLUSTER / "README.md").read_text(encoding="utf-8"))
    assert links
    assert [one for one in links if not (CLUSTER / one.partition("#")[0]).exists()] == []


# Dashboard


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CLUSTER / "grafana.json").read_text(encoding="utf-8"))
    return found


def test_every_metric_is_one_that_ray_itself_shows() -> None:
    panels = Path(ray.__file__).parent / "dashboard/modules/metrics/dashboards"
    known = set(
        re.findall(r"\bray_\w+(?=\{)", (panels / "default_dashboard_panels.py").read_text())
    )
    used = set(re.findall(r"\bray_\w+", json.dumps(dashboard())))
    assert len(used) > 10
    assert sorted(used - known) == []


def test_panels_have_their_own_places() -> None:
    panels = dashboard()["panels"]
    assert len({one["id"] for one in panels}) == len(panels)
    places = [one["gridPos"] for one in panels]
    assert len({(one["x"], one["y"]) for one in places}) == len(panels)
    assert all(one["x"] + one["w"] <= 24 for one in places)
