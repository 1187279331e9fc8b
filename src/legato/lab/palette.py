"""Which colour an arm has: decided once from the order of the table, and the same in every figure of a page.

The hues are Okabe and Ito's, which readers with any common form of colour blindness can tell apart
(M. Okabe, K. Ito, "Color Universal Design", 2008). They are ordered so that the first ones stand out most on white and on black.
"""

from collections.abc import Mapping, Sequence

OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")
"""Blue, vermilion, bluish green, reddish purple, orange, sky blue, yellow."""

BASELINE = "#8c8c8c"
"""A grey with the same contrast on a white and on a nearly black page."""

INK = "#000000"
"""Drawn in the text's own colour on the page, and in black in the PNG."""

PAPER = "#ffffff"
"""Drawn in the page's own background, and in white in the PNG."""


def colours(arms: Sequence[str], baseline: str | None = None) -> dict[str, str]:
    """Arm -> colour as `#rrggbb`: grey for the baseline, then Okabe and Ito's hues in the order of `arms`.

    There are seven hues; an eighth arm starts again at the first, and direct labels keep the two apart.
    """
    hued = [arm for arm in dict.fromkeys(arms) if arm != baseline]
    chosen = {arm: OKABE_ITO[place % len(OKABE_ITO)] for place, arm in enumerate(hued)}
    return {arm: chosen.get(arm, BASELINE) for arm in arms}


def of(colours: Mapping[str, str], arm: str) -> str:
    """The colour of `arm`; ink for one that the table does not know, such as an average."""
    return colours.get(arm, INK)
