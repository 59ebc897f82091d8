"""A model behind any OpenAI-compatible server as an agent: vLLM, SGLang, `transformers serve`."""

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from itl_agents.agent import Conversation
from itl_agents.chat_template import TOOL, Calls
from itl_agents.native_calls import FIND, read_call
from itl_env.actions import Lookup, parse_lookup
from itl_env.dialogue import lookup_query
from itl_env.episode import Completion
from itl_env.errors import ConfigError, EnvironmentFailure
from itl_env.recall import RecallTask

ReplyRole = Literal["user", "tool"]


def protocol(task: RecallTask) -> str:
    """A system message that tells a model which was never trained for it how to query the task's
    database. Raises ConfigError for a task without a tool.
    """
    if not task.max_queries:
        raise ConfigError("There is no tool to tell of: the task's max_queries is 0.")
    is_whole = task.phrasings[task.attributes[0]].ask("<name>") == "<name>"
    where = "the question, word for word" if is_whole else "copied from the question"
    call = task.call("<attribute>", "<name>").strip()
    return (
        "You answer questions with the help of a database. First write only this, and nothing else:"
        f"\n{call}\nwhere <attribute> is one of {', '.join(task.attributes)}, and <name> is "
        f"{where}. You are then told the value. Answer with the value alone."
    )


class ServerFailure(EnvironmentFailure):
    """A server that does not answer; what it has not answered is never scored."""


