"""Names of files with any character, references, and mistakes in sweeps and in --cfg."""

import logging
import string

import pytest
from omegaconf import OmegaConf

from reloc_core.cli.main import main
from reloc_core.composition import compose
from reloc_core.errors import ConfigError

BASE = ["dataset=ace", "estimator=toy", "map_dir=m"]
NAMES = ["a b", "a,b", "a=b", "a$b", "a${b}", "(a) [b] {c}", "größe 日本", "a'b", 'a"b', "a#b", "a%20b",
         "a\\b", "a\\\\b\\", "a:b", "~a", "a;b&c|d", "a@b", " a ", "[a]", "{a}", "'a'", '"a"', "$a", "-a",
         "null", "true", "1e5", "a?*b", "${", "a\\${b}", "\\'", "a'\\", "choice(a"]  # fmt: skip


@pytest.fixture(autouse=True)
def here(toy_plugin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RELOC_DEBUG", raising=False)


@pytest.mark.parametrize("name", [*NAMES, string.punctuation.replace("/", "")])
def test_names_of_files_are_taken_as_typed(tmp_path, name):
    assert compose("train", [*BASE, f"dataset.root=/data/{name}"]).dataset.root == f"/data/{name}"
    (tmp_path / name).mkdir()
    cfg = compose("train", [*BASE, f"dataset.root={name}", f"output_dir=out/{name}"])
    assert (cfg.dataset.root, cfg.output_dir) == (name, f"out/{name}")


@pytest.mark.parametrize("name", ["images =a", "[a]", "a\\b", "1e5", "a=b", "'a", "a,b", "{a}"])
def test_options_that_are_texts_are_taken_as_typed(name):
    cfg = compose("train", ["dataset=colmap", "dataset.root=r", "estimator=toy", "map_dir=m",
                            f"dataset.images={name}"])  # fmt: skip
    assert cfg.dataset.images == name


def test_references_to_options_still_work(monkeypatch):
    cfg = compose(
        "train", [*BASE[:2], "dataset.root=/d", "map_dir=maps/${seed}_${dataset.split}", "seed=3"]
    )
    assert cfg.map_dir == "maps/3_train"
    monkeypatch.setenv("SCENES", "/scenes")
    assert compose("train", [*BASE, "dataset.root=${oc.env:SCENES}/a"]).dataset.root == "/scenes/a"
    cfg = compose("localize", ["map_dir=m", "images=[a.jpg,b.jpg]"])
    assert OmegaConf.to_container(cfg.images) == ["a.jpg", "b.jpg"]
    assert compose("train", [*BASE, "dataset.root='a b'"]).dataset.root == "a b"
    with pytest.raises(ConfigError, match=r"refers to \$\{sed\}.*Did you mean 'seed'"):
        compose("train", [*BASE, "dataset.root=/d${sed}"])


MISTAKES = [
    (["estimator.sizes=3"], "Did you mean 'estimator.size'"),
    (["solver=nonsense"], "There is no solver 'nonsense'"),
    (["solver=pnp", "solver.treshold=3"], "Did you mean 'solver.threshold'"),
    (["map_dir=x${sed}"], "Did you mean 'seed'"),
    (["seed=${sed}"], "Did you mean 'seed'"),
    (["seed=${oc.nothing:1}"], "oc.nothing"),
    (["seed=${"], "seed"),
    (["seed=[1"], "seed"),
    (["=3"], "=3"),
    (["seed"], "seed"),
    (["~nothing"], "nothing"),
    (["nothing/at/all=1"], "nothing"),
    (["+nothing@x=1"], "nothing"),
    (["experiment=null"], "chooses nothing"),
    (["dataset.width={a:{b:[}}"], "dataset.width"),
    (["seed=" + "[" * 3000], "seed"),
]


@pytest.mark.parametrize("mode", ["single", "-m", "--cfg", "config"])
@pytest.mark.parametrize(("wrong", "message"), MISTAKES)
def test_mistakes_are_told_in_a_line(mode, wrong, message, capsys):
    options = ["dataset=synthetic", "estimator=toy", "map_dir=map", "output_dir=out", *wrong]
    command = {
        "single": ["train", *options],
        "-m": ["train", "-m", *options, "dataset.seed=1,2"],
        "--cfg": ["train", "--cfg", "job", *options],
        "config": ["config", "check", "train", *options],
    }[mode]
    assert main(command) == 2 or (mode == "--cfg" and "${" in wrong[0])
    err = capsys.readouterr().err
    if mode != "--cfg" or "${" not in wrong[0]:
        assert message in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.strip()]) <= 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["seed=1,2", "-m"], "-m stands right after the verb"),
     (["-m", "seed=1,2", "output_dir=a/b=1"], "must have no '='"),
     (["--multrun"], "Did you mean '--multirun'"), (["--cfg"], "--cfg takes job"),
     (["--cfg", "jobs"], "--cfg takes job"), (["-x"], "no flag '-x'")],
)  # fmt: skip
def test_flags(flags, message, capsys):
    assert main(["train", *flags]) == 2
    assert message in capsys.readouterr().err


def test_cfg_and_info_print(capsys):
    assert main(["train", *BASE, "--cfg", "job", "dataset.root=/a=b"]) == 0
    assert OmegaConf.create(capsys.readouterr().out).dataset.root == "/a=b"
    root = logging.getLogger()
    before = list(root.handlers), root.level
    assert main(["train", "--info", "searchpath", *BASE]) == 0
    assert "conf" in capsys.readouterr().out
    # Or all that follows in this process would be logged, to a stream that may be closed.
    assert (list(root.handlers), root.level) == before


def test_a_former_name_says_the_present_one(capsys, monkeypatch):
    from dataclasses import replace

    from reloc_core.registry import default_registry

    registry = default_registry()
    toy = registry.get("estimator", "toy")
    monkeypatch.setitem(
        registry._components, ("estimator", "toy"), replace(toy, aliases=("old_toy",))
    )
    assert main(["train", "estimator=old_toy", "dataset=synthetic", "map_dir=map"]) == 2
    assert "'old_toy' is now called 'toy': write estimator=toy" in capsys.readouterr().err
