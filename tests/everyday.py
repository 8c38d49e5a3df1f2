"""Everyday sentences about films. The first twenty were written before the corpus that the demo learns
from; it holds none of them.

All twenty were in sight when the number of epochs was chosen. From then on the first ten may be looked at
while the demo is changed; the others only tell what it is worth. FRESH was written after all of that, and
nothing was asked with it before it stood here; its first ten may be looked at from now on. LATER was written
before mean pooling and a wider corpus were tried; the demo, which kept to neither, was asked with it once.
The 3,000 whole remarks that the demo learns from now were written without any of these lists in sight, LAST
before they were; but all lists were asked of two settings before one was kept, so that none is unseen now.
"""

LAST = [
    ("My wife and I haven't stopped talking about it.", "pos"),
    ("I'd rather have stayed at home and cleaned the kitchen.", "neg"),
    ("Great popcorn film, exactly what I needed.", "pos"),
    ("The trailer showed all the good bits.", "neg"),
    ("Already planning to see it again with my sister.", "pos"),
    ("I've no idea what that was supposed to be about.", "neg"),
    ("One of those rare films where everything comes together.", "pos"),
    ("Save your money.", "neg"),
    ("The little girl who plays the lead is astonishing.", "pos"),
    ("You can see the ending coming from the first minute.", "neg"),
    ("It had me smiling from ear to ear.", "pos"),
    ("Nobody in our group liked it.", "neg"),
    ("Not perfect, but I had a really good time.", "pos"),
    ("They ruined a wonderful book.", "neg"),
    ("A quiet film that gets under your skin.", "pos"),
    ("Three hours of people shouting at each other.", "neg"),
    ("If you only see one film this year, make it this one.", "pos"),
    ("I gave up after half an hour and put something else on.", "neg"),
    ("The kids want to watch it every single day now.", "pos"),
    ("The special effects look like they were made on a phone.", "neg"),
]

LATER = [
    ("We stayed in our seats until the lights came on, it was that good.", "pos"),
    ("I can't believe I sat through the whole thing.", "neg"),
    ("I'd give anything to see it for the first time again.", "pos"),
    ("The sound was so bad we couldn't follow the dialogue.", "neg"),
    ("I've been humming the songs all week.", "pos"),
    ("There are better ways to spend an evening.", "neg"),
    ("I had goosebumps during the last scene.", "pos"),
    ("By the end I didn't care who lived or died.", "neg"),
    ("The two leads are a joy to watch together.", "pos"),
    ("The actors read their lines like a shopping list.", "neg"),
    ("I never thought a film about chess could be so exciting.", "pos"),
    ("They should have stopped after the first film.", "neg"),
    ("Finally a comedy that is actually funny.", "pos"),
    ("My husband snored through most of it.", "neg"),
    ("We were still quoting it at breakfast.", "pos"),
    ("So many plot holes it hurts.", "neg"),
    ("My teenage son put his phone away for it, which never happens.", "pos"),
    ("Even the dog left the room.", "neg"),
    ("A clever little thriller with a great twist.", "pos"),
    ("Nothing about this film works.", "neg"),
]

FRESH = [
    ("We laughed the whole way through and went home happy.", "pos"),
    ("I was bored before the opening credits had finished.", "neg"),
    ("My daughter talked about it all the way home.", "pos"),
    ("Even the friend who chose it was yawning.", "neg"),
    ("The best two hours I've spent at the cinema this year.", "pos"),
    ("I regret choosing this one.", "neg"),
    ("I cried at the end, and so did everyone around me.", "pos"),
    ("My grandmother tells better stories than this.", "neg"),
    ("I'm buying it as soon as it's out.", "pos"),
    ("Half the audience was looking at their phones.", "neg"),
    ("Great cast, great music, and a story that moves you.", "pos"),
    ("The jokes fell flat and nobody in the room laughed.", "neg"),
    ("It's a small film with a big heart.", "pos"),
    ("The acting is wooden and the story makes no sense.", "neg"),
    ("I couldn't look away.", "pos"),
    ("A waste of a good cast.", "neg"),
    ("I was on the edge of my seat until the credits.", "pos"),
    ("It goes on and on and then it just stops.", "neg"),
    ("Funny, warm and never boring.", "pos"),
    ("Don't bother, wait until it's on television.", "neg"),
]

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
