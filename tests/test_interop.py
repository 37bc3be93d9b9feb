"""Our parts in chains of langchain-core: a retriever, embeddings and a chat model, with doubles inside."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document as LangchainDocument
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from pydantic import ValidationError

from ragtune.config import IndexConfig, ProjectConfig, RetrievalConfig
from ragtune.errors import ConfigError, InputError, StoreError
from ragtune.interop import (
    RagtuneChatModel,
    RagtuneEmbeddings,
    RagtuneRetriever,
    chat_model_for,
    retriever_for,
    to_prompt,
    until_stop,
)
from ragtune.retriever.retrieve import Retriever, build_index, open_index
from ragtune.session import Session
from ragtune.testing import HashEmbedder, ScriptedGenerator
from ragtune.types import Document, Message, Passage

TEXT = "Dogs stay on a lead in the harbour.\n\nThe kiosk sells ice cream until nine."
PASSAGES = (
    Passage("rules.md#0-35", "rules.md", TEXT[:35], 0, 35, ("Rules", "Dogs")),
    Passage("rules.md#37-74", "rules.md", TEXT[37:], 37, 74, ("Rules", "Kiosk")),
)
EMBEDDER = HashEmbedder()


def write_index(folder: Path) -> Path:
    document = Document("rules.md", TEXT, "Rules", "0" * 64)
    build_index(folder, [document], PASSAGES, EMBEDDER, IndexConfig(), {"documents": "0"})
    return folder


@pytest.fixture
def retriever(tmp_path: Path) -> RagtuneRetriever:
    index = open_index(write_index(tmp_path / "index"))
    return RagtuneRetriever(retriever=Retriever(index, EMBEDDER, RetrievalConfig()))


def scripted(text: str, **settings: Any) -> RagtuneChatModel:
    return RagtuneChatModel(generator=ScriptedGenerator(lambda messages: text), **settings)


def test_documents_say_where_they_stand(retriever: RagtuneRetriever) -> None:
    first, second = retriever.invoke("Which dogs need a lead?")
    assert first == LangchainDocument(
        page_content="Dogs stay on a lead in the harbour.",
        id="rules.md#0-35",
        metadata={
            "source": "rules.md",
            "start": 0,
            "end": 35,
            "headings": ["Rules", "Dogs"],
            "score": pytest.approx(2 / 61),  # first in both rankings
        },
    )
    for found in (first, second):
        assert TEXT[found.metadata["start"] : found.metadata["end"]] == found.page_content


def test_retriever_takes_k(retriever: RagtuneRetriever) -> None:
    (only,) = RagtuneRetriever(retriever=retriever.retriever, k=1).invoke("ice cream kiosk")
    assert only.page_content.startswith("The kiosk")
    with pytest.raises(ValidationError):
        RagtuneRetriever(retriever=retriever.retriever, k=0)
    with pytest.raises(InputError, match="query is empty"):
        retriever.invoke(" ")


def test_embeddings_are_the_embedders_vectors() -> None:
    embeddings = RagtuneEmbeddings(EMBEDDER)
    texts = ["red cat", "green fish"]
    assert embeddings.embed_documents(texts) == np.asarray(EMBEDDER.embed(texts)).tolist()
    assert embeddings.embed_query("red cat") == embeddings.embed_documents(texts)[0]
    assert embeddings.embed_documents([]) == []
    assert asyncio.run(embeddings.aembed_query("red cat")) == embeddings.embed_query("red cat")


def test_chain_of_retriever_prompt_and_model(retriever: RagtuneRetriever) -> None:
    def read(messages: Sequence[Message]) -> str:
        return "On a lead." if "Dogs stay on a lead" in messages[0].content else "No idea."

    def join(documents: list[LangchainDocument]) -> str:
        return "\n".join(document.page_content for document in documents)

    generator = ScriptedGenerator(read)
    prompt = ChatPromptTemplate.from_messages([("system", "Use this: {context}"), ("human", "{question}")])
    inputs: Any = {"context": retriever | join, "question": RunnablePassthrough()}
    chain = inputs | prompt | RagtuneChatModel(generator=generator) | StrOutputParser()

    assert chain.invoke("Where may dogs go?") == "On a lead."
    assert list(chain.stream("Where may dogs go?")) == ["", "On", " a", " lead.", ""]
    assert asyncio.run(chain.ainvoke("Where may dogs go?")) == "On a lead."
    assert chain.batch(["dogs?", "dogs!"]) == ["On a lead."] * 2
    assert generator.prompts[0][1] == Message("user", "Where may dogs go?")


def test_answer_carries_usage_and_the_models_name() -> None:
    answer = scripted("one two three").invoke([SystemMessage("Count to three."), HumanMessage("Go!")])
    assert answer.content == "one two three"
    assert answer.usage_metadata == {"input_tokens": 4, "output_tokens": 3, "total_tokens": 7}
    assert answer.response_metadata["model_name"] == "scripted"


def test_answers_end_at_max_new_tokens() -> None:
    assert scripted("one two three", max_new_tokens=2).invoke("Go!").content == "one two"
    with pytest.raises(ValidationError):
        scripted("x", max_new_tokens=0)


def test_stop_cuts_answers_and_streams() -> None:
    model = scripted("one two three four")
    assert model.invoke("Go!", stop=["three", "four"]).content == "one two "
    assert "".join(str(chunk.content) for chunk in model.stream("Go!", stop=["o th"])) == "one tw"
    assert model.bind(stop=["one"]).invoke("Go!").content == ""
    with pytest.raises(InputError, match="stop string is empty"):
        model.invoke("Go!", stop=[""])


def test_stream_of_an_empty_answer() -> None:
    assert "".join(str(chunk.content) for chunk in scripted("").stream("Go!")) == ""


def test_callbacks_see_each_piece_once() -> None:
    class Listener(BaseCallbackHandler):
        heard: list[str]

        def __init__(self) -> None:
            self.heard = []

        def on_llm_new_token(self, token: Any, **_: Any) -> None:
            self.heard.append(token)

    listener = Listener()
    pieces = [str(chunk.content) for chunk in scripted("one two").stream("Go!", config={"callbacks": [listener]})]
    assert pieces == listener.heard == ["", "one", " two", ""]


def first_complete(text: str, stop: Sequence[str]) -> str:
    """Oracle: read character by character until some stop string stands at the end."""
    for end in range(len(text) + 1):
        complete = [word for word in stop if text[:end].endswith(word)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_until_stop_whatever_the_pieces(pieces: list[str], stop: list[str]) -> None:
    found = list(until_stop(pieces, stop))
    assert "".join(found) == first_complete("".join(pieces), stop)
    assert "" not in found


def test_until_stop_holds_back_only_what_it_must() -> None:
    assert list(until_stop(["Well", ", U", "se", "r:", " no"], ["User:"])) == ["Well", ", "]
    assert list(until_stop(["Well", ", U", "ncle"], ["User:"])) == ["Well", ", ", "Uncle"]


def test_messages_become_ours() -> None:
    messages: list[BaseMessage] = [
        SystemMessage("Be brief."),
        HumanMessage([{"type": "text", "text": "Who"}, "is it?"]),
        AIMessage("Me."),
    ]
    assert to_prompt(messages) == (
        Message("system", "Be brief."),
        Message("user", "Whois it?"),
        Message("assistant", "Me."),
    )


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (ToolMessage("42", tool_call_id="1"), "type 'tool' came; expected system, human or ai"),
        (HumanMessage([{"type": "image", "url": "x"}]), "content of type image"),
    ],
)
def test_messages_that_the_model_cannot_read(message: BaseMessage, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        scripted("x").invoke([message])


def test_settings_that_it_would_ignore_are_refused() -> None:
    with pytest.raises(InputError, match="does not take temperature, tools"):
        scripted("x").invoke("Go!", temperature=0.7, tools=[])
    with pytest.raises(InputError, match="does not take temperature"):
        list(scripted("x").stream("Go!", temperature=0.7))


def test_cached_answers_belong_to_one_model_and_length() -> None:
    cache = InMemoryCache()
    one = RagtuneChatModel(generator=ScriptedGenerator(lambda _: "one a", name="1"), cache=cache)
    two = RagtuneChatModel(generator=ScriptedGenerator(lambda _: "two b", name="2"), cache=cache)
    short = RagtuneChatModel(generator=one.generator, cache=cache, max_new_tokens=1)
    for _ in range(2):
        assert [model.invoke("Go!").content for model in (one, two, short)] == ["one a", "two b", "one"]
    assert isinstance(one.generator, ScriptedGenerator)
    assert len(one.generator.prompts) == 2  # `one` and `short`, each asked once


def test_constructors_open_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Session, "embedder", EMBEDDER)
    monkeypatch.setattr(Session, "generator", lambda self, weights: ScriptedGenerator(lambda _: weights, name=weights))
    project = ProjectConfig(name="harbour")
    with pytest.raises(StoreError, match="no index"):
        retriever_for(project)
    write_index(project.place("indexes"))
    assert len(retriever_for(project).invoke("dogs")) == 2
    assert len(retriever_for(project, k=1).invoke("dogs")) == 1
    assert chat_model_for(project).invoke("Go!").content == "base"
    assert chat_model_for(project, arm="raft", max_new_tokens=5).invoke("Go!").content == "raft"
    with pytest.raises(ConfigError, match="unknown arm"):
        chat_model_for(project, arm="nope")


def test_importing_the_adapters_loads_no_torch() -> None:
    code = "import sys, ragtune.interop; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
