"""The client against a real server of the protocol: `transformers serve` with the embedded model, on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from microtome.errors import ChatError
from microtome.llm import quiz
from microtome.llm.chat import Message, Sampling, UnusableAnswer
from microtome.llm.curriculum import curriculum
from microtome.llm.endpoint import Endpoint
from microtome.llm.settings import Secret, Settings
from microtome.llm.tutor import Tutor
from microtome.model import embedded
from microtome.model.embedded import ensure

ASK = [Message("user", "What is the capital of France? Answer in one sentence.")]
SHORT = Sampling(max_tokens=24)


def _free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _healthy(url, process, log):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the server ended: {log.read_text(errors='replace')[-2000:]}")
        try:
            with urllib.request.urlopen(url + "/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the server did not come up in 120 s")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Its base address and the name of its model."""
    model = str(ensure(embedded.SOURCES["smollm2-135m-instruct"])[0])
    port, home = _free_port(), tmp_path_factory.mktemp("serve")
    command = [str(Path(sys.executable).with_name("transformers")), "serve", model, "--host", "127.0.0.1"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(home),
        "NO_COLOR": "1",
    }
    log = home / "log"
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "--port", str(port), "--device", "cpu"], env=environment, stdout=out,
                                   stderr=subprocess.STDOUT)  # fmt: skip
    try:
        _healthy(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def chat(server):
    return Endpoint(Settings(*server, timeout=180.0))


def test_it_answers_the_same_twice_and_streams_what_it_answers(chat, server):
    whole = chat.ask(ASK, SHORT)
    assert "Paris" in whole.text and whole.finish == "stop"
    assert 10 < whole.prompt_tokens < 100 and 1 < whole.completion_tokens <= 24
    assert server[1] in whole.model
    heard = []
    streamed = chat.ask(ASK, SHORT, on_text=heard.append)
    assert streamed == whole, "one request, two ways: text, model, reason and counts are the same"
    assert len(heard) > 3 and "".join(heard) == whole.text


def test_a_limit_of_tokens_is_marked(chat):
    reply = chat.ask([Message("user", "Count from one to fifty in words.")], Sampling(max_tokens=8))
    assert reply.finish == "length" and reply.completion_tokens == 8


def test_a_key_is_taken_by_a_server_that_needs_none(server):
    chat = Endpoint(Settings(*server, key=Secret("sk-planted-0123456789abcdef")))
    assert chat.ask(ASK, SHORT).text


def test_another_model_is_refused_with_what_the_server_says(server):
    with pytest.raises(ChatError, match="pinned") as caught:
        Endpoint(Settings(server[0], "another-model")).ask(ASK, SHORT)
    assert "another-model" in caught.value.what


def test_a_tutor_answers_within_its_frame(chat):
    tutor = Tutor(chat, curriculum().topic("tokens"), sampling=Sampling(max_tokens=8))
    tutor.say("A leading space makes another token.")
    assert [m.role for m in tutor.messages] == ["system", "user", "assistant"]


def test_a_weak_models_quiz_ends_in_an_error_or_in_items_that_were_looked_up(chat):
    """What 135 million parameters write is broken as a rule; whatever comes, no item is asked that was not checked."""
    source = "A word with a leading space is another token than the word without it. A name may be one token or several."
    try:
        made = quiz.generate(chat, source, 1, topic="tokens", sampling=Sampling(max_tokens=64))
    except UnusableAnswer as error:
        assert error.came and error.why
    else:
        assert made.items and all(quiz.wrong_with(item, source) == "" for item in made.items)
