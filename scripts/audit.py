"""What does a finished run give away of its training rows? Membership, canaries, extraction: one page.

python scripts/audit.py --artefact runs/x
python scripts/audit.py --artefact runs/x --shadows 8 --held_out other.csv
python scripts/audit.py --plant 6 --dataset_name reviews --output_dir planted
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.audit.options import AuditArguments, CanaryArguments
    from finetune.data.narrowed import UnshownArguments


def main(audit: AuditArguments, canary: CanaryArguments, data: UnshownArguments) -> Path:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import processes

    keep_freed_memory()
    # refused under a launcher: every process would do all of the work, and write the same files
    processes("audit")
    import json

    from finetune.artefacts.files import write_atomically
    from finetune.audit.canaries import plant
    from finetune.audit.run import audited
    from finetune.data.narrowed import UnshownArguments
    from finetune.errors import InputError
    from finetune.reports.audit import audit_headline, audit_sections
    from finetune.reports.page import sections_page

    # before training, where there is no artefact yet
    if canary.plant:
        folder = plant(canary, data, audit.output_dir, audit.audit_seed)
        print(
            f"{folder / 'data'} to train on (--dataset_name), and {folder / 'canaries.json'} for --canaries"
        )
        return folder
    # an audit reads its rows out of the run's folder: other rows would be no members
    if data != UnshownArguments():
        raise InputError(
            "--dataset_name and its columns are for --plant; rows to hold against are --held_out"
        )
    said = audited(audit, canary)
    folder = Path(audit.output_dir or f"{audit.artefact}/audit")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "audit.json", json.dumps(said, ensure_ascii=False, indent=1))
    title = f"audit of {Path(str(audit.artefact)).name}"
    page = sections_page(title, audit_headline(said), audit_sections(said))
    (folder / "audit.html").write_text(page, encoding="utf-8")
    print(f"{audit_headline(said)}\n{folder / 'audit.html'}")
    return folder


if __name__ == "__main__":
    launch(main)
