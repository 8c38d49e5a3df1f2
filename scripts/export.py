"""Write a trained run as files for small devices, each asked in its own runtime: what every step costs.

python scripts/export.py --artefact runs/films
python scripts/export.py --artefact runs/films --to int8 executorch --tolerance 0.01
python scripts/export.py --artefact runs/chat --to gguf int4 --beside runs/chat_distilled
python scripts/export.py --artefact runs/chat --to vllm --output_dir runs/chat_vllm

With --tolerance, for tests in CI: status 1 where a format drops more of the accuracy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.formats.options import ExportArguments, ExportRowsArguments


def main(export: ExportArguments, data: ExportRowsArguments) -> None:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import processes

    keep_freed_memory()
    # refused under a launcher: times are those of one process
    processes("export")
    import json
    import signal
    import sys
    from pathlib import Path

    from finetune.artefacts.files import write_atomically
    from finetune.formats.engines import ENGINES, serve_elsewhere
    from finetune.formats.finished import Export
    from finetune.formats.measured import export_all
    from finetune.reports.exports import as_table, beyond, export_lines, export_sections, failed_line
    from finetune.reports.page import sections_page
    from finetune.reports.tables import markdown

    # an engine's folder holds no table: it is served, and measured there
    if any(name in ENGINES for name in export.to):
        for line in serve_elsewhere(export):
            print(line)
        return
    # as Ctrl-C does: half a file goes, and the process that is answering rows ends
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    exports: list[Export] = []
    failed, lines, table = list[dict](), list[dict](), ""
    folder = Path(export.output_dir or f"{export.artefact}/exports")
    for found in export_all(export, data):
        if isinstance(found, Export):
            exports.append(found)
            print(f"{found.name}: {found.megabytes:.1f} MB, {found.milliseconds:.1f} ms a row", flush=True)
        else:
            failed.append(failed_line(found.name, found.reason))
            print(f"{found.name}: failed: {found.reason}", flush=True)
        # after each one: what is done stays where the next one never ends
        lines = export_lines(exports) + failed
        table = markdown(as_table(lines))
        page = sections_page(f"exports of {Path(str(export.artefact)).name}", "", export_sections(lines))
        write_atomically(folder / "exports.json", json.dumps(lines, indent=1))
        write_atomically(folder / "exports.md", table + "\n")
        write_atomically(folder / "exports.html", page)
    print(f"\n{table}\n\n{folder / 'exports.md'} and .html")
    # after the files are written: who looks for the reason finds them
    if beyond(lines, export.tolerance) or (failed and "all" not in export.to):
        sys.exit(1)


if __name__ == "__main__":
    launch(main)
