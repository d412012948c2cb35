"""Every command shown in README and docs: checked, and run where that takes seconds.

Commands of `reloc` are composed with all their options. A walk through the pages runs those that need
no download, no GPU and no camera on a small room, as they are written but for their placeholders and
fewer training steps.
"""

import re
import shlex
import shutil
from pathlib import Path

import cv2
import pytest

from reloc_core.cli.config import _VERBS, _check_components
from reloc_core.cli.main import VERBS, main
from reloc_core.composition import compose
from reloc_core.overrides import open_overrides
from reloc_core.registry import default_registry

ROOT = Path(__file__).parent.parent.parent
FENCE = re.compile(r"^(`{3,})(\w+)[^\n]*\n(.*?)^\1\s*$", re.DOTALL | re.MULTILINE)
HYDRA_FLAGS = ("-m", "hydra/", "hydra.")
# What readers type beside reloc; shown for them, nothing of ours to check.
OTHERS = {
    "source",
    "curl",
    "grep",
    "rerun",
    "tensorboard",
    "cd",
    "git",
    "ffmpeg",
    "colmap",
    "cmake",
}
GIVEN = {
    "train": [("dataset", "synthetic"), ("map_dir", "MAP"), ("estimator", "scr_glace")],
    "evaluate": [("dataset", "synthetic"), ("map_dir", "MAP")],
}
# Errors that pages show on purpose.
REFUSED = {
    "reloc evaluate map_dir=maps/room dataset=synthetic solver=prior",
    "reloc train estimator=orb_map dataset=synthetic map_dir=maps/x estimator.keypoint=3",
}


def pages():
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return (
        found + sorted(ROOT.glob("plugins/*/README.md")) + sorted(ROOT.glob("examples/*/README.md"))
    )


def commands(page):
    """Commands of the shell blocks of a page, each on one line."""
    for _, language, body in FENCE.findall(page.read_text("utf-8")):
        for line in body.replace("\\\n", " ").splitlines():
            if language == "console":
                if line.startswith("$ "):
                    yield clean(line[2:])
            elif language in ("sh", "bash") and line.strip():
                yield clean(line)


def clean(line):
    return re.sub(r" +", " ", re.sub(r"\s+# .*$", "", line)).strip()


SHOWN = {
    command: page.relative_to(ROOT).as_posix()
    for page in reversed(pages())
    for command in commands(page)
}


def words(command):
    """Arguments of a command up to a pipe or a redirection, without dots that stand for more."""
    found = []
    for word in shlex.split(command):
        if word in ("|", ">", "2>/dev/null", "|&"):
            break
        if word != "...":
            found.append(word)
    return found


def check(command):
    """Assert that a command names what there is."""
    if command.startswith("eval "):
        command = re.search(r"\$\((.*)\)", command)[1]
    program, *arguments = words(command)
    if program == "reloc":
        check_reloc(arguments, "..." in command)
    elif program == "make":
        assert re.search(rf"(?m)^{arguments[0]}:", (ROOT / "Makefile").read_text())
    elif program == "pip":
        check_pip(arguments)
    elif program in ("python", "torchrun"):
        check_python(arguments)
    elif "/" in program:
        assert (ROOT / program).is_file(), program
    else:
        assert program in OTHERS, f"{program}: say in this test how it is checked"


def check_reloc(arguments, partial):
    verb, *rest = arguments
    assert verb in VERBS
    if verb == "data" and rest[0] in ("check", "convert", "reconstruct"):
        verb, rest = f"data_{rest[0]}", rest[1:]
    if verb == "config" and rest[1:]:
        verb, rest = rest[1], rest[2:]
    if verb not in _VERBS:
        check_help(verb, rest)
        return
    if "orb_map" in str(rest):
        return  # tests/plugins builds and runs it
    overrides = []
    for word in rest:
        if word.startswith(HYDRA_FLAGS):
            continue
        key, _, value = word.partition("=")
        if "-m" in rest and "," in value and not value.startswith(("[", "{")):
            value = value.split(",")[0]
        if value.startswith("choice("):
            value = value[len("choice(") :].split(",")[0]
        overrides.append(f"{key}={value}")
    if partial:  # "..." stands for what the page has shown before
        overrides += [
            f"{key}={value}" for key, value in GIVEN.get(verb, ()) if f"{key}=" not in str(rest)
        ]
    cfg = compose(verb, open_overrides(verb, overrides))
    _check_components(cfg)


def check_help(verb, rest):
    """Actions and options of verbs without a config stand in their help."""
    actions = [word for word in rest if "=" not in word and re.fullmatch(r"[a-z]+", word)]
    text = shown_help(verb)
    if actions:
        assert actions[0] in text
    if verb in ("report", "data"):
        text += shown_help(verb, actions[0])
    for word in rest[1:]:
        key, equals, _ = word.partition("=")
        if word.startswith("--") or (equals and key in ("root", "scenes", "poses", "truth", "published",
                                                        "scene", "output_dir", "over", "value")):  # fmt: skip
            assert key.split("=")[0] in text, word


def shown_help(*arguments):
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*arguments, "--help"]) == 0
    return out.getvalue()


