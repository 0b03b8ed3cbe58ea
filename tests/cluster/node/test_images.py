"""What is in our images, and what is not: run as they are, read-only, with nothing but their own user."""

import json

import pytest

from testkit.images import podman

pytestmark = [
    pytest.mark.needs("node"), pytest.mark.in_order, pytest.mark.timeout(900), pytest.mark.usefixtures("images")
]  # fmt: skip

IMAGES = {
    "agent": {"kopf", "asyncpg", "fastapi", "lightkube", "starlette"},
    "ingest": {"kopf", "fastapi", "lightkube", "starlette"},
    "operator": {"asyncpg", "fastapi", "starlette"},
    "api": {"kopf", "lightkube"},
    "simulator": {"kopf", "asyncpg", "lightkube"},
}
"""By image, modules that it has no use for."""

LOOK = """
import importlib.util, json, os, pwd, shutil, sys
names = json.loads(sys.argv[1])
tools = [name for name in ("pip", "pip3", "uv", "cc", "gcc", "npm", "node", "git") if shutil.which(name)]
writable = [path for path in ("/app", "/usr", "/etc") if os.access(path, os.W_OK)]
print(json.dumps({
    "uid": os.getuid(), "user": pwd.getpwuid(os.getuid()).pw_name, "tools": tools, "writable": writable,
    "modules": [name for name in names if importlib.util.find_spec(name)],
}))
"""


def run(image: str, *command: str, entrypoint: str = "") -> str:
    options = ["--rm", "--read-only", "--cap-drop=ALL", "--network=none"]
    options += [f"--entrypoint={entrypoint}"] if entrypoint else []
    return podman("run", *options, f"docker.io/library/cncmon-{image}:0.1.0", *command).stdout


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_what_it_needs_and_no_more(image: str) -> None:
    found = json.loads(run(image, "-c", LOOK, json.dumps(sorted(IMAGES[image])), entrypoint="python3"))
    assert found == {"uid": 65532, "user": "cncmon", "tools": [], "writable": [], "modules": []}


@pytest.mark.parametrize("image", ["agent", "ingest", "operator", "api"])
def test_its_command_says_what_it_is(image: str) -> None:
    assert f"cncmon-{image}" in run(image, "--help")


def test_the_page_is_in_the_api() -> None:
    look = "import cncmon_api, pathlib; print((pathlib.Path(cncmon_api.__path__[0]) / 'static/index.html').exists())"
    assert run("api", "-c", look, entrypoint="python3").strip() == "True"


def test_ingest_packs_rows_natively() -> None:
    look = "import cncmon_ingest._rows as module; print(module.__name__)"
    assert run("ingest", "-c", look, entrypoint="python3").strip() == "cncmon_ingest._rows"
