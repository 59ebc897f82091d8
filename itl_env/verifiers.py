"""Our Gymnasium text environments in `verifiers`: each turn of a model is one step.

    from itl_env.verifiers import load_environment

    environment = load_environment("ITL/FactRecall-v0", n_rows=100, database="sqlite:///facts.db")
    context = vf.ModelContext(model="...", client=vf.EvalClientConfig(base_url="http://..."))
    async with environment.serving():
        for task in environment.taskset:
            for slot in environment.slots(task, n=8):
                episode = await environment.run_slot(slot, context)

Made for verifiers 0.4, in which an environment is three things that a module exports, and which are
found by the module's name: a taskset (a row is a seed, so that all rollouts of a row are asked the
same), the control flow (what the model wrote goes to `step` as it is, the observation comes back as
the user's message) and a harness (what asks the model). Nothing of a task is decided here.

The reward of a trace is the environment's, summed over its steps; the parts of its rubric are
metrics, and the last info is `trace.info["gymnasium"]`. What the model should know about the tools
is a system prompt: the path of a text file as `system_prompt` of the taskset's config.

`vf-eval`, and workers that are new processes, import by a name without dots. For them put a file
`itl_verifiers.py` on the path, which holds two lines:

    from itl_env.verifiers import *
    from itl_env.verifiers import __all__
"""

import asyncio
import ssl
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium
import verifiers.v1 as vf  # type: ignore[import-not-found]
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from pydantic import Field
from verifiers.v1.dialects.chat import message_to_wire  # type: ignore[import-not-found]

# verifiers looks for exactly one class of each kind here.
__all__ = ["ChatHarness", "GymEnv", "GymTaskset", "load_environment"]

# The name under which verifiers imports this module, in this process without a file of that name.
PLUGIN = "itl_verifiers"
sys.modules.setdefault(PLUGIN, sys.modules[__name__])

# Reading the system's certificates takes longer than all the rest of a client: once is enough.
_TLS = ssl.create_default_context()


class GymConfig(vf.TasksetConfig):
    """Which environment, and how many rows."""

    environment: str = "ITL/FactRecall-v0"
    """An id of Gymnasium, with `module:` before it where that must be imported first."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """What `gymnasium.make` gets besides the id."""
    n_rows: int = Field(1000, ge=1)
    """Rows; each is a question, drawn with replacement."""
    seed: int = Field(0, ge=0)
    """The first row's seed; the next rows count on from it."""


class GymData(vf.TaskData):
    """A row: what `reset` gets. The question is asked by the environment, so it is not in here."""

    seed: int


class GymTask(vf.Task[GymData]):
    """A row, scored by the environment alone."""


class GymTaskset(vf.Taskset[GymTask, GymConfig]):
    """One row a seed."""

    def load(self) -> Iterator[GymTask]:
        """The rows in order of their seeds."""
        config = self.config
        for seed in range(config.seed, config.seed + config.n_rows):
            data = GymData(name=f"{config.environment}#{seed}", seed=seed)
            yield GymTask(data, config.task)

    def make(self) -> gymnasium.Env[str, Any]:
        """A new environment; raises what its constructor raises."""
        return gymnasium.make(self.config.environment, **self.config.arguments)


class ChatHarness(vf.Harness[vf.HarnessConfig]):
    """Asks the model for one chat completion a turn, in this process.

    The harnesses of verifiers install a program with uv and start it anew for every turn, by
    default in a rented sandbox: a conversation without tools of its own needs none of that.
    """

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        """Answer the conversation so far, which verifiers reads off the request to `endpoint`."""
        system, prompt = self.resolve_prompt(data)
        messages = [] if system is None else [vf.SystemMessage(content=system)]
        messages += prompt  # the environment opens the conversation, so that it is one already
        # How long a model may take is for verifiers to say, which ends this call when it is over.
        http = DefaultAsyncHttpxClient(verify=_TLS, timeout=None)
        async with AsyncOpenAI(base_url=endpoint, api_key=secret, http_client=http) as client:
            await client.chat.completions.create(
                model=ctx.model, messages=[message_to_wire(message) for message in messages]
            )
        return vf.ProgramResult(exit_code=0, stdout="", stderr="")


class GymEnvConfig(vf.EnvConfig):
    """Who plays: one agent, in this process unless another harness is chosen for it."""

    agent: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())


class GymEnv(vf.Env[GymEnvConfig]):
    """Plays rows in Gymnasium environments, as many of them as there are rollouts at once."""

    def __init__(self, config: GymEnvConfig) -> None:
        super().__init__(config)
        # One is made at once: wrong arguments are an error now, not one in every rollout.
        self._idle: list[gymnasium.Env[str, Any]] = [self.taskset.make()]

    async def run(self, task: GymTask, agents: vf.Agents) -> None:
        """Play one episode; raises EnvironmentFailure where the database itself fails."""
        game = self._idle.pop() if self._idle else await asyncio.to_thread(self.taskset.make)
        try:
            await self._play(game, task, agents)
        except BaseException:
            # Where the rollout was cancelled, a thread may still be stepping this one.
            game.close()
            raise
        self._idle.append(game)

    async def _play(self, game: gymnasium.Env[str, Any], task: GymTask, agents: vf.Agents) -> None:
        # In threads, since a step may wait for a server or for a tool that computes.
        observation, info = await asyncio.to_thread(game.reset, seed=task.data.seed)
        total, done = 0.0, False
        async with agents.agent.interaction(task) as interaction:
            while not done:
                segment = await interaction.turn(observation)
                if segment.terminated:  # a limit of verifiers ended the run before a turn
                    break
                observation, reward, terminated, truncated, info = await asyncio.to_thread(
                    game.step, _written(segment)
                )
                total, done = total + float(reward), terminated or truncated
        trace = interaction.trace
        trace.record_reward("reward", total)
        trace.record_metrics(info.get("rewards", {}))
        trace.info["gymnasium"] = info

    async def stop(self) -> None:
        """Close the environments that no rollout plays in."""
        while self._idle:
            self._idle.pop().close()


def _written(segment: vf.Segment) -> str:
    """The turn as the model wrote it; `segment.last_reply` would lack its outer white space."""
    turns = [message.content for message in segment.messages if message.role == "assistant"]
    return (turns[-1] if turns else None) or ""


def load_environment(
    id: str = "ITL/FactRecall-v0", *, n_rows: int = 1000, seed: int = 0, **arguments: Any
) -> GymEnv:
    """A verifiers environment of `n_rows` rows, which are the seeds from `seed` on.

    arguments: what `gymnasium.make(id)` gets, such as `database`. Raises what that raises.
    """
    rows = {"environment": id, "arguments": arguments, "n_rows": n_rows, "seed": seed}
    return vf.load_environment(vf.resolve_env_config({"taskset": {"id": PLUGIN, **rows}}))
