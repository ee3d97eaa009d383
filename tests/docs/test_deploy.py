"""The files of `deploy/` and the metrics of docs/cluster.md: what can be checked without a cloud."""

import json
import re
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.docs.command_parsers import check_command
from tests.docs.fences import ROOT, shell_lines

DEPLOY = ROOT / "deploy"


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def test_the_ray_cluster_fits_rays_schema() -> None:
    cluster = load("ray_cluster.yaml")
    schema = json.loads((files("ray") / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"max_wrokers": 3}, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    for commands in ("head_start_ray_commands", "worker_start_ray_commands", "worker_setup_commands"):
        for line in cluster[commands]:
            check_command(line)


def test_the_rayjob_submits_a_command_of_ours() -> None:
    job = load("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    check_command(job["spec"]["entrypoint"])
    cluster = job["spec"]["rayClusterSpec"]
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster["rayVersion"] == pinned[1]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (cluster["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert container["resources"]["requests"] == container["resources"]["limits"]
    actors = int(re.search(r"--num-actors (\d+)", job["spec"]["entrypoint"])[1])
    assert actors == workers["maxReplicas"]  # one GPU a worker: each finds its place


def test_the_batch_script_starts_a_training_of_ours() -> None:
    text = (DEPLOY / "pretrain.sbatch").read_text(encoding="utf-8")
    (line,) = [line for line in shell_lines(text) if line.startswith("srun ")]
    command = line.removesuffix("&").split("torchrun", 1)[1]
    for variable, value in (("SLURM_NNODES", "8"), ("SLURM_JOB_ID", "1"), ("MASTER", "head")):
        command = command.replace(f"${variable}", value)
    assert "$" not in command
    check_command(f"torchrun {command}")


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_an_image_copies_and_installs_what_exists(name: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for line in shell_lines((DEPLOY / name).read_text(encoding="utf-8")):
        instruction, _, rest = line.partition(" ")
        if instruction == "COPY":
            *sources, _ = shlex.split(rest)
            assert all((ROOT / source).exists() for source in sources), line
            assert not {source.partition("/")[0] for source in sources} & set(ignored), line
        if instruction == "RUN" and "pip install" in rest:
            check_command(rest)


def test_the_documented_metrics_are_the_exported_ones() -> None:
    """Ray puts its name in front, and ``_total`` behind counters."""
    code = (ROOT / "pipeline" / "ray_metrics.py").read_text(encoding="utf-8")
    exported = {
        f"ray_{name}" + ("_total" if kind == "Counter" else "")
        for kind, name in re.findall(r"(Counter|Gauge)\(\s*\"(\w+)\"", code)
    }
    assert len(exported) >= 6
    page = Path(ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert set(re.findall(r"ray_seed_shards_\w+", page)) == exported
