"""langchain-core adapters: an index, an embedder or a model of ours as parts of anyone's chain.

retriever = retriever_for(project)            # str -> documents
model = chat_model_for(project)               # messages -> message
chain = {"context": retriever, "question": RunnablePassthrough()} | prompt | model
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from langchain_core.callbacks import CallbackManagerForLLMRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.retrievers import BaseRetriever
from pydantic import Field, SkipValidation

from ragtune.assistant import get_arm
from ragtune.config import ProjectConfig
from ragtune.errors import InputError
from ragtune.retriever.retrieve import Retriever
from ragtune.session import Session
from ragtune.types import Embedder, Generator, Hit, Message


class RagtuneRetriever(BaseRetriever):
    """Our fused search. Documents carry metadata: source, start and end (characters), headings, score."""

    retriever: SkipValidation[Retriever]
    k: int | None = Field(None, ge=1, description="passages to return; none means what the project is set to")

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return [_document(hit) for hit in self.retriever.search([query], self.k)[0]]


def _document(hit: Hit) -> Document:
    passage = hit.passage
    metadata = {
        "source": passage.document_id,
        "start": passage.start,
        "end": passage.end,
        "headings": list(passage.headings),
        "score": hit.score,
    }
    return Document(page_content=passage.text, id=passage.id, metadata=metadata)


@dataclass(frozen=True)
class RagtuneEmbeddings(Embeddings):
    """Our embedder: unit vectors, so an inner product is a cosine."""

    embedder: Embedder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector a text.

        Raises: InputError when a text is longer than the embedder reads.
        """
        vectors: list[list[float]] = np.asarray(self.embedder.embed(texts)).tolist() if texts else []
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The vector of one text; queries and documents are embedded alike."""
        return self.embed_documents([text])[0]


class RagtuneChatModel(BaseChatModel):
    """Our generator, decoding greedily. Passages are the chain's business: put them into the prompt."""

    generator: SkipValidation[Generator]
    max_new_tokens: int = Field(256, ge=1, description="longest answer, in the generator's tokens")

    @property
    def _llm_type(self) -> str:
        return "ragtune"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        # Answers are cached under these, so they must hold all that decides an answer.
        return {
            "model_name": self.generator.name,
            "fingerprint": self.generator.fingerprint,
            "max_new_tokens": self.max_new_tokens,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "ragtune"
        params["ls_model_name"] = self.generator.name
        params["ls_max_tokens"] = self.max_new_tokens
        return params

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        _refuse(kwargs)
        reply = self.generator.generate([to_prompt(messages)], self.max_new_tokens)[0]
        usage = UsageMetadata(
            input_tokens=reply.prompt_tokens,
            output_tokens=reply.output_tokens,
            total_tokens=reply.prompt_tokens + reply.output_tokens,
        )
        message = AIMessage(
            content="".join(until_stop([reply.text], stop or ())),
            usage_metadata=usage,
            response_metadata={"model_name": self.generator.name},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        _refuse(kwargs)
        # The first chunk is empty, since langchain takes a stream without any chunk for a failure.
        yield ChatGenerationChunk(
            message=AIMessageChunk(content="", response_metadata={"model_name": self.generator.name})
        )
        pieces = self.generator.stream(to_prompt(messages), self.max_new_tokens)
        for piece in until_stop(pieces, stop or ()):
            yield ChatGenerationChunk(message=AIMessageChunk(content=piece))


def _refuse(kwargs: dict[str, Any]) -> None:
    unknown = sorted(kwargs.keys() - {"stream"})  # `stream` is langchain's own, already obeyed
    if unknown:
        raise InputError(f"RagtuneChatModel does not take {', '.join(unknown)}: it decodes greedily and calls no tools")


def to_prompt(messages: Sequence[BaseMessage]) -> tuple[Message, ...]:
    """Langchain's system, human and AI messages as ours.

    Raises: InputError for another kind of message, or for content that is not text.
    """
    return tuple(_to_message(message) for message in messages)


def _to_message(message: BaseMessage) -> Message:
    blocks = [message.content] if isinstance(message.content, str) else message.content
    for block in blocks:
        if not isinstance(block, str) and block.get("type") != "text":
            raise InputError(f"a message holds content of type {block.get('type')}; the model reads text only")
    text = str(message.text)
    if isinstance(message, SystemMessage):
        return Message("system", text)
    if isinstance(message, HumanMessage):
        return Message("user", text)
    if isinstance(message, AIMessage):
        return Message("assistant", text)
    raise InputError(f"a message of type {message.type!r} came; expected system, human or ai")


def until_stop(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """The pieces up to the first stop string that is complete, without it; however the text is cut into pieces.

    What may yet turn out to be the beginning of a stop string is held back.

    Raises: InputError for an empty stop string, which would end every answer before it begins.
    """
    if "" in stop:
        raise InputError("a stop string is empty; leave it out")
    held = ""
    for piece in pieces:
        held += piece
        found = [(at + len(text), at) for text in stop if (at := held.find(text)) >= 0]
        if found:
            held = held[: min(found)[1]]
            break
        keep = max((n for text in stop for n in range(1, len(text)) if held.endswith(text[:n])), default=0)
        ready, held = held[: len(held) - keep], held[len(held) - keep :]
        if ready:
            yield ready
    if held:
        yield held


def retriever_for(project: ProjectConfig, k: int | None = None) -> RagtuneRetriever:
    """Search over the project's index.

    Raises: StoreError without a whole index; MismatchError when it was built with another embedder.
    """
    return RagtuneRetriever(retriever=Session(project).retriever, k=k)


def chat_model_for(project: ProjectConfig, arm: str = "prompt", max_new_tokens: int = 256) -> RagtuneChatModel:
    """The weights of an arm: the base model, or it with the arm's adapter. Prompt and passages come from the chain.

    Raises: ConfigError for an unknown arm; StoreError when its adapter was not tuned yet.
    """
    session = Session(project)
    generator = session.generator_for(get_arm(arm, session.arms))
    return RagtuneChatModel(generator=generator, max_new_tokens=max_new_tokens)