def check_pip(arguments):
    assert arguments[0] == "install"
    for word in arguments[1:]:
        extra = re.fullmatch(r"(reloc[\w-]*|\.)\[([\w,]+)\]", word)
        if extra:
            folder = extra[1].removeprefix("reloc-").replace("-", "_")
            project = ROOT / "plugins" / folder if folder not in ("reloc", ".") else ROOT
            names = re.findall(r"(?m)^(\w+) = \[", (project / "pyproject.toml").read_text())
            assert set(extra[2].split(",")) <= set(names)
        elif word.startswith("./") or word.endswith(".txt"):
            assert (ROOT / word).exists(), word


def check_python(arguments):
    if "-m" in arguments:  # python -m reloc_core.cli VERB, or torchrun of it
        module, *rest = arguments[arguments.index("-m") + 1 :]
        if module == "pytest":
            assert (ROOT / rest[0]).exists(), rest[0]
            return
        assert module == "reloc_core.cli"
        check_reloc(rest, True)
        return
    script = ROOT / arguments[0]
    assert script.is_file(), script
    for word in arguments[1:]:
        if word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in script.read_text(), word


@pytest.mark.parametrize("command", sorted(SHOWN))
def test_shown_commands_name_what_there_is(command):
    methods = re.findall(r"(?:experiment|estimator)=(\w+)", command)
    known = {c.name for c in default_registry().components("estimator")} | {
        name.partition("/")[0] for name in default_registry().plugins
    }
    for method in methods:
        if method not in known and method not in ("paper", "sweep", "orb_map", "nefes_refine"):
            pytest.skip(f"{method} is not installed")
    if command in REFUSED:
        return
    check(command)


def test_commands_inside_sentences_name_what_there_is():
    """`python benchmarks/...` and such between backticks."""
    for page in pages():
        text = FENCE.sub("", page.read_text("utf-8"))
        for command in re.findall(
            r"`((?:python |scripts/|make |torchrun |pip install)[^`]*)`", text
        ):
            check(clean(command.replace("\n", " ")))


# ----------------------------------------------------------------------------------- what is run

PLACEHOLDERS = {
    "DIR": "scene",
    "MAP": "maps/scene",
    "OUT": "out",
    "PHOTOS": "photos",
    "GLOB_OR_DIR": "photos",
}
WALK = [
    "reloc data check dataset=ace dataset.root=scene",
    "reloc train experiment=landmarks/default dataset=ace dataset.root=DIR map_dir=MAP",
    "reloc evaluate map_dir=MAP dataset=ace dataset.root=DIR dataset.split=test output_dir=OUT",
    "reloc localize map_dir=MAP images=PHOTOS camera.focal=525 output_dir=OUT",
    "reloc localize map_dir=maps/scene images=photos camera.focal=525 output_dir=out/photos",
    "reloc localize map_dir=MAP images='photos/*.jpg' camera.model=OPENCV "
    "'camera.params=[525,525,319.5,239.5,0.1,-0.2,0,0]' output_dir=OUT",
    "reloc localize map_dir=MAP images=walk.mp4 camera.focal=900 frame_step=3 output_dir=OUT > poses.jsonl",
    "reloc localize map_dir=MAP images=frames/ video=true camera.focal=525 output_dir=OUT",
    "reloc config check evaluate map_dir=maps/room dataset=synthetic solver=pnp solver.min_inliers=12",
    "reloc plugin list",
    "reloc completion fish | source",
]


# The only change: fewer training steps for a room this small.
QUICKER = {"train": ["threads=1"]}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A folder as a reader of the pages has it: a scene in the ACE layout, photographs and a video."""
    from reloc_core.testing import room, write_ace

    folder = tmp_path_factory.mktemp("reader")
    for split, count in (("train", 24), ("test", 4)):
        write_ace(room(split, count), folder / "scene" / split)
    for name in ("photos", "frames"):
        (folder / name).mkdir()
    writer = cv2.VideoWriter(
        str(folder / "walk.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (640, 480)
    )
    for path in sorted((folder / "scene/test/rgb").iterdir()):
        image = cv2.resize(cv2.imread(str(path)), (640, 480))
        writer.write(image)
        cv2.imwrite(str(folder / "photos" / f"{path.name[:12]}.jpg"), image)
        shutil.copy(path, folder / "frames")
    writer.release()
    return folder


def test_a_walk_through_the_pages(reader, monkeypatch, capsys):
    """The commands of README, "Getting started" and "Putting a map to work", in order."""
    monkeypatch.chdir(reader)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if "landmarks" not in {c.name for c in default_registry().components("estimator")}:
        pytest.skip("needs the plugin landmarks")
    for command in WALK:
        assert clean(command) in SHOWN, f"no page shows this any more: {command}"
        arguments = words(command)[1:]
        for placeholder, value in PLACEHOLDERS.items():
            arguments = [re.sub(rf"(?<==){placeholder}$", value, a) for a in arguments]
        code = main([*arguments, *QUICKER.get(arguments[0], [])])
        out, err = capsys.readouterr()
        # 2 is the honest answer of `data check` about so small a room.
        assert code == 0 or (code == 2 and "check" in arguments), f"{command}\n{err}"
        assert "Traceback" not in out + err
    assert (reader / "maps/scene/map.yaml").is_file()
    assert (reader / "out/report.html").is_file()
    assert (reader / "out/photos/localizations.jsonl").is_file()
