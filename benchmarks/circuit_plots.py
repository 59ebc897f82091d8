"""The figures of the circuit: size and recall beside trained models, and where its heads look."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from benchmarks.plots import CHANCE, CIRCUIT, IN_TOOL, save
from benchmarks.reference import BOUNDS_IN_TOOL, RECALL
from itl_agents.circuit import build_circuit
from itl_agents.nanollama.tokenizer import ByteTokenizer
from itl_agents.render import IGNORED, render_messages
from itl_env.dialogue import Message, Role, lookup_query, phrasing
from itl_env.facts import ATTRIBUTES

DIALOGUE = ("occupation", "Ann Lee", "actor")
TOKENS = ByteTokenizer()
MARKS = {
    TOKENS.user_id: "[user]", TOKENS.assistant_id: "[turn]", TOKENS.database_id: "[call ends]",
    TOKENS.end_id: "[end]",
}  # fmt: skip


def circuit_figure(result: Mapping[str, Any], path: Path) -> None:
    """Parameters against attributes, and recall on unseen people against parameters."""
    figure = Figure(figsize=(10, 4))
    growth, recall = figure.subplots(1, 2)
    compact = [row for row in result["counts"] if row["style"] == "compact"]
    x = sorted({row["attributes"] for row in compact})
    for family, shade in zip(
        dict.fromkeys(row["family"] for row in compact), (1, 0.5), strict=True
    ):
        rows = [row for row in compact if row["family"] == family]
        for name, line, what in (("parameters", "-", "all"), ("nonzero", "--", "not zero")):
            growth.plot(
                x, [row[name] for row in rows], line, marker="o", ms=4, color=CIRCUIT, alpha=shade,
                label=f"{family}, {what}",
            )  # fmt: skip
    growth.axhline(
        min(BOUNDS_IN_TOOL.values()), color=CHANCE, lw=1, ls=":",
        label="smallest trained in-tool model, published",
    )  # fmt: skip
    growth.set(
        xscale="log", yscale="log", xlabel="attributes |A|", ylabel="parameters",
        title="size of the circuit, for any number of names",
    )  # fmt: skip
    growth.set_xticks(x, [f"{n}" for n in x], minor=False)
    growth.set_xticks([], minor=True)
    small = next(row for row in result["recalls"] if row["style"] == "compact")
    twins = result["twins"]
    mean = [row["unseen_recall"] for row in twins]
    below = [row["unseen_recall"] - row["unseen_lowest"] for row in twins]
    above = [row["unseen_highest"] - row["unseen_recall"] for row in twins]
    bars = [[max(0.0, each) for each in side] for side in (below, above)]
    recall.errorbar(
        [row["parameters"] for row in twins], mean, yerr=bars, fmt="o-", capsize=3,
        color=IN_TOOL, label="trained (bars: all seeds)",
    )  # fmt: skip
    recall.plot(
        small["parameters"], small["right"] / small["asked"], "*", ms=13, color=CIRCUIT,
        label="built by hand",
    )  # fmt: skip
    recall.axhline(RECALL, color=CHANCE, lw=1, ls="--")
    recall.set(
        xscale="log", xlabel="parameters", ylabel="exact recall on unseen people",
        ylim=(-0.03, 1.05), title="what is built, and what is learned",
    )  # fmt: skip
    for axes in (growth, recall):
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(
            frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2
        )
    figure.tight_layout(w_pad=2.5)
    save(figure, path)


def attention_figure(path: Path) -> None:
    """Where the heads of each block look while the assistant writes, on one dialogue."""
    attribute, name, value = DIALOGUE
    words = phrasing(attribute)
    said = (words.ask(name), lookup_query(attribute, name), value, words.state(name, value))
    roles: tuple[Role, ...] = ("user", "assistant", "database", "assistant")
    messages = [Message(role, text) for role, text in zip(roles, said, strict=True)]
    rendered = render_messages(messages, TOKENS)
    ids = rendered.input_ids[:-1]
    writes = [place for place, label in enumerate(rendered.labels[1:]) if label != IGNORED]
    circuit = build_circuit(ATTRIBUTES)
    with torch.inference_mode():
        maps = circuit.attention(torch.tensor([ids]))
    letters = [MARKS.get(token, chr(token % 256)) for token in rendered.input_ids]
    figure = Figure(figsize=(13, 12))
    titles = ("1: marks", "2: reading", "3: counting", "4: writing")
    for axes, title, heads, weights in zip(
        figure.subplots(2, 2).flat, titles, circuit.config.heads, maps, strict=True
    ):
        for place, head in enumerate(heads):
            looks = weights[0, place, writes]
            rows, columns = (looks > 0.01).nonzero(as_tuple=True)
            axes.scatter(
                columns, [writes[row] for row in rows], s=(46, 20, 7)[place],
                marker="osD"[place], facecolors="none", label=head,
                edgecolors=[to_rgba(f"C{place}", float(each)) for each in looks[rows, columns]],
            )  # fmt: skip
        _letters(axes, letters, writes, title)
    figure.tight_layout(h_pad=2)
    save(figure, path)


def _letters(axes: Axes, letters: list[str], writes: list[int], title: str) -> None:
    """Letters along both axes: what is looked at, and what is written next."""
    n = len(letters) - 1
    axes.set_xticks(range(n), letters[:-1], fontsize=5.5, family="monospace")
    for label in axes.get_xticklabels():
        label.set_rotation(90 if len(label.get_text()) > 1 else 0)  # marks, and letters
    axes.set_yticks(
        writes, [letters[each + 1] for each in writes], fontsize=5.5, family="monospace"
    )
    axes.set_xlim(-1, n)
    axes.set_ylim(n, min(writes) - 1)
    axes.set_xlabel("looked at", fontsize=8)
    axes.set_ylabel("written next", fontsize=8)
    axes.set_title(f"block {title}", fontsize=10)
    axes.grid(color="#eeeeee", lw=0.4)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
