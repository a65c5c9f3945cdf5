"""Warns of environment variables that look like settings but are not."""

import difflib
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

_PREFIX: Final = "BATCHLINE_"
log = logging.getLogger(__name__)

# Kubernetes sets such variables in each pod for a service named "batchline"; the tests set BATCHLINE_TEST_*.
_FOREIGN_VARIABLES: Final = re.compile(
    r"BATCHLINE_(?:(?:\w+_)?SERVICE_(?:HOST|PORT\w*)|(?:\w+_)?PORT(?:_\d+_\w+)?|TEST_\w+)"
)
_reported_variables: set[str] = set()


def unknown_variables(names: Iterable[str], setting_variables: Iterable[str]) -> dict[str, str | None]:
    """Return names that begin with `BATCHLINE_` but are not settings, each with a similar setting or None."""
    variables_by_suffix = {name.removeprefix(_PREFIX): name for name in sorted(setting_variables)}
    setting_variables, unknown = set(variables_by_suffix.values()), {}
    for name in names:
        upper_name = name.upper()  # settings are case-insensitive
        if (
            not upper_name.startswith(_PREFIX)
            or upper_name.partition("__")[0] in setting_variables
            or _FOREIGN_VARIABLES.fullmatch(upper_name)
        ):
            continue
        nearest = difflib.get_close_matches(upper_name.removeprefix(_PREFIX), variables_by_suffix, n=1, cutoff=0.7)
        unknown[name] = variables_by_suffix[nearest[0]] if nearest else None
    return unknown


def warn_of_unknown_variables(names: Iterable[str], setting_variables: Iterable[str]) -> None:
    """Log a warning for each variable that is not a setting, once per process."""
    for name, nearest in sorted(unknown_variables(names, setting_variables).items()):
        if name not in _reported_variables:
            _reported_variables.add(name)
            hint = f"did you mean {nearest}?" if nearest else "docs/settings.md lists them"
            log.warning("%s is not a setting and has no effect; %s", name, hint)


def read_dotenv(path: Path) -> Mapping[str, str | None]:
    """Return the variables that the file sets; none if it does not exist or cannot be read."""
    from dotenv import dotenv_values  # noqa: PLC0415 - needed only if there is a file

    try:
        return dotenv_values(path) if path.is_file() else {}
    except (OSError, UnicodeDecodeError):
        return {}
