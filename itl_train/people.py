"""Which people of a database a run trains on, and which it only asks about."""

from itl_env.database import FactDatabase
from itl_env.errors import ConfigError


def seen_and_unseen(database: FactDatabase, n_people: int, n_unseen: int) -> tuple[slice, slice]:
    """The first n_people, and the n_unseen after them; raises ConfigError if there are fewer."""
    last = n_people + n_unseen
    if len(database) < last:
        raise ConfigError(
            f"{database.place} holds {len(database):,} people, fewer than {last:,}: "
            f"{n_people:,} to train on (n_people) and {n_unseen:,} unseen ones (n_unseen); lower "
            "one of them."
        )
    return slice(0, n_people), slice(n_people, last)
