"""Every key that a user may write, with its meaning, read from the models themselves: docs/recipe-reference.md.

The meaning of a key is the docstring below its field; of a section without one, the first paragraph of its class.
"""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from cmrfed.config.experiment import Experiment
from cmrfed.core.errors import ConfigError
from cmrfed.core.settings.choices import OrInstalled, OrInstalledName
from cmrfed.core.settings.config import Section, sections_of
from cmrfed.deploy.kit import Federation
from cmrfed.privacy.policy import SitePolicy
from cmrfed.sweep.points import SweepFile

FILES: dict[str, tuple[type[Section], str]] = {
    "recipe": (Experiment, "What `cmrfed run`, `sweep` and `coordinator submit` read, and `--set KEY=VALUE` changes."),
    "policy.yaml": (SitePolicy, "What a site allows: its own file, which beats every recipe ([privacy](privacy.md))."),
    "federation.yaml": (Federation, "What `cmrfed provision` reads ([deployment](deployment.md))."),
    "sweep": (SweepFile, "What `cmrfed sweep` reads ([many settings at once](sweep.md))."),
}
_PLAIN = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path", Any: "anything"}
_BOUNDS = {"ge": "from {}", "gt": "above {}", "le": "up to {}", "lt": "below {}"}

_ABOUT = """\
`cmrfed settings` made this page from the code itself: what is wrong here is corrected in the docstrings there.
`cmrfed settings WORD` shows the settings of a recipe whose names hold WORD. A misspelt key is refused, and the nearest
one named. Where a default is a *section*, the defaults of what is in it hold. `[]` stands for each item of a list. For
`cmrfed evaluate --set` leave `evaluation.` out."""


@dataclass(frozen=True)
class Setting:
    """One key: full name, what may stand there, its default (None: a section), and what it means."""

    key: str
    takes: str
    default: str | None
    meaning: str


# --- what the models say --------------------------------------------------------------------------
def settings(section: type[Section]) -> Iterator[Setting]:
    """All keys of a file, each section before what is in it."""
    return _of_section(section, "", None)


def _of_section(section: type[Section], prefix: str, given: Section | None) -> Iterator[Setting]:
    """The keys of a section; ``given`` is what stands there when a file leaves the whole section out."""
    for name, field in section.model_fields.items():
        if not field.exclude:
            yield from _of_field(section, name, prefix + name, getattr(given, name, None) if given else None)


def _of_field(section: type[Section], name: str, key: str, given: Any) -> Iterator[Setting]:
    field = section.model_fields[name]
    inner, default = _variants(field), field.get_default(call_default_factory=True)
    meaning = _meaning(section, name) or (_first_paragraph(inner[0]) if len(inner) == 1 else "")
    takes = f"{_takes(field.annotation)}{_installed_names(field)}{_within(field.metadata)}"
    if not inner:
        yield Setting(key, takes, _default(field, given), meaning)
        return
    needed = None if isinstance(default, Section) or (isinstance(default, tuple) and default) else _default(field, None)
    yield Setting(key, takes, needed, meaning)
    start = given if isinstance(given, Section) else default if isinstance(default, Section) else None
    prefix = f"{key}[]." if get_origin(field.annotation) is tuple else f"{key}."
    if len(inner) > 1:
        yield from _of_variants(inner, prefix, _discriminator(field), start)
    else:
        yield from _of_section(inner[0], prefix, start)


def _of_variants(variants: list[type[Section]], prefix: str, tag: str, start: Section | None) -> Iterator[Setting]:
    """The keys of sections of which one is chosen by its ``tag``; keys that several share are listed once."""
    names = {_tag(variant, tag): variant for variant in variants}
    kinds = "; ".join(f"`{name}`: {_first_paragraph(variant).rstrip('.')}" for name, variant in names.items())
    yield Setting(
        prefix + tag, " or ".join(f"`{name}`" for name in names), getattr(start, tag, None) or "required", f"{kinds}."
    )
    found: dict[Setting, list[str]] = {}
    for name, variant in names.items():
        for setting in _of_section(variant, prefix, None):
            if setting.key != prefix + tag:
                found.setdefault(setting, []).append(name)
    for setting, owners in found.items():
        meaning = f"With {' or '.join(f'`{owner}`' for owner in owners)}. {setting.meaning}"
        yield Setting(setting.key, setting.takes, setting.default, meaning)


def _variants(field: FieldInfo) -> list[type[Section]]:
    """The sections that may stand there, those of installed plugins too."""
    own, registries = sections_of(field.annotation), [m.registry for m in field.metadata if isinstance(m, OrInstalled)]
    return own + [registry.get(plugin.name) for registry in registries for plugin in registry.plugins]


def _discriminator(field: FieldInfo) -> str:
    marks = [mark.tag for mark in field.metadata if isinstance(mark, OrInstalled)]
    return str(field.discriminator or marks[0])


def _installed_names(field: FieldInfo) -> str:
    """Names of installed plugins that may stand there."""
    registries = [mark.registry for mark in field.metadata if isinstance(mark, OrInstalledName)]
    return "".join(f" or `{plugin.name}`" for registry in registries for plugin in registry.plugins)


