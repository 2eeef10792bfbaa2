"""Deterministic order, folds and references, whatever order the units come in.

What serves as randomness is taken from the units themselves, so that neither the order of the
records, nor how many workers wrote them, nor the scale of a layer changes a result.
"""

from collections.abc import Mapping

import numpy as np

from ml_debugger.core.evaluation.error_model.scaling import (
    Array,
    Floats,
    Integers,
    chunks,
    singles,
    slices,
)

FOLDS = 5

_PATTERN = 64

Hashes = np.ndarray[tuple[int], np.dtype[np.uint64]]


def canonical_order(
    features: Mapping[str, Array],
    others: tuple[Array, ...],
    target: Integers,
    rows: Integers,
    *,
    seed: int,
) -> tuple[Integers, Integers]:
    """Put units in an order that looks random and depends on their content alone.

    Within a unit, only which features exceed which decides as long as that tells units apart:
    this stays the same when a layer is rescaled or a constant feature is added.

    Args:
        features: Features of each layer, (n, d), finite in `rows`.
        others: Further contents, (n,) or (n, k), that tell units apart.
        target: Labels, shape (n,); the last resort among equals.
        rows: The units to order.
        seed: Another seed gives another order.

    Returns:
        The rows in their order, and for each a number that equal units share.
    """
    pattern = np.zeros(len(rows), np.uint64)
    content = np.zeros(len(rows), np.uint64)
    arrays = [*features.values(), *(other.reshape(len(other), -1) for other in others)]
    used = 0
    for number, values in enumerate(arrays):
        varying = _varying(values, rows)[:_PATTERN]
        if len(varying) == 0:
            continue
        generator = np.random.default_rng([seed, used])
        factor = generator.integers(0, 2**63, values.shape[1], np.uint64) * 2 + 1
        used += 1
        for part in slices(len(rows), values.shape[1]):
            chunk = singles(values[rows[part]]) + np.float32(0)  # -0.0 equals 0.0
            content[part] += (chunk.view(np.uint32) * factor).sum(axis=1, dtype=np.uint64)
            if number < max(len(features), 1):
                ranks = chunk[:, varying].argsort(axis=1, kind="stable").astype(np.uint64)
                pattern[part] += (ranks * factor[: len(varying)]).sum(axis=1, dtype=np.uint64)
        pattern, content = _mix(pattern), _mix(content)
    order = np.lexsort((target[rows], content, pattern))
    _, same = np.unique(content, return_inverse=True)
    return rows[order], same[order].astype(np.int64)


def _varying(values: Array, rows: Integers) -> Integers:
    if len(rows) == 0:
        return np.arange(values.shape[1])
    low = np.full(values.shape[1], np.inf, np.float32)
    high = -low
    for chunk in chunks(values, rows):
        low, high = np.minimum(low, chunk.min(axis=0)), np.maximum(high, chunk.max(axis=0))
    return np.flatnonzero(high > low)


def _mix(value: Hashes) -> Hashes:
    """Spread every bit over all (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def assign_folds(groups: Integers, wrong: Array) -> Integers:
    """Split units into five folds with as equal shares of errors as can be.

    Args:
        groups: What must not be split, shape (n,); the units in canonical order.
        wrong: Whether each unit is an error, shape (n,).

    Returns:
        The fold of each unit, 0..4, shape (n,).
    """
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    errors = np.bincount(member, wrong, len(first))
    fold = np.empty(len(first), np.int64)
    fold[np.lexsort((first, errors))] = np.arange(len(first)) % FOLDS
    return fold[member]


def choose_references(wrong: Array, most: int) -> tuple[Integers, Floats]:
    """Choose which units others are compared with: all, or errors first.

    Args:
        wrong: Whether each unit is an error, shape (n,); the units in canonical order.
        most: How many to choose at most. Up to half of them are errors.

    Returns:
        Positions of the chosen units, and how many units each stands for, with mean 1.
    """
    if len(wrong) <= most:
        return np.arange(len(wrong)), np.ones(len(wrong))
    errors, others = np.flatnonzero(wrong), np.flatnonzero(~wrong)
    kept = max(min(len(errors), most // 2), most - len(others))
    chosen = np.concatenate([errors[:kept], others[: most - kept]])
    weights = np.ones(len(chosen))
    weights[:kept] = len(errors) / max(kept, 1)
    weights[kept:] = len(others) / max(most - kept, 1)
    order = np.argsort(chosen)
    return chosen[order], (weights / weights.mean())[order]
