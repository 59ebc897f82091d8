"""Fact databases as environments: facts, SQL databases, dialogues, tasks and Gymnasium shells.

Importing this package registers the Gymnasium environment `ITL/FactRecall-v0`.
"""

from itl_env.actions import Answer, ParseError, Query
from itl_env.database import FactDatabase
from itl_env.dialogue import Message
from itl_env.entropy import world_entropy
from itl_env.episode import Completion, Episode, StopReason, read_episodes, write_episodes
from itl_env.errors import ConfigError, DatabaseError, EnvironmentFailure, ITLError
from itl_env.facts import ATTRIBUTES, Fact, Person, Vocabulary, people
from itl_env.gym import FactRecallEnv, FactRecallVectorEnv, TextActions, UnicodeText
from itl_env.recall import RecallTask, Reply, State

__all__ = [
    "ATTRIBUTES",
    "Answer",
    "Completion",
    "ConfigError",
    "DatabaseError",
    "EnvironmentFailure",
    "Episode",
    "Fact",
    "FactDatabase",
    "FactRecallEnv",
    "FactRecallVectorEnv",
    "ITLError",
    "Message",
    "ParseError",
    "Person",
    "Query",
    "RecallTask",
    "Reply",
    "State",
    "StopReason",
    "TextActions",
    "UnicodeText",
    "Vocabulary",
    "people",
    "read_episodes",
    "world_entropy",
    "write_episodes",
]
