"""Environment variables that look like settings and are none."""

import difflib
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

_PREFIX: Final = "BATCHLINE_"
log = logging.getLogger(__name__)

# Kubernetes gives each pod such variables for a service named "batchline"; our own tests have some as well.
_OTHERS: Final = re.compile(r"BATCHLINE_(?:(?:\w+_)?SERVICE_(?:HOST|PORT\w*)|(?:\w+_)?PORT(?:_\d+_\w+)?|TEST_\w+)")
_reported: set[str] = set()


def unknown_variables(names: Iterable[str], known: Iterable[str]) -> dict[str, str | None]:
    """Return the names that begin with `BATCHLINE_` and are no setting, each with the nearest known one."""
    by_word = {name.removeprefix(_PREFIX): name for name in sorted(known)}
    known, found = set(by_word.values()), {}
    for name in names:
        upper = name.upper()  # settings are read without regard to case
        if not upper.startswith(_PREFIX) or upper.partition("__")[0] in known or _OTHERS.fullmatch(upper):
            continue
        nearest = difflib.get_close_matches(upper.removeprefix(_PREFIX), by_word, n=1, cutoff=0.7)
        found[name] = by_word[nearest[0]] if nearest else None
    return found


def report_unknown(names: Iterable[str], known: Iterable[str]) -> None:
    """Log a warning for each of the variables that is no setting, once in a process."""
    for name, nearest in sorted(unknown_variables(names, known).items()):
        if name not in _reported:
            _reported.add(name)
            then = f"did you mean {nearest}?" if nearest else "docs/settings.md lists them"
            log.warning("%s is not a setting and has no effect; %s", name, then)


def dotenv(path: Path) -> Mapping[str, str | None]:
    """Return the variables that the file sets; none if there is no file that can be read."""
    from dotenv import dotenv_values  # noqa: PLC0415 - only where there is such a file

    try:
        return dotenv_values(path) if path.is_file() else {}
    except (OSError, UnicodeDecodeError):
        return {}
