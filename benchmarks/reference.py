"""Published figures, to compare with.

Houliston, Odonnat, Arnal, Cabannes, "Provable Benefits of In-Tool Learning for Large Language
Models", arXiv 2508.20755, sections 5 and 6; those of section 5 were recomputed from its published
result tables. A size is the smallest number of parameters P whose recall, averaged over seeds, is
at least `RECALL`.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

RECALL = 0.95

STEPS, BATCH = 100_000, 128
"""Optimizer steps of every published run, and dialogues in each."""

BOUNDS_IN_WEIGHT: Mapping[int, int | None] = {
    64: 10_908,
    128: 16_592,
    256: 31_032,
    512: 39_788,
    1_024: 49_568,
    2_048: 72_200,
    4_096: 113_828,
    8_192: 224_732,
    16_384: None,  # none up to 591,000
    32_768: None,
}
"""People -> P, in-weight."""

BOUNDS_IN_TOOL: Mapping[int, int] = {
    64: 16_592,
    128: 23_300,
    256: 31_032,
    **dict.fromkeys((512, 1_024, 2_048, 4_096, 8_192, 16_384, 32_768), 39_788),
}
"""People -> P, in-tool."""

LINE = (8.138, 5_171)
"""Slope (parameters a fact) and intercept of the published line through the in-weight sizes."""

LINE_OF_MEANS = (6.51, 12_632)
"""The same through the sizes averaged over seeds, those of 2 to 32 people included."""

GENERALISATION: Mapping[str, Mapping[int, float]] = {
    "31K": {64: 0.03, 256: 0.03, 512: 0.03, 1_024: 0.08, 2_048: 0.05, 32_768: 0.05},
    "60K": {64: 0.05, 256: 0.05, 512: 0.03, 1_024: 1.0, 2_048: 1.0, 32_768: 0.98},
    "130K": {64: 0.08, 256: 0.03, 512: 0.80, 1_024: 1.0, 2_048: 1.0, 32_768: 1.0},
    "591K": {64: 0.08, 256: 0.05, 512: 0.90, 1_024: 1.0, 2_048: 1.0, 32_768: 1.0},
}
"""P -> people trained on -> in-tool recall on unseen names; one seed, 40 questions."""

COMPRESSIBILITY: Mapping[int, Mapping[float, int]] = {
    1_000: {0.0: 49_568, 0.25: 39_788, 0.5: 39_788, 0.75: 31_032, 1.0: 23_300},
    8_192: {0.0: 224_732, 0.25: 203_688, 0.5: 183_668, 0.75: 164_672, 1.0: 164_672},
}
"""People -> correlation -> P, in-weight."""

AT_MOST = ((8_192, 0.75), (8_192, 1.0))
"""Those of `COMPRESSIBILITY` that are upper bounds: nothing smaller was trained."""

BITS_PER_PERSON = 31.25
"""Entropy of the four values of a person in the uncorrelated world."""

BITS_PER_PARAMETER: Mapping[str, float] = {
    "2 bits (Allen-Zhu and Li, arXiv 2404.05405)": 2.0,
    "3.6 bits (Morris et al., arXiv 2505.24832)": 3.6,
}
"""What others found a transformer's parameter to hold at most."""


def parameters_needed(n_people: int, bits_per_person: float, bits_per_parameter: float) -> int:
    """The least number of parameters that can know n people (theorem 3.2): all bits over b."""
    return math.ceil(n_people * bits_per_person / bits_per_parameter)


class LargeScale(NamedTuple):
    """Published figures of one fine-tuned model, at its last checkpoint.

    hellaswag: in per cent of the base's. steps: to the first checkpoint with a recall of 0.95. None
    where nothing was published.
    """

    recall: float | None
    hellaswag: float
    tv: float | None
    kl: float | None
    steps: int | None


LARGE_SCALE: Mapping[tuple[str, str, int], LargeScale] = {
    ("smollm-135m", "in-weight", 500): LargeScale(None, 94.0, 0.293, None, 80),
    ("smollm-360m", "in-weight", 500): LargeScale(None, 93.5, 0.252, None, 52),
    ("smollm-1.7b", "in-weight", 500): LargeScale(None, 98.5, 0.112, None, 40),
    ("llama-1b", "in-weight", 500): LargeScale(None, 95.0, 0.201, None, 48),
    ("llama-3b", "in-weight", 500): LargeScale(None, 97.6, 0.101, None, 40),
    ("llama-8b", "in-weight", 500): LargeScale(None, 98.0, 0.081, None, 56),
    ("smollm-135m", "in-weight", 50_000): LargeScale(0.997, 76.2, 0.840, 7.93, 7_820),
    ("smollm-360m", "in-weight", 50_000): LargeScale(1.0, 78.1, 0.526, 3.48, 5_083),
    ("smollm-1.7b", "in-weight", 50_000): LargeScale(1.0, 89.9, 0.231, 1.65, 4_301),
    ("llama-1b", "in-weight", 50_000): LargeScale(0.993, 85.8, 0.337, 1.01, 2_148),
    ("llama-3b", "in-weight", 50_000): LargeScale(0.997, 91.8, 0.161, 0.36, 3_515),
    ("llama-8b", "in-weight", 50_000): LargeScale(0.980, 97.3, 0.115, 0.25, 3_136),
    ("smollm-135m", "in-tool", 1_000): LargeScale(0.963, 99.8, 0.052, None, 60),
    ("smollm-360m", "in-tool", 1_000): LargeScale(0.920, 99.8, None, None, None),
    ("smollm-1.7b", "in-tool", 1_000): LargeScale(0.993, 99.9, 0.019, None, 52),
    ("llama-1b", "in-tool", 500): LargeScale(0.983, 99.8, 0.031, None, 10),
    ("llama-3b", "in-tool", 500): LargeScale(1.0, 100.1, 0.019, None, 11),
    ("llama-8b", "in-tool", 500): LargeScale(1.0, 100.0, None, None, 13),
}
"""(model, mode, facts) -> figures of section 6. Its runs pasted the gold value as the tool's reply,
scored recall by substring, and took KL and TV from unshifted logits without attention masks."""
