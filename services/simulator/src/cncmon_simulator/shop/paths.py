"""Tool paths by length: where the tool is after so many millimetres. All are closed, so that a cut may repeat them."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import cos, dist, pi, sin
from typing import Protocol

Point = tuple[float, float, float]
"""x, y, z in mm."""


class Path(Protocol):
    """A tool path."""

    def at(self, s_mm: float) -> Point:
        """Return the position after `s_mm` of path."""
        ...


class Circle:
    """A circle in the XY plane, as for milling a pocket or a bore."""

    def __init__(self, centre: Point, radius_mm: float) -> None:
        self._x, self._y, self._z = centre
        self._radius = radius_mm

    def at(self, s_mm: float) -> Point:
        """Return the position after `s_mm` of path."""
        angle = s_mm / self._radius
        return self._x + self._radius * cos(angle), self._y + self._radius * sin(angle), self._z


class Polyline:
    """Straight lines from point to point and back to the first."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = [*points, points[0]]
        self._ends = list(accumulate(dist(a, b) for a, b in pairwise(self._points)))
        self.length_mm = self._ends[-1]

    def at(self, s_mm: float) -> Point:
        """Return the position after `s_mm` of path."""
        s_mm %= self.length_mm
        i = min(bisect_right(self._ends, s_mm), len(self._ends) - 1)
        (ax, ay, az), (bx, by, bz) = self._points[i], self._points[i + 1]
        start = self._ends[i - 1] if i else 0.0
        share = (s_mm - start) / (self._ends[i] - start)
        return ax + share * (bx - ax), ay + share * (by - ay), az + share * (bz - az)


class Rest:
    """No path: the tool stays."""

    def __init__(self, point: Point) -> None:
        self._point = point

    def at(self, s_mm: float) -> Point:
        """Return the position, which `s_mm` does not change."""
        return self._point


def raster(corner: Point, width_mm: float, depth_mm: float, step_mm: float) -> Polyline:
    """Return a facing path: to and fro along X, a step of Y each time."""
    x, y, z = corner
    points: list[Point] = []
    for row in range(int(depth_mm // step_mm) + 1):
        ends = (x, x + width_mm) if row % 2 == 0 else (x + width_mm, x)
        points += [(end, y + row * step_mm, z) for end in ends]
    return Polyline(points)


def holes(corner: Point, pitch_mm: float, columns: int, rows: int, depth_mm: float) -> Polyline:
    """Return a drilling path: down and up in every hole of a grid, row by row to and fro."""
    x, y, z = corner
    points: list[Point] = []
    for row in range(rows):
        order = range(columns) if row % 2 == 0 else reversed(range(columns))
        for column in order:
            at_x, at_y = x + column * pitch_mm, y + row * pitch_mm
            points += [(at_x, at_y, z), (at_x, at_y, z - depth_mm), (at_x, at_y, z)]
    return Polyline(points)


def passes(diameter_mm: float, length_mm: float, cut_mm: float, count: int) -> Polyline:
    """Return a turning path: along Z at a smaller diameter (X) each pass, back at a clearance; Y stays 0."""
    points: list[Point] = []
    for turn in range(count):
        x = diameter_mm - 2 * cut_mm * (turn + 1)
        points += [(x, 0.0, 2.0), (x, 0.0, -length_mm), (x + 2.0, 0.0, -length_mm), (x + 2.0, 0.0, 2.0)]
    return Polyline(points)


def turn_mm(radius_mm: float) -> float:
    """Return the length of a full circle."""
    return 2 * pi * radius_mm
