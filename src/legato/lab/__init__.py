"""Grid of trials -> results -> verdicts -> page. Knows no method."""
