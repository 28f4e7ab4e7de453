"""The text that `LLM.quantization_report` reads when it is given none. Plain prose of several kinds."""

from __future__ import annotations

TEXT = """\
The harbour wakes before the town does. At half past four the first lamp is lit in the shed of the net makers, and a
little later somebody starts the old diesel of the ice house, which coughs twice and then settles into its rhythm. By
the time the bakery has its shutters up, three boats are already past the breakwater. Nobody waves. They will be back
at noon, and on a good day their holds will be full of mackerel.

Why does ice float? Most substances shrink when they freeze, because their molecules move closer together. Water is an
exception. Below four degrees its molecules begin to arrange themselves in open rings, and ice, which is made of such
rings throughout, takes up about nine percent more room than the water it came from. A lake therefore freezes from the
top, and the fish spend the winter in the warmer layer at the bottom.

To make a simple bread, mix 500 grams of flour with 350 grams of water, 10 grams of salt and 5 grams of dry yeast.
Let the dough rest for an hour, fold it, and let it rest again. Bake it at 230 degrees for about 35 minutes. It is
done when a knock on its underside sounds hollow. Do not cut it while it is hot: the crumb needs time to set.

def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)

"You are late," said the clockmaker, without turning round. "By eleven minutes," said the girl, "but only if that one
is right." She pointed at the tall clock beside the door. He looked at it for a while, then at the watch in his hand,
and then, for the first time that week, he laughed. "In that case," he said, "we had better begin with that one."

The committee met on Tuesday, 14 March, and agreed on three points: the bridge will be closed to lorries from May; the
repairs, estimated at 2.4 million, will be paid over six years; and a second crossing, further north, will be studied
before the end of the year. Two members voted against the second point. The next meeting is planned for 9 April.
"""
