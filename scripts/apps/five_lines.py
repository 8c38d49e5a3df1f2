"""An artefact in an app.

python scripts/apps/five_lines.py runs/demo "I loved it." "Wake me when it is over."
"""

import sys

from finetune.adapters import load

SURE = 0.65  # below it a label is a guess

classifier = load(sys.argv[1])
for text, answer in zip(sys.argv[2:], classifier(sys.argv[2:]), strict=True):
    label = answer["label"] if answer["probability"] >= SURE else "unsure"
    print(f"{label:6} {answer['probability']:.2f}  {text}")
