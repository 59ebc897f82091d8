"""The calls of tools that pretrained models write in ways of their own."""

import json
import re
from typing import Any

FIND = "find"
"""The name of the tool where a model calls it in its own way."""

_KEYS = ("arguments", "parameters")
_XML = re.compile(
    rf"<function={FIND}>\s*<parameter=attribute>\n?(.*?)\n?</parameter>\s*"
    r"<parameter=name>\n?(.*?)\n?</parameter>",
    re.DOTALL,
)


def read_call(text: str) -> tuple[str, str] | None:
    """The (attribute, name) that a turn looks up by a call of the tool `find`; None if it does not.

    Understood is the first JSON object with the tool's name and arguments or parameters, whatever
    stands around it (Llama 3, Qwen 2.5 and 3, Mistral, SmolLM3), and the XML of Qwen 3.5.
    """
    if found := _XML.search(text):
        return found[1], found[2]
    call = _json_call(text, FIND)
    if call is None:
        return None
    attribute, name = call[1].get("attribute"), call[1].get("name")
    if isinstance(attribute, str) and isinstance(name, str) and attribute and name:
        return attribute, name
    return None


def read_any_call(text: str) -> tuple[str, dict[str, Any]] | None:
    """The name and the arguments of the first call of a tool in JSON; None if there is none."""
    return _json_call(text, None)


def _json_call(text: str, wanted: str | None) -> tuple[str, dict[str, Any]] | None:
    """The first JSON object with a name, or the wanted one, and arguments or parameters."""
    decoder = json.JSONDecoder()
    for place in (match.start() for match in re.finditer(r"\{", text)):
        try:
            call, _ = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            continue
        name = call.get("name") if isinstance(call, dict) else None
        if not isinstance(name, str) or wanted not in (None, name):
            continue
        for arguments in (call.get(key) for key in _KEYS):
            if isinstance(arguments, dict):
                return name, arguments
    return None
