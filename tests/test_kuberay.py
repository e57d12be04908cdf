"""deploy/kuberay against the schemas of KubeRay and Kubernetes, Ray's own reading of them, and what this project offers."""

import contextlib
import copy
import importlib
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request

import jsonschema
import kubernetes_validate
import pytest
import requests
import yaml
from conftest import ROOT, free_port, plan_of
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.serve.schema import ServeDeploySchema
from test_deploy import locked

from cluster.launcher import KUBERAY_NAME, limits, of_kuberay, with_growth
from cluster.resources import ClusterResources
from pipelines.cli import main
from pipelines.serve import application
from serving.proxy import PATIENCE
from vidalign.config.loading import parse_config
from vidalign.errors import ClusterError, ConfigError, ModelError

FOLDER = ROOT / "deploy" / "kuberay"
KUBERNETES = "1.37"  # of the schemas that pods and the claim are checked against
SCHEMA = jsonschema.Draft202012Validator(yaml.safe_load((ROOT / "tests" / "kuberay.yaml").read_text(encoding="utf-8")))
SPECS = {"cluster": (), "job": ("rayClusterSpec",), "service": ("rayClusterConfig",)}  # where each has its cluster


def read(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def cluster_of(name, manifest):
    spec = manifest["spec"]
    for key in SPECS[name]:
        spec = spec[key]
    return spec


def groups(cluster):
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def faults(name, manifest):
    """What KubeRay's schema or Kubernetes' refuses, and fields that either would ignore."""
    found = [error.message for error in SCHEMA.iter_errors(manifest)]
    for group in groups(cluster_of(name, manifest)):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}
        try:
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(error.message)
    return found


@pytest.mark.parametrize("name", SPECS)
def test_the_schemas_know_every_field(name):
    assert not faults(name, read(name))


def test_the_claim_is_one_that_kubernetes_takes():
    claim = read("storage")
    kubernetes_validate.validate(claim, KUBERNETES, strict=True)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]  # pods on several nodes write to it


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "autoscaling"), True),
        (("spec", "headGroupSpec", "rayStartParameters"), {}),
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),  # KubeRay takes strings alone
        (("spec", "workerGroupSpecs", 0, "maxReplica"), 3),
        (("spec", "workerGroupSpecs", 1, "minReplicas"), "0"),
        (("spec", "authOptions", "mode"), "tokens"),
        (("spec", "headGroupSpec", "template", "spec", "volume"), []),
        (("spec", "workerGroupSpecs", 1, "template", "spec", "containers", 0, "resource"), {}),
        (("spec", "workerGroupSpecs", 1, "template", "spec", "containers", 0, "volumeMounts", 0, "mountpath"), "/x"),
    ],
)
def test_a_wrong_field_would_be_noticed(path, value):
    manifest = copy.deepcopy(read("cluster"))
    place = manifest
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert faults("cluster", manifest)


@pytest.mark.parametrize("name", SPECS)
def test_one_line_names_the_image_and_every_pod_runs_it(name):
    lines = [line for line in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines() if "image:" in line]
    assert [("EDIT" in line, "REGISTRY/" in line) for line in lines] == [(True, True), (False, False), (False, False)]
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups(cluster_of(name, read(name)))}
    assert len(images) == 1


def test_run_and_endpoint_have_the_cluster_that_stays():
    stays = read("cluster")["spec"]
    assert cluster_of("job", read("job")) == stays == cluster_of("service", read("service"))


