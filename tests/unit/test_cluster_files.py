"""The files of cluster/ and jobs/: valid under published schemas, one version of Ray, no references to missing files."""

import re
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path

import jsonschema
import pytest
import yaml
from kuberay_schema import SCHEMAS

from avvp_dist.experiments.recipe import load

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
MANIFESTS = sorted((CLUSTER / "kuberay").glob("*.yaml"))
LAUNCHERS = sorted((CLUSTER / "launcher").glob("*.yaml"))
RAY = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M).group(1)


def parsed(path):
    return yaml.safe_load(path.read_text())


def compose():
    return parsed(CLUSTER / "compose.yaml")


def cluster_specs():
    for path in MANIFESTS:
        content = parsed(path)
        if content["kind"] == "RayCluster":
            yield path.name, content["spec"]
        if content["kind"] == "RayJob":
            yield path.name, content["spec"]["rayClusterSpec"]


def pods():
    for name, spec in cluster_specs():
        yield f"{name} head", spec["headGroupSpec"]["template"]["spec"]
        for group in spec["workerGroupSpecs"]:
            yield f"{name} {group['groupName']}", group["template"]["spec"]


def test_one_version_of_ray_everywhere():
    import ray

    assert ray.__version__ == RAY
    assert [(name, spec["rayVersion"]) for name, spec in cluster_specs() if spec["rayVersion"] != RAY] == []
    files = [path for path in CLUSTER.rglob("*") if path.is_file() and path.suffix in ("", ".yaml", ".py", ".sh", ".md")]
    named = [(path.name, tag) for path in files for tag in re.findall(r"avvp-dist:ray-([\w.]+)", path.read_text())]
    assert {tag for _, tag in named} == {RAY}
    assert {name for name, _ in named} >= {"Dockerfile", "compose.yaml", "raycluster.yaml", "aws.yaml", "gcp.yaml"}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_manifests_have_only_fields_that_exist(path):
    content = parsed(path)
    assert [error.message for error in jsonschema.Draft202012Validator(SCHEMAS[content["kind"]]).iter_errors(content)] == []


