"""Twenty everyday sentences about films, written before the corpus that the demo learns from; it holds none
of them.

All twenty were in sight when the number of epochs was chosen. From then on the first ten may be looked at
while the demo is changed; the others only tell what it is worth.
"""

LOOKED_AT = [
    ("I laughed so hard I cried.", "pos"),
    ("Best film I've seen all year.", "pos"),
    ("I'd happily pay to see it again.", "pos"),
    ("Beautifully shot and really moving.", "pos"),
    ("Didn't expect to like it, but I loved it.", "pos"),
    ("I walked out after twenty minutes.", "neg"),
    ("What a waste of an evening.", "neg"),
    ("The plot made no sense at all.", "neg"),
    ("Way too long and nothing happens.", "neg"),
    ("A predictable mess from start to finish.", "neg"),
]
KEPT = [
    ("We watched it twice in one weekend.", "pos"),
    ("What a lovely surprise this was.", "pos"),
    ("The whole cinema applauded at the end.", "pos"),
    ("Worth every penny.", "pos"),
    ("It stayed with me for days.", "pos"),
    ("I want my money back.", "neg"),
    ("I kept checking my watch.", "neg"),
    ("Honestly the worst thing I've seen in years.", "neg"),
    ("I fell asleep halfway through.", "neg"),
    ("It tries to be funny but never is.", "neg"),
]