def test_every_pod_has_shared_folder_shared_memory_and_keys():
    for group in groups(read("cluster")["spec"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts["/mnt/shared"]["persistentVolumeClaim"]["claimName"] == read("storage")["metadata"]["name"]
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert [source["secretRef"]["name"] for source in pod["containers"][0]["envFrom"]] == ["vidalign-keys"]


def test_the_cluster_demands_the_token_of_a_secret():
    assert read("cluster")["spec"]["authOptions"] == {"mode": "token", "secretName": "vidalign-ray-token"}


def test_the_page_speaks_of_what_is_there():
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    assert set(re.findall(r"deploy/kuberay/(\w+)\.yaml", page)) == {path.stem for path in FOLDER.glob("*.yaml")}
    assert "secret generic vidalign-ray-token --from-literal=auth_token=" in page  # the key that KubeRay reads
    assert "secret generic vidalign-keys " in page
    for kind, name in (("raycluster", "cluster"), ("rayjob", "job"), ("rayservice", "service")):
        manifest = read(name)
        assert re.search(rf"{kind}[/ ]{manifest['metadata']['name']}\b", page), kind
        assert kind == manifest["kind"].lower()
    assert f"service/{read('service')['metadata']['name']}-serve-svc " in page  # as KubeRay names it
    submitted = page.split("vidalign align ")[-1].splitlines()[0]
    assert "cluster.max_num_cpus=320 cluster.max_num_gpus=16" in submitted


def test_ray_is_the_version_of_the_image():
    assert read("cluster")["spec"]["rayVersion"] == locked("gpu.lock")["ray"]


def test_the_image_has_what_kuberays_probe_of_a_serving_pod_calls():
    assert re.search(r"install .*\bwget\b", (ROOT / "Dockerfile").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def growth():
    """What Ray's autoscaler makes of the groups, as the plan reads it."""
    manifest = read("cluster")
    manifest["metadata"]["namespace"] = "default"
    return limits(_derive_autoscaling_config_from_ray_cr(manifest))


def test_ray_sees_a_head_without_cpus_and_workers_from_zero(growth):
    assert (growth.num_cpus, growth.num_gpus, growth.cpus_per_node, growth.gpus_per_node) == (0, 0, 48, 4)
    for group in read("cluster")["spec"]["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]


def grown(overrides):
    cluster = config_of([item for item in overrides if item.startswith("cluster.")]).cluster
    return cluster.max_num_cpus, cluster.max_num_gpus


def config_of(overrides):
    return parse_config({"run_dir": "r", "model": {"path": "m"}, "data": {"train": "t.jsonl"}}, overrides)


def test_the_run_is_a_command_that_there_is_and_knows_how_far_the_cluster_grows(growth, capsys):
    program, *words = shlex.split(read("job")["spec"]["entrypoint"])
    assert program == "vidalign"
    assert main(words) == 2  # for want of the file alone
    assert "/mnt/shared/align.yaml" in capsys.readouterr().err
    command, _, *overrides = words
    assert command == "align"
    assert config_of(overrides).run_dir.startswith("/mnt/shared/runs/")
    assert grown(overrides) == (growth.max_num_cpus, growth.max_num_gpus)


def test_a_plan_for_a_head_without_cpus_whose_workers_are_not_up_yet():
    head = ClusterResources(num_cpus=0, cpus_per_node=0, gpus_per_node=0)
    config = config_of(shlex.split(read("job")["spec"]["entrypoint"])[3:])
    made = plan_of(config, with_growth(head, config.cluster, "/nowhere.yaml"))
    assert (made.engines.num, made.engines.gpus, made.train.gpus) == (16, 1, 1)
    assert made.decoders.num == 64


def test_in_a_pod_of_kuberay_the_groups_say_how_far_the_cluster_grows(growth, tmp_path, monkeypatch):
    manifest = read("cluster")
    manifest["metadata"]["namespace"] = "ours"
    asked = []

    class Client:
        def __init__(self, namespace):
            asked.append(namespace)

        def get(self, path):
            asked.append(path)
            return manifest

    monkeypatch.setattr("ray.autoscaler._private.kuberay.node_provider.KubernetesHttpApiClient", Client)
    namespace = tmp_path / "namespace"
    assert of_kuberay({KUBERAY_NAME: "vidalign"}, str(namespace)) == {}, "no pod, or one without an account"
    namespace.write_text("ours")
    assert of_kuberay({}, str(namespace)) == {}
    found = limits(of_kuberay({KUBERAY_NAME: "vidalign"}, str(namespace)))
    assert found == growth
    assert asked == ["ours", "rayclusters/vidalign"]

    def refused(self, path):
        raise requests.HTTPError("403 Forbidden")

    with monkeypatch.context() as patched:
        patched.setattr(Client, "get", refused)
        assert of_kuberay({KUBERAY_NAME: "vidalign"}, str(namespace)) == {}, "an account that may not read it"
    assert (found.max_num_nodes, found.gpus_of_nodes, found.num_without_cpus) == (13, (4, 4, 4, 4), 1)
    config = config_of(["rollout.gpus_per_engine=8"])
    head = ClusterResources(num_cpus=0, num_without_cpus=1)
    monkeypatch.setattr("cluster.launcher.of_kuberay", lambda: of_kuberay({KUBERAY_NAME: "x"}, str(namespace)))
    with pytest.raises(ClusterError, match="needs 8 GPUs on one node, but its largest node has 4 GPUs"):
        plan_of(config, with_growth(head, config.cluster, "/nowhere.yaml"))


def test_the_endpoint_is_an_application_that_there_is(growth):
    serve = ServeDeploySchema.model_validate(yaml.safe_load(read("service")["spec"]["serveConfigV2"]))
    (deployed,) = serve.applications
    module, name = deployed.import_path.split(":")
    assert getattr(importlib.import_module(module), name) is application
    assert serve.http_options.port == 8000
    assert grown(deployed.args["overrides"]) == (growth.max_num_cpus, growth.max_num_gpus)
    with pytest.raises(ModelError, match="/mnt/shared/runs/first is not a folder"):
        application(deployed.args)  # which it takes, up to the folder that is not there


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "has no target; it takes target and overrides"),
        ({"target": "m", "override": []}, "has override; it takes target and overrides"),
        ({"target": "m", "overrides": ["serve.port=9000"]}, "serve.port=9000' makes no difference .* set http_options.port"),
    ],
)
def test_arguments_that_the_application_would_ignore(args, message):
    with pytest.raises(ConfigError, match=message):
        application(args)


def answered(url, body=None, timeout_s=60.0):
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        return json.load(response)


@pytest.mark.heavy
@pytest.mark.long
def test_ray_serve_itself_starts_the_application(model_path, tmp_path):
    """As in a RayService: Serve reads the configuration, calls the application's function on a node, and its own proxy listens."""
    port = free_port()
    serve = yaml.safe_load(read("service")["spec"]["serveConfigV2"])
    serve["http_options"] = {"host": "127.0.0.1", "port": port}
    serve["applications"][0]["args"] = {
        "target": model_path,
        "overrides": ["model.dtype=float32", "model.max_model_len=512"],
    }
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(serve))
    with (tmp_path / "log").open("w") as log:
        command = [str(pathlib.Path(sys.executable).parent / "serve"), "run", str(tmp_path / "serve.yaml")]
        patient = (
            os.environ | PATIENCE | {"RAY_raylet_start_wait_time_s": "120"}
        )  # a busy machine misses Ray's own deadlines
        running = subprocess.Popen(command, env=patient, stdout=log, stderr=log, start_new_session=True)
    try:
        found, deadline = None, time.monotonic() + 300
        while found is None:
            waits = running.poll() is None and time.monotonic() < deadline
            assert waits, (tmp_path / "log").read_text()[-3000:]
            with contextlib.suppress(OSError):  # not listening yet, or not ready to answer
                found = answered(f"http://127.0.0.1:{port}/v1/models", timeout_s=5)
            time.sleep(0.5)
        (model,) = found["data"]
        messages = [{"role": "user", "content": "Which way does it move?"}]
        body = {"model": model["id"], "messages": messages, "max_tokens": 4}
        reply = answered(f"http://127.0.0.1:{port}/v1/chat/completions", body)
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(60)
    assert model["id"] == pathlib.Path(model_path).name
    assert reply["usage"]["completion_tokens"] > 0
