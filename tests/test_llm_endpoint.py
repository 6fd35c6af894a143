"""The client of an endpoint against a server on loopback that does everything wrong that a server can do."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import pickle
import socket
import sys
import traceback

import pytest

from fake_endpoint import chunk, completion, serving
from microtome.errors import ChatError
from microtome.llm.chat import Message, Sampling, UnusableAnswer
from microtome.llm.endpoint import Endpoint
from microtome.llm.settings import Secret, Settings

KEY = "sk-planted-0123456789abcdef"
ASK = [Message("system", "Be brief."), Message("user", "What is a residual stream?")]


def endpoint(server, key=KEY, timeout=30.0, **options):
    waited = []
    made = Endpoint(Settings(server.url, "small", Secret(key) if key else None, timeout, "a test"),
                    sleep=waited.append, **options)  # fmt: skip
    made.waited = waited
    return made


def refused(answer, match, *, stream=False, kind=ChatError, **options):
    """The error of one question, after every text in it was searched for the key."""
    with serving(answer) as server, pytest.raises(kind, match=match) as caught:
        endpoint(server, **options).ask(ASK, on_text=(lambda _: None) if stream else None)
    error = caught.value
    assert error.__cause__ is None and error.__context__ is None, "the client's error holds the request"
    said = "".join(traceback.format_exception(error)) + repr(vars(error)) + repr(error.args)
    assert KEY not in said
    assert error.why and error.instead
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    return error


def test_a_question_is_sent_as_it_is_and_the_answer_comes_with_its_counts():
    with serving(lambda h, n: h.json(completion("A vector per position."))) as server:
        chat = endpoint(server)
        reply = chat.ask(ASK)
    assert (reply.text, reply.model, reply.finish) == ("A vector per position.", "small-v1", "stop")
    assert (reply.prompt_tokens, reply.completion_tokens) == (7, 3) and reply.seconds > 0
    sent = server.asked[-1]
    assert sent["path"] == "/v1/chat/completions"
    assert sent["body"] == {"model": "small", "messages": [{"role": m.role, "content": m.content} for m in ASK],
                            "temperature": 0.0, "seed": 0}  # fmt: skip
    assert sent["headers"]["Authorization"] == f"Bearer {KEY}"
    assert chat.name == f"small at 127.0.0.1:{server.server_port}" and KEY not in repr(chat)


def test_sampling_is_passed_on():
    with serving(lambda h, n: h.json(completion())) as server:
        endpoint(server).ask(ASK, Sampling(0.7, None, 50))
    body = server.asked[-1]["body"]
    assert (body["temperature"], body["max_tokens"], "seed" in body) == (0.7, 50, False)


def test_a_stream_is_heard_piece_by_piece_and_given_back_whole():
    heard = []
    usage = {"model": "small-v1", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    with serving(lambda h, n: h.events(chunk("A "), chunk("vector"), chunk(finish="stop"), usage)) as server:
        reply = endpoint(server).ask(ASK, on_text=heard.append)
    assert heard == ["A ", "vector"] and reply.text == "A vector" and reply.finish == "stop"
    assert (reply.model, reply.prompt_tokens, reply.completion_tokens) == ("small-v1", 7, 2)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_cut_by_its_length_is_marked(stream):
    def answer(h, n):
        h.events(chunk("Half an"), chunk(finish="length")) if stream else h.json(
            completion("Half an", "length")
        )

    with serving(answer) as server:
        reply = endpoint(server).ask(ASK, on_text=(lambda _: None) if stream else None)
    assert (reply.text, reply.finish) == ("Half an", "length")


def test_too_many_requests_are_waited_for_as_long_as_the_server_says():
    def answer(h, n):
        h.json({"error": {"message": "slow down"}}, 429, Retry_After="7") if n < 3 else h.json(completion())

    said = []
    with serving(answer) as server:
        chat = endpoint(server, say=said.append)
        assert chat.ask(ASK).text == "An answer."
    assert chat.waited == [7.0, 7.0]
    assert len(said) == 2 and "429" in said[0] and "in 7 s" in said[0] and "2 of 3" in said[0]


def test_a_pause_that_is_too_long_is_not_waited_for():
    error = refused(lambda h, n: h.json({"error": "no"}, 429, Retry_After="3600"), "429")
    assert "3600 s, longer than 60 s" in error.why


@pytest.mark.parametrize("after", ["nonsense", "-5", "Mon, 01 Jan 2001 00:00:00 GMT", "99999999999999999999"])
def test_a_pause_that_makes_no_sense_is_our_own(after):
    def answer(h, n):
        h.json({}, 429, Retry_After=after) if n < 3 else h.json(completion())

    with serving(answer) as server:
        chat = endpoint(server)
        chat.ask(ASK)
    assert chat.waited == [1.0, 2.0]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_fault_that_stays_ends_after_three_tries(status):
    tried = []
    refused(lambda h, n: (tried.append(n), h.json({"error": {"message": "it hurts"}}, status)), f"{status}: it hurts")  # fmt: skip
    assert len(tried) == 3


def test_a_fault_that_goes_away_is_not_noticed():
    with serving(
        lambda h, n: h.json({}, 500) if n == 1 else h.events(chunk("Yes"), chunk(finish="stop"))
    ) as server:
        assert endpoint(server).ask(ASK, on_text=lambda _: None).text == "Yes"


def test_an_exhausted_quota_is_not_asked_again():
    tried = []
    body = {"error": {"message": "pay first", "code": "insufficient_quota"}}
    refused(lambda h, n: (tried.append(n), h.json(body, 429)), "pay first")
    assert tried == [1]


@pytest.mark.parametrize(
    "data", [b'{"choices": [{"mess', b"", b"null", b"[]", b'"text"', b'{"choices": 3}', b'{"choices": []}', b'{"choices": [7]}',
             b'{"choices": [{"message": "hello"}]}', b"\xff\xfe", b"[" * 100_000]
)  # fmt: skip
def test_broken_json_is_no_answer(data):
    refused(lambda h, n: h.raw(data), "broken|no chat completion", kind=UnusableAnswer)


@pytest.mark.parametrize(
    ("message", "finish", "match", "came"),
    [
        ({"content": None}, "stop", "empty", ""),
        ({"content": "  \n"}, "stop", "empty", "  \n"),
        ({"content": None, "refusal": "I will not."}, "stop", "refused", "I will not."),
        ({"content": None, "tool_calls": [{"id": "1", "type": "function"}]}, "tool_calls", "call of a tool", ""),
        ({"content": "Some", "function_call": {"name": "rm"}}, "stop", "call of a tool", "Some"),
        ({"content": [{"type": "image_url"}]}, "stop", "content is a list", ""),
        ({"content": "Bad"}, "content_filter", "filter cut it", "Bad"),
        ({"content": "", "reasoning_content": "hmm"}, "length", "empty", ""),
    ],
)  # fmt: skip
def test_what_is_no_text_is_no_answer(message, finish, match, came):
    content = message.pop("content")
    error = refused(lambda h, n: h.json(completion(content, finish, **message)), match, kind=UnusableAnswer)
    assert error.came == came
    if "reasoning_content" in message:
        assert "thought for 3 characters" in error.why and "length" in error.why


@pytest.mark.parametrize("delta", [{"refusal": "No."}, {"tool_calls": [{"index": 0}]}, {"content": 7}, {}])
def test_what_is_no_text_is_no_answer_in_a_stream_either(delta):
    pieces = [{"choices": [{"delta": delta}]}, chunk(finish="stop")]
    refused(lambda h, n: h.events(*pieces), "cannot be used", stream=True, kind=UnusableAnswer)


def test_a_page_of_html_is_named():
    page = b"<!doctype html><html><head><title>Sign in \x1b[31m</title></head><body>Welcome</body></html>"
    for status in (200, 404):
        error = refused(lambda h, n, s=status: h.raw(page, "text/html", s), "no chat completion|no API")
        assert "an HTML page titled 'Sign in \\x1b[31m'" in str(error) and "\x1b" not in str(error)
    error = refused(lambda h, n: h.raw(page, "text/html"), "did not stream", stream=True, kind=UnusableAnswer)
    assert "Sign in" in error.why


def test_silence_ends_and_says_after_how_long():
    error = refused(lambda h, n: h.hang(), "silent for too long", timeout=0.3)
    assert "0.3 s" in error.why


def test_silence_in_the_middle_of_a_stream_keeps_what_came():
    def answer(h, n):
        h.events(chunk("The first half "), done=False)
        h.hang()

    error = refused(answer, "cut after 15", stream=True, kind=UnusableAnswer, timeout=2.0)
    assert error.came == "The first half " and "silence" in error.why


@pytest.mark.parametrize("stream", [True, False])
def test_signs_of_life_alone_are_no_answer(stream, monkeypatch):
    monkeypatch.setattr("microtome.llm.bounding.SIGNS", 2)

    def answer(h, n):
        h.events(done=False)
        while not h.server.over.wait(0.02):
            h.wfile.write(b": still here\n\n" if stream else b" \n")
            h.wfile.flush()

    error = refused(answer, "cut after 0" if stream else "no answer from", stream=stream, timeout=0.5)
    assert error.why == "it sent nothing but signs of life for 1 s"


def test_signs_of_life_before_an_answer_are_waited_through():
    def answer(h, n):
        h.events(done=False)
        for _ in range(30):
            h.wfile.write(b": loading\n\n")
            h.wfile.flush()
            h.server.over.wait(0.05)
        for one in (chunk("Here."), chunk(finish="stop"), "[DONE]"):
            h.wfile.write(f"data: {one if isinstance(one, str) else json.dumps(one)}\n\n".encode())

    with serving(answer) as server:
        assert endpoint(server, timeout=1.0).ask(ASK, on_text=lambda _: None).text == "Here."


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_never_ends_is_not_read_into_memory(stream, monkeypatch):
    monkeypatch.setattr("microtome.llm.bounding.MOST_BYTES", 100_000)
    sent = []

    def answer(h, n):
        h.send_response(200)
        h.send_header("Content-Type", "text/event-stream" if stream else "application/json")
        h.end_headers()
        with contextlib.suppress(OSError):
            while len(sent) < 100_000:
                h.wfile.write(b"x" * 10_000)
                sent.append(1)

    error = refused(answer, "cut after 0" if stream else "no answer from", stream=stream)
    assert error.why == "it sent more than 100,000 bytes" and len(sent) < 100_000


def test_what_is_compressed_unasked_is_not_unpacked():
    bomb = gzip.compress(b" " * 10_000_000)
    error = refused(lambda h, n: h.raw(bomb, Content_Encoding="gzip"), "no answer from")
    assert error.why == "it sent 'gzip', which was not asked for"
    with serving(lambda h, n: h.json(completion())) as server:
        endpoint(server).ask(ASK)
        assert server.asked[0]["headers"]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("how", ["closed", "done without a reason", "reset", "chunk cut"])
def test_a_stream_that_is_cut_is_no_answer(how):
    def answer(h, n):
        if how == "chunk cut":
            h.protocol_version = "HTTP/1.1"
            h.send_response(200)
            h.send_header("Content-Type", "text/event-stream")
            h.send_header("Transfer-Encoding", "chunked")
            h.end_headers()
            data = f"data: {json.dumps(chunk('The first'))}\n\n".encode()
            h.wfile.write(b"%x\r\n%s\r\nff\r\nda" % (len(data), data))
            h.close_connection = True
            return
        h.events(chunk("The first"), done=how == "done without a reason")
        if how == "reset":
            h.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    heard = []
    with serving(answer) as server, pytest.raises(UnusableAnswer, match="cut after 9") as caught:
        endpoint(server).ask(ASK, on_text=heard.append)
    assert caught.value.came == "The first" and heard == ["The first"]
    assert len(server.asked) == 1, (
        "half an answer was heard: it is not asked for again behind the reader's back"
    )


@pytest.mark.parametrize("bad", ['{"choices": [{"del', "[1, 2]", '{"choices": [3]}', '{"id": 1}', "nan"])
def test_a_broken_piece_of_a_stream_is_no_answer(bad):
    error = refused(lambda h, n: h.events(chunk("The first"), bad, chunk(finish="stop")), "broken", stream=True,
                    kind=UnusableAnswer)  # fmt: skip
    assert error.came == "The first"


@pytest.mark.parametrize("body", [{"error": {"message": "out of memory"}}, {"error": "out of memory"}])
def test_an_error_in_the_middle_of_a_stream_is_passed_on(body):
    error = refused(lambda h, n: h.events(chunk("So"), body), "cut", stream=True, kind=UnusableAnswer)
    assert "out of memory" in error.why and error.came == "So"


def test_a_stream_without_end_is_cut(monkeypatch):
    monkeypatch.setattr("microtome.llm.endpoint.LONGEST_TEXT", 100)
    error = refused(lambda h, n: h.events(*[chunk("x" * 30)] * 9), "cut", stream=True, kind=UnusableAnswer)
    assert "longer than 100" in error.why and len(error.came) == 120


def test_a_model_that_is_not_there_is_answered_with_those_that_are():
    error = refused(
        lambda h, n: h.json({"error": {"message": "model 'small' not found"}}, 404), "model 'small' not found"
    )
    assert error.why == "it lists small, large"


def test_no_model_is_asked_for_one():
    with (
        serving(lambda h, n: None) as server,
        pytest.raises(ChatError, match="no model is named") as caught,
    ):
        Endpoint(Settings(server.url))
    assert "small, large" in caught.value.why


@pytest.mark.parametrize("models", [{"data": "x"}, [], {"data": [3, {"name": 1}]}])
def test_a_list_of_models_that_is_none_does_not_hide_what_happened(models):
    with serving(lambda h, n: h.json({}, 404), models) as server, pytest.raises(ChatError, match="does not have the model"):  # fmt: skip
        endpoint(server).ask(ASK)


def test_a_server_that_knows_no_path_at_all_is_said_once(monkeypatch):
    monkeypatch.setattr("fake_endpoint.Handler.do_GET", lambda h: h.json({"detail": "Not Found"}, 404))
    error = refused(
        lambda h, n: h.json({"detail": "Not Found"}, 404),
        "does not have the model 'small', or is no API: Not Found",
    )
    assert "cannot be listed: the server answered 404" in error.why


@pytest.mark.parametrize("status", [200, 404, 500])
@pytest.mark.parametrize("stream", [True, False])
def test_a_body_that_is_cut_is_an_error_of_ours(status, stream):
    def answer(h, n):
        h.send_response(status)
        h.send_header("Content-Type", "application/json")
        h.send_header("Content-Length", "1000")
        h.end_headers()
        h.wfile.write(b'{"choices": [')
        h.close_connection = True

    refused(answer, "no answer from|did not stream", stream=stream)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(status):
    with serving(lambda h, n: h.json(completion("stolen"))) as other:
        error = refused(
            lambda h, n: h.json({}, status, Location=other.url + "/chat/completions"), "redirects to"
        )
    assert other.asked == [] and other.url in error.what


def test_nobody_there_is_said():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        settings = Settings(f"http://127.0.0.1:{free.getsockname()[1]}/v1", "small", Secret(KEY))
    with pytest.raises(ChatError, match="no answer from http://127") as caught:
        Endpoint(settings).ask(ASK)
    assert "refused" in caught.value.why.lower()


def test_a_key_that_is_echoed_back_is_scrubbed_everywhere():
    error = refused(
        lambda h, n: h.json({"error": {"message": f"Incorrect key {KEY}"}}, 401), r"Incorrect key \[key\]"
    )
    assert "a test" in error.why
    for body in ({"error": f"bad {KEY}"}, {"error": {"message": KEY}}):
        refused(lambda h, n, b=body: h.json(b, 400), r"\[key\]")
        error = refused(lambda h, n, b=body: h.events(chunk(f"it is {KEY}"), b), "cut", stream=True)
        assert error.came == "it is [key]"
    refused(lambda h, n: h.json({}, 302, Location=f"http://evil.test/?k={KEY}"), r"\[key\]")
    refused(lambda h, n: h.json(completion(None, refusal=f"not with {KEY}")), "refused")
    refused(lambda h, n: h.raw(KEY.encode(), "text/plain"), "no chat completion")
    refused(lambda h, n: h.raw(KEY.encode(), "text/plain"), "did not stream", stream=True)
    heard = []
    with serving(lambda h, n: h.json(completion(f"Your key is {KEY}."))) as server:
        assert endpoint(server).ask(ASK).text == "Your key is [key]."
    halves = [chunk("Your key is " + KEY[:9]), chunk(KEY[9:] + ". sk-"), chunk("plan"), chunk(finish="stop")]
    with serving(lambda h, n: h.events(*halves)) as server:
        assert endpoint(server).ask(ASK, on_text=heard.append).text == "Your key is [key]. sk-plan"
    assert "".join(heard) == "Your key is [key]. sk-plan"


def test_a_key_is_in_no_log_and_no_output(caplog, capfd):
    loggers = [logging.getLogger(name) for name in ("", "openai", "httpx2", "httpcore2", "httpx", "httpcore")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    try:
        with serving(lambda h, n: h.json({"error": KEY}, 500 if n == 1 else 401)) as server:
            chat = endpoint(server)
            with pytest.raises(ChatError):
                chat.ask(ASK)
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
    out = capfd.readouterr()
    assert server.asked[0]["headers"]["Authorization"].endswith(KEY)
    assert caplog.records, "nothing was logged: the search proves nothing"
    assert all(KEY not in record.getMessage() + repr(record.__dict__) for record in caplog.records)
    assert KEY not in out.out + out.err + repr(vars(chat)) + repr(vars(chat._client))


def test_a_traceback_that_shows_local_variables_does_not_show_the_key():
    from io import StringIO

    from rich import traceback as rich
    from rich.console import Console

    with serving(lambda h, n: h.json({}, 401)) as server:
        try:
            endpoint(server).ask(ASK)
        except ChatError:
            shown = rich.Traceback.from_exception(*sys.exc_info(), show_locals=True, locals_max_string=None)
    out = StringIO()
    Console(file=out, width=200).print(shown)
    # this test's own KEY is a global, so that it is no local of a frame
    assert "_streamed" in out.getvalue() or "outcome" in out.getvalue()
    assert KEY not in out.getvalue()


def test_the_environment_of_another_program_is_not_sent(monkeypatch):
    for name, value in {"OPENAI_API_KEY": "sk-other", "OPENAI_ORG_ID": "org-other", "OPENAI_PROJECT_ID": "proj-other",
                        "OPENAI_ADMIN_KEY": "sk-admin-other", "OPENAI_BASE_URL": "http://other.test/v1",
                        "OPENAI_CUSTOM_HEADERS": "Authorization: Bearer other\nX-Other: other"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with serving(lambda h, n: h.json(completion())) as server:
        endpoint(server).ask(ASK)
        endpoint(server, key=None).ask(ASK)
    with_key, without = [a["headers"] for a in server.asked]
    assert with_key["Authorization"] == f"Bearer {KEY}" and "Authorization" not in without
    assert "other" not in repr(server.asked)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ChatError, match="openai is not installed") as caught:
        Endpoint(Settings("http://127.0.0.1:1/v1", "small"))
    assert "microtome[llm]" in caught.value.instead


def test_what_cannot_be_sent_is_not_called_a_broken_answer():
    with serving(lambda h, n: h.json(completion())) as server:
        with pytest.raises(ChatError, match="nothing that can be sent"):
            endpoint(server).ask([Message("user", "\ud800")])
        with pytest.raises(ChatError, match="nothing that can be sent"):
            endpoint(server).ask([])
    assert server.asked == []


def test_an_error_of_the_listener_is_the_listeners():
    def deaf(_):
        raise RuntimeError("deaf")

    with serving(lambda h, n: h.events(chunk("A"), chunk(finish="stop"))) as server, pytest.raises(RuntimeError, match="deaf"):  # fmt: skip
        endpoint(server).ask(ASK, on_text=deaf)
