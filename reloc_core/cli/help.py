"""Help of verbs, made from their primary config (whose comments explain the options)."""

from __future__ import annotations

import re

from reloc_core.config import config_directory, experiments
from reloc_core.registry import Registry

EXAMPLES = {
    "map": """\
  reloc map images=photos/ map_dir=MAP
  reloc map images=walk.mp4 map_dir=MAP scale.marker=0.15
  reloc map images=flight/ map_dir=MAP scale.gps=true
  reloc map images=more/ map_dir=MAP add=true            add images to its reconstruction, train it again
""",
    "train": """\
  reloc train experiment=landmarks/default dataset=ace dataset.root=DIR map_dir=MAP
  reloc train experiment=landmarks/default dataset=transforms dataset.root=DIR map_dir=MAP
  reloc train -m experiment=landmarks/default dataset=ace dataset.root=DIR \\
      'map_dir=maps/seed${seed}' seed=1,2,3                       three seeds, one after another
  torchrun --nproc_per_node=2 -m reloc_core.cli train ...         several processes, same result
""",
    "evaluate": """\
  reloc evaluate map_dir=MAP dataset=ace dataset.root=DIR dataset.split=test output_dir=OUT
  reloc evaluate map_dir=MAP dataset=ace dataset.root=DIR solver=dsac solver.hypotheses=256
""",
    "localize": """\
  reloc localize map_dir=MAP images=photos/ camera.focal=525 output_dir=OUT
  reloc localize map_dir=MAP images=walk.mp4 camera.focal=900 frame_step=3
  reloc localize map_dir=MAP images=camera:0 camera.focal=600 max_frames=300 > poses.jsonl
  reloc localize map_dir=MAP images='photos/*.jpg' camera.model=OPENCV \\
      'camera.params=[615,615,319.5,239.5,0.1,-0.2,0,0]' output_dir=OUT
""",
    "track": """\
  reloc track map_dir=MAP images=walk.mp4 camera.focal=900 output_dir=OUT
  reloc track map_dir=MAP images=frames/ fps=30 camera.focal=525 output_dir=OUT
  reloc track map_dir=MAP images=drive.bag topic=/camera/image_raw output_dir=OUT
  reloc track map_dir=MAP images=camera:0 camera.focal=600 tracker.interval=6 > poses.jsonl
""",
    "serve": """\
  reloc serve map_dir=MAP camera.focal=525
  reloc serve 'maps={kitchen: maps/kitchen, office: maps/office}' host=0.0.0.0 limits.rate_per_minute=60
  curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/localize
""",
    "collect": """\
  reloc collect 'maps={ground: {map_dir: maps/g, dataset: {name: ace, root: g}},
      upper: {map_dir: maps/u, dataset: {name: ace, root: u}}}' reference=ground map_dir=maps/house
  reloc collect map_dir=maps/house                                what it holds
  reloc localize map_dir=maps/house images=DIR camera.focal=525
""",
    "view": """\
  reloc view map_dir=MAP                                          the map alone
  reloc view map_dir=MAP dataset=ace dataset.root=DIR dataset.split=test output=view.rrd
  reloc view map_dir=MAP images=camera:0 camera.focal=600         live
  reloc view map_dir=MAP results=OUT                              what was localized before
""",
    "benchmark": """\
  reloc benchmark experiment=landmarks/default dataset=ace dataset.root=DIR output_dir=OUT
  reloc benchmark -m experiment=paper/ace_7scenes_sfm root=data \\
      estimator.encoder.weights=ace_encoder_pretrained.pt
""",
    "demo": "  reloc demo\n",
    "data_convert": """\
  reloc data convert dataset=colmap dataset.root=DIR dataset.undistort=true to=ace output=OUT \\
      'splits=[train,test]' drop=[unit]
  reloc data convert dataset=ace dataset.root=DIR to=transforms output=OUT images=symlink
  reloc data convert dataset=transforms dataset.root=DIR to=transforms output=OUT adjust=true    poses of
                                                                  odometry made better
""",
    "data_reconstruct": """\
  reloc data reconstruct images=photos/ output=place
  reloc data reconstruct images=walk.mp4 output=place scale.distance=[walk_000000.jpg,walk_000090.jpg,2.0]
  reloc data reconstruct images=flight/ output=field scale.gps=true
  reloc data reconstruct images=record.bag topic=/camera/image_raw output=place
  reloc data reconstruct images=more/ output=place add=true       add images to it
""",
    "data_check": "  reloc data check dataset=ace dataset.root=DIR output_dir=OUT\n",
}


def verb_help(verb: str, registry: Registry) -> str:
    """Text of `reloc VERB --help`: purpose, examples, choices and every option with its default."""
    text = (config_directory() / f"{verb}.yaml").read_text("utf-8")
    title, _, rest = text.partition("\n")
    options = re.sub(r"(?m)^(defaults|hydra):\n(?:[ -].*\n|\n)*", "", rest).strip()
    groups = re.findall(r"(?m)^  - (?:override )?/?(\w+): ", text)
    lines = [title.lstrip("# "), "", "Examples:", EXAMPLES[verb].rstrip()]
    lines += ["", "Choices:"] if groups else []
    for group in groups:
        if group == "experiment":
            names = experiments(registry)
        else:
            names = [c.name for c in registry.components(group)]
        lines.append(f"  {group}={' | '.join(names) or '(none installed)'}")
    lines += ["", "Options and defaults (??? must be given):"]
    lines += [f"  {line}".rstrip() for line in options.splitlines()]
    shown = f"Options of a choice: reloc config check {verb.replace('_', ' ')} CHOICES... shows them all."
    lines += [
        "",
        *([shown] if groups else []),
        "Flags of Hydra: -m sweeps comma-separated values, --cfg job prints the config.",
    ]
    return "\n".join(lines) + "\n"
