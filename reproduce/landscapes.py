"""Landscape grids and member clouds as records: measured once, resumed line by line, then drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import pandas as pd
from torch import nn

from lpe.evaluation.landscape import Plane, Surface, measure_grid, weight_vector
from lpe.records import write_table
from reproduce.command import Session, source_hash

CODE = ("lpe", "reproduce/landscapes.py")


def grid_table(
    session: Session, surface: Surface, plane: Plane, xs: np.ndarray, ys: np.ndarray, data: str, what: str
) -> pd.DataFrame:
    """The surface on a grid of a plane, one row a point and quantity: x, y, metric, value.

    Every finished line of the grid is on disk, in the working records, named by the plane's own numbers; a
    killed run goes on with the next line. ``data`` says in words which images the surface sees, ``what`` is
    the progress bar's label.
    """
    digest = hashlib.sha256(source_hash(*CODE).encode())
    for numbers in (plane.origin.numpy(), plane.axes.numpy(), np.asarray(xs), np.asarray(ys)):
        digest.update(np.ascontiguousarray(numbers).tobytes())
    digest.update("\0".join([data, *sorted(surface.anchor_names)]).encode())
    path = session.working.parent / f"landscape-{digest.hexdigest()[:24]}.csv"
    columns = ("x", "y", "metric", "value")
    rows: list[dict[str, object]] = []
    if path.is_file():
        rows = [{str(k): v for k, v in row.items()} for row in pd.read_csv(path).to_dict("records")]
    # Coordinates are compared as the file holds them.
    finished = {f"{row['y']:.12g}" for row in rows}

    with session.progress(len(ys), what) as bar:
        bar.update(len(finished))

        def keep(line: list[dict[str, float]]) -> None:
            for measured in line:
                place = {"x": measured.pop("x"), "y": measured.pop("y")}
                rows.extend({**place, "metric": metric, "value": value} for metric, value in measured.items())
            write_table(rows, path, columns)
            bar.update()

        measure_grid(surface, plane, xs.tolist(), ys.tolist(), lambda y: f"{y:.12g}" in finished, keep)
    table = pd.read_csv(path)
    return table.sort_values(["metric", "y", "x"], ignore_index=True)


def cloud_table(
    plane: Plane, members: Iterable[nn.Module], point: nn.Module, surface: Surface, method: str
) -> pd.DataFrame:
    """Members projected on a plane: method, member, x, y, distance_from_plane, distance_from_point, nll.

    Distances and coordinates in L2 units of weight space, NLL in nats.
    """
    centre = weight_vector(point)
    rows = []
    for index, member in enumerate(members):
        weights = weight_vector(member)
        x, y, off = plane.coordinates(weights)
        rows.append(
            {
                "method": method,
                "member": index,
                "x": x,
                "y": y,
                "distance_from_plane": off,
                "distance_from_point": float((weights - centre).norm()),
                "nll": surface.measure(weights)["nll"],
            }
        )
    return pd.DataFrame(rows)
