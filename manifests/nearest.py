"""Which two of some centroids are cheapest for each vector, exactly: one level of the placement rule.

A number of the rule is a float64 formula over dot products that are exact sums, rounded once to float64 (`math.fsum`). Matrix
products, whose last bits depend on batch size, thread count, library and processor, come within a proven bound of it. So they
are used wherever all numbers within the bound give one result, and only rows that they leave open are summed exactly:

    few centroids ───────────────────────────────────────► float64 product ─► too near to tell apart ─► exact sums
    many ─► fp32 product ─► a third too near the two best ─┘ (these rows)  ↘                             ↙
                         └► two float64 products a row ───────────────────► rounded to float32; at a border ─► exact sums

Cost: one (N, D)·(D, C) product, and some hundred ns a row; exact sums (about 20 µs each) for about one row in a thousand.

Shape legend: N vectors, B vectors of a block, D dimensions, C centroids.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_FEW = 64
"""Up to so many centroids, a float64 product costs less than nominating. Measured, as all below: benchmarks/placement.py."""
_BLOCK_SCORES = 1 << 18
_BLOCK_ROWS = (512, 1024)
"""A block's scores are few enough for the second-level cache, and its rows enough for the product to run at full speed."""
_SMALL_PRODUCT = 900_000
"""OpenBLAS takes up to a million multiplications without repacking the factors: twice as fast for few centroids."""
_PAIR_ROWS = 128


class Placements(NamedTuple):
    """Where N vectors belong, and how clearly."""

    domain: Indices
    """(N,) index of the domain."""
    distance: Floats
    """(N,) 1 - cosine to its centroid."""
    second_domain: Indices
    """(N,) the runner-up; -1 where there is only one domain."""
    second_distance: Floats
    """(N,) 1 - cosine to the runner-up's centroid; NaN where there is none."""
    margin: Floats
    """(N,) the runner-up's cost minus the domain's, at least 0; NaN where there is no runner-up."""


class _Pairs(NamedTuple):
    """The two cheapest centroids of each vector, and the dot products with them."""

    first: Indices
    second: Indices
    first_dot: Doubles
    second_dot: Doubles

    @classmethod
    def room_for(cls, number: int) -> "_Pairs":
        """Return room for so many pairs."""
        return cls(np.empty(number, np.int64), np.empty(number, np.int64), np.empty(number), np.empty(number))

    def put(self, rows: slice | Indices | int, found: "tuple[Any, Any, Any, Any]") -> None:
        """Write the pairs of some rows."""
        for column, values in zip(self, found, strict=True):
            column[rows] = values

    def swapped(self, which_N: npt.NDArray[np.bool_]) -> "_Pairs":
        """Return the pairs with first and second exchanged where told."""
        first, second, first_dot, second_dot = self
        return _Pairs(
            np.where(which_N, second, first),
            np.where(which_N, first, second),
            np.where(which_N, second_dot, first_dot),
            np.where(which_N, first_dot, second_dot),
        )


@dataclass(frozen=True)
class Workspace:
    """Memory used again and again: to be given fresh pages costs more than the arithmetic done in them."""

    _buffers: dict[tuple[str, str], npt.NDArray[Any]] = field(default_factory=dict)

    def array(self, name: str, shape: tuple[int, ...], precision: type[Any]) -> npt.NDArray[Any]:
        """Return an array for one purpose, with whatever it last held."""
        key, size = (name, precision.__name__), math.prod(shape)
        if key not in self._buffers or self._buffers[key].size < size:
            self._buffers[key] = np.empty(size, precision)
        return self._buffers[key][:size].reshape(shape)


