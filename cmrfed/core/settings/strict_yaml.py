"""The one reader of YAML: what YAML would change without a word is an error that names the line.

YAML 1.1, as PyYAML reads it, keeps the last of two equal keys, reads ``1:30`` as 90 and ``010`` as 8, and makes dates
of some names. Here

- a key that is there twice, a key without a value, a tag, and a number with a zero in front are errors;
- ``1:30`` and ``2026-01-01`` are text, which a setting that wants a number then refuses;
- anchors and aliases are kept, and so is the merge key ``<<``: keys that stand beside it win over merged ones;
- what is larger than `LARGEST_BYTES`, nested deeper than `DEEPEST` or becomes more than `MOST_NODES` values once its
  aliases are written out is refused.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from cmrfed.core.errors import CmrfedError, ConfigError
from cmrfed.core.text import one_line, read_text

LARGEST_BYTES = 512 << 10
DEEPEST = 50
MOST_NODES = 100_000
_TAG = "tag:yaml.org,2002:"
_PLAIN = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+][0-9]+)?")
_ZERO_IN_FRONT = re.compile(r"[-+]?0[0-9_]+")


class _Loader(yaml.SafeLoader):
    """SafeLoader without dates and the value key ``=``."""


_Loader.yaml_implicit_resolvers = {
    sign: [(tag, form) for tag, form in rules if tag not in (f"{_TAG}timestamp", f"{_TAG}value")]
    for sign, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_mapping(
    path: Path,
    kind: str,
    *,
    error: type[CmrfedError] = ConfigError,
    blanks: bool = False,
    plain_numbers: bool = False,
) -> dict[Any, Any]:
    """Read a YAML file whose top level is a mapping.

    Args:
        path: The file.
        kind: What it is, in errors: "recipe".
        error: What is raised for a file that cannot be used.
        blanks: Take a key without a value as null.
        plain_numbers: Take no number but one in plain decimals, such as 8, 0.001 or 1.0e-5, and no ``~`` for null.

    Raises:
        FileNotFoundError: There is no such file.
        CmrfedError: It cannot be read or is not such YAML.
    """
    text = read_text(path, kind, error=error, largest=LARGEST_BYTES)
    tree = load(text, str(path), kind, error=error, blanks=blanks, plain_numbers=plain_numbers)
    if not isinstance(tree, dict):
        raise error(
            f"{path} is not a {kind}",
            got="an empty file" if tree is None else type(tree).__name__,
            expected="a YAML mapping, which is lines of key: value",
            do="name the right file, or correct it",
        )
    return tree


def load(
    text: str,
    where: str,
    kind: str = "text",
    *,
    error: type[CmrfedError] = ConfigError,
    blanks: bool = False,
    plain_numbers: bool = False,
) -> Any:
    """Read YAML from text; see `read_mapping`.

    Raises:
        CmrfedError: It is not such YAML.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return _Builder(blanks=blanks, plain_numbers=plain_numbers).build(node) if node else None
    except yaml.YAMLError as problem:
        got = _in_words(problem, text)
    except RecursionError:
        raise error(f"{where} is not a readable {kind}", got=f"more than {DEEPEST} levels", do="correct it") from None
    except _Refused as problem:
        raise error(
            f"{where} is not a readable {kind}", got=problem.got, expected=problem.expected, do=problem.do
        ) from None
    raise error(f"{where} is not a readable {kind}", got=f"{got}, which is not YAML", do="correct it")


def quoted(text: str) -> str:
    """YAML that stands for exactly this text, whatever signs are in it."""
    plain = (sign if sign.isascii() and sign.isprintable() and sign not in '"\\' else _escaped(sign) for sign in text)
    return f'"{"".join(plain)}"'


def _escaped(sign: str) -> str:
    return f"\\U{ord(sign):08x}"


def _in_words(problem: yaml.YAMLError, text: str) -> str:
    mark = getattr(problem, "problem_mark", None)
    said = one_line(getattr(problem, "problem", None) or getattr(problem, "reason", None) or problem)
    if mark is not None:
        return f"line {mark.line + 1}, column {mark.column + 1}: {said}"
    place = getattr(problem, "position", None)  # of a character that YAML does not take
    if isinstance(place, int) and place < len(text):
        return f"line {text.count(chr(10), 0, place) + 1}: the character U+{ord(text[place]):04X}"
    return said


class _Refused(Exception):
    """A file is YAML, and says something that could be meant in two ways."""

    def __init__(self, got: str, expected: str | None = None, do: str | None = None) -> None:
        super().__init__(got)
        self.got, self.expected, self.do = got, expected, do


