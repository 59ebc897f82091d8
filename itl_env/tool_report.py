"""What a data set of tool calling holds, and what was refused."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from itl_env.episode import package_versions
from itl_env.samples import Sample
from itl_env.tool_sources import Refusal

N_EXAMPLES = 3
_PACKAGES = ("itl", "numpy", "simpleeval", "pydantic-monty", "datasets")


@dataclass
class RowCount:
    """What became of the rows of a source.

    wanted: how many samples; None for all. available: rows there were. tried: rows looked at before
    there were enough. examples: the first refusals of each reason.
    """

    source: str
    wanted: int | None
    available: int
    tried: int = 0
    kept: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Refusal]] = field(default_factory=dict)

    def refuse(self, refusal: Refusal) -> None:
        """Count a row that was refused."""
        self.refused[refusal.reason] += 1
        shown = self.examples.setdefault(refusal.reason, [])
        if len(shown) < N_EXAMPLES:
            shown.append(refusal)

    def to_dict(self) -> dict[str, Any]:
        """The tally as plain JSON values."""
        return {
            "source": self.source,
            "wanted": self.wanted,
            "available": self.available,
            "tried": self.tried,
            "kept": self.kept,
            "refused": dict(self.refused.most_common()),
            "examples": {
                reason: [{"where": each.where, "message": each.message} for each in shown]
                for reason, shown in self.examples.items()
            },
        }


@dataclass(frozen=True)
class Report:
    """What a data set holds.

    counts: samples of each source and category, for training and for validation.
    calls: calls of a sample that needs any, on average, in either part; 0.0 without such samples.
    settings: of the mix, with its seed. versions: of packages that decide what is made.
    """

    counts: Mapping[tuple[str, str], tuple[int, int]]
    calls: tuple[float, float]
    tallies: Sequence[RowCount]
    notes: Sequence[str]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]

    @classmethod
    def of(
        cls,
        train: Sequence[Sample],
        validation: Sequence[Sample],
        tallies: Sequence[RowCount],
        notes: Sequence[str],
        settings: Mapping[str, Any],
    ) -> "Report":
        """The report of the two parts of a data set."""
        parts = [Counter((each.source, each.category) for each in p) for p in (train, validation)]
        return cls(
            counts={kind: (parts[0][kind], parts[1][kind]) for kind in sorted(parts[0] | parts[1])},
            calls=(_calls(train), _calls(validation)),
            tallies=tallies,
            notes=notes,
            settings=settings,
            versions=package_versions(_PACKAGES),
        )

    @property
    def n_train(self) -> int:
        """Samples for training."""
        return sum(train for train, _ in self.counts.values())

    @property
    def n_validation(self) -> int:
        """Samples for validation."""
        return sum(validation for _, validation in self.counts.values())

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "train": self.n_train,
            "validation": self.n_validation,
            "samples": [
                {"source": source, "category": category, "train": train, "validation": validation}
                for (source, category), (train, validation) in self.counts.items()
            ],
            "calls_per_sample": dict(zip(("train", "validation"), self.calls, strict=True)),
            "sources": [tally.to_dict() for tally in self.tallies],
            "notes": list(self.notes),
            "settings": dict(self.settings),
            "versions": dict(self.versions),
        }

    def to_markdown(self) -> str:
        """The report as a page."""
        samples = [
            (source, category, f"{train:,}", f"{validation:,}")
            for (source, category), (train, validation) in self.counts.items()
        ]
        sources = [
            (t.source, f"{t.available:,}", f"{t.tried:,}", f"{t.kept:,}", f"{t.refused.total():,}")
            for t in self.tallies
        ]
        refused = [
            (tally.source, reason, f"{n:,}", f"{each.where}: {each.message}")
            if place == 0
            else ("", "", "", f"{each.where}: {each.message}")
            for tally in self.tallies
            for reason, n in tally.refused.most_common()
            for place, each in enumerate(tally.examples[reason])
        ]
        settings = [(name, str(value)) for name, value in self.settings.items()]
        versions = [(name, version) for name, version in self.versions.items()]
        blocks = [
            "# Data of tool calling",
            f"{self.n_train:,} samples for training, {self.n_validation:,} for validation.",
            *(f"Note: {note}." for note in self.notes),
            _table(("source", "category", "train", "validation"), samples),
            "No call of a validation sample is in the training part, nor one of the same numbers "
            "and operators in another order; samples whose calls are rare are therefore put aside "
            f"sooner. Samples that need a tool make {self.calls[0]:.2f} calls on average in the "
            f"training part, {self.calls[1]:.2f} in the validation part.",
            "## Rows",
            "Rows are tried in an order that the seed decides until there are enough samples. The "
            "calls of every sample that was kept have been executed.",
            _table(("source", "rows", "tried", "kept", "refused"), sources),
            "## Refused",
            _table(("source", "reason", "rows", "the first of them"), refused)
            if refused
            else "Nothing was refused.",
            "## Settings",
            _table(("setting", "value"), settings),
            _table(("package", "version"), versions),
        ]
        return "\n\n".join(blocks) + "\n"


def _calls(samples: Sequence[Sample]) -> float:
    counts = [len(sample.steps) for sample in samples if sample.steps]
    return sum(counts) / len(counts) if counts else 0.0


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
