"""Agents that play the tasks of `itl_env`; NanoLlama's classes live in `itl_agents.nanollama`."""

from itl_agents.agent import Agent, Conversation, rollout
from itl_agents.scripted import ExpertAgent, NoToolAgent, RandomAgent
from itl_agents.tool_scripted import ToolExpert

__all__ = [
    "Agent",
    "Conversation",
    "ExpertAgent",
    "NoToolAgent",
    "RandomAgent",
    "ToolExpert",
    "rollout",
]
