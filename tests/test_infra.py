import copy
import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from p2es_platform.settings import Settings
from serve.models import ModelChoice

ROOT = Path(__file__).parents[1]
INFRA = ROOT / "infra"
KUBERNETES = INFRA / "kubernetes"
BASE, GPU = KUBERNETES / "base", KUBERNETES / "overlays" / "gpu"
RAY = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


# Ray Serve configurations. Its own schemas take unknown keys for the deployments' and drop them.


def unknown_keys(raw, schema, children, where=""):
    found = [f"{where}{key}" for key in raw if key not in schema.model_fields]
    for key, (child, grandchildren) in children.items():
        for part in raw.get(key) or [] if isinstance(raw.get(key), list) else [raw.get(key) or {}]:
            found += unknown_keys(part, child, grandchildren, f"{where}{key}.")
    return found


def check_serve(raw):
    """Raise unless Ray Serve would do all that the configuration says."""
    from ray.serve import schema
    from ray.serve.config import AutoscalingConfig

    logging = {"logging_config": (schema.LoggingConfig, {})}
    deployments = {"deployments": (schema.DeploymentSchema, {"autoscaling_config": (AutoscalingConfig, {})} | logging)}
    tree = {"applications": (schema.ServeApplicationSchema, deployments | logging)} | logging
    unknown = unknown_keys(raw, schema.ServeDeploySchema, tree | {"http_options": (schema.HTTPOptionsSchema, {})})
    if unknown:
        raise ValueError(f"unknown: {unknown}")
    schema.ServeDeploySchema.model_validate(raw)
    for application in raw["applications"]:
        names = {deployment["name"] for deployment in application.get("deployments", [])}
        module, _, name = application["import_path"].partition(":")
        build = getattr(import_module(module), name)
        (parameter,) = signature(build).parameters.values()
        build(parameter.annotation.model_validate(application.get("args", {})))
        if not names <= {
            import_module("serve.sampler").Sampler.name,
            import_module("serve.endpoint").Endpoint.name,
        }:
            raise ValueError(f"no such deployment: {names}")
        for deployment in application.get("deployments", []):
            if "user_config" in deployment:
                ModelChoice.model_validate(deployment["user_config"])


def key_paths(raw, path=()):
    items = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    for key, value in items:
        if isinstance(raw, dict):
            yield (*path, key)
        yield from key_paths(value, (*path, key))


def misspelt(raw, path):
    wrong = copy.deepcopy(raw)
    inner = wrong
    for key in path[:-1]:
        inner = inner[key]
    inner[f"{path[-1]}x"] = inner.pop(path[-1])
    return wrong


SERVE = yaml.safe_load((INFRA / "serve.yaml").read_text())


def test_the_serve_configuration_builds_and_listens_to_this_machine_alone():
    check_serve(SERVE)
    assert SERVE["http_options"]["host"] == "127.0.0.1"


@pytest.mark.parametrize("path", list(key_paths(SERVE)), ids=lambda path: ".".join(map(str, path)))
def test_every_misspelt_key_of_the_serve_configuration_is_noticed(path):
    with pytest.raises((ValueError, KeyError, TypeError)):
        check_serve(misspelt(SERVE, path))


def test_a_wrong_value_in_the_arguments_is_noticed():
    for name, value in (("gpus_per_replica", -1), ("timeout_s", 0), ("token_sha256", "the token itself")):
        wrong = copy.deepcopy(SERVE)
        wrong["applications"][0]["args"][name] = value
        with pytest.raises(ValidationError):
            check_serve(wrong)


# Kubernetes: what kustomize makes of the folders, with the parts of kustomize that they use.


def at(document, pointer):
    *way, last = [part.replace("~1", "/") for part in pointer.strip("/").split("/")]
    for part in way:
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document, last