@dataclass(frozen=True)
class Siblings:
    """Centroids among which a vector chooses.

    Args:
        centroids_CD: float32; at most 1.001 long.
        prices_C: float64; finite.
    """

    centroids_CD: Floats
    prices_C: Doubles

    def place(self, vectors_ND: Floats, space: Workspace) -> Placements:
        """Return where unit vectors belong; `domain` is the number of the centroid.

        Args:
            vectors_ND: unit rows, float32.
            space: to work in.
        """
        if len(self.prices_C) == 1:
            return self._only(vectors_ND)
        with np.errstate(over="ignore", invalid="ignore"):  # of prices beyond float32, which leave every row open
            pairs = self._pairs(vectors_ND, space)
            margin = _settled(
                self._leads(pairs), 2 * self._cost_error, lambda row: self._exact_margin(vectors_ND[row], pairs, row)
            )
        distance = self._distance(vectors_ND, pairs.first, pairs.first_dot)
        return Placements(pairs.first, distance, pairs.second, self._distance(vectors_ND, pairs.second, pairs.second_dot), margin)

    def _only(self, vectors_ND: Floats) -> Placements:
        only, nothing = np.zeros(len(vectors_ND), np.int64), np.full(len(vectors_ND), np.nan, np.float32)
        with np.errstate(invalid="ignore"):  # raised by OpenBLAS, seldom, for vector lanes that it does not use
            dot_N = np.matmul(vectors_ND.astype(np.float64), self._wide[0])
        distance = self._distance(vectors_ND, only, dot_N)
        return Placements(only, distance, only - 1, nothing, nothing.copy())

    def _pairs(self, vectors_ND: Floats, space: Workspace) -> _Pairs:
        pairs = _Pairs.room_for(len(vectors_ND))
        block_rows = int(np.clip(_BLOCK_SCORES // len(self.prices_C), *_BLOCK_ROWS))
        blocks: list[slice] | list[Indices] = _blocks(len(vectors_ND), block_rows)
        if len(self.prices_C) > _FEW:
            is_open_N = np.empty(len(vectors_ND), np.bool_)
            for block in blocks:
                found, is_open_N[block] = self._nominated(vectors_ND[block], space)
                pairs.put(block, found)
            open_N = np.flatnonzero(is_open_N)
            blocks = [open_N[block] for block in _blocks(len(open_N), block_rows)]
        for rows in blocks:
            pairs.put(rows, self._by_float64(vectors_ND[rows], space))
        return pairs

    def _nominated(self, block_BD: Floats, space: Workspace) -> tuple[_Pairs, npt.NDArray[np.bool_]]:
        """Return the pairs by a float32 product, and where a third centroid, or the order, is too near to tell."""
        scores_BC = space.array("scores", (len(block_BD), len(self.prices_C)), np.float32)
        np.matmul(block_BD, self._columns, out=scores_BC)
        scores_BC -= self.prices_C.astype(np.float32)
        first, second, _, second_score, third_score = _two_highest(scores_BC)
        pairs = self._multiplied(block_BD, first, second, space)
        lead_B = self._leads(pairs)
        # Compared so that NaN and infinity, which prices beyond float32 bring, count as open.
        third_is_clear = second_score - third_score > 2 * self._bound(np.float32, self._largest_price)
        return pairs.swapped(lead_B < 0), np.asarray(~(third_is_clear & (np.abs(lead_B) > 2 * self._cost_error)))

    def _multiplied(self, block_BD: Floats, first: Indices, second: Indices, space: Workspace) -> _Pairs:
        pairs = _Pairs(first, second, np.empty(len(block_BD)), np.empty(len(block_BD)))
        for part in _blocks(len(block_BD), _PAIR_ROWS):
            wide_BD = _widened(block_BD[part], space)
            chosen_BD = space.array("chosen", wide_BD.shape, np.float64)
            for centroid_B, dot_B in ((first, pairs.first_dot), (second, pairs.second_dot)):
                self._wide.take(centroid_B[part], axis=0, out=chosen_BD, mode="clip")  # the other mode goes through a copy
                np.matmul(wide_BD[:, None, :], chosen_BD[:, :, None], out=dot_B[part][:, None, None])
        return pairs

    def _by_float64(self, block_BD: Floats, space: Workspace) -> _Pairs:
        """Return the pairs by a float64 product, or by exact sums where it cannot tell."""
        dots_BC = space.array("dots", (len(block_BD), len(self.prices_C)), np.float64)
        for part in _blocks(len(block_BD), max(_SMALL_PRODUCT // self._wide.size, 32)):
            np.matmul(_widened(block_BD[part], space), self._wide_columns, out=dots_BC[part])
        scores_BC = space.array("scores", dots_BC.shape, np.float64)
        np.subtract(dots_BC, self.prices_C, out=scores_BC)
        first, second, first_score, second_score, third_score = _two_highest(scores_BC)
        row_B = np.arange(len(block_BD))
        pairs = _Pairs(first, second, dots_BC[row_B, first], dots_BC[row_B, second])
        near = 2 * self._cost_error
        for row in np.flatnonzero((first_score - second_score <= near) | (second_score - third_score <= near)).tolist():
            others = np.flatnonzero(scores_BC[row] >= second_score[row] - near)  # the two highest are struck out
            rivals = {int(first[row]), int(second[row]), *others.tolist()}
            pairs.put(row, self._by_exact_sums(block_BD[row], rivals))
        return pairs

    def _by_exact_sums(self, vector_D: Floats, rivals: set[int]) -> tuple[int, int, float, float]:
        (_, first), (_, second) = sorted((self._exact_cost(vector_D, rival), rival) for rival in rivals)[:2]
        return first, second, self._exact_dot(vector_D, first), self._exact_dot(vector_D, second)

    @cached_property
    def _wide(self) -> Doubles:
        return self.centroids_CD.astype(np.float64)

    @cached_property
    def _columns(self) -> Floats:
        return np.ascontiguousarray(self.centroids_CD.T)  # OpenBLAS multiplies by it faster than by the view

    @cached_property
    def _wide_columns(self) -> Doubles:
        return self._columns.astype(np.float64)

    @cached_property
    def _lengths(self) -> Doubles:
        lengths_C = np.array([math.sqrt(exact_dot(centroid, centroid)) for centroid in self.centroids_CD])
        # A unit vector in float32 is not exactly 1 long; its cosine is the product as it is.
        return np.where(np.abs(lengths_C - 1) <= 1e-6, 1.0, lengths_C)

    def _bound(self, precision: type[Any], price: float = 0.0) -> float:
        # A dot product in any order of summation is within D·u / (1 - D·u) of exact, relative to |x|·|c| (Higham, Accuracy and
        # Stability, 2nd ed., 3.1), u the unit roundoff; 16 u more for the handful of operations after it.
        roundoff = float(np.finfo(precision).eps) / 2
        return 1.01 * (float(self.centroids_CD.shape[1]) + 16) * roundoff * (1.01 + price)

    @cached_property
    def _largest_price(self) -> float:
        return float(np.abs(self.prices_C).max())

    @cached_property
    def _cost_error(self) -> float:
        return self._bound(np.float64, self._largest_price)

    def _leads(self, pairs: _Pairs) -> Doubles:
        """Return by how much the second costs more than the first."""
        first_cost = (1.0 - pairs.first_dot) + self.prices_C[pairs.first]
        return np.asarray((1.0 - pairs.second_dot) + self.prices_C[pairs.second] - first_cost)

    def _exact_dot(self, vector_D: Floats, centroid: int) -> float:
        return exact_dot(vector_D, self.centroids_CD[centroid])

    def _exact_cost(self, vector_D: Floats, centroid: int) -> float:
        return (1.0 - self._exact_dot(vector_D, centroid)) + float(self.prices_C[centroid])

    def _exact_margin(self, vector_D: Floats, pairs: _Pairs, row: int) -> float:
        return self._exact_cost(vector_D, int(pairs.second[row])) - self._exact_cost(vector_D, int(pairs.first[row]))

    def _distance(self, vectors_ND: Floats, centroid_N: Indices, dot_N: Doubles) -> Floats:
        def exact(row: int) -> float:
            """Return the distance of one row by an exact sum."""
            return 1.0 - self._exact_dot(vectors_ND[row], centroid_N[row]) / float(self._lengths[centroid_N[row]])

        return _settled(1.0 - dot_N / self._lengths[centroid_N], self._bound(np.float64), exact)


def exact_dot(a_D: Floats, b_D: Floats) -> float:
    """Return the exact dot product of float32 vectors, rounded once to float64."""
    return math.fsum((a_D.astype(np.float64) * b_D).tolist())  # the product of two float32 is exact in float64


def _settled(value_N: Doubles, error: float, exact: Callable[[int], float]) -> Floats:
    """Return what exact values round to in float32, given values within `error` of them."""
    low_N, high_N = (value_N - error).astype(np.float32), (value_N + error).astype(np.float32)
    for row in np.flatnonzero(low_N != high_N).tolist():
        low_N[row] = exact(row)
    return low_N


def _two_highest(scores_BC: npt.NDArray[Any]) -> tuple[Indices, Indices, Any, Any, Any]:
    """Return the columns of the two highest scores, and the three highest scores; strikes out the two."""
    flat, start_B = scores_BC.reshape(-1), np.arange(len(scores_BC)) * scores_BC.shape[1]
    first = scores_BC.argmax(axis=1)
    first_score = flat[start_B + first]
    flat[start_B + first] = -np.inf
    second = scores_BC.argmax(axis=1)
    second_score = flat[start_B + second]
    flat[start_B + second] = -np.inf
    return first, second, first_score, second_score, flat[start_B + scores_BC.argmax(axis=1)]


def _widened(rows_BD: Floats, space: Workspace) -> Doubles:
    wide_BD = space.array("wide", rows_BD.shape, np.float64)
    np.copyto(wide_BD, rows_BD)
    return wide_BD


def _blocks(number: int, rows: int) -> list[slice]:
    return [slice(start, min(start + rows, number)) for start in range(0, number, rows)]
