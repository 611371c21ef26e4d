"""One colour and one marker a method, in every figure."""

from __future__ import annotations

from reproduce.draw import panels

BIT_STYLES = {
    8: (panels.BLACK, "."),
    6: (panels.PURPLE, "v"),
    5: (panels.SKY, "D"),
    4: (panels.BLUE, "o"),
    3: (panels.GREEN, "s"),
    2: (panels.YELLOW, "P"),
}


BMA_STYLE = (panels.VERMILION, "^")


METHODS = ("FP32", "FP32 + temperature", "RTN", "LPE-BSR", "BMA")
