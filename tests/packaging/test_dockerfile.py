"""The Dockerfile without Docker: its form, what it names, and its command against a map."""

import json
import os
import re
import shutil
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


def test_lint(steps):
    """What hadolint asks for: pinned bases, small layers, absolute folders, no ADD."""
    for name, rest in steps:
        if name == "FROM":
            tag = rest.split()[0].partition(":")[2]
            assert re.match(r"\d+\.\d+", tag), f"{rest} is not pinned"
        if name == "WORKDIR":
            assert rest.startswith("/")
        if name == "RUN":
            if "apt-get install" in rest:
                assert rest.startswith("apt-get update &&")
                assert {"-y", "--no-install-recommends"} <= set(rest.split())
                assert rest.endswith("rm -rf /var/lib/apt/lists/*")
            assert ("pip " in rest) == ("--no-cache-dir" in rest)
            assert "sudo" not in rest.split()


def copy_context(target):
    """The files that Docker would send: of the repository, without those of .dockerignore."""
    ignored = (ROOT / ".dockerignore").read_text().split()
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("no repository")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if Path(name).parts[0] not in ignored and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def test_its_steps_in_folders(steps, tmp_path):
    """Every stage is a folder. Of the wheels one is built, and its installation resolved without the network."""
    pytest.importorskip("hatchling")
    roots, root, here = {}, tmp_path, "/"
    done = []

    def run(command, python=sys.executable):
        command = re.sub(r"(?<![\w.])/(?=wheels|constraints|src)", f"{root}/", command)
        command = re.sub(r"^python ", f"{python} ", command)
        environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        subprocess.run(
            ["sh", "-ec", command], cwd=root / here.strip("/"), env=environment, check=True
        )

    for name, rest in steps:
        if name == "FROM":
            stage = rest.partition(" AS ")[2] or "last"
            root, here = tmp_path / stage, "/"
            roots[stage] = root
            root.mkdir()
        elif name == "WORKDIR":
            here = rest
            (root / here.strip("/")).mkdir(parents=True)
        elif name == "COPY" and rest == ". .":
            copy_context(root / here.strip("/"))
        elif name == "COPY":
            *flags, source, target = rest.split()
            if flags:
                source = roots[flags[0].removeprefix("--from=")] / source.strip("/")
                shutil.copytree(source, root / target.strip("/"))
            else:
                shutil.copy(ROOT / source, root / target.strip("/"))
        elif name == "RUN" and "pip wheel" in rest:
            folders = sorted(p.parent.name for p in (root / "src/plugins").glob("*/pyproject.toml"))
            assert folders == sorted(p.name for p in (ROOT / "plugins").iterdir() if p.is_dir())
            assert {"CMakeLists.txt", "README.md", "conf", "native"} <= set(
                os.listdir(root / "src")
            )
            assert rest.endswith(" . ./plugins/*")
            run(rest.replace(" . ./plugins/*", " -q --no-build-isolation ./plugins/landmarks"))
            done.append("wheel")
        elif name == "RUN" and "pip install" in rest:
            assert list((root / "wheels").glob("reloc_landmarks-*.whl"))
            tried = re.sub(r"'reloc\[[\w,]+\]' ", "-q --dry-run --no-deps ", rest)
            run(tried)
            assert not (root / "wheels").exists()
            done.append("install")
        elif name == "RUN":  # of the system, which is not this test's
            assert re.match(r"apt-get |useradd ", rest), f"say here how to try: {rest}"
    assert done == ["wheel", "install"]


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