def _tag(variant: type[Section], tag: str) -> str:
    return str(get_args(variant.model_fields[tag].annotation)[0])


# --- in words -------------------------------------------------------------------------------------
def _meaning(section: type[Section], name: str) -> str:
    """The docstring of a field, of the nearest class that has one."""
    found = (_field_docs(c).get(name) for c in section.__mro__ if issubclass(c, Section) and c is not Section)
    return _tidy(next((text for text in found if text), ""))


@cache
def _field_docs(section: type[Section]) -> dict[str, str]:
    """Name => docstring of each field that the class itself declares, as it stands in the source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(tree, ast.ClassDef)  # noqa: S101 - the source of a class
    return {
        field.target.id: str(text.value.value)
        for field, text in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def _first_paragraph(section: type[Section]) -> str:
    return _tidy(inspect.cleandoc(section.__doc__ or "").split("\n\n")[0])


def _tidy(text: str) -> str:
    """A docstring on one line, as Markdown of a page in docs/."""
    plain = re.sub(r":\w+:`", "`", " ".join(text.split()).replace("``", "`").replace("](docs/", "]("))
    return re.sub(r"\bNone\b", "null", re.sub(r"`([A-Za-z.]*[A-Z][A-Za-z.]*)`", r"\1", plain))


def _takes(annotation: Any) -> str:
    """What may be written, in plain words."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        bounds = [m for part in parts[1:] if isinstance(part, FieldInfo) for m in part.metadata]
        return _takes(parts[0]) + _within(bounds)
    if kind is Literal:
        return " or ".join(f"`{_yaml(value)}`" for value in parts)
    if kind is tuple:
        return f"list of {_takes(parts[0])}" if parts[1:] == (...,) else " and ".join(map(_takes, parts))
    if kind in (list, dict):
        return f"list of {_takes(parts[0])}" if kind is list else "name: value, …"
    if parts:  # a union
        words = dict.fromkeys(_takes(part) for part in sorted(parts, key=lambda part: part is NoneType))
        return " or ".join(words)
    if annotation in (None, NoneType):
        return "null"
    return _PLAIN.get(annotation) or ("section" if sections_of(annotation) else str(annotation))


def _within(metadata: list[Any]) -> str:
    """Bounds of a value, such as ", above 0, up to 1"."""
    words = [
        form.format(_yaml(getattr(bound, name)))
        for bound in metadata
        for name, form in _BOUNDS.items()
        if getattr(bound, name, None) is not None
    ]
    words += [f"at least {bound.min_length}" for bound in metadata if getattr(bound, "min_length", None)]
    return "".join(f", {word}" for word in words)


def _default(field: FieldInfo, given: Any) -> str:
    """The default, and beside it what stands there when the whole section is left out, where that is another."""
    if field.is_required():
        return "required"
    own = _yaml(field.default)
    apart = given is not None and _yaml(given) != own
    return f"{own}; {_yaml(given)} where the section is left out" if apart else own


def _yaml(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False).strip('"')


# --- the page, and single settings ----------------------------------------------------------------
def page() -> str:
    """docs/recipe-reference.md."""
    parts = ["# Every setting", _ABOUT]
    for file, (model, about) in FILES.items():
        parts += [f"## {file}", about]
        for heading, rows in _tables(model):
            parts += [f"### {heading}"] if heading else []
            parts.append(
                "\n".join(["| key | takes | default | meaning |", "| --- | --- | --- | --- |", *map(_row, rows)])
            )
    return "\n\n".join(parts)


def _tables(model: type[Section]) -> Iterator[tuple[str, list[Setting]]]:
    """The settings of a file, those of each section of a recipe in a table of their own."""
    rows = list(settings(model))
    if model is not Experiment:
        yield "", rows
        return
    yield "", [row for row in rows if "." not in row.key]
    for name in [row.key for row in rows if any(other.key.startswith(f"{row.key}.") for other in rows)]:
        if "." not in name:
            yield name, [row for row in rows if row.key.startswith(f"{name}.")]


def _row(setting: Setting) -> str:
    cells = (f"`{setting.key}`", setting.takes, _cell(setting.default), setting.meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cell(default: str | None) -> str:
    if default in (None, "required"):
        return "section" if default is None else "**required**"
    own, mark, apart = str(default).partition(";")
    return f"`{own}`{mark}{apart}"


def find(word: str) -> str:
    """The settings of a recipe whose full names hold a word, as plain text.

    Raises:
        ConfigError: There are none.
    """
    found = [setting for setting in settings(Experiment) if word in setting.key]
    if not found:
        raise ConfigError(f"no setting has {word} in its name", do="cmrfed settings, without a word, shows all")
    return "\n".join(f"{s.key} ({_both(s)})\n    {s.meaning}" for s in found).replace("`", "")


def _both(setting: Setting) -> str:
    if setting.default in (None, "required"):
        return setting.takes if setting.default is None else f"{setting.takes}; required"
    return f"{setting.takes}; default {setting.default}"
