"""Look into a model: its attention, positions, embeddings or gradients, on one page and as PNGs.

python scripts/show.py attention --artefact runs/x --texts "The film was slow, but I loved it."
python scripts/show.py positions --model_name_or_path smollm2
python scripts/show.py embeddings --artefact runs/x --dataset_name reviews --max_eval_rows 200
python scripts/show.py gradients --artefact runs/x --texts "The film was slow, but I loved it."
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.data.narrowed import OwnRowsArguments
    from finetune.interpret.options import ShowArguments

POSITIONAL = ("what",)  # finetune show attention


def main(show: ShowArguments, data: OwnRowsArguments) -> Path:
    from finetune.errors import InputError
    from finetune.interpret import views
    from finetune.interpret.options import VIEWS
    from finetune.interpret.subject import find_subject
    from finetune.reports.page import sections_page

    if show.what not in VIEWS:
        came = f"'{show.what}'" if show.what else "nothing"
        raise InputError(f"Asked to show {came}; wanted one of: {', '.join(VIEWS)}")
    subject = find_subject(show)
    if show.what == "embeddings":
        view = views.show_embeddings(subject, show, data)
    else:
        draw = {"attention": views.show_attention, "positions": views.show_positions}
        view = draw.get(show.what, views.show_gradients)(subject, show)
    # beside the artefact; a bare model has no folder that is the user's
    folder = Path(show.output_dir or f"{show.artefact or '.'}/show/{show.what}")
    folder.mkdir(parents=True, exist_ok=True)
    for drawing in view.drawings:
        (folder / f"{drawing.name}.png").write_bytes(drawing.png)
    page = folder / f"{show.what}.html"
    page.write_text(
        # a folder by its last part: the rest is this machine's affair
        sections_page(f"{show.what} of {Path(subject.name).name}", view.headline, view.sections),
        encoding="utf-8",
    )
    print(f"{view.headline}\n{page} and {len(view.drawings)} drawings beside it")
    return folder


if __name__ == "__main__":
    launch(main)
