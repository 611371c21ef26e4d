"""One colour and one marker a method: no two are alike."""

from __future__ import annotations

from reproduce.draw.style import (
    AUGMENTATION_STYLE,
    BIT_STYLES,
    BMA_STYLE,
    DROPOUT_STYLE,
    FAMILY_STYLES,
    FEEDBACK_STYLE,
    GAUSSIAN_STYLE,
    LAPLACE_STYLE,
    LARGER_STYLE,
    SCALED_STYLE,
    SINGLE_STYLE,
    SPREAD_STYLE,
)


def test_no_two_methods_or_widths_share_colour_and_marker() -> None:
    marks = [
        *BIT_STYLES.values(),
        *FAMILY_STYLES.values(),
        BMA_STYLE,
        SINGLE_STYLE,
        SCALED_STYLE,
        LARGER_STYLE,
        SPREAD_STYLE,
        GAUSSIAN_STYLE,
        DROPOUT_STYLE,
        AUGMENTATION_STYLE,
        LAPLACE_STYLE,
        FEEDBACK_STYLE,
    ]
    assert len(set(marks)) == len(marks)


def test_every_width_has_a_mark() -> None:
    assert set(BIT_STYLES) == set(range(2, 9))
