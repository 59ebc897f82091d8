"""The recall task: asked one fact, an agent may query the database and must answer.

`RecallTask` is the only state machine of fact recall. It is pure (a state is a value, `advance`
returns the next one) and batched (one lookup statement per call, whatever the lanes ask for).
Gymnasium environments, rollouts and trainers are thin shells over it.

    >>> from itl_env import FactDatabase, RecallTask, people
    >>> from itl_env.actions import Answer, Query
    >>> database = FactDatabase.create("sqlite://", people(100, seed=0))
    >>> task = RecallTask(database)
    >>> state = task.start([database.fact(0, "birth_place")])[0]
    >>> state.messages[0].content
    'Where was Bernice Cunningham born?'
    >>> reply = task.advance([state], [Query("FIND birth_place FOR Bernice Cunningham")])[0]
    >>> answer = Answer(reply.observation)
    >>> task.advance([reply.state], [answer])[0].reward
    1.0
"""

import json
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from itl_env.actions import (
    Action,
    Answer,
    Lookup,
    ParseError,
    Query,
    invalid_text,
    parse_lookup,
    parse_turn,
)
from itl_env.database import FactDatabase
from itl_env.dialogue import (
    DIALECTS,
    ERROR_PREFIX,
    NO_RESULT,
    STYLES,
    Dialect,
    Message,
    Style,
    call_text,
    lookup_query,
    phrasings,
    sql_query,
)
from itl_env.episode import Completion, Episode, StopReason
from itl_env.errors import ConfigError, EnvironmentFailure
from itl_env.facts import Fact
from itl_env.rubric import rubric_named
from itl_env.sql import SqlGate, SqlRejected, format_rows
from itl_env.task import Reply, episode_of

Mode = Literal["in-tool", "in-weight"]


def max_queries_of(mode: Mode) -> int:
    """Queries an episode may send: one look-up with the tool, none from memory."""
    return 1 if mode == "in-tool" else 0


class State(NamedTuple):
    """Where one episode stands. A state is never changed; `advance` makes the next one."""

    fact: Fact
    messages: tuple[Message, ...]
    n_queries: int = 0
    n_turns: int = 0
    answer: str | None = None
    error: str | None = None
    stop_reason: StopReason | None = None
    aliases: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether the episode has ended."""
        return self.stop_reason is not None


class _Outcome(NamedTuple):
    """The database's side of one query."""

    text: str
    error_code: str | None = None


