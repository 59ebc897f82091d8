"""What tests of the Gymnasium shells share: the environment's id and its actions."""

ID = "itl_env:ITL/FactRecall-v0"


def action(kind, text):
    return {"kind": kind, "text": text}