class ChatAgent:
    """Plays with a model of an OpenAI-compatible server, several conversations at a time.

    model, url: as the server names them, such as http://localhost:8000/v1.
    api_key: the client's own default is the environment's OPENAI_API_KEY.
    system: a message before each conversation, such as that of `protocol`.
    calls: `text`, or `native` for the server's own tool calls.
    reply_role: who tells the model what the database replied to a call in text: `tool`, for models
        that were trained on it, or `user`, which every server takes.
    at_once: requests that are under way at a time. timeout: seconds for each. retries: of requests
        that failed on the way or that the server was too busy for, after growing pauses.
    """

    def __init__(
        self,
        model: str,
        *,
        url: str,
        api_key: str | None = None,
        system: str = "",
        calls: Calls = "text",
        reply_role: ReplyRole = "user",
        at_once: int = 10,
        timeout: float = 60.0,
        retries: int = 5,
        temperature: float = 0.0,
        max_new_tokens: int = 64,
    ) -> None:
        """Raises ConfigError if the package openai is not installed."""
        try:
            import openai  # noqa: F401
        except ImportError:
            raise ConfigError(
                "Chat servers need the package openai; install itl[large-scale]."
            ) from None
        for name, value in (("at_once", at_once), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")
        self.name = model
        self.url = url
        self.system = system
        self.calls: Calls = calls
        self.reply_role: ReplyRole = reply_role
        self.at_once = at_once
        self.timeout = timeout
        self.retries = retries
        self._api_key = api_key
        if api_key is None and "OPENAI_API_KEY" not in os.environ:
            self._api_key = "none"  # which servers of one's own do not ask for
        self._request: dict[str, Any] = {
            "model": model,
            "temperature": temperature,
            "max_tokens": max_new_tokens,
        }
        if calls == "native":
            self._request["tools"] = [dict(TOOL)]

    def respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
        """See `Agent.respond`.

        Raises ServerFailure if the server cannot be reached or fails, retries included, and
        ConfigError if it knows no such model or refuses the key.
        """
        # A notebook has an event loop of its own, in which no other can be run.
        loop = asyncio.new_event_loop()
        task = loop.create_task(self._respond(conversations))
        with ThreadPoolExecutor(max_workers=1) as thread:
            running = thread.submit(loop.run_until_complete, task)
            try:
                return running.result()
            except BaseException:  # of the requests that are left nobody wants the answers
                if not running.done():
                    loop.call_soon_threadsafe(task.cancel)
                raise
            finally:
                thread.submit(loop.close)

    async def _respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
        from openai import AsyncOpenAI

        gate = asyncio.Semaphore(self.at_once)
        async with AsyncOpenAI(
            base_url=self.url,
            api_key=self._api_key,
            timeout=self.timeout,
            max_retries=self.retries,
        ) as client:

            async def one(talk: Conversation) -> Completion:
                async with gate:
                    return await self._ask(client, talk)

            tasks = [asyncio.ensure_future(one(talk)) for talk in conversations]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:  # where one has failed, the others need not go on
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, client: Any, talk: Conversation) -> Completion:
        import openai

        # Servers take seeds of 32 bits or so.
        request = {**self._request, "messages": self.messages(talk), "seed": talk.seed % 2**31}
        try:
            reply = await client.chat.completions.create(**request)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise ConfigError(
                f"The server at {self.url} refuses the key; set OPENAI_API_KEY. It says: "
                f"{_said(error)}"
            ) from error
        except openai.NotFoundError as error:
            raise ConfigError(
                f"The server at {self.url} has no model {self.name!r}, or no chat there; its "
                f"URL may have to end in /v1. It says: {_said(error)}"
            ) from error
        except openai.BadRequestError as error:
            if any(word in _said(error).lower() for word in ("context", "too long", "max_tokens")):
                return Completion("", None, "error")  # this conversation is too long for it
            raise ConfigError(
                f"The server at {self.url} does not take the request: {_said(error)}"
            ) from error
        except openai.APITimeoutError as error:
            raise ServerFailure(
                f"The server at {self.url} took longer than {self.timeout:g} s each time that "
                f"{self.name!r} was asked; see whether it has that model, raise the timeout, or "
                "ask fewer at once."
            ) from error
        except openai.APIConnectionError as error:
            raise ServerFailure(
                f"The server at {self.url} cannot be reached; see whether it runs."
            ) from error
        except openai.APIError as error:
            raise ServerFailure(
                f"The server at {self.url} failed when {self.name!r} was asked: {_said(error)}"
            ) from error
        return self._completion(reply.choices[0] if reply.choices else None)

    def messages(self, talk: Conversation) -> list[dict[str, Any]]:
        """A conversation as the server is sent it."""
        sent: list[dict[str, Any]] = []
        if self.system:
            sent.append({"role": "system", "content": self.system})
        n_calls = 0
        for place, (role, text) in enumerate(talk.messages):
            replied = talk.messages[place + 1 : place + 2]
            request = parse_lookup(text) if role == "assistant" else None
            if role == "database" and self.calls == "native":
                sent.append({"role": "tool", "tool_call_id": f"call{n_calls:05}", "content": text})
            elif role == "database":
                sent.append({"role": self.reply_role, "content": text})
            elif (
                self.calls == "native"
                and isinstance(request, Lookup)
                and replied
                and replied[0].role == "database"
            ):
                n_calls += 1
                sent.append(_native_call(request, f"call{n_calls:05}"))
            else:
                sent.append({"role": role, "content": text})
        return sent

    def _completion(self, choice: Any) -> Completion:
        """What came back, as a turn; the server's own stop marks are not a part of it."""
        if choice is None:
            return Completion("", None, "error")
        message = choice.message
        if message.tool_calls:
            return _called(message.tool_calls[0].function)
        finish: Literal["stop", "length"] = "length" if choice.finish_reason == "length" else "stop"
        return Completion(message.content or "", None, finish)


def _native_call(request: Lookup, call_id: str) -> dict[str, Any]:
    arguments = json.dumps({"attribute": request.attribute, "name": request.name})
    function = {"name": FIND, "arguments": arguments}
    call = {"id": call_id, "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _called(function: Any) -> Completion:
    """A call of the server's as the environment spells it; what is no call of `find` as it is."""
    text = f'{{"name": "{function.name}", "arguments": {function.arguments}}}'
    call = read_call(text)
    if call is None:
        return Completion(text, None, "stop", "query")
    return Completion(lookup_query(*call), None, "stop", "query")


def _said(error: Exception) -> str:
    """What the server said of an error, in a line."""
    text = str(error).strip()
    body = getattr(error, "body", None)
    if isinstance(body, Mapping):  # of some servers the client passes on the status only
        body = body.get("message") or body.get("detail") or body.get("error")
    if isinstance(body, str) and body not in text:
        text += f" - {body}"
    return (text.splitlines()[0] if text else type(error).__name__).rstrip(".") + "."
