"""Checks of settings, whatever they are of: each raises ConfigError in one sentence."""

import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from itl_agents.hub import lasting_name
from itl_env.connection import lasting_url
from itl_env.errors import ConfigError


def check_types(settings: Any) -> None:
    """Every field of a dataclass must be of the type that it is declared with, and finite."""
    kinds_of = get_type_hints(type(settings))
    for name in (field.name for field in fields(settings)):
        value, kind = getattr(settings, name), kinds_of[name]
        allowed = get_args(kind)
        if get_origin(kind) is Literal:
            if value not in allowed:
                raise ConfigError(f"{name} is {value!r}; choose among {', '.join(allowed)}.")
            continue
        kinds = tuple(get_origin(each) or each for each in allowed or (kind,))
        if get_origin(kind) is tuple:
            kinds = (tuple,)
        # A whole number serves as any other; true and false are no numbers.
        fits = isinstance(value, (*kinds, int) if float in kinds else kinds)
        if not fits or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join(each.__name__.replace("NoneType", "null") for each in kinds)
            raise ConfigError(f"{name} is {value!r}; it must be of type {names}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name} is {value}; it must be finite.")


def check_at_least(settings: Any, least: Literal[0, 1], *names: str) -> None:
    """These fields must be 0 or more, or 1 or more."""
    must = "must be at least 1" if least else "must not be negative"
    for name in names:
        if getattr(settings, name) < least:
            raise ConfigError(f"{name} is {getattr(settings, name)}; it {must}.")


def lasting(settings: Any) -> dict[str, Any]:
    """Settings as they may be written down: to be found from any folder, and without a password."""
    recorded = asdict(settings)
    for name, last in (
        ("model", lasting_name),
        ("data", lambda folder: str(Path(folder).absolute())),
        ("database", lasting_url),
    ):
        if recorded.get(name):
            recorded[name] = last(recorded[name])
    return recorded
