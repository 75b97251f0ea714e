"""Settings of one of several kinds, chosen by a tag, among them kinds that other distributions offer."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from cmrfed.core.errors import ConfigError
from cmrfed.core.settings.config import Section
from cmrfed.core.settings.registry import NOT_APPROVED, Registry

S = TypeVar("S", bound=Section)
T = TypeVar("T")


def settings_registry(group: str, noun: str, tag: str, base: type[S], own: Sequence[type[S]]) -> Registry[type[S]]:
    """A registry of settings classes, each a subclass of ``base`` whose field ``tag`` is a Literal of its name.

    Args:
        group: Entry-point group, such as ``cmrfed.strategies``.
        noun: What one is called in messages.
        tag: The field that names the class, such as ``kind``.
        base: The class that says what each must offer.
        own: The project's own.
    """

    def fault(name: str, part: object) -> str | None:
        if not (isinstance(part, type) and issubclass(part, base)):
            return f"{part!r}, which is not a subclass of {base.__module__}.{base.__name__}"
        if _tags(part, tag) != (name,):
            return f"class {part.__name__}, which lacks the field {tag}: Literal[{name!r}]"
        return None

    return Registry(group, noun, {name: each for each in own for name in _tags(each, tag)}, fault=fault)


def _tags(settings: type[Section], tag: str) -> tuple[str, ...]:
    return get_args(settings.model_fields[tag].annotation) if tag in settings.model_fields else ()


class OrInstalled:
    """Mark of a union of settings: it takes those of an installed plugin too, chosen by the union's discriminator.

    Example: ``Annotated[FedAvgConfig | FedProxConfig, Field(discriminator="name"), OrInstalled(STRATEGIES, "name")]``.
    A value is written as the class it is of, so that nothing of a plugin's settings is lost.

    Args:
        registry: The classes by tag.
        tag: The union's discriminator.
    """

    def __init__(self, registry: Registry[type[S]], tag: str) -> None:
        self.registry, self.tag = registry, tag

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The union's own schema, behind a look at the tag."""
        own = set(self._members(source))

        def validate(given: Any, union: core_schema.ValidatorFunctionWrapHandler) -> Any:
            chosen = self._chosen(given)
            return union(given) if chosen is None or chosen in own else chosen.model_validate(given)

        schema = core_schema.no_info_wrap_validator_function(validate, handler(source))
        schema["serialization"] = core_schema.simple_ser_schema("any")
        return schema

    def _members(self, source: Any) -> tuple[Any, ...]:
        parts = get_args(source)
        return (source,) if not parts else tuple(member for part in parts for member in self._members(part))

    def _chosen(self, given: Any) -> type[Section] | None:
        """The class that a value names; None where it names none, which the union refuses in its own words."""
        name = given.get(self.tag) if isinstance(given, Mapping) else getattr(given, self.tag, None)
        return _get(self.registry, name) if isinstance(name, str) else None


class OrInstalledName:
    """Mark of a Literal of names: it takes the name of an installed plugin too.

    Example: ``Annotated[Literal["euler", "heun"], OrInstalledName(SAMPLERS)]``.

    Args:
        registry: The parts by name; those in the Literal are its own.
    """

    def __init__(self, registry: Registry[Any]) -> None:
        self.registry = registry

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The Literal's own schema, behind a look at the name."""

        def validate(given: Any, own: core_schema.ValidatorFunctionWrapHandler) -> Any:
            if not isinstance(given, str) or given in get_args(source):
                return own(given)
            _get(self.registry, given)
            return given

        schema = core_schema.no_info_wrap_validator_function(validate, handler(source))
        schema["serialization"] = core_schema.simple_ser_schema("str")
        return schema


def _get(registry: Registry[T], name: str) -> T:
    """A part by name; where there is none, an error of pydantic's that says so in the registry's words."""
    try:
        return registry.get(name)
    except ConfigError as error:
        kind = "not_approved" if error.code == NOT_APPROVED else "unknown_kind"
        raise PydanticCustomError(kind, "{problem}", {"problem": str(error)}) from None
