"""Registries of interchangeable parts by name: those of this project, and those of other installed distributions.

A distribution offers a part through an entry point (https://packaging.python.org/specifications/entry-points) of the
registry's group. Nothing of it is imported before the part is asked for by name, and nothing at all inside
`builtins_only`, in which a deployed site answers requests ([plugins](docs/plugins.md)).
"""

import difflib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from cmrfed.core.errors import ConfigError

T = TypeVar("T")

NOT_APPROVED = "not-approved"
"""Code of the error that a part lies outside the code that a site has approved."""

_builtins_only: ContextVar[bool] = ContextVar("builtins_only", default=False)
_loaded: dict[str, "Plugin"] = {}


@contextmanager
def builtins_only() -> Iterator[None]:
    """Refuse every part that another distribution offers, within the block and in the calling thread."""
    token = _builtins_only.set(True)
    try:
        yield
    finally:
        _builtins_only.reset(token)


def loaded_plugins() -> dict[str, "Plugin"]:
    """``group:name`` => each part of another distribution that this process has loaded, whoever asked for it."""
    return dict(sorted(_loaded.items()))


@dataclass(frozen=True)
class Plugin:
    """A part that another distribution offers, not necessarily one that can be loaded."""

    name: str
    package: str
    """Name of the distribution, such as ``cmrfed-example``."""
    version: str
    """Of the distribution; empty where it says none."""
    target: str
    """``module:attribute``."""

    @property
    def distribution(self) -> str:
        """Name and version, such as ``cmrfed-example 0.1.0``."""
        return f"{self.package} {self.version}".strip()


class Registry(Generic[T]):
    """Parts of one kind by name.

    Args:
        group: Entry-point group of parts from outside, such as ``cmrfed.sources``.
        noun: What one part is called in messages, such as ``data source``.
        builtins: Name => the part, or ``module:attribute`` of it, which is imported when it is asked for.
        fault: What is wrong with a part that was loaded from outside under a name, in a few words; None: nothing.
    """

    def __init__(
        self,
        group: str,
        noun: str,
        builtins: Mapping[str, T | str] | None = None,
        *,
        fault: Callable[[str, object], str | None] = lambda name, part: None,
    ) -> None:
        self.group, self.noun, self._fault = group, noun, fault
        self._builtins: dict[str, T | str] = dict(builtins or {})

    @property
    def builtin_names(self) -> tuple[str, ...]:
        """Names of the project's own parts, in order of registration."""
        return tuple(self._builtins)

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """What other distributions offer, in order of name; nothing is imported."""
        return tuple(_plugin(entry) for entry in _entries(self.group, tuple(sys.path)))

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that `get` knows: the project's own first."""
        others = () if _builtins_only.get() else tuple(plugin.name for plugin in self.plugins)
        return tuple(dict.fromkeys((*self._builtins, *others)))

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: register a part under ``name`` for this process.

        Raises:
            ConfigError: The name is taken.
        """

        def add(part: T) -> T:
            if name in self._builtins:
                raise ConfigError(f"there is a {self.noun} {name} already", do="give this one another name")
            self._builtins[name] = part
            return part

        return add

    def get(self, name: str) -> T:
        """The part of that name, imported if it was not yet.

        Raises:
            ConfigError: Nothing or more than one part has the name, it cannot be loaded, or it lies outside the code
                that the site answering a request has approved (code `NOT_APPROVED`).
        """
        if _builtins_only.get():
            return self._builtin(name) if name in self._builtins else self._refuse(name)
        claims = [entry for entry in _entries(self.group, tuple(sys.path)) if entry.name == name]
        if len(claims) + (name in self._builtins) > 1:
            raise self._conflict(name, [_plugin(entry) for entry in claims])
        if name in self._builtins:
            return self._builtin(name)
        if not claims:
            raise self._unknown(name)
        return self._load(claims[0])

    def _builtin(self, name: str) -> T:
        part = self._builtins[name]
        if isinstance(part, str):
            module, _, attribute = part.partition(":")
            part = self._builtins[name] = getattr(importlib.import_module(module), attribute)
        return part

    def _load(self, entry: EntryPoint) -> T:
        plugin = _plugin(entry)
        try:
            part = entry.load()
        except Exception as error:
            raise ConfigError(
                f"{self.noun} {plugin.name} of {plugin.distribution} cannot be loaded",
                got=f"{type(error).__name__}: {error} (importing {plugin.target})",
                do=f"update or repair it, or remove it with: pip uninstall {plugin.package}",
            ) from error
        if fault := self._fault(plugin.name, part):
            raise ConfigError(
                f"{plugin.target} of {plugin.distribution} is no {self.noun}",
                got=fault,
                do=f"update {plugin.package}, or tell its authors; docs/plugins.md says what a {self.noun} is",
            )
        _loaded[f"{self.group}:{plugin.name}"] = plugin
        return part

    def _refuse(self, name: str) -> T:
        raise ConfigError(
            f"{self.noun} {name} is not part of the code that this site has approved",
            got=name,
            expected=" or ".join(self.builtin_names),
            do="choose one of these: a deployed site loads no plugins",
            code=NOT_APPROVED,
        )

    def _unknown(self, name: str) -> ConfigError:
        near = difflib.get_close_matches(name, self.names, 1)
        return ConfigError(
            f"there is no {self.noun} {name}" + (f" (did you mean {near[0]}?)" if near else ""),
            expected=" or ".join(self.names),
            do=f"choose one of these, or install the package that offers it (entry-point group {self.group})",
        )

    def _conflict(self, name: str, claims: list[Plugin]) -> ConfigError:
        own = ["cmrfed itself"] if name in self._builtins else []
        removable = ", ".join(dict.fromkeys(plugin.package for plugin in claims))
        return ConfigError(
            f"more than one {self.noun} is called {name}",
            got=" and ".join([*own, *(f"{plugin.distribution} ({plugin.target})" for plugin in claims)]),
            expected="one",
            do=f"uninstall all but one (pip uninstall, of {removable}), or ask the authors for another name",
        )


@lru_cache
def _entries(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Entry points of a group, read again when ``sys.path`` is another."""
    del path
    return tuple(sorted(set(entry_points(group=group)), key=lambda entry: (entry.name, entry.value)))


def _plugin(entry: EntryPoint) -> Plugin:
    name, version = (entry.dist.name, entry.dist.version) if entry.dist else ("an unknown distribution", "")
    return Plugin(entry.name, name, version, entry.value)
