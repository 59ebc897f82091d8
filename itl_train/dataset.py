"""Episodes as a data set that trainers of TRL take as it is.

    dataset = episodes_to_dataset(read_episodes("expert.jsonl"), tokenizer)
    SFTTrainer(model, train_dataset=dataset, processing_class=tokenizer).train()

Its columns are `input_ids` and `labels`, so that neither the trainer nor a chat template decides
what is trained; see `itl_agents.render`.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from itl_agents.chat_template import ChatTokenizer
from itl_agents.render import DialogueTokenizer, Rendered, render
from itl_env.episode import Episode
from itl_env.errors import ITLError

if TYPE_CHECKING:
    from datasets import Dataset


def episodes_to_dataset(
    episodes: Iterable[Episode],
    tokenizer: PreTrainedTokenizerBase | DialogueTokenizer,
    **settings: Any,
) -> "Dataset":
    """One row for each episode, in order.

    tokenizer: of the model that is trained, with a chat template.
    settings: of `ChatTokenizer`, such as calls="native".

    Raises ITLError for an episode in which nothing is trained, which TRL would drop in silence, and
    if there are no episodes, and ConfigError if the template cannot show them.
    """
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer = ChatTokenizer(tokenizer, **{"name": str(tokenizer.name_or_path), **settings})
    return rendered_to_dataset(render(episode, tokenizer) for episode in episodes)


def rendered_to_dataset(rendered: Iterable[Rendered]) -> "Dataset":
    """The same of what has been rendered."""
    from datasets import Dataset, Features, Sequence, Value

    rows = list(rendered)
    if not rows:
        raise ITLError("There are no episodes to train on.")
    return Dataset.from_dict(
        {name: [getattr(row, name) for row in rows] for name in Rendered._fields},
        features=Features({name: Sequence(Value("int64")) for name in Rendered._fields}),
    )
