r"""Our Gymnasium text environments behind an OpenEnv server, and the client of such a server.

    ITL_OPENENV_ID=ITL/FactRecall-v0 ITL_OPENENV_ARGUMENTS='{"database": "/data/facts.db"}' \
        uvicorn --factory itl_env.openenv:app --port 8000

    from itl_env.openenv import TextAction, TextClient

    with TextClient(base_url="http://127.0.0.1:8000") as client:
        question = client.reset(seed=0).observation.text
        result = client.step(TextAction(text="FIND birth_date FOR Ann Lee"))
        reply, reward, done = result.observation.text, result.reward, result.done

Made for openenv 0.10. A connection has an environment of its own. Of the plain HTTP routes only
those that describe the server are of use: OpenEnv makes a new environment for each request to
`/step`, which has then never been reset.
"""

import json
import os
from functools import partial
from typing import Any

import gymnasium
from fastapi import FastAPI
from openenv.core import EnvClient  # type: ignore[import-not-found]
from openenv.core.client_types import StepResult  # type: ignore[import-not-found]
from openenv.core.env_server import (  # type: ignore[import-not-found]
    Action,
    Environment,
    Observation,
    State,
    create_app,
)
from openenv.core.env_server.types import EnvironmentMetadata  # type: ignore[import-not-found]

from itl_env.errors import ConfigError

DEFAULT = "ITL/FactRecall-v0"


class TextAction(Action):
    """One turn of an agent, as it was written."""

    text: str


class TextObservation(Observation):
    """What Gymnasium's `reset` and `step` give; `done` is an end of either kind."""

    text: str
    truncated: bool = False
    info: dict[str, Any]


class TextState(State):
    """Where a session stands."""

    environment: str
    seed: int | None = None


class GymEnvironment(Environment[TextAction, TextObservation, TextState]):
    """One session's Gymnasium environment.

    id: an id of Gymnasium, with `module:` before it where that must be imported first.
    arguments: what `gymnasium.make` gets besides the id. Raises what that raises.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, id: str, arguments: dict[str, Any]) -> None:
        super().__init__()
        self._env: gymnasium.Env[str, Any] = gymnasium.make(id, **arguments)
        self._state = TextState(environment=id)

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        options: dict[str, Any] | None = None,
        **unknown: Any,
    ) -> TextObservation:
        """Begin an episode; raises ConfigError for arguments that Gymnasium's `reset` lacks."""
        if unknown:
            # To drop one would be to ask another question than the client meant.
            raise ConfigError(
                f"There is no reset argument {min(unknown)!r}; there is seed, episode_id, options."
            )
        text, info = self._env.reset(seed=seed, options=options)
        environment = self._state.environment
        self._state = TextState(environment=environment, seed=seed, episode_id=episode_id)
        return TextObservation(text=text, info=info)

    def step(
        self, action: TextAction, timeout_s: float | None = None, **unknown: Any
    ) -> TextObservation:
        """Play one turn; raises ResetNeeded outside an episode.

        A database that fails raises EnvironmentFailure: the same step may be tried again.
        """
        text, reward, terminated, truncated, info = self._env.step(action.text)
        self._state.step_count += 1
        return TextObservation(
            text=text,
            reward=float(reward),
            done=terminated or truncated,
            truncated=truncated,
            info=info,
        )

    @property
    def state(self) -> TextState:
        """The session's seed and how many turns its episode has had."""
        return self._state

    def get_metadata(self) -> EnvironmentMetadata:
        """What the server's page says about the environment."""
        name = self._state.environment
        description = f"The Gymnasium environment {name}, played in text."
        return EnvironmentMetadata(name=name, description=description)

    def close(self) -> None:
        """Close the environment when its session ends."""
        self._env.close()


def build_app(id: str = DEFAULT, *, max_sessions: int = 64, **arguments: Any) -> FastAPI:
    """The server of an environment, in which each of up to `max_sessions` clients has its own.

    arguments: what `gymnasium.make(id)` gets, such as `database`. Raises what that raises.
    """
    factory = partial(GymEnvironment, id, arguments)
    # Wrong arguments are an error now, not one in every session.
    factory().close()
    return create_app(
        factory,
        TextAction,
        TextObservation,
        env_name="itl",
        max_concurrent_envs=max_sessions,
        state_cls=TextState,
    )


def app() -> FastAPI:
    """`build_app` of ITL_OPENENV_ID, ITL_OPENENV_ARGUMENTS (JSON) and ITL_OPENENV_SESSIONS."""
    return build_app(
        os.environ.get("ITL_OPENENV_ID", DEFAULT),
        max_sessions=int(os.environ.get("ITL_OPENENV_SESSIONS", "64")),
        **json.loads(os.environ.get("ITL_OPENENV_ARGUMENTS", "{}")),
    )


class TextClient(EnvClient[TextAction, TextObservation, TextState]):
    """A session on a server: `reset(seed=..., options=...)`, `step(TextAction(text=...))`."""

    def _step_payload(self, action: TextAction) -> dict[str, Any]:
        return action.model_dump()

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[TextObservation]:
        reward, done = payload["reward"], payload["done"]
        observation = TextObservation(**payload["observation"], reward=reward, done=done)
        return StepResult(observation=observation, reward=reward, done=done)

    def _parse_state(self, payload: dict[str, Any]) -> TextState:
        return TextState(**payload)
