"""Dialogues as flat tensors, and batches of nearly equal length drawn from them.

Every dialogue is rendered once. A batch is a pure function of (seed, step), so resuming a run needs
no state of the data beyond the step.
"""

import copy
import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from itl_agents.render import IGNORED, Rendered
from itl_env import streams
from itl_env.errors import ConfigError


class NoDialoguesError(ValueError):
    """There is not a single dialogue."""


class Batch(NamedTuple):
    """One step's data.

    input_ids: (batch, seq), padded on the right.
    positions: flat indices into (batch * seq) of the tokens whose successor is trained.
    targets: (len(positions),) those successors.
    n_tokens: tokens that are no padding.
    n_targets: targets of the whole step, of which these may be one process's share.
    """

    input_ids: Tensor
    positions: Tensor
    targets: Tensor
    n_tokens: int
    n_targets: int

    def parts(self, n_tokens: int) -> "list[Batch]":
        """The batch cut into as few parts as leave each about `n_tokens` tokens, at least a row.

        A part's `n_tokens` and `n_targets` are those of the whole step.
        """
        rows, seq = self.input_ids.shape
        n = min(rows, -(-rows * seq // n_tokens))
        if n <= 1:
            return [self]
        edges = torch.arange(n + 1) * rows // n
        places = edges.to(self.positions.device) * seq
        starts = torch.searchsorted(self.positions, places).tolist()
        return [
            self._replace(
                input_ids=self.input_ids[edges[i] : edges[i + 1]],
                positions=self.positions[starts[i] : starts[i + 1]] - places[i],
                targets=self.targets[starts[i] : starts[i + 1]],
            )
            for i in range(n)
        ]


@dataclass(frozen=True)
class Dialogues:
    """Rendered dialogues, end to end.

    ids: (total,) token ids. trained: (total,) whether each is trained. starts: (n + 1,) offsets.
    """

    ids: Tensor
    trained: Tensor
    starts: Tensor

    @classmethod
    def of(cls, every: Iterable[Rendered]) -> "Dialogues":
        """What was rendered, end to end; raises NoDialoguesError if it is nothing."""
        ids: list[bytes] = []
        labels: list[bytes] = []
        lengths: list[int] = []
        for rendered in every:
            n = len(rendered.input_ids)
            # Packing takes half the time of an array from each list.
            ids.append(struct.pack(f"{n}i", *rendered.input_ids))
            labels.append(struct.pack(f"{n}i", *rendered.labels))
            lengths.append(n)
        if not ids:
            raise NoDialoguesError("There are no dialogues to train on.")
        return cls(
            torch.frombuffer(bytearray(b"".join(ids)), dtype=torch.int32),
            torch.from_numpy(np.frombuffer(b"".join(labels), dtype=np.int32) != IGNORED),
            torch.from_numpy(np.concatenate(([0], np.cumsum(lengths)))),
        )

    @classmethod
    def chain(cls, parts: Sequence["Dialogues"]) -> "Dialogues":
        """The dialogues of all parts, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        lengths = [part.lengths for part in parts]
        starts = torch.cat([lengths[0].new_zeros(1), *lengths])
        return cls(
            torch.cat([part.ids for part in parts]),
            torch.cat([part.trained for part in parts]),
            starts.cumsum(0),
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
            len(positions),
        )


class BatchPlan:
    """Which dialogues make up the batch of each step.

    Dialogues of a source are drawn epoch by epoch without replacement, and sources in proportion to
    their weights. `GROUP` batches' worth of dialogues at a time (or fewer, so that a group draws
    none twice) are sorted by length and cut into batches, which are then played in random order:
    rows of a batch have nearly equal length, and padding is a few per cent.

    The seed drives what is drawn. The order in which short and long batches come is the same for
    all seeds, so that the members of an ensemble pad little together.

    sources: dialogues that are drawn alike, or several sources of them.
    pad_to: tokens of every row; batches are then drawn without regard to length.
    weights: how often each source is drawn, up to a factor; all alike by default.
    share: (rank, n) for the process of that rank among n, which share each batch's dialogues; the
        step that they take together is that of one process.

    Raises ConfigError if processes cannot share a batch equally.
    """

    GROUP = 64

    def __init__(
        self,
        sources: Dialogues | Sequence[Dialogues],
        batch_size: int,
        seed: int,
        pad_to: int = 0,
        *,
        weights: Sequence[float] = (),
        share: tuple[int, int] = (0, 1),
    ) -> None:
        parts = [sources] if isinstance(sources, Dialogues) else list(sources)
        if batch_size % share[1]:
            raise ConfigError(
                f"batch_size {batch_size} does not divide by the {share[1]} processes."
            )
        self.dialogues = Dialogues.chain(parts)
        self.pad_to = pad_to
        self.batch_size = batch_size
        self.seed = seed
        self.share = share
        self._sizes = [len(part) for part in parts]
        self._weights = np.array(weights or [1.0] * len(parts)) / sum(weights or [len(parts)])
        epochs = min(size / w for size, w in zip(self._sizes, self._weights, strict=True))
        self.group = min(self.GROUP, max(1, int(epochs // batch_size)))
        self._lengths = self.dialogues.lengths.cpu().numpy()
        trained = F.pad(self.dialogues.trained.cumsum(0), (1, 0))
        self._n_trained = trained[self.dialogues.starts].diff()  # (n,); first tokens never are
        self._drawn_index = -1
        self._drawn: list[Tensor] = []

    def with_seed(self, seed: int) -> "BatchPlan":
        """The same dialogues, not copied, drawn by another seed."""
        other = copy.copy(self)
        other.seed, other._drawn_index = seed, -1
        return other

    def rows(self, step: int) -> Tensor:
        """The dialogues of the batch at `step`, (batch,)."""
        index, place = divmod(step, self.group)
        if index != self._drawn_index:
            self._drawn, self._drawn_index = self._draw(index), index
        return self._drawn[place]

    def batch(self, step: int) -> Batch:
        """The batch at `step`, or this process's share of it."""
        rank, n = self.share
        rows = self.rows(step)
        batch = self.dialogues.batch(rows[rank::n], self.pad_to)
        return batch if n == 1 else batch._replace(n_targets=int(self._n_trained[rows].sum()))

    def epochs(self, step: int) -> list[float]:
        """How often each dialogue of each source has been drawn before `step`, on average."""
        drawn = apportion(self._weights, step * self.batch_size)
        return [n / size for n, size in zip(drawn, self._sizes, strict=True)]

    def _draw(self, index: int) -> list[Tensor]:
        """The batches of one group, in the order in which they are played."""
        size = self.group * self.batch_size
        before, after = (apportion(self._weights, n * size) for n in (index, index + 1))
        first = np.concatenate(([0], np.cumsum(self._sizes)))
        rows = np.concatenate(
            [
                first[source] + self._draw_from(source, before[source], after[source])
                for source in range(len(self._sizes))
            ]
        )
        if not self.pad_to:
            rows = rows[np.argsort(self._lengths[rows], kind="stable")]
        elif len(self._sizes) > 1:
            rows = rows[_shuffled(size, streams.key(self.seed, "mixed", index))]
        order = _shuffled(self.group, streams.key(0, "group", index))
        batches = torch.from_numpy(rows).view(self.group, self.batch_size)
        return list(batches[torch.from_numpy(order)].to(self.dialogues.ids.device))

    def _draw_from(self, source: int, start: int, stop: int) -> NDArray[np.int64]:
        """The dialogues of a source that are drawn as its start-th to its (stop-1)-th."""
        n = self._sizes[source]
        drawn = np.arange(start, stop, dtype=np.uint64)
        epochs, places = drawn // n, drawn % n
        rows = np.empty(len(drawn), dtype=np.int64)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            which = ("epoch", int(epoch)) if source == 0 else ("epoch", int(epoch), source)
            rows[inside] = streams.permute(places[inside], n, streams.key(self.seed, *which))
        return rows


def _shuffled(n: int, key: int) -> NDArray[np.int64]:
    return streams.permute(np.arange(n, dtype=np.uint64), n, key).astype(np.int64)


def apportion(weights: NDArray[np.float64], n: int) -> list[int]:
    """How many of the first n draws are of each source, for weights that sum to 1.

    The j-th draw of a source (from 0) comes at time (j + 1/2) / weight: the method of Webster, in
    which no source's count falls as n grows.
    """
    counts = [int(n * weight + 0.5) for weight in weights]
    while (missing := n - sum(counts)) != 0:
        if missing > 0:
            nexts = [(counts[i] + 0.5) / weight for i, weight in enumerate(weights)]
            counts[nexts.index(min(nexts))] += 1
        else:
            lasts = [(counts[i] - 0.5) / weight for i, weight in enumerate(weights)]
            # Of two at one time the later source is last, as it comes last above.
            counts[len(lasts) - 1 - lasts[::-1].index(max(lasts))] -= 1
    return counts


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
        sum(batch.n_targets for batch in batches),
    )