def _refuse(node: Node, got: str, expected: str | None = None, do: str = "correct it") -> NoReturn:
    raise _Refused(f"line {node.start_mark.line + 1}: {got}", expected, do)


@dataclass
class _Builder:
    """Builds values from nodes, aliases written out: a value is never shared."""

    blanks: bool
    plain_numbers: bool
    built: int = 0

    def build(self, node: Node, depth: int = 0, name: str = "") -> Any:
        """The value of a node; ``name`` is that of its key."""
        self.built += 1
        if self.built > MOST_NODES:
            _refuse(node, f"with its aliases written out it has more than {MOST_NODES} values")
        if depth > DEEPEST:
            _refuse(node, f"it is nested deeper than {DEEPEST} levels, or contains itself")
        if isinstance(node, MappingNode):
            return self._mapping(node, depth)
        if isinstance(node, SequenceNode):
            return self._sequence(node, depth, name)
        return self._scalar(cast("ScalarNode", node), name)

    def _sequence(self, node: SequenceNode, depth: int, name: str) -> list[Any]:
        self._check_tag(node, "seq")
        for item in node.value:
            if not self.blanks and _is_blank(item):
                _refuse(item, f"a blank item in the list {name}".rstrip(), "a value", "write it, or take the item out")
        return [self.build(item, depth + 1, name) for item in node.value]

    def _mapping(self, node: MappingNode, depth: int) -> dict[Any, Any]:
        self._check_tag(node, "map")
        merged: dict[Any, Any] = {}
        own: dict[Any, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = "<<" if key_node.tag == f"{_TAG}merge" else self._key(key_node, depth)
            if str(key) in lines or key in own:
                first = lines.get(str(key), key_node.start_mark.line) + 1
                _refuse(
                    key_node, f"the key {key} is there twice, first in line {first}", "every key once", "take one out"
                )
            lines[str(key)] = key_node.start_mark.line
            if key_node.tag == f"{_TAG}merge":
                merged = self._merged(value_node, depth)
                continue
            if not self.blanks and _is_blank(value_node):
                _refuse(key_node, f"the key {key} has no value", "a value, or the word null", "write what is meant")
            own[key] = self.build(value_node, depth + 1, str(key))
        return merged | own

    def _key(self, node: Node, depth: int) -> Any:
        if not isinstance(node, ScalarNode):
            _refuse(node, "a key that is a list or a mapping", "a word as key")
        if _is_blank(node):
            _refuse(node, "a value without a key", "key: value")
        return self.build(node, depth + 1)

    def _merged(self, node: Node, depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for one in _merge_sources(node):
            found = self.build(one, depth + 1) | found
        return found

    def _scalar(self, node: ScalarNode, name: str) -> Any:
        text = str(node.value)
        kind = str(node.tag).removeprefix(_TAG)
        if kind == "str":
            return text
        if kind == "null" and text == "~" and self.plain_numbers:
            _refuse(node, f"{name}: ~", "the word null, written out, where it is meant")
        if kind == "null":
            return None
        if kind == "bool" and text.lower() in SafeConstructor.bool_values:
            return SafeConstructor.bool_values[text.lower()]
        if kind in ("int", "float"):
            return self._number(node, kind, text, name)
        _refuse(node, f"the tag {node.tag} at {text[:40]!r}", "values without tags")

    def _number(self, node: ScalarNode, kind: str, text: str, name: str) -> int | float | str:
        if ":" in text:  # YAML 1.1 counts 1:30 as 90
            return text
        said = f"{name}: {text[:60]}" if name else text[:60]
        if _ZERO_IN_FRONT.fullmatch(text):
            _refuse(node, said, "a number without a zero in front, which YAML reads as octal", "quote it if it is text")
        if self.plain_numbers and not _PLAIN.fullmatch(text):
            _refuse(node, said, "a number in plain decimals, such as 8, 0.001 or 1.0e-5")
        try:
            make = SafeConstructor()
            return make.construct_yaml_int(node) if kind == "int" else make.construct_yaml_float(node)
        except (ValueError, OverflowError, IndexError):
            _refuse(node, f"{said} is no number that can be used", "a number")

    @staticmethod
    def _check_tag(node: Node, kind: str) -> None:
        if node.tag != f"{_TAG}{kind}":
            _refuse(node, f"the tag {node.tag}", "values without tags")


def _merge_sources(node: Node) -> Iterator[MappingNode]:
    sources = node.value if isinstance(node, SequenceNode) else [node]
    for one in sources:
        if not isinstance(one, MappingNode):
            _refuse(one, "<< with something else than a mapping", "<<: *name, or <<: [*one, *another]")
        yield one


def _is_blank(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.value == "" and node.tag == f"{_TAG}null"
