"""Names of files with any character, references, and mistakes in sweeps and in --cfg."""

import logging
import string

import pytest
import yaml
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from reloc_core.cli.main import main
from reloc_core.composition import compose
from reloc_core.config import config_directory
from reloc_core.errors import ConfigError
from reloc_core.verb_options import check_kind, kind_of

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
    (["estimator.nope=1"], "Known: estimator."),
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
    (["seed=abc"], "seed must be a whole number of at least 0, got 'abc'"),
    (["seed=null"], "seed must be a whole number of at least 0, got null"),
    (["seed=[1,2]"], "seed must be a whole number of at least 0, got [1, 2]"),
    (["seed=${now:%Y}"], "seed must be a whole number"),
    (["seed=1.5"], "got 1.5"),
    (["seed=true"], "got True"),
    (["threads=abc"], "threads must be a whole number"),
    (["refiners=5"], "refiners must be a list such as [NAME]"),
    (["refiners=[5]"], "refiners must be a list such as [NAME]"),
    (["extra_datasets=5"], "extra_datasets must be a list such as [{name: DATASET"),
    (["calibration=5"], "calibration must be options of its own"),
    (["calibration=false"], "calibration must be options of its own"),
    (["map_dir=null"], "map_dir must be a path, got null"),
    (["map_dir="], "map_dir must be a path, got ''"),
    (["output_dir=' '"], "output_dir must be a path, got ' '"),
    (["dataset.width=big"], "dataset.width must be a whole number, got 'big'"),
    (["dataset.noise=nan"], "dataset.noise must be a number, got nan"),
    (["dataset.noise=1cm"], "dataset.noise must be a number, got '1cm'"),
    (["resume=maybe"], "resume must be true or false, got 'maybe'"),
    (["overwrite=7"], "overwrite must be true or false, got 7"),
    (["tensorboard=what"], "tensorboard must be true or false, got 'what'"),
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
    assert main(command) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.strip()]) <= 2


@pytest.mark.parametrize(
    ("verb", "options", "message"),
    [
        ("view", ["map_dir=m", "magnify=abc"], "magnify must be a number, got 'abc'"),
        ("localize", ["map_dir=m", "images=i", "camera=5"], "camera must be options of its own"),
        ("track", ["map_dir=m", "images=i", "fps=fast"], "fps must be a number, or null"),
        ("serve", ["map_dir=m", "port=http"], "port must be a whole number, got 'http'"),
        ("collect", ["map_dir=m", "maps=[a,b]"], "maps must be options of its own"),
        ("data_convert", ["dataset=ace", "dataset.root=r", "to=ace", "output=o", "splits=train"],
         "splits must be a list"),
        ("data_reconstruct", ["images=i", "output=o", "features=many"], "features must be a whole number"),
    ],
)  # fmt: skip
def test_values_of_the_verbs_own_options(verb, options, message, capsys):
    assert main(["config", "check", verb, *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "wrong",
    ["seed=1,abc", "seed=abc,1", "seed=1,2 threads=1,abc", "estimator.size=4,8,abc seed=1,2"],
)
def test_a_bad_value_among_good_ones_is_seen_before_a_job_starts(wrong, tmp_path, capsys):
    options = ["dataset=synthetic", "estimator=toy", "map_dir=map", f"output_dir={tmp_path}/s"]
    assert main(["train", "-m", *options, *wrong.split()]) == 2
    err = capsys.readouterr().err
    assert "must be a whole number" in err
    assert "'abc'" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "s").exists()


def test_a_launcher_that_fails_is_told_in_a_line(tmp_path, monkeypatch, capsys):
    def fail(*_args, **_options):
        raise RuntimeError("the node\ntimed out")

    # The class that Hydra found, which is another one where a test imported it anew.
    name = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    monkeypatch.setattr(Plugins.instance().class_name_to_class[name], "launch", fail)
    out = [f"map_dir={tmp_path}/map", f"output_dir={tmp_path}/s"]
    options = ["dataset=synthetic", "estimator=toy", *out]
    assert main(["train", "-m", *options, "seed=1,2"]) == 2
    err = capsys.readouterr().err
    assert "The launcher failed (RuntimeError: the node timed out)" in err
    assert f"reloc sweep resume {tmp_path}/s" in err
    assert len(err.splitlines()) == 1


def test_folders_that_the_system_refuses(tmp_path, monkeypatch, capsys):
    assert main(["data", "check", "dataset=ace", f"dataset.root={'x' * 5000}"]) == 2
    assert "xx cannot be opened: File name too long." in capsys.readouterr().err
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["localize", "map_dir=m", "images=i"]) == 2
    assert capsys.readouterr().err == (
        "reloc: error: the current folder was removed. Change to another one.\n"
    )


def test_several_values_in_a_single_run(capsys):
    assert main(["train", "dataset=synthetic", "estimator=toy", "map_dir=m", "seed=1,2"]) == 2
    assert (
        "seed=1,2 is several values: run all of them by 'reloc train -m ...', or write a list as seed=[1,2]."
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", [".", "/"])
def test_a_map_needs_a_name(name, toy_plugin, ace_scene, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}", f"map_dir={name}",
                 "output_dir=out"]) == 2  # fmt: skip
    assert f"'{name}' cannot be written as a whole. Name a folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] in ([], ["out"])


@pytest.mark.parametrize("path", sorted(config_directory().glob("*.yaml")), ids=lambda p: p.stem)
def test_all_options_of_verbs_have_a_kind_that_takes_their_default(path):
    cfg = yaml.safe_load(path.read_text())
    for name in cfg.keys() - {"defaults", "hydra"}:
        assert kind_of(path.stem, name) is not None, name
        if cfg[name] != "???":
            check_kind(path.stem, name, cfg[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["output_dir=sw_${seed}"], "refers to ${seed}, which is swept"),
        (["output_dir=sw_${map_dir}", "map_dir=m${seed}"], "refers to ${seed}, which is swept"),
        (["hydra/launcher=nope"], "There is no hydra/launcher 'nope'. Known: basic, gpus"),
        (["hydra/launcher=gpu"], "Did you mean 'gpus'"),
        (["output_dir=a${b"], "must have no '${' in its name"),
        (["hydra.launcher.per_device=3"], "Choose one that has it: hydra/launcher=gpus."),
        (["hydra/launcher=gpus", "hydra.launcher.device=3"], "Did you mean 'hydra.launcher.devices'"),
        (["hydra.swep.dir=x"], "Did you mean 'hydra.sweep'"),
    ],
)  # fmt: skip
def test_mistakes_in_sweeps(options, message, capsys):
    options = ["dataset=synthetic", "estimator=toy", "map_dir=map", *options]
    assert main(["train", "-m", *options, "seed=1,2"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["seed=1,2", "-m"], "-m stands right after the verb"),
     (["-m", "seed=1,2", "output_dir=a/b=1"], "must have no '='"),
     (["--multrun"], "Did you mean '--multirun'"), (["--cfg"], "--cfg takes job"),
     (["--cfg", "job", "-p", "datase", "dataset=synthetic"], "Did you mean 'dataset'"),
     (["--cfg", "job", "-p", "seed.x", "dataset=synthetic"], "-p seed.x: there is nothing"),
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