class RecallTask:
    """Fact recall over a database.

    database: the facts, and what queries are run against.
    keys: the slice of the database's fixed order whose people are asked about; all of them can be
        looked up. A step is not allowed.
    attributes: those that are asked for; all of the database's by default.
    style: how an expert writes a call, `compact` (the bare line) or `fenced` (announced, in a
        fenced block). Both are understood from any agent.
    dialect: `lookup` (`FIND <attribute> FOR <name>`) or `sql` (one read-only SELECT; SQLite only).
    max_queries: queries an episode may send; 0 is the in-weight setting, in which no tool exists.
    max_turns: assistant turns before the episode ends unanswered; `max_queries + 1` by default.
    max_length: characters; a longer turn is an error, a longer reply is withheld.
    rubric: the name of the reward: `exact`, `trivia` (as TriviaQA compares answers) or `lenient`.
    aliases: a column whose values are JSON lists of other right answers; it is not asked for.
    own_phrasings: for any attribute, `{"question": ..., "statement": ...}` templates.

    Raises ConfigError for arguments that contradict each other or the database.
    """

    def __init__(
        self,
        database: FactDatabase,
        *,
        keys: slice = slice(None),
        attributes: Sequence[str] | None = None,
        style: Style = "compact",
        dialect: Dialect = "lookup",
        max_queries: int = 1,
        max_turns: int | None = None,
        max_length: int = 2000,
        rubric: str = "exact",
        aliases: str | None = None,
        own_phrasings: dict[str, dict[str, str]] | None = None,
    ) -> None:
        if style not in STYLES:
            raise ConfigError(f"There is no style {style!r}; choose among {', '.join(STYLES)}.")
        if dialect not in DIALECTS:
            raise ConfigError(
                f"There is no dialect {dialect!r}; choose among {', '.join(DIALECTS)}."
            )
        if max_queries < 0:
            raise ConfigError(f"max_queries is {max_queries}; it must be 0 or more.")
        self.max_turns = max_queries + 1 if max_turns is None else max_turns
        if self.max_turns < 1:
            raise ConfigError(f"max_turns is {max_turns}; it must be at least 1.")
        if max_length < 1:
            raise ConfigError(f"max_length is {max_length}; it must be at least 1.")
        self.database = database
        if aliases is not None and aliases not in database.attributes:
            raise ConfigError(f"There is no column {aliases!r} of aliases in {database!r}.")
        self.aliases = aliases
        self.queried = tuple(name for name in database.attributes if name != aliases)
        if attributes is None:
            attributes = self.queried
        self.attributes = tuple(attributes)
        if unknown := [name for name in self.attributes if name not in database.attributes]:
            raise ConfigError(
                f"There is no attribute {unknown[0]!r} in {database!r}; "
                f"choose among {', '.join(database.attributes)}."
            )
        if not self.attributes or len(set(self.attributes)) < len(self.attributes):
            raise ConfigError("attributes must name at least one attribute, each once.")
        if unsayable := [name for name in self.attributes if " FOR " in name or "\n" in name]:
            raise ConfigError(
                f"Attribute {unsayable[0]!r} cannot be written in a query; "
                "rename the column or leave it out of `attributes`."
            )
        if keys.step not in (None, 1):
            raise ConfigError(f"keys is {keys}; a slice with a step is not supported.")
        start, stop, _ = keys.indices(len(database))
        if stop <= start:
            raise ConfigError(f"keys is {keys}, which holds none of the {len(database)} names.")
        self.keys = range(start, stop)
        self.style: Style = style
        self.dialect: Dialect = dialect
        self.max_queries = max_queries
        self.max_length = max_length
        self.rubric = rubric_named(rubric)
        self.phrasings = phrasings(self.attributes, own_phrasings)
        self._gate = None
        if dialect == "sql":
            if database.path is None:
                raise ConfigError(
                    "The sql dialect needs a SQLite file; use dialect='lookup' for this database."
                )
            self._gate = SqlGate(database.path, tables=[database.table])

    def close(self) -> None:
        """Close the connections to the database; a later use opens new ones."""
        self.database.close()
        if self._gate is not None:
            self._gate.close()

    # -- which facts -------------------------------------------------------------------------

    @property
    def n_facts(self) -> int:
        """How many facts the task asks for: names in `keys` times attributes."""
        return len(self.keys) * len(self.attributes)

    def facts(self) -> Iterator[Fact]:
        """Every fact once, person by person in the database's fixed order."""
        return self.database.facts(self.keys.start, self.keys.stop, self.attributes)

    def fact(self, index: int) -> Fact:
        """The fact at `index` in 0..n_facts-1, in the order of `facts()`."""
        return self.facts_at([index])[0]

    def facts_at(self, indices: Sequence[int]) -> list[Fact]:
        """The facts at `indices`, read together; raises IndexError outside 0..n_facts-1."""
        places = []
        for index in indices:
            if not 0 <= index < self.n_facts:
                raise IndexError(f"fact {index} of {self.n_facts}")
            person, attribute = divmod(index, len(self.attributes))
            places.append((self.keys.start + person, self.attributes[attribute]))
        return self.database.facts_at(places)

    def fact_about(self, name: str, attribute: str) -> Fact:
        """The fact with its value from the database; raises ConfigError if there is none."""
        if attribute not in self.phrasings:
            raise ConfigError(
                f"There is no attribute {attribute!r}; choose among {', '.join(self.attributes)}."
            )
        value = self.database.lookup([(name, attribute)])[0]
        if value is None:
            raise ConfigError(f"There is no {name!r} in {self.database!r}.")
        return Fact(name, attribute, value)

    # -- what is said ------------------------------------------------------------------------

    def question(self, fact: Fact) -> str:
        """The user's question."""
        return self.phrasings[fact.attribute].ask(fact.name)

    def query(self, attribute: str, name: str) -> str:
        """The query that looks the attribute up, in the task's dialect."""
        if self.dialect == "lookup":
            return lookup_query(attribute, name)
        return sql_query(attribute, name, self.database.table, self.database.key)

    def call(self, attribute: str, name: str) -> str:
        """The assistant turn that sends `query`, in the task's style."""
        return call_text(self.query(attribute, name), self.style)

    def statement(self, fact: Fact) -> str:
        """The assistant turn that states the fact."""
        return self.phrasings[fact.attribute].state(fact.name, fact.value)

    def parse(self, text: str) -> Action:
        """Read a raw assistant turn."""
        return parse_turn(text, self.dialect, self.max_length)

    def read(self, completion: Completion) -> Action:
        """The action a completion stands for: what its agent meant, else what its text says."""
        if completion.kind == "answer":
            return Answer(completion.text)
        action = self.parse(completion.text)
        if completion.kind == "query" and isinstance(action, Answer):
            return Query(action.text)
        return action

    # -- the state machine -------------------------------------------------------------------

    def start(self, facts: Sequence[Fact]) -> list[State]:
        """One state per fact: the question is asked, nothing else has happened."""
        states = [State(fact, (Message("user", self.question(fact)),)) for fact in facts]
        if self.aliases is None:
            return states
        listed = self.database.lookup([(fact.name, self.aliases) for fact in facts])
        return [
            state._replace(aliases=_alias_list(text, state.fact.name))
            for state, text in zip(states, listed, strict=True)
        ]

    def advance(
        self,
        states: Sequence[State],
        actions: Sequence[Action],
        turns: Sequence[str] | None = None,
    ) -> list[Reply[State]]:
        """Play one action in each lane; any subset of lanes may be given.

        turns: the assistant turns as they were written, for the record; by default what an expert
            would have written to take the action.

        Raises ValueError for lanes whose episode is over, and EnvironmentFailure when the database
        itself fails; what an action holds never raises.
        """
        if not len(states) == len(actions) == (len(actions) if turns is None else len(turns)):
            raise ValueError("states, actions and turns must have the same length.")
        if any(state.stop_reason for state in states):
            raise ValueError("An episode that is over cannot be advanced; start a new one.")
        outcomes = self._run_queries(states, actions)
        replies = []
        for lane, (state, action) in enumerate(zip(states, actions, strict=True)):
            turn = self._turn(action) if turns is None else turns[lane]
            replies.append(self._reply(state, action, turn, outcomes.get(lane)))
        return replies

    def _turn(self, action: Action) -> str:
        if isinstance(action, Query):
            return call_text(action.text, self.style)
        return action.text if isinstance(action, Answer) else ""

    def _run_queries(
        self, states: Sequence[State], actions: Sequence[Action]
    ) -> dict[int, _Outcome]:
        """The database's outcome for each lane that does not answer, by lane."""
        outcomes: dict[int, _Outcome] = {}
        wanted: list[tuple[int, Lookup]] = []
        for lane, (state, action) in enumerate(zip(states, actions, strict=True)):
            if isinstance(action, Answer):
                if error := self._refused(action.text):
                    outcomes[lane] = error
            elif isinstance(action, ParseError):
                outcomes[lane] = _error(action)
            elif isinstance(request := self._admit(state, action), _Outcome):
                outcomes[lane] = request
            elif isinstance(request, Lookup):
                wanted.append((lane, request))
            else:
                outcomes[lane] = self._select(request)
        values = self.database.lookup([(name, attribute) for _, (attribute, name) in wanted])
        for (lane, _), value in zip(wanted, values, strict=True):
            outcomes[lane] = self._shown(NO_RESULT if value is None else value)
        return outcomes

    def _refused(self, text: str) -> _Outcome | None:
        if len(text) > self.max_length:
            return _error(
                ParseError("too_long", f"the turn is longer than {self.max_length} characters")
            )
        error = invalid_text(text)
        return error and _error(error)

    def _admit(self, state: State, query: Query) -> Lookup | str | _Outcome:
        """The request to run: a parsed lookup, SQL text, or why it is not run."""
        if self.max_queries == 0:
            return _error(ParseError("no_tool", "there is no database to query"))
        if state.n_queries >= self.max_queries:
            return _error(
                ParseError("too_many_queries", f"only {self.max_queries} queries are allowed")
            )
        if error := self._refused(query.text):
            return error
        if self.dialect == "sql":
            return query.text
        request = parse_lookup(query.text)
        if isinstance(request, ParseError):
            return _error(request)
        if request.attribute not in self.queried:
            known = ", ".join(self.queried)
            return _error(ParseError("unknown_attribute", f"unknown attribute; there are {known}"))
        return request

    def _select(self, sql: str) -> _Outcome:
        assert self._gate is not None
        try:
            rows = self._gate.run(sql)
        except SqlRejected as rejected:
            return _error(ParseError(rejected.code.value, rejected.message))
        return self._shown(format_rows(rows) if rows else NO_RESULT)

    def _shown(self, text: str) -> _Outcome:
        if len(text) > self.max_length:
            return _error(
                ParseError("too_large", f"the result is longer than {self.max_length} characters")
            )
        return _Outcome(text)

    def _reply(
        self, state: State, action: Action, turn: str, outcome: _Outcome | None
    ) -> Reply[State]:
        messages = (*state.messages, Message("assistant", turn))
        n_turns = state.n_turns + 1
        if isinstance(action, Answer) and outcome is None:
            answer = self.phrasings[state.fact.attribute].value_in(
                action.text.strip(), state.fact.name
            )
            over = State(
                state.fact,
                messages,
                state.n_queries,
                n_turns,
                answer,
                state.error,
                StopReason.ANSWERED,
                state.aliases,
            )
            total, parts = self.rubric(over)
            return Reply(over, "", total, True, None, parts)
        assert outcome is not None
        ran = isinstance(action, Query) and self.max_queries > 0
        after = State(
            state.fact,
            (*messages, Message("database", outcome.text)),
            min(state.n_queries + ran, self.max_queries),
            n_turns,
            None,
            outcome.error_code or state.error,
            StopReason.OUT_OF_TURNS if n_turns >= self.max_turns else None,
            state.aliases,
        )
        if not after.done:
            return Reply(after, outcome.text, 0.0, False, outcome.error_code, {})
        total, parts = self.rubric(after)
        return Reply(after, outcome.text, total, True, outcome.error_code, parts)

    # -- the record --------------------------------------------------------------------------

    def episode(
        self,
        reply: Reply[State],
        completions: Sequence[Completion],
        *,
        index: int = 0,
        seed: int = 0,
        agent: str = "",
    ) -> Episode:
        """The episode that ended with `reply`; raises ValueError if it has not ended."""
        state = reply.state
        return episode_of(
            reply, completions, index=index, seed=seed, agent=agent, aliases=state.aliases
        )


def _alias_list(text: str | None, name: str) -> tuple[str, ...]:
    try:
        listed = json.loads(text or "[]")
    except ValueError:
        listed = None
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise EnvironmentFailure(f"The aliases of {name!r} are not a JSON list of text: {text!r}.")
    return tuple(listed)


def _error(problem: ParseError) -> _Outcome:
    return _Outcome(ERROR_PREFIX + problem.message, problem.code)
