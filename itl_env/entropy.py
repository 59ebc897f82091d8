"""The entropy of a fact world: the bits that it takes to store its values, given the names."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from itl_env.errors import ConfigError
from itl_env.facts import ATTRIBUTES, FAMILY_ATTRIBUTES, Vocabulary, check_world, family_sizes


@dataclass(frozen=True)
class WorldEntropy:
    """What a world of `n_people` takes to store: `bits` per person for each attribute."""

    n_people: int
    bits: dict[str, float]

    @property
    def bits_per_person(self) -> float:
        """The sum over attributes."""
        return sum(self.bits.values())

    @property
    def bits_per_fact(self) -> float:
        """The mean over attributes: 7.81 in the uncorrelated world of the paper."""
        return self.bits_per_person / len(self.bits)

    @property
    def total_bits(self) -> float:
        """The whole world."""
        return self.bits_per_person * self.n_people


def world_entropy(
    n_people: int,
    vocabulary: str | Vocabulary = "paper",
    correlation: float = 0.0,
    seed: int = 0,
) -> WorldEntropy:
    """The joint entropy of all values of the first `n_people`, given their names.

    An uncorrelated attribute a has log2 |V_a| bits per person. With correlation c, the m members of
    a family share a hidden uniform value Z and are independent given it, so with V = |V_a| their
    values v have the joint entropy

        H_m = m h + I(Z; v),    h = H(v_i | Z) = entropy of (c + (1-c)/V, (1-c)/V, ..., (1-c)/V)

    and an attribute has sum_f H_{m_f} / n_people bits per person, over the families f of the world,
    with their sizes m_f under `seed`. I(Z; v), at most log2 V, pays for the family's own value.
    H_m is exact to about 1e-6 bits, with one exception: where c is so small that 128 members do not
    yet determine Z, larger families get an upper bound (H_m is concave in m).

    Raises ConfigError as `people` does, and for a world without people.
    """
    vocabulary = check_world(n_people, vocabulary, correlation)
    if n_people == 0:
        raise ConfigError("the entropy per person of a world without people is not defined.")
    bits = {attribute: math.log2(len(vocabulary.values(attribute))) for attribute in ATTRIBUTES}
    if correlation:
        sizes = family_sizes(n_people, seed, vocabulary)
        for attribute in FAMILY_ATTRIBUTES:
            n_values = len(vocabulary.values(attribute))
            table = family_entropy(int(sizes.max()), n_values, correlation)
            bits[attribute] = float(table[sizes].sum()) / n_people
    return WorldEntropy(n_people, bits)


def family_entropy(largest: int, n_values: int, correlation: float) -> NDArray[np.float64]:
    """H_m in bits for m = 0..largest, as `world_entropy` defines it; shape (largest + 1,).

    With p = c + (1-c)/V, q = (1-c)/V, r = p/q, counts n_z of the values in the family and Z = 0
    without loss of generality,

        I(Z; v) = log2 V - E log2 sum_z r^(n_z - n_0)
                = log2 V + m p log2 r - E log2 S,   S = sum_z r^n_z

    where n is multinomial (p, q, ..., q). The expectation comes from the Laplace transform of S,
    which is a coefficient of a product of V power series, one per value:

        E ln S = integral over u of exp(-t) - E exp(-t S),   t = e^u
        E exp(-t S) = m! [x^m] A_p(x) A_q(x)^(V-1),   A_w(x) = sum_k (w x)^k / k! exp(-t r^k)
    """
    members = np.arange(largest + 1, dtype=np.float64)
    V, c = n_values, correlation
    ceiling = np.where(members > 0, math.log2(V), 0.0)  # of I(Z; v)
    if V == 1 or c == 1:
        return ceiling
    if c == 0:
        return members * math.log2(V)
    q = (1 - c) / V
    p = c + q
    h = -p * math.log2(p) - (V - 1) * q * math.log2(q)
    log_r = math.log(p / q)

    # H(Z | v) = log2 V - I is at most (V-1) / ln 2 * overlap^m (Bhattacharyya), so few members are
    # enough to be sure of Z, and beyond them H_m = m h + log2 V.
    overlap = 1 - (math.sqrt(p) - math.sqrt(q)) ** 2
    sure = math.log(1e-6 * math.log(2) / (V - 1)) / math.log(overlap) if overlap < 1 else math.inf
    exact = min(largest, max(1, math.ceil(min(sure, 128))))

    # The trapezoid rule on this integrand converges like exp(-pi^2 / step). The power series are
    # scaled by exact^k, which keeps their coefficients within floating-point range.
    step = 0.5
    u = np.arange(-(exact * log_r + math.log(V)) - 35, 4, step)[:, None]
    k = np.arange(exact + 1)
    log_factorial = np.array([math.lgamma(i + 1) for i in k])
    decay = np.exp(-np.exp(np.minimum(u + k * log_r, 10)))
    series_p, series_q = (np.exp(k * math.log(w * exact) - log_factorial) * decay for w in (p, q))
    product = _multiply(series_p, _power(series_q, V - 1))
    transform = product * np.exp(log_factorial - k * math.log(exact))
    log_s = step * (np.exp(-np.exp(u)) - transform).sum(axis=0)
    information = math.log2(V) + (k * p * log_r - log_s) / math.log(2)

    entropy = members * h + ceiling
    entropy[: exact + 1] = k * h + np.clip(information, 0, ceiling[: exact + 1])
    slope = entropy[exact] - entropy[exact - 1]
    beyond = entropy[exact] + (members - exact) * slope
    entropy[exact + 1 :] = np.minimum(entropy, beyond)[exact + 1 :]
    return entropy


def _multiply(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Products of power series to the same order, one per row: (rows, order + 1) each."""
    product = np.zeros_like(a)
    for k in range(a.shape[1]):
        product[:, k:] += a[:, k : k + 1] * b[:, : a.shape[1] - k]
    return product


def _power(a: NDArray[np.float64], exponent: int) -> NDArray[np.float64]:
    """The `exponent`-th power, at least the first, of each row's power series."""
    if exponent == 1:
        return a
    half = _power(_multiply(a, a), exponent // 2)
    return _multiply(half, a) if exponent % 2 else half
