"""What a federation is, as its file says, and what a kit says of itself."""

from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from cmrfed.core.artifacts import read_json, write_json
from cmrfed.core.errors import CmrfedError, ConfigError
from cmrfed.core.settings.config import DeviceName, Section
from cmrfed.core.settings.strict_yaml import read_mapping
from cmrfed.core.settings.validation import problems

HOST = r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,200}[A-Za-z0-9])?$"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,50}$"
KIT = "kit.json"


class CoordinatorSettings(Section):
    """Where the coordinator is."""

    host: str = Field(pattern=HOST)
    """Name or address under which sites reach it; the certificate of its proxy carries it."""
    port: int = Field(8443, ge=1, le=65535)
    """Port of the proxy, the only one that is open to the network."""
    listen: str = Field("0.0.0.0", pattern=HOST)  # noqa: S104 - this one is meant for the network
    """Address at which the proxy listens."""
    inner_port: int = Field(18443, ge=1, le=65535)
    """Port of Flower's SuperLink at the loopback address."""
    health_port: int = Field(18444, ge=1, le=65535)
    """Port of the SuperLink's gRPC health service at the loopback address."""


class SiteSettings(Section):
    """One site."""

    name: str = Field(pattern=NAME)
    """The same characters as in the federation's name; unique, and neither coordinator nor authority."""
    request: Path | None = None
    """Certificate request (CSR) of a site that keeps its own keys; relative to the federation's file."""
    node_key: Path | None = None
    """Public node key of such a site."""
    device: DeviceName = "auto"
    """Where the site trains: cpu, cuda, cuda:N or mps; auto takes CUDA, else MPS, else the CPU."""
    gate_port: int = Field(18543, ge=1, le=65535)
    """Port of the site's gate at the loopback address; the gate alone talks to the coordinator."""
    node_port: int = Field(18544, ge=1, le=65535)
    """Port of the node's inner interface at the loopback address."""
    health_port: int = Field(18545, ge=1, le=65535)
    """Port of the node's gRPC health service at the loopback address."""

    @model_validator(mode="after")
    def _has_both(self) -> "SiteSettings":
        if (self.request is None) != (self.node_key is None):
            raise ValueError("request and node_key belong together: a site brings both keys, or none")
        return self


class Federation(Section):
    """The content of federation.yaml."""

    name: str = Field(pattern=NAME)
    """Letters, digits, dots, hyphens and underscores, 51 at most."""
    coordinator: CoordinatorSettings
    """Where the coordinator is."""
    sites: tuple[SiteSettings, ...] = Field(min_length=1)
    """Ordered by site index, which conditions the generators: add new sites at the end."""
    validity_days: int = Field(365, ge=1, le=3650)
    """Validity of the certificates of the coordinator and of sites, in days."""

    @field_validator("sites")
    @classmethod
    def _are_distinct(cls, sites: tuple[SiteSettings, ...]) -> tuple[SiteSettings, ...]:
        names = [site.name.lower() for site in sites]
        twice = sorted({name for name in names if names.count(name) > 1} | ({"coordinator", "authority"} & set(names)))
        if twice:
            raise ValueError(f"{', '.join(twice)}: each site needs a name of its own, and not coordinator or authority")
        return sites

    @classmethod
    def read(cls, path: Path) -> "Federation":
        """Read federation.yaml; paths in it become relative to its folder.

        Raises:
            ConfigError: It is missing, or cannot be used.
        """
        try:
            found = cls.model_validate(read_mapping(path, "federation"))
        except FileNotFoundError:
            raise ConfigError(f"there is no {path}", do="name a file such as configs/federation.yaml") from None
        except ValidationError as error:
            raise ConfigError(f"{path} cannot be used", got=problems(error), do="correct it") from None
        root = path.parent
        sites = tuple(
            site.model_copy(
                update={key: root / value for key in ("request", "node_key") if (value := getattr(site, key))}
            )
            for site in found.sites
        )
        return found.model_copy(update={"sites": sites})


class CoordinatorKit(Section):
    """kit.json of the coordinator."""

    kind: str = Field("coordinator", pattern="^coordinator$")
    federation: str
    coordinator: CoordinatorSettings
    sites: tuple[str, ...]
    """Ordered: a site's position is the site index that conditions the generators."""


class SiteKit(Section):
    """kit.json of a site."""

    kind: str = Field("site", pattern="^site$")
    federation: str
    name: str
    coordinator_host: str
    coordinator_port: int
    gate_port: int
    node_port: int
    health_port: int


def read_site_kit(folder: Path) -> SiteKit:
    """Read kit.json of a site."""
    return _read(folder, SiteKit, "site")


def read_coordinator_kit(folder: Path) -> CoordinatorKit:
    """Read kit.json of the coordinator."""
    return _read(folder, CoordinatorKit, "coordinator")


def write_kit(folder: Path, kit: CoordinatorKit | SiteKit) -> None:
    """Write kit.json."""
    write_json(folder / KIT, kit.model_dump(mode="json"))


K = TypeVar("K", CoordinatorKit, SiteKit)


def _read(folder: Path, kind: type[K], what: str) -> K:
    try:
        return kind.model_validate(read_json(folder / KIT))
    except ValidationError as error:
        raise ConfigError(
            f"{folder} is not the kit of a {what}", got=problems(error), do="name the right folder"
        ) from None
    except CmrfedError:
        raise ConfigError(
            f"{folder} is not a kit", got="no kit.json", expected="a folder that `cmrfed provision` made"
        ) from None
