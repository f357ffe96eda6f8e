"""Published data sets: their files as they are published, in the folder ``raw`` of the data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from recbole_escm2.errors import UsageError


class RawFiles:
    """What all sources of published files share; a subclass names the files and reads them."""

    #: Files that there must be, by what they are called in the code: names that each may have.
    names: Mapping[str, tuple[str, ...]]
    #: Files that there may be.
    optional: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    #: Config keys that the content of the store depends on.
    keys: tuple[str, ...] = ()

    #: Config keys that must name something.
    named: tuple[str, ...] = ()

    def simulates(self, config: Any) -> bool:
        """Files are what they are."""
        return False

    def settings(self, config: Any) -> dict[str, Any]:
        """The values of :attr:`keys`.

        Raises:
            UsageError: one of :attr:`named` names nothing.
        """
        for key in self.named:
            if config[key] is None:
                raise UsageError(f"data set '{config['dataset']}' needs a {key}, got None")
        return {key: config[key] for key in self.keys}

    def files(self, config: Any) -> list[Path]:
        """The files that there are.

        Raises:
            UsageError: one is missing; the message says which ones, and how to get them.
        """
        return list(self.paths(config).values())

    def paths(self, config: Any) -> dict[str, Path]:
        """The same, by what they are called in the code.

        Raises:
            UsageError: as :meth:`files`.
        """
        folder = Path(config["data_path"]) / "raw"
        there, missing = {}, []
        for role, names in {**self.names, **self.optional}.items():
            candidates = [folder / name for name in names if (folder / name).is_file()]
            if candidates:
                there[role] = candidates[0]
            elif role in self.names:
                missing.append(names[0])
        if missing:
            is_no = "is no file" if len(missing) == 1 else "are no files"
            how = f". {config['obtain'].strip()}" if config["obtain"] else ""
            listed = ", ".join(str(folder / name) for name in missing)
            raise UsageError(f"data set '{config['dataset']}': there {is_no} {listed}{how}")
        return there