def test_the_schema_refuses_what_kuberay_refuses():
    content = parsed(CLUSTER / "kuberay" / "rayjob.yaml")
    content["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0  # KubeRay wants strings
    with pytest.raises(jsonschema.ValidationError, match="0 is not of type 'string'"):
        jsonschema.validate(content, SCHEMAS["RayJob"])
    content = parsed(CLUSTER / "kuberay" / "rayjob.yaml")
    content["spec"]["shutdownAfterJobFinished"] = True
    with pytest.raises(jsonschema.ValidationError, match="shutdownAfterJobFinished"):
        jsonschema.validate(content, SCHEMAS["RayJob"])


def test_heads_have_no_gpu_and_workers_scale_from_zero():
    for name, spec in cluster_specs():
        assert spec["authOptions"] == {"mode": "token"}, name
        assert spec["enableInTreeAutoscaling"] is True, name
        head = spec["headGroupSpec"]
        assert "nvidia.com/gpu" not in str(head)
        assert "tolerations" not in head["template"]["spec"], "drivers stay off spot nodes"
        assert head["rayStartParams"]["num-gpus"] == head["rayStartParams"]["num-cpus"] == "0"
        (gpus,) = (group for group in spec["workerGroupSpecs"] if group["groupName"] == "gpu-spot")
        assert gpus["minReplicas"] == gpus["replicas"] == 0 < gpus["maxReplicas"]
        tolerated = {toleration["key"] for toleration in gpus["template"]["spec"]["tolerations"]}
        assert tolerated >= {"nvidia.com/gpu", "cloud.google.com/gke-spot", "spot"}
        assert gpus["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_every_pod_has_shared_memory_limits_secrets_by_reference_and_no_root():
    for name, pod in pods():
        (container,) = pod["containers"]
        (mount,) = container["volumeMounts"]
        assert mount["mountPath"] == "/dev/shm", name
        (volume,) = (volume for volume in pod["volumes"] if volume["name"] == mount["name"])
        assert volume["emptyDir"]["medium"] == "Memory", name
        assert container["resources"]["requests"] == container["resources"]["limits"], name
        assert {"secretRef": {"name": "avvp-s3"}} in container["envFrom"], name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["shareProcessNamespace"] is True, name
        assert "env" not in container, name


def test_jobs_on_kubernetes_end():
    jobs = [parsed(path)["spec"] for path in MANIFESTS if parsed(path)["kind"] == "RayJob"]
    assert len(jobs) == 2
    for job in jobs:
        assert job["activeDeadlineSeconds"] > job["preRunningDeadlineSeconds"] > 0
        assert job["shutdownAfterJobFinishes"] is True
        assert job["ttlSecondsAfterFinished"] > 0


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
def test_launcher_files_pass_rays_own_check(path):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(parsed(path))
    validate_config(config)
    assert config["setup_commands"] == [], "the image has everything; Ray's defaults would install another Ray"
    assert any("RAY_AUTH_MODE=token" in option for option in config["docker"]["run_options"])
    assert "--init" in config["docker"]["run_options"]
    workers = config["available_node_types"]["gpu-spot"]
    assert workers["min_workers"] == 0 < workers["max_workers"]
    assert "spot" in str(workers["node_config"]).lower()
    assert not config["available_node_types"]["head"]["resources"].get("GPU")


def ray_starts():
    """Every `ray start` of the files, as words."""
    for name, service in compose()["services"].items():
        if str(service.get("command", "")).startswith("ray start"):
            yield f"compose {name}", shlex.split(service["command"])
    for path in LAUNCHERS:
        config = parsed(path)
        for key in ("head_start_ray_commands", "worker_start_ray_commands"):
            (line,) = (line for line in config[key] if "ray start" in line)
            yield f"{path.name} {key}", shlex.split(line.split(";")[-1])
    for name, spec in cluster_specs():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            words = [f"--{key}={value}" for key, value in group["rayStartParams"].items()]
            yield f"{name} {group.get('groupName', 'head')}", ["ray", "start", "--head", *words]


@pytest.mark.filterwarnings(
    "ignore::pydantic.warnings.PydanticDeprecatedSince20"
)  # of Ray Serve, which Ray's commands import
@pytest.mark.parametrize(("where", "words"), list(ray_starts()), ids=lambda value: value if isinstance(value, str) else "")
def test_ray_start_accepts_its_options(where, words):
    from ray.scripts.scripts import cli

    program, command, *options = words
    assert (program, command) == ("ray", "start")
    cli.commands[command].make_context(command, options)  # parses, and refuses what it does not know; starts nothing


def test_compose_has_every_service_pinned_secrets_from_outside_and_ports_on_loopback():
    content = compose()
    services = content["services"]
    assert set(services) >= {"s3", "postgres", "mlflow", "head", "worker"}
    for name, service in services.items():
        image = service["image"]
        assert service.get("init") or not str(service.get("command")).startswith("ray start"), name
        assert image == f"avvp-dist:ray-{RAY}" or re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", image), image
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        for key, value in service.get("environment", {}).items():
            if re.search("TOKEN|PASSWORD|ACCESS_KEY", key):
                assert value.startswith("${"), f"{name}: {key} is written into the file"
        assert set(service.get("depends_on", {})) <= set(services), name
    head = (CLUSTER / "compose.yaml").read_text()
    made = re.search(r"for name in ([A-Z_ ]+);", head).group(1).split()
    assert set(re.findall(r"\$\{(\w+)", head)) == set(made), "the file's head says how to make other secrets than it uses"
    mounted = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert mounted == set(content["volumes"])


def test_dockerfile_copies_existing_files_installs_pinned_packages_and_runs_as_a_user():
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    for words in (rest.split() for step, rest in steps if step == "COPY"):
        for source in words[:-1]:
            assert (ROOT / source).exists(), source
    allowed = (CLUSTER / "Dockerfile.dockerignore").read_text().split()
    copied = {words.split("/")[0] for step, rest in steps if step == "COPY" for words in rest.split()[:-1]}
    assert {f"!{name}" for name in copied} <= set(allowed)
    installs = [part for step, rest in steps if step == "RUN" for part in rest.split("&&") if "pip install" in part]
    assert len(installs) == 3
    assert all("--constraint constraints.txt" in part or "--no-deps" in part for part in installs)
    extras = set(re.search(r"\.\[([\w,]+)\]", text).group(1).split(","))
    assert extras <= set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M))
    assert [rest for step, rest in steps if step == "USER"] == ["avvp"]
    assert steps[-1] == ["CMD", '["avvp", "--help"]']


def test_entrypoints_of_kubernetes_jobs_are_shipped_scripts_with_valid_settings():
    entries = {path.name: parsed(path)["spec"]["entrypoint"] for path in MANIFESTS if parsed(path)["kind"] == "RayJob"}
    words = {name: shlex.split(entry) for name, entry in entries.items()}
    assert {name: found[:2] for name, found in words.items()} == {
        "rayjob.yaml": ["python", "/app/jobs/train.py"],
        "rayjob-sweep.yaml": ["python", "/app/jobs/tune.py"],
    }
    config = load(words["rayjob.yaml"][2], ["launch=ray", *words["rayjob.yaml"][3:]])  # as jobs/train.py does
    assert config.launch.workers * config.launch.gpus_per_worker == 4
    assert config.train.batch_size % config.launch.workers == 0


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.name)
def test_job_scripts_are_thin(path):
    assert len(path.read_text().splitlines()) <= 40


def test_the_upload_of_a_job_is_small_and_has_what_jobs_need(tmp_path):
    """As Ray packs it, from a checkout with data, an environment and secrets lying around."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    checkout, package = tmp_path / "checkout", tmp_path / "package.zip"
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, checkout / name)
    for litter in (".venv/lib/torch.so", "features.npy", "data/video.npy", "cluster/.env", "outputs/model.safetensors"):
        (checkout / litter).parent.mkdir(parents=True, exist_ok=True)
        (checkout / litter).write_bytes(bytes(1 << 20))
    (checkout / "mine.yaml").write_text("recipe: mine\n")
    create_package(str(checkout), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    assert package.stat().st_size < 2 << 20
    names = set(zipfile.ZipFile(package).namelist())
    assert {"jobs/train.py", "avvp_dist/cli/main.py", "avvp_dist/experiments/recipes/jomold.yaml", "mine.yaml"} <= names
    assert {name.split("/")[0] for name in names} == {"avvp_dist", "jobs", "pyproject.toml", "mine.yaml"}
