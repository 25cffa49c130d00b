"""A part of a model under its name, and those who watch it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from torch import Tensor


class Watcher(ABC):
    """Somebody who wants to see what passes at some sites."""

    #: Their names.
    sites: Collection[str]
    #: Whether what it gives back may be another value than it saw.
    changes = False

    @abstractmethod
    def see(self, site: str, value: Tensor) -> Tensor:
        """What the model goes on with."""


@dataclass(frozen=True)
class Place:
    """A part called `name`; its watchers see each value in turn, those who change it first."""

    name: str
    watchers: Sequence[Watcher]

    def of(self, part: str) -> Place:
        """A part of this part."""
        return replace(self, name=self.site(part))

    def site(self, name: str) -> str:
        """The whole name of one of its sites."""
        return f"{self.name}.{name}" if self.name else name

    def wants(self, *names: str) -> bool:
        """Whether anybody wants to see one of these sites."""
        return any(self.site(name) in watcher.sites for name in names for watcher in self.watchers)

    def changes(self, *names: str) -> bool:
        """Whether anybody may change what passes at one of these sites."""
        return any(self.site(name) in each.sites for name in names for each in self.watchers if each.changes)

    def see(self, name: str, value: Tensor) -> Tensor:
        """Show a value to whoever wants to see it; what the model goes on with."""
        site = self.site(name)
        for watcher in self.watchers:
            if site in watcher.sites:
                value = watcher.see(site, value)
        return value
