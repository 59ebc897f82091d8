"""The errors a user can meet; each message is one sentence: what, where, what to do."""


class ITLError(Exception):
    """Base of every error that the command line prints as one sentence without a traceback."""


class ConfigError(ITLError):
    """Arguments that contradict each other or the data; raised before any work is done."""


class DatabaseError(ITLError):
    """A fact database that cannot be opened, or a table that cannot serve as one."""


class EnvironmentFailure(ITLError):  # noqa: N818 - a failure, which is no one's wrong answer
    """The environment itself failed (disk, server, timeout of ours): never scored as an answer."""
