"""Refuses to send a key to an address from a less trusted source than the key's.

Files in the working directory may be someone else's: the `.env` of a checkout can name any server. A key from the
environment, from batchline's own directory or from code is sent there only if one of these sources allows it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, TomlConfigSettingsSource

from batchline.models.errors import InvalidInput

TRUST_SETTING: Final = "trust_working_directory"

_parse_bool = TypeAdapter(bool).validate_python


def require_trusted_address(settings: BaseSettings, arguments: Mapping[str, Any], *, config: Path) -> None:
    """Raise `InvalidInput` if a key from elsewhere would be sent to an address from the working directory.

    `arguments` are the keyword arguments of the settings; `config` is the TOML file in batchline's directory.
    """
    address = next((name for name in ("base_url", "openai_base_url") if getattr(settings, name)), None)
    key = next((name for name in ("api_key", "openai_api_key") if getattr(settings, name)), None)
    if address is None or key is None:
        return
    settings_cls = type(settings)
    # In order of priority; None marks a trusted source, whose file is not in the working directory.
    sources: list[tuple[str | None, Mapping[str, Any]]] = [
        (None, arguments),
        (None, EnvSettingsSource(settings_cls)()),
        (".env", DotEnvSettingsSource(settings_cls)()),
        ("batchline.toml", TomlConfigSettingsSource(settings_cls, Path("batchline.toml"))()),
        (None, TomlConfigSettingsSource(settings_cls, config)()),
    ]

    def source_file_of(field: str) -> str | None:
        name = str(settings_cls.model_fields[field].validation_alias or field)
        return next((source_file for source_file, values in sources if name in values), None)

    file, key_file = source_file_of(address), source_file_of(key)
    # Read from trusted sources only: a checkout must not be able to trust itself.
    trust_values = [
        values[TRUST_SETTING] for source, values in sources if source is None and TRUST_SETTING in values
    ]
    is_trusted = bool(trust_values) and _parse_bool(trust_values[0])
    if file is not None and key_file is None and not is_trusted:
        raise InvalidInput(
            f"the server's address ({address}) comes from {file} in the working directory, but its key ({key}) "
            f"does not, and is therefore not sent to {getattr(settings, address)}. If you trust that address, set "
            f"BATCHLINE_{TRUST_SETTING.upper()}=true in the environment or {TRUST_SETTING} = true in {config}",
            param="base_url",
        )
