"""An environment of plugins, made of files on PYTHONPATH with the metadata that an installer writes."""

import os
import re
import subprocess
import sys
import textwrap

import pytest


class Environment:
    """A folder of installed distributions, and reloc run in it."""

    def __init__(self, folder):
        self.folder = folder
        self.paths = [str(folder)]

    def metadata(self, name, entry_points, version="1.0"):
        info = self.folder / f"{name.replace(chr(45), chr(95))}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points)

    def install(self, name, code, entry="", group="reloc.plugins.v1", **modules):
        """A distribution with one plugin module and further modules."""
        self.metadata(name, f"[{group}]\n{entry or name} = {name}\n")
        for module, text in {name: code, **modules}.items():
            (self.folder / f"{module}.py").write_text(textwrap.dedent(text))

    def install_folder(self, folder):
        """A distribution as its sources lie, like `pip install -e`."""
        text = (folder / "pyproject.toml").read_text()
        name = re.search(r'^name = "(.*)"', text, re.M).group(1)
        entries = re.findall(r'^(\w+ = )"(\S+)"$', text.partition("plugins.v1")[2], re.M)
        lines = "\n".join("".join(entry) for entry in entries)
        self.metadata(name, f"[reloc.plugins.v1]\n{lines}\n")
        self.paths.append(str(folder))

    def run(self, *command, cwd=None, **variables):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(self.paths), **variables}
        environment.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1", COLUMNS="100")
        return subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True, text=True, timeout=600, env=environment, cwd=cwd or self.folder,
        )  # fmt: skip

    def reloc(self, *arguments, **keywords):
        return self.run("reloc_core.cli", *arguments, **keywords)


@pytest.fixture
def environment(tmp_path):
    (tmp_path / "site").mkdir()
    return Environment(tmp_path / "site")


@pytest.fixture(scope="module")
def zoo_folder(tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("zoo"))
