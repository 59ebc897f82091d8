"""The calls of tools that pretrained models write in ways of their own."""

import json
import re

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
    decoder = json.JSONDecoder()
    for place in (match.start() for match in re.finditer(r"\{", text)):
        try:
            call, _ = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            continue
        if not isinstance(call, dict) or call.get("name") != FIND:
            continue
        for arguments in (call.get(key) for key in _KEYS):
            if isinstance(arguments, dict):
                attribute, name = arguments.get("attribute"), arguments.get("name")
                if isinstance(attribute, str) and isinstance(name, str) and attribute and name:
                    return attribute, name
    return None
