"""Published figures of the memory-load studies, to compare with.

Houliston, Odonnat, Arnal, Cabannes, "Provable Benefits of In-Tool Learning for Large Language
Models", arXiv 2508.20755, section 5; recomputed from its published result tables. A size is the
smallest number of parameters P whose recall, averaged over seeds, is at least `RECALL`.
"""

import math
from collections.abc import Mapping

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
