"""The Dockerfile without Docker: its form, what it names, and its command against a map."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "Dockerfile"
KNOWN = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT"}


@pytest.fixture(scope="module")
def steps():
    """(instruction, rest) in order, with continued lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", FILE.read_text())
    lines = [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def test_its_form(steps):
    assert steps[0][0] == "FROM"
    assert {name for name, _ in steps} <= KNOWN
    assert [name for name, _ in steps].count("ENTRYPOINT") == 1
    users = [i for i, (name, _) in enumerate(steps) if name == "USER"]
    assert users  # not as root
    assert users[-1] < next(i for i, (name, _) in enumerate(steps) if name == "ENTRYPOINT")
    stages = {rest.split(" AS ")[1] for name, rest in steps if name == "FROM" and " AS " in rest}
    for name, rest in steps:
        if name == "COPY" and rest.startswith("--from="):
            assert rest.split()[0].removeprefix("--from=") in stages
        if name in ("ENTRYPOINT", "HEALTHCHECK"):
            assert all(isinstance(word, str) for word in json.loads(rest.removeprefix("CMD ")))
        if name == "RUN":
            subprocess.run(["sh", "-n", "-c", rest], check=True)


def test_what_it_names_exists(steps):
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    distributions = {
        tomllib.loads(path.read_text())["project"]["name"]
        for path in (ROOT / "plugins").glob("*/pyproject.toml")
    }
    install = next(rest for name, rest in steps if name == "RUN" and "pip install" in rest)
    extras = re.search(r"'reloc\[([\w,]+)\]'", install)[1].split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    assert set(re.findall(r"\breloc-[\w-]+", install)) <= distributions
    copied = [rest.split()[0] for name, rest in steps if name == "COPY" and "--from" not in rest]
    assert all((ROOT / source).exists() for source in copied)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not {"plugins", "reloc_core", "conf", "native", "pyproject.toml"} & set(ignored)


def test_its_command_serves_a_map(steps, toy_plugin, ace_scene, tmp_path):
    """With the map's folder and the port replaced; then its health check."""
    from reloc_core.cli.main import main

    pytest.importorskip("fastapi")
    arguments = ["train", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}"]
    assert main([*arguments, f"map_dir={tmp_path}/map", f"output_dir={tmp_path}/run"]) == 0
    entry = json.loads(next(rest for name, rest in steps if name == "ENTRYPOINT"))
    check = json.loads(
        next(rest for name, rest in steps if name == "HEALTHCHECK").removeprefix("CMD ")
    )
    replaced = {"map_dir=/map": f"map_dir={tmp_path}/map", "port=8000": "port=0"}
    assert replaced.keys() <= set(entry)
    assert entry[0] == "reloc"
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import conftest, pytest\n"
        "from reloc_core import registry; from importlib.metadata import EntryPoint\n"
        "points = registry._entry_points() + [EntryPoint('toy', 'toy', 'reloc.plugins.v1')]\n"
        "registry._entry_points = lambda: points\n"
        "from reloc_core.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, str(ROOT / "tests")]
    command += [replaced.get(word, word) for word in entry[1:]] + ["camera.from_map=true"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            port = re.search(r":(\d+), explained", server.stdout.readline())[1]
            program = check[2].replace("8000", port)
            assert check[:2] == ["python", "-c"]
            subprocess.run([sys.executable, "-c", program], check=True, timeout=20)
            image = next((ace_scene / "train/rgb").iterdir()).read_bytes()
            request = urllib.request.Request(f"http://127.0.0.1:{port}/localize", image)
            request.add_header("Content-Type", "image/png")
            answer = json.loads(urllib.request.urlopen(request, timeout=20).read())
            assert answer["status"] == "localized"
        finally:
            server.terminate()
    assert server.returncode == 0
