"""Fact databases as environments: facts, SQL databases, dialogues, tasks and Gymnasium shells.

Importing this package registers the Gymnasium environments `ITL/FactRecall-v0` and
`ITL/ToolCall-v0`.
"""

from itl_env.actions import Answer, Final, ParseError, Query, ToolCall
from itl_env.database import FactDatabase
from itl_env.dialogue import Message
from itl_env.entropy import world_entropy
from itl_env.episode import Completion, Episode, StopReason, read_episodes, write_episodes
from itl_env.errors import ConfigError, DatabaseError, EnvironmentFailure, ITLError
from itl_env.facts import ATTRIBUTES, Fact, Person, Vocabulary, people
from itl_env.gym import FactRecallEnv, FactRecallVectorEnv, TextActions, UnicodeText
from itl_env.gym_tools import ToolCallEnv
from itl_env.recall import RecallTask, State
from itl_env.rubric import Rubric
from itl_env.samples import Sample, read_samples, write_samples
from itl_env.task import Reply, Task
from itl_env.tool_call import ToolCallTask

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
    "Final",
    "ITLError",
    "Message",
    "ParseError",
    "Person",
    "Query",
    "RecallTask",
    "Reply",
    "Rubric",
    "Sample",
    "State",
    "StopReason",
    "Task",
    "TextActions",
    "ToolCall",
    "ToolCallEnv",
    "ToolCallTask",
    "UnicodeText",
    "Vocabulary",
    "people",
    "read_episodes",
    "read_samples",
    "world_entropy",
    "write_episodes",
    "write_samples",
]
