"""The deployment examples name options, routes, extras and files that are there."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from siren_serve.app import ROUTES

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "siren.service"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))
SIREN = Path(sys.executable).with_name("siren")


def options_in(text):
    return set(re.findall(r"(?<![\w-])--[a-z-]+", text))


@pytest.fixture(scope="module")
def options():
    """The options of siren serve."""
    done = subprocess.run([SIREN, "serve", "--help"], capture_output=True, text=True, check=True)
    return options_in(done.stdout)


@pytest.fixture(scope="module")
def manifests():
    return {found["kind"]: found for found in yaml.safe_load_all(_text("kubernetes.yaml"))}


@pytest.fixture(scope="module")
def pod(manifests):
    return manifests["Deployment"]["spec"]["template"]["spec"]


def _text(name):
    return (DEPLOY / name).read_text(encoding="utf-8")


def instructions(dockerfile, name):
    """The arguments of each of a Dockerfile's instructions of that name."""
    lines = dockerfile.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(rf"^{name} +(.*)$", lines, re.M)


def test_options_of_the_unit_exist(options):
    command = re.search(r"^ExecStart=(.*)$", UNIT.read_text(), re.M).group(1)
    assert options_in(command)
    assert options_in(command) <= options


def test_the_unit_lets_the_parent_alone_tell_workers_to_end():
    assert re.search(r"^KillMode=mixed$", UNIT.read_text(), re.M)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path):
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/siren/bin/siren", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert unit.name not in done.stderr, done.stderr


def test_there_are_images_for_each_kind_of_machine():
    assert [path.suffix for path in DOCKERFILES] == [".cpu", ".cuda", ".jetson"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix)
def test_images_run_siren_serve_with_options_it_has(dockerfile, options):
    (entry,), (command,) = (
        [json.loads(found) for found in instructions(dockerfile, name)]
        for name in ("ENTRYPOINT", "CMD")
    )
    assert entry == ["/opt/siren/bin/siren", "serve"]
    assert options_in(" ".join(command)) <= options
    assert instructions(dockerfile, "EXPOSE") == [command[command.index("--port") + 1]]
    assert instructions(dockerfile, "USER")[-1] != "0"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix)
def test_images_install_extras_that_exist_and_one_engine(dockerfile):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (extras,) = re.findall(r"/src\[([a-z,]+)\]", " ".join(instructions(dockerfile, "RUN")))
    named = set(extras.split(","))
    assert named <= set(project["project"]["optional-dependencies"])
    engines = {".cpu": {"cpu"}, ".cuda": {"cuda"}, ".jetson": set()}  # JetPack's own TensorRT
    assert named == {"serve"} | engines[dockerfile.suffix]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix)
def test_images_are_checked_at_a_route_that_asks_for_no_key(dockerfile):
    (check,) = instructions(dockerfile, "HEALTHCHECK")
    assert re.search(r"127\.0\.0\.1:8000(/[a-z/]+)", check).group(1) in health_routes()


def health_routes():
    return {path for route in ROUTES for path in route.paths if path.startswith("/health/")}


def test_the_container_has_options_and_probes_that_exist(pod, options):
    (container,) = pod["containers"]
    given = dict(arg.split("=") for arg in container["args"] if arg.startswith("--"))
    assert given.keys() <= options
    (port,) = container["ports"]
    assert given["--port"] == str(port["containerPort"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in health_routes()
        assert asked["port"] == port["name"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert given["--runs"] == container["resources"]["limits"]["cpu"]


def test_what_was_accepted_is_answered_before_the_pod_is_killed(pod):
    (container,) = pod["containers"]
    given = dict(arg.split("=") for arg in container["args"] if arg.startswith("--"))
    _, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    timeout = 10  # siren serve's default
    needed = int(pause) + float(given["--drain"]) + timeout
    assert needed < pod["terminationGracePeriodSeconds"]
    probe = container["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < float(given["--drain"])


def test_paths_of_the_container_lie_in_its_volumes(manifests, pod):
    (container,) = pod["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    for arg in container["args"]:
        if (path := arg.rpartition("=")[2]).startswith("/"):
            assert any(path.startswith(f"{place}/") for place in mounts)
    service, labels = manifests["Service"]["spec"], manifests["Deployment"]["spec"]["template"]
    assert service["selector"].items() <= labels["metadata"]["labels"].items()
    assert service["ports"][0]["targetPort"] == container["ports"][0]["name"]