def apply_patch(document, operations):
    for operation in operations:
        assert operation.keys() == {"op", "path", "value"}
        inner, last = at(document, operation["path"])
        if isinstance(inner, list):
            assert (operation["op"], last) == ("add", "-")
            inner.append(operation["value"])
        else:
            assert operation["op"] == ("replace" if last in inner else "add")
            inner[last] = operation["value"]


def containers(document):
    if isinstance(document, dict):
        yield from (c for key in ("containers", "initContainers") for c in document.get(key, []))
        document = list(document.values())
    for part in document if isinstance(document, list) else []:
        yield from containers(part)


def render(folder):
    """What `kubectl kustomize` gives: resources, then patches, then images and the namespace."""
    rules = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert rules.keys() <= {"apiVersion", "kind", "namespace", "resources", "patches", "images"}
    documents = []
    for name in rules["resources"]:
        path = folder / name
        documents += render(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for patch in rules.get("patches", []):
        chosen = [
            d for d in documents
            if (d["kind"], d["metadata"]["name"]) == (patch["target"]["kind"], patch["target"]["name"])
        ]  # fmt: skip
        assert len(chosen) == 1
        apply_patch(chosen[0], yaml.safe_load((folder / patch["path"]).read_text()))
    for document in documents:
        if "namespace" in rules and document["kind"] != "Namespace":
            document["metadata"]["namespace"] = rules["namespace"]
        for container in containers(document):
            for image in rules.get("images", []):
                if container["image"].partition(":")[0] == image["name"]:
                    container["image"] = f"{image['name']}:{image['newTag']}"
    return documents


RENDERED = {folder.name: render(folder) for folder in (BASE, GPU)}
FOLDERS = pytest.mark.parametrize("folder", RENDERED)


def only(folder, kind):
    (found,) = [document for document in RENDERED[folder] if document["kind"] == kind]
    return found


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: str
    namespace: str
    labels: dict[str, str] = {}


class AutoscalerOptions(Strict):
    version: str
    idleTimeoutSeconds: int  # noqa: N815
    securityContext: dict[str, Any]  # noqa: N815


class AuthOptions(Strict):
    mode: str


class HeadGroup(Strict):
    rayStartParams: dict[str, str]  # noqa: N815
    template: dict[str, Any]


class WorkerGroup(HeadGroup):
    groupName: str  # noqa: N815
    replicas: int
    minReplicas: int  # noqa: N815
    maxReplicas: int  # noqa: N815


class RayCluster(Strict):
    rayVersion: str  # noqa: N815
    enableInTreeAutoscaling: bool  # noqa: N815
    autoscalerOptions: AutoscalerOptions  # noqa: N815
    authOptions: AuthOptions  # noqa: N815
    headGroupSpec: HeadGroup  # noqa: N815
    workerGroupSpecs: list[WorkerGroup]  # noqa: N815


class UpgradeStrategy(Strict):
    type: str


class RayServiceSpec(Strict):
    upgradeStrategy: UpgradeStrategy  # noqa: N815
    excludeHeadPodFromServeSvc: bool  # noqa: N815
    serveConfigV2: str  # noqa: N815
    rayClusterConfig: RayCluster  # noqa: N815


class RayJobSpec(Strict):
    suspend: bool
    entrypoint: str
    submissionMode: str  # noqa: N815
    backoffLimit: int  # noqa: N815
    activeDeadlineSeconds: int  # noqa: N815
    shutdownAfterJobFinishes: bool  # noqa: N815
    ttlSecondsAfterFinished: int  # noqa: N815
    rayClusterSpec: RayCluster  # noqa: N815


class RayObject(Strict):
    apiVersion: str  # noqa: N815
    kind: str
    metadata: Metadata


class RayService(RayObject):
    spec: RayServiceSpec


class RayJob(RayObject):
    spec: RayJobSpec


RAY_KINDS = {"RayService": RayService, "RayJob": RayJob}


def clusters(folder):
    service = RayService.model_validate(only(folder, "RayService")).spec.rayClusterConfig
    return {
        "RayService": service,
        "RayJob": RayJob.model_validate(only(folder, "RayJob")).spec.rayClusterSpec,
    }


def pods(folder):
    return [
        group.template
        for cluster in clusters(folder).values()
        for group in (cluster.headGroupSpec, *cluster.workerGroupSpecs)
    ]


def validate(document):
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@FOLDERS
def test_every_object_is_what_its_kind_allows(folder):
    for document in RENDERED[folder]:
        if document["kind"] in RAY_KINDS:
            assert document["apiVersion"] == "ray.io/v1"
            RAY_KINDS[document["kind"]].model_validate(document)
        else:
            validate(document)
    for template in pods(folder):
        validate({"apiVersion": "v1", "kind": "Pod"} | copy.deepcopy(template))


@pytest.mark.parametrize("kind", RAY_KINDS)
def test_a_misspelt_key_of_a_ray_object_is_noticed(kind):
    document = only("base", kind)
    for path in key_paths(document):
        if "template" in path[:-1] or {"rayStartParams", "labels", "securityContext"} & set(path[:-1]):
            continue
        with pytest.raises(ValidationError):
            RAY_KINDS[kind].model_validate(misspelt(document, path))


def test_a_misspelt_key_of_a_pod_is_noticed():
    pod = {"apiVersion": "v1", "kind": "Pod"} | pods("base")[0]
    for path in key_paths(pod["spec"]):
        if {"requests", "limits"} & set(path[:-1]):
            continue
        with pytest.raises(kubernetes_validate.ValidationError):
            validate(misspelt(pod, ("spec", *path)))


@FOLDERS
def test_the_endpoint_in_a_cluster_cannot_run_without_a_token(folder):
    service = only(folder, "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    check_serve(config)
    assert config["http_options"]["host"] == "0.0.0.0"
    assert config["applications"][0]["args"]["require_token"] is True
    cluster = clusters(folder)["RayService"]
    for group in (cluster.headGroupSpec, *cluster.workerGroupSpecs):
        (container,) = group.template["spec"]["containers"]
        (token,) = [entry for entry in container["env"] if entry["name"] == "P2ES_ENDPOINT_TOKEN"]
        assert not token["valueFrom"]["secretKeyRef"].get("optional", False)


@FOLDERS
def test_every_cluster_asks_for_a_token_and_runs_the_ray_of_the_constraints(folder):
    for cluster in clusters(folder).values():
        assert cluster.authOptions.mode == "token"
        assert cluster.rayVersion == RAY
        assert cluster.headGroupSpec.rayStartParams["num-cpus"] == "0"
        for group in cluster.workerGroupSpecs:
            assert group.minReplicas <= group.replicas <= group.maxReplicas
            # The autoscaler counts pods: one that restarts by itself is counted twice.
            assert group.template["spec"]["restartPolicy"] == "Never"


@FOLDERS
def test_every_pod_runs_without_rights_and_within_its_memory(folder):
    for template in pods(folder):
        spec = template["spec"]
        assert template["metadata"]["labels"]["app.kubernetes.io/part-of"] == "p2es"
        assert spec["securityContext"]["runAsNonRoot"]
        for container in spec["containers"]:
            assert container["image"].startswith("p2es:")
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            resources = container["resources"]
            assert resources["requests"]["memory"] == resources["limits"]["memory"]


@FOLDERS
def test_a_replica_fits_into_some_pod(folder):
    args = yaml.safe_load(only(folder, "RayService")["spec"]["serveConfigV2"])["applications"][0]["args"]
    groups = clusters(folder)["RayService"].workerGroupSpecs
    limits = [group.template["spec"]["containers"][0]["resources"]["limits"] for group in groups]
    assert any(
        int(group.rayStartParams["num-cpus"]) >= args["cpus_per_replica"]
        and int(limit.get("nvidia.com/gpu", 0)) >= args["gpus_per_replica"]
        for group, limit in zip(groups, limits, strict=True)
    )


def test_only_the_gpu_overlay_asks_for_gpus():
    asked = {name: "nvidia.com/gpu" in json.dumps(documents) for name, documents in RENDERED.items()}
    assert asked == {"base": False, "gpu": True}


@FOLDERS
def test_the_job_runs_a_command_that_p2es_has_with_options_that_it_takes(folder):
    from pipelines import cli

    program, command, *options = shlex.split(only(folder, "RayJob")["spec"]["entrypoint"])
    assert program == "p2es"
    assert command in cli.COMMANDS
    cli._parse(command, options)
    with pytest.raises(SystemExit):
        cli._parse(command, [*options, "--no-such-option", "1"])


def test_only_the_endpoint_is_open_to_other_namespaces_of_clients():
    policies = {d["metadata"]["name"]: d["spec"] for d in RENDERED["base"] if d["kind"] == "NetworkPolicy"}
    closed = policies["deny-by-default"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    opened = {}
    for name, spec in policies.items():
        for rule in spec.get("ingress", []):
            assert rule["from"], "a rule without `from` lets everyone in"
            if all("namespaceSelector" in peer for peer in rule["from"]):
                opened[name] = [port["port"] for port in rule["ports"]]
    assert opened == {"endpoint-from-clients": [8000], "dashboard-from-operator": [8265, 8000],
                      "metrics-from-monitoring": [8080]}  # fmt: skip
    selected = policies["endpoint-from-clients"]["podSelector"]["matchLabels"]
    labels = [t["metadata"]["labels"] for t in pods("base")]
    assert any(selected.items() <= label.items() for label in labels)


def test_the_settings_that_are_set_exist():
    known = {str(field.validation_alias) for field in Settings.model_fields.values()}
    assert set(only("base", "ConfigMap")["data"]) <= known
    named = set(re.findall(r"\bP2ES_[A-Z_]+\b", (INFRA / "README.md").read_text()))
    assert named <= known


# The image.

DOCKERFILE = (INFRA / "Dockerfile").read_text().replace("\\\n", " ")


def copied():
    lines = re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE)
    words = [[w for w in line.split() if not w.startswith("--")] for line in lines if "--from" not in line]
    return [source for *sources, _ in words for source in sources]


def test_the_image_copies_what_exists_and_what_the_build_may_see():
    seen = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for source in copied():
        assert (ROOT / source).exists()
        assert source in seen
    assert seen == set(copied())


def test_the_image_runs_the_ray_of_the_constraints_without_root():
    assert f"ARG BASE=rayproject/ray:{RAY}-py311-cpu" in DOCKERFILE
    users = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)
    assert users
    assert users[-1] not in ("root", "0")
    assert not re.search(r"^(ADD|RUN .*(curl|wget|sudo))\b", DOCKERFILE, re.MULTILINE)


def test_the_health_check_asks_a_route_that_the_endpoint_has():
    from serve.endpoint import api

    asked = re.search(r"127\.0\.0\.1:8000(/\w+)", DOCKERFILE)[1]
    assert asked in api.openapi()["paths"]


def test_what_the_build_may_see_is_enough_for_a_whole_wheel(tmp_path):
    for source in copied():
        target = tmp_path / "source" / source
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / source, target)
    build = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--directory",
        str(tmp_path / "wheel"),
    ]
    subprocess.run(build, cwd=tmp_path / "source", check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "serve/page.html",
        "serve/app.py",
        "p2es/model.py",
        "p2es_platform/settings.py",
        "pipelines/cli.py",
    } <= names
    assert "platform/__init__.py" not in names


def test_no_host_of_a_registry_and_no_path_of_a_machine_is_in_any_file():
    for path in [*INFRA.rglob("*"), ROOT / ".dockerignore"]:
        if path.is_file():
            text = path.read_text()
            assert not re.search(r"(?<![\w.])(/work|/root|/tmp)\b", text)
            assert not re.search(r"\b(docker\.io|ghcr\.io|quay\.io|gcr\.io|pypi\.org|pytorch\.org)\b", text)
