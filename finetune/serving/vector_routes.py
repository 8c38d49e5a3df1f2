"""Embeddings as OpenAI's clients ask for them, and documents put in order for a query. Knows those two APIs;
makes no batches."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import torch
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from finetune.errors import InputError
from finetune.serving.openai_schemas import Embeddings, Rerank
from finetune.serving.service import Served


def add_vectors(app: FastAPI, served: Served) -> None:
    @app.post("/v1/embeddings")
    async def embeddings(ask: Embeddings) -> Any:
        given: list[Any] = [ask.input] if isinstance(ask.input, str) else list(ask.input)
        # A list of numbers is one text in tokens.
        if given and isinstance(given[0], int):
            given = [given]
        # Checked first: decoding an unknown id gives nothing, without a word.
        served.pool.check_tokens([token for one in given if isinstance(one, list) for token in one])
        texts = [one if isinstance(one, str) else served.pool.texts.decode(one) for one in given]
        ignored, counts = served.ignored(ask), list[int]()
        vectors = await served.ask("embed", texts, [served.adapter_of(ask.model)] * len(texts), counts=counts)
        # Cutting vectors is meant for models trained so (Matryoshka), which these are not.
        if ask.dimensions not in (None, len(vectors[0])):
            raise InputError(f"dimensions is {ask.dimensions}; this base's vectors have {len(vectors[0])}")
        data = [
            {"object": "embedding", "index": i, "embedding": _written(vector, ask.encoding_format)}
            for i, vector in enumerate(vectors)
        ]
        used = {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}
        return JSONResponse(
            {"object": "list", "data": data, "model": ask.model, "usage": used}, headers=ignored
        )

    @app.post("/v1/rerank")
    async def rerank(ask: Rerank) -> Any:
        """Scores by an adapter that reads pairs (its last label's probability, or its one number), else by
        the cosine of the embeddings."""
        texts, name, counts = ask.texts(), served.adapter_of(ask.model), list[int]()
        ignored = served.ignored(ask)
        # In a thread: an adapter that was put aside is read from the disk again.
        if name is not None and await asyncio.to_thread(served.task_of, name) == "SEQ_CLS":
            pairs = [(ask.query, text) for text in texts]
            answers = await served.ask("score", pairs, [name] * len(texts), counts=counts)
            # One number has no other label to be weighed against.
            scores = [float(row[0].sigmoid() if len(row) == 1 else row.softmax(-1)[-1]) for row in answers]
        else:
            asked = [ask.query, *texts]
            first, *others = await served.ask("embed", asked, [name] * len(asked), counts=counts)
            # The vectors have length 1, so that the product is the cosine.
            scores = [float(first @ other) for other in others]
        order = sorted(range(len(texts)), key=lambda i: -scores[i])[: ask.top_n]
        results = [
            {"index": i, "relevance_score": scores[i]}
            | ({"document": {"text": texts[i]}} if ask.return_documents else {})
            for i in order
        ]
        used = {"total_tokens": sum(counts)}
        return JSONResponse({"model": ask.model, "results": results, "usage": used}, headers=ignored)


def _written(vector: torch.Tensor, form: str | None) -> Any:
    if form == "base64":
        # OpenAI's bytes: float32, little-endian on every machine.
        return base64.b64encode(vector.float().numpy().astype("<f4").tobytes()).decode()
    return vector.tolist()
