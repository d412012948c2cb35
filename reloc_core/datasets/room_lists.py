"""The room lists of ESAC and GLACE: 12Scenes as one world (i12), and with 7Scenes (i19)."""

from __future__ import annotations

LISTS = ("i12", "i19", "i12d", "i19d")
"""Of SfM poses, and of the original poses ("d")."""

_TWELVE = """
apt1_kitchen -2.600475 -2.422589 0.978807
apt1_living -0.386516 1.795564 0.520901
apt2_bed 0.679181 -3.848543 0.334536
apt2_kitchen -0.101284 -0.154925 0.993257
apt2_living 0.340335 -0.140383 0.369327
apt2_luke 0.189837 3.651691 0.698627
office1_gates362 -5.952045 -0.964064 0.737907
office1_gates381 5.279579 2.247005 0.632991
office1_lounge -0.183246 0.843424 0.521649
office1_manolis 0.446377 -0.090508 0.718739
office2_5a 0.286177 7.062293 0.403372
office2_5b 0.744445 0.965503 0.558816
"""
_SEVEN = """
chess -0.006378 -0.158068 1.608667
fire -0.372936 0.202488 1.716795
heads 0.099536 0.143322 0.811527
office 0.214342 -0.421638 2.137722
pumpkin -0.173342 -0.787906 2.342458
redkitchen -0.681654 -0.491324 2.455781
stairs -0.000601 -0.170128 1.777769
"""


def published_list(name: str) -> str:
    """The text of a list: folders as `reloc data fetch` makes them, and mean camera centres."""
    poses = "" if name.endswith("d") else "pgt_"
    lines = [f"{poses}12scenes_{line}" for line in _TWELVE.split("\n") if line]
    if name.startswith("i19"):
        lines += [f"{poses}7scenes_{line}" for line in _SEVEN.split("\n") if line]
    return "\n".join(lines) + "\n"
