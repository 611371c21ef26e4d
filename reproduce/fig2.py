"""Figure 2: NLL against ensemble size, for the points found by SGD, SWAG and IVON.

    python reproduce/fig2.py

Costs about 7 minutes of one core (Intel Xeon) for the five training seeds of ``digits``, from nothing. It
prints the posterior std of IVON at each seed, the paths written, and claim C2's verdict for SWAG and for
IVON.

BMA (where the point has a posterior) against LPE-BSR at several bit widths; the single FP32 model, as it
is and with temperature scaling, as lines.

    top      NLL, with 95 % intervals of the paired difference to the single FP32 model
    bottom   that difference: even within 1 % of FP32's NLL, logarithmic beyond. With batch norm, dashed:
             the members' statistics re-estimated
"""

from __future__ import annotations

import sys
from pathlib import Path

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.begin(sys.argv[1:])

from lpe.records import COLUMNS, write_table
from reproduce.command import Script, run_figure
from reproduce.draw import panels
from reproduce.draw.curves import difference_panel, nll_panel
from reproduce.draw.style import METHODS
from reproduce.draw.summaries import claim_lines, noun
from reproduce.judge import intervals
from reproduce.study.measurements import measure_all, posteriors
from reproduce.study.records import selected
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import Unit, units


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    return "" if chosen.points else "a main network"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the figure shows."""
    return units([session.scale.of_points], session.scale.points, session.seeds)


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write fig2.csv."""
    measure_all(session, wanted(session))
    write_table(selected(session, wanted(session), methods=METHODS), session.out / "fig2.csv", COLUMNS)
    return {"posteriors": posteriors(session, session.scale.posteriors, [])}


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Draw fig2.pdf and fig2.png from fig2.csv; returns their paths and claim C2's verdicts."""
    record = panels.read_record(folder / "fig2.csv", COLUMNS)
    titles = []
    with panels.style():
        figure, pairs = panels.paired_grid(len(chosen.points), 2)
        for point, axes in zip(chosen.points, pairs, strict=True):
            nll = record[(record["point"] == point) & (record["metric"] == "nll")]
            single = intervals.by_seed(nll, method="FP32")
            nll_panel(axes[0], nll, single, chosen.settings.bits)
            difference_panel(axes[1], nll, single, chosen.settings.bits)
            low, high = intervals.student_interval(single.to_numpy())
            spread = f" [{low:.3f}, {high:.3f}]" if len(single) > 1 else ""
            titles.append((axes[0], f"{point}\nFP32 {single.mean():.3f}{spread}"))
            titles.append((axes[1], f"{point}: difference"))
            if panels.leftmost(axes[0]):
                axes[0].set_ylabel(f"test NLL (nats per {noun(chosen)})")
            if panels.leftmost(axes[1]):
                axes[1].set_ylabel("NLL − NLL(FP32) (nats)")
        panels.label_rows(titles)
        figure.align_ylabels([axes for pair in pairs for axes in pair])
        panels.legend_below(figure, [axes for pair in pairs[::-1] for axes in pair])
        paths = panels.save(figure, folder, "fig2")
    return paths, claim_lines(record, chosen, ["C2"])


SCRIPT = Script("fig2", __doc__, lacks, wanted, compute, draw, of_points=True)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
