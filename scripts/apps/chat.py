"""A chat in the terminal that switches adapters: `/use NAME`, `/base`, `/new`, `/quit`; anything else is said
to the model.

python scripts/apps/chat.py --base smollm2 --adapters formal=runs/formal films=runs/films
"""

from __future__ import annotations

import argparse


def answered(pool, messages: list[dict[str, str]], adapter: str | None, new_tokens: int) -> str:
    """Print the answer as it is written, and give it back."""
    from finetune.pool.sampling import Sampling

    # a chat template has put its special tokens in already
    row = pool.rows([pool.prompt_of(messages)], [adapter], Sampling(new_tokens), special=False)[0]
    writing = pool.writing()
    pieces = writing.join([row])
    while True:
        for _, piece in pieces:
            print(piece, end="", flush=True)
        # no row is left that is being written
        if not writing.rows:
            print()
            return row.text
        pieces = writing.step()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--adapters", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--new_tokens", type=int, default=256)
    options = parser.parse_args()
    from finetune.errors import InputError
    from finetune.pool.pool import AdapterPool

    pool = AdapterPool(options.base)
    for entry in options.adapters:
        name, _, folder = entry.partition("=")
        pool.add(name, folder)
    adapter, messages = None, []
    print(f"Adapters: {', '.join(pool.adapters()) or 'none'}. /use NAME, /base, /new, /quit")
    while True:
        try:
            said = input(f"[{adapter or 'base'}] ").strip()
        except EOFError:
            return
        if said == "/quit":
            return
        if said in ("/new", "/base"):
            # /base goes on with the chat, /new with the adapter
            adapter, messages = (None if said == "/base" else adapter), ([] if said == "/new" else messages)
        elif said.startswith("/use "):
            wanted = said.removeprefix("/use ").strip()
            adapter = wanted if wanted in pool.adapters() else adapter
            print(
                "" if adapter == wanted else f"No adapter '{wanted}'; there are: {', '.join(pool.adapters())}"
            )
        elif said:
            try:
                text = answered(
                    pool, [*messages, {"role": "user", "content": said}], adapter, options.new_tokens
                )
                # after the answer: a question that failed is no part of the chat
                messages += [{"role": "user", "content": said}, {"role": "assistant", "content": text}]
            except InputError as error:
                print(error)


if __name__ == "__main__":
    main()
