"""An artefact in an app.

python scripts/apps/five_lines.py runs/demo "I loved it." "Wake me when it is over."
"""

import sys

from finetune.adapters import load

classifier = load(sys.argv[1])
for text, answer in zip(sys.argv[2:], classifier(sys.argv[2:]), strict=True):
    print(f"{answer['label']} {answer['probability']:.2f}  {text}")
