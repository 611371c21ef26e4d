"""``lpe systems``: the number systems, and the methods of other packages."""

from __future__ import annotations

from lpe import plugins
from lpe.cli.methods import METHODS
from lpe.cli.options import Commands
from lpe.ensembles.base import text_table
from lpe.errors import InputError
from lpe.number_systems.grids import FullPrecision, NumberSystem
from lpe.number_systems.naming import ByPattern, names, plain_systems


def add_systems(commands: Commands) -> None:
    """Add the subcommand, which has no options."""
    commands.add_parser("systems", description="Every number system: bits, levels, largest value, scales.")


def systems() -> str:
    """Return the table of number systems; below it what other packages bring, and cannot be had."""
    rows = []
    lines = plugins.clashes(plugins.SYSTEMS, names()) + plugins.clashes(plugins.METHODS, METHODS)
    brought: list[NumberSystem] = []
    for name in plugins.names(plugins.SYSTEMS, names()):
        try:
            system = plugins.number_system(name)
        except InputError as error:
            lines.append(str(error))
            continue
        assert not isinstance(system, ByPattern)  # no name has "=" in it
        brought.append(system)
    for system in [*plain_systems(), *brought]:
        levels = system.levels
        rows.append(
            (
                system.name,
                str(system.bits),
                str(len(levels)) if levels else "",
                f"{max(levels):g}" if levels else "",
                "" if isinstance(system, FullPrecision) else "channel, tensor, channels:K, block:K",
            )
        )
    header = ("name", "bits", "levels", "largest", "scale axes")
    footer = (
        "A weight is a level times its scale, max|w| / largest; channel: a scale for each output channel, "
        "channels:K: for K\nof them, block:K: for K inputs of a row. fp32: no rounding.\n"
        "int4-mse: the scales of least squared error. int8*11.3: the step times 11.3, 25 levels, 5 bits.\n"
        "codebook:-1:0:0.5: any levels. '*mlp*=int4,*=int8': several, by tensors' names."
    )
    if methods := plugins.names(plugins.METHODS, METHODS):
        footer += f"\nMethods of other packages: {', '.join(methods)}."
    footer += "".join(f"\nnot to be had: {line}" for line in lines)
    return text_table("Number systems", header, rows, footer)
