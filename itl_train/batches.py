"""Dialogues as flat tensors, and batches of nearly equal length drawn from them.

Every dialogue is rendered once. A batch is a pure function of (seed, step), so resuming a run needs
no state of the data beyond the step.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from itl_agents.render import IGNORED, DialogueTokenizer, render
from itl_env import streams
from itl_env.episode import Episode


class Batch(NamedTuple):
    """One step's data.

    input_ids: (batch, seq), padded on the right.
    positions: flat indices into (batch * seq) of the tokens whose successor is trained.
    targets: (len(positions),) those successors.
    n_tokens: tokens that are no padding.
    """

    input_ids: Tensor
    positions: Tensor
    targets: Tensor
    n_tokens: int


@dataclass(frozen=True)
class Dialogues:
    """Rendered dialogues, end to end.

    ids: (total,) token ids. trained: (total,) whether each is trained. starts: (n + 1,) offsets.
    """

    ids: Tensor
    trained: Tensor
    starts: Tensor

    @classmethod
    def render(cls, episodes: Iterable[Episode], tokenizer: DialogueTokenizer) -> "Dialogues":
        """Render every episode; raises ValueError if there is none."""
        ids: list[bytes] = []
        labels: list[bytes] = []
        lengths: list[int] = []
        for episode in episodes:
            rendered = render(episode, tokenizer)
            n = len(rendered.input_ids)
            # Packing takes half the time of an array from each list.
            ids.append(struct.pack(f"{n}i", *rendered.input_ids))
            labels.append(struct.pack(f"{n}i", *rendered.labels))
            lengths.append(n)
        if not ids:
            raise ValueError("There are no episodes to train on.")
        return cls(
            torch.frombuffer(bytearray(b"".join(ids)), dtype=torch.int32),
            torch.from_numpy(np.frombuffer(b"".join(labels), dtype=np.int32) != IGNORED),
            torch.from_numpy(np.concatenate(([0], np.cumsum(lengths)))),
        )

    def to(self, device: torch.device | str) -> "Dialogues":
        """The same dialogues on a device."""
        return Dialogues(self.ids.to(device), self.trained.to(device), self.starts.to(device))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def digest(self) -> str:
        """A hash of every id, to tell whether two runs train on the same dialogues."""
        return hashlib.blake2b(self.ids.cpu().numpy().tobytes(), digest_size=16).hexdigest()

    @property
    def lengths(self) -> Tensor:
        """(n,) tokens of each dialogue."""
        return self.starts.diff()

    def batch(self, rows: Tensor, pad_to: int = 0) -> Batch:
        """The dialogues `rows` (batch,) side by side, without each one's last token as input.

        pad_to: tokens of every row, the last included; 0 for those of the longest.
        """
        starts, lengths = self.starts[rows], self.lengths[rows]
        width = max(int(lengths.max()), pad_to)
        offsets = torch.arange(width, device=rows.device)
        inside = offsets < lengths[:, None]
        places = (starts[:, None] + offsets).clamp_max(len(self.ids) - 1)
        ids = torch.where(inside, self.ids[places], 0).long()
        trained = self.trained[places] & inside
        positions = trained[:, 1:].flatten().nonzero()[:, 0]
        return Batch(
            ids[:, :-1],
            positions,
            ids[:, 1:].flatten()[positions],
            int(lengths.sum()) - len(rows),
        )


class BatchPlan:
    """Which dialogues make up the batch of each step.

    Dialogues are drawn epoch by epoch without replacement. `GROUP` batches' worth of them at a time
    (or an epoch's, where that is less, so that no batch holds a dialogue twice) are sorted by
    length and cut into batches, which are then played in random order: rows of a batch have nearly
    equal length, and padding is a few per cent.

    The seed drives what is drawn. The order in which short and long batches come is the same for
    all seeds, so that the members of an ensemble pad little together.

    pad_to: tokens of every row; batches are then drawn without regard to length.
    """

    GROUP = 64

    def __init__(self, dialogues: Dialogues, batch_size: int, seed: int, pad_to: int = 0) -> None:
        self.dialogues = dialogues
        self.pad_to = pad_to
        self.batch_size = batch_size
        self.seed = seed
        self.group = min(self.GROUP, max(1, len(dialogues) // batch_size))
        self._lengths = dialogues.lengths.cpu().numpy()
        self._drawn_index = -1
        self._drawn: list[Tensor] = []

    def rows(self, step: int) -> Tensor:
        """The dialogues of the batch at `step`, (batch,)."""
        index, place = divmod(step, self.group)
        if index != self._drawn_index:
            self._drawn, self._drawn_index = self._draw(index), index
        return self._drawn[place]

    def batch(self, step: int) -> Batch:
        """The batch at `step`."""
        return self.dialogues.batch(self.rows(step), self.pad_to)

    def _draw(self, index: int) -> list[Tensor]:
        """The batches of one group, in the order in which they are played."""
        n, size = len(self.dialogues), self.group * self.batch_size
        drawn = np.arange(index * size, (index + 1) * size, dtype=np.uint64)
        epochs, places = drawn // n, drawn % n
        rows = np.empty(size, dtype=np.int64)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            shuffle = streams.key(self.seed, "epoch", int(epoch))
            rows[inside] = streams.permute(places[inside], n, shuffle)
        if not self.pad_to:
            rows = rows[np.argsort(self._lengths[rows], kind="stable")]
        order = streams.permute(
            np.arange(self.group, dtype=np.uint64), self.group, streams.key(0, "group", index)
        )
        batches = torch.from_numpy(rows).view(self.group, self.batch_size)
        return list(batches[torch.from_numpy(order.astype(np.int64))].to(self.dialogues.ids.device))


def stacked(batches: Sequence[Batch]) -> Batch:
    """The batches of an ensemble's members as one, each tensor with a leading member axis.

    Rows are padded to the longest of all; positions to the largest number of them, where the
    targets are IGNORED.
    """
    width = max(batch.input_ids.shape[1] for batch in batches)
    n = max(len(batch.positions) for batch in batches)
    ids, positions, targets = [], [], []
    for batch in batches:
        seq = batch.input_ids.shape[1]
        ids.append(F.pad(batch.input_ids, (0, width - seq)))
        # The same places in wider rows.
        places = batch.positions.div(seq, rounding_mode="floor") * width + batch.positions % seq
        positions.append(F.pad(places, (0, n - len(places))))
        targets.append(F.pad(batch.targets, (0, n - len(places)), value=IGNORED))
    return Batch(
        torch.stack(ids),
        torch.stack(positions),
        torch.stack(targets),
        sum(batch.n_tokens for batch in batches),
    )
