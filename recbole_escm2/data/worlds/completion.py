"""A rating for every user-item pair, from those that there are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def complete_ratings(
    ratings: coo_array,
    rank: int,
    regularization: float,
    sweeps: int = 20,
    seed: int = 0,
) -> Floats:
    """The full matrix r̂ = μ + b_u + b_i + x_u·y_i of a biased matrix factorisation.

    It minimises Σ (r − r̂)² + λ Σ n_u(|x_u|² + b_u²) + λ Σ n_i(|y_i|² + b_i²) over the ratings that
    there are, with n the number of ratings of a user or an item, by alternating least squares
    (Zhou et al., "Large-scale Parallel Collaborative Filtering for the Netflix Prize", AAIM 2008;
    biases as in Koren et al., IEEE Computer 2009). Each half of a sweep is an exact minimum, so the
    objective never rises. A user or an item without a rating gets μ plus the other's bias.

    Args:
        ratings: those that there are, ``[users, items]``, in any unit.
        rank: length of x_u and y_i; 0 leaves the biases alone.
        regularization: λ > 0.
        sweeps: updates of all users and all items.
        seed: of the start, y_i ~ N(0, 0.1²).

    Returns:
        ``[users, items]``, in the unit of the ratings.

    Raises:
        ValueError: there is no rating, one isn't finite, or λ isn't positive.
    """
    user, item, rating = ratings.row, ratings.col, ratings.data
    if not len(rating):
        raise ValueError("a matrix without a rating can't be completed")
    if not np.isfinite(rating).all():
        raise ValueError("every rating must be a finite number")
    if not regularization > 0:
        raise ValueError(f"regularization must be positive, got {regularization}")
    users, items = ratings.shape
    mean = rating.mean()
    # A side is its factors and its bias; the other side sees them with a constant beside them.
    user_side = np.zeros((users, rank + 1))
    item_side = np.zeros((items, rank + 1))
    item_side[:, :rank] = np.random.default_rng(seed).normal(0, 0.1, (items, rank))
    for _ in range(sweeps):
        user_side = _best(user, item, rating - mean, item_side, users, regularization)
        item_side = _best(item, user, rating - mean, user_side, items, regularization)
    factors = user_side[:, :rank] @ item_side[:, :rank].T
    completed: Floats = mean + user_side[:, rank:] + item_side[:, rank] + factors
    return completed


def _best(
    own: Ints, other: Ints, residual: Floats, others: Floats, count: int, regularization: float
) -> Floats:
    """Factors and biases of one side that are best for those of the other, ``[count, rank + 1]``.

    Ridge regression of r − μ − b_other on [factors of the other, 1], for each row on its own.
    """
    width = others.shape[1]
    seen = np.hstack([others[:, :-1], np.ones((len(others), 1))])
    target = residual - others[other, -1]
    shape = (count, len(others))
    there = csr_array((np.ones(len(own)), (own, other)), shape)
    squares = (seen[:, :, None] * seen[:, None, :]).reshape(len(seen), -1)
    gram = (there @ squares).reshape(count, width, width)
    ratings = there.sum(axis=1)
    # A row without a rating has a zero right-hand side; 1 makes its system solvable.
    gram += (regularization * np.maximum(ratings, 1))[:, None, None] * np.eye(width)
    right = csr_array((target, (own, other)), shape) @ seen
    solution: Floats = np.linalg.solve(gram, right[:, :, None])[:, :, 0]
    return solution
