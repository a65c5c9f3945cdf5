"""Refuses to send a key to an address that is less trusted than the key.

Files of the working directory may be someone else's: a checkout with a `.env` can name any server. A key from the
environment, from batchline's own directory or from code goes there only if one of these says so.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource, TomlConfigSettingsSource

from batchline.models.errors import InvalidInput

if TYPE_CHECKING:
    from batchline.models.settings import Settings

FLAG: Final = "trust_working_directory"

_as_bool = TypeAdapter(bool).validate_python


def check_trust(settings: "Settings", given: Mapping[str, Any], *, config: Path) -> None:
    """Raise `InvalidInput` if a key from elsewhere would go to an address that the working directory gives.

    `given` are the arguments of the settings, `config` is the TOML file in batchline's directory.
    """
    address = _chosen(settings, "base_url", "openai_base_url")
    key = _chosen(settings, "api_key", "openai_api_key")
    if settings.upstreams or address is None or key is None:
        return
    cls = type(settings)
    sources: list[tuple[str | None, Mapping[str, Any]]] = [(None, given), (None, EnvSettingsSource(cls)())]
    sources += [(".env", DotEnvSettingsSource(cls)())]
    sources += [("batchline.toml", _toml(cls, Path("batchline.toml"))), (None, _toml(cls, config))]
    file, key_file = (_file_of(_name(cls, field), sources) for field in (address, key))
    asked = next((found[FLAG] for origin, found in sources if origin is None and FLAG in found), False)
    if file is not None and key_file is None and not _as_bool(asked):
        raise InvalidInput(
            f"the server's address ({address}) comes from {file} in the working directory, but its key ({key}) "
            f"does not, and is therefore not sent to {getattr(settings, address)}. If you trust that address, set "
            f"BATCHLINE_{FLAG.upper()}=true in the environment or {FLAG} = true in {config}",
            param="base_url",
        )


def _chosen(settings: "Settings", *fields: str) -> str | None:
    return next((field for field in fields if getattr(settings, field)), None)


def _name(cls: "type[Settings]", field: str) -> str:
    """The name of the field in what the sources give."""
    return str(cls.model_fields[field].validation_alias or field)


def _toml(cls: "type[Settings]", path: Path) -> Mapping[str, Any]:
    return TomlConfigSettingsSource(cls, path)()


def _file_of(name: str, sources: list[tuple[str | None, Mapping[str, Any]]]) -> str | None:
    """The file in the working directory that the value in force comes from; None if it comes from elsewhere."""
    return next((origin for origin, found in sources if name in found), None)
