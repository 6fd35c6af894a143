"""A Chat over any server that speaks OpenAI's chat completions: Ollama, vLLM, llama.cpp, `transformers serve`, a hosted one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from microtome.errors import ChatError
from microtome.llm.bounding import TooMuch, bounded
from microtome.llm.chat import GREEDY, Message, Reply, Sampling, UnusableAnswer
from microtome.llm.replies import Gathered, of_body, shown, told
from microtome.llm.settings import Secret, Settings, is_loopback

__all__ = ["Endpoint"]

CONNECT = 10.0
LONGEST_TEXT = 1_000_000
LONGEST_PAGE = 100_000
_Kinds = tuple[type[Exception], ...]
PASSING = (408, 429, 500, 502, 503, 504, 529)
"""Statuses that may be gone when asked again."""
KEPT = ("accept", "content-length", "content-type", "host", "user-agent")
"""Headers of a request that are sent; what OPENAI_CUSTOM_HEADERS and its kin put beside them is not."""


@dataclass(frozen=True)
class _Fault:
    """Why no answer came. wait: seconds after which asking again may help; None: it will not."""

    error: ChatError
    wait: float | None = None


class Endpoint:
    """Asks one model of one server. Every request stands alone; temperature 0 and seed 0 unless told otherwise.

    settings: where, which model, and with which key.
    tries: how often a question is sent while the server says "too many requests" or has a fault of its own.
    longest_wait: seconds; a server that asks for a longer pause (Retry-After) is not waited for.
    say: hears one sentence before every pause. sleep: waits; replaced in tests.

    Raises
    ------
    ChatError: no model is named (the error lists what the server has), or the package openai is not installed.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        tries: int = 3,
        longest_wait: float = 60.0,
        say: Callable[[str], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings, self._tries, self._longest_wait = settings, tries, longest_wait
        self._say, self._sleep = say or (lambda _: None), sleep
        self._client, self._errors, self._lost = _client(settings)
        if not settings.model:
            raise ChatError(
                f"no model is named for {settings.url}",
                why=self._listing(),
                instead='MICROTOME_LLM_MODEL=..., or model = "..." in the file',
            )
        self.name = f"{settings.model} at {urlsplit(settings.url).netloc}"

    def __repr__(self) -> str:
        return f"<Endpoint {self.name}>"

    def ask(
        self,
        messages: Sequence[Message],
        sampling: Sampling = GREEDY,
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> Reply:
        """One answer; streamed if somebody listens. A finish of "length" says that it was cut by max_tokens.

        Raises
        ------
        UnusableAnswer: something came, but no whole text: broken JSON, a page of HTML, a refusal, nothing, a stream that
        was cut (`came` keeps what had come). ChatError: no connection, silence for longer than the timeout, a redirect,
        a key or a model that the server does not take, a pause longer than longest_wait, a fault that stays.
        """
        _check(messages)
        body: dict[str, Any] = {
            "model": self._settings.model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "temperature": sampling.temperature,
        }
        body |= {} if sampling.seed is None else {"seed": sampling.seed}
        body |= {} if sampling.max_tokens is None else {"max_tokens": sampling.max_tokens}
        attempt = 1
        while isinstance(outcome := self._once(body, on_text), _Fault):
            if outcome.wait is None or attempt >= self._tries:
                raise outcome.error
            wait = max(outcome.wait, 2.0 ** (attempt - 1))
            if wait > self._longest_wait:
                raise _too_long(outcome.error, wait, self._longest_wait)
            attempt += 1
            self._say(f"{outcome.error.what}; asking again in {wait:.0f} s ({attempt} of {self._tries})")
            self._sleep(wait)
        return outcome

    def models(self) -> tuple[str, ...]:
        """The names of the models that the server lists.

        Raises
        ------
        ChatError: it lists none that can be read.
        """
        import openai

        body: object = None
        fault = None
        try:
            body = self._client.get("/models", cast_to=object)
        except openai.APIStatusError as error:
            status = error.status_code
            fault = _Fault(ChatError(f"the server answered {status}", why=self._clean(told(error.body)) or "nothing more", instead="name one"))  # fmt: skip
        except self._errors as error:
            fault = self._fault(error)
        except (ValueError, RecursionError):
            body = None
        if fault:
            raise fault.error
        rows = body.get("data") if isinstance(body, dict) else None
        if not isinstance(rows, list):
            raise ChatError("the server lists no models", why=self._clean(told(body)) or "broken JSON", instead="name one")  # fmt: skip
        names = (row.get("id") for row in rows if isinstance(row, dict))
        return tuple(self._clean(shown(name, 200)) for name in names if isinstance(name, str))

    def _once(self, body: dict[str, Any], on_text: Callable[[str], None] | None) -> Reply | _Fault:
        return self._whole(body) if on_text is None else self._streamed(body, on_text)

    def _whole(self, body: dict[str, Any]) -> Reply | _Fault:

        started = time.monotonic()
        try:
            came = self._client.post("/chat/completions", body=body, cast_to=object)
        except self._errors as error:
            return self._fault(error)
        except (ValueError, RecursionError):
            return _Fault(_broken(""))
        try:
            reply = of_body(came, self._settings.model, time.monotonic() - started)
        except UnusableAnswer as error:
            return _Fault(self._scrubbed(error))
        return self._clean_reply(reply)

    def _streamed(self, body: dict[str, Any], on_text: Callable[[str], None]) -> Reply | _Fault:
        import openai

        started, gathered = time.monotonic(), Gathered()
        kind: Any = openai.Stream[object]
        try:
            stream: Any = self._client.post(
                "/chat/completions",
                body={**body, "stream": True, "stream_options": {"include_usage": True}},
                cast_to=object,
                stream=True,
                stream_cls=kind,
            )
        except self._errors as error:
            return self._fault(error)
        speaker = _Speaker(on_text, self._settings.key)
        with stream:
            if "event-stream" not in stream.response.headers.get("content-type", "event-stream"):
                return self._not_a_stream(stream)
            pieces = iter(stream)
            while (piece := self._next(pieces, gathered)) is not None:
                if isinstance(piece, _Fault):
                    return piece
                speaker.hear(piece)
            speaker.end()
        if not gathered.finish:
            return _Fault(_cut(self._clean(gathered.so_far), "the stream ended before the model did"))
        try:
            reply = gathered.reply(self._settings.model, time.monotonic() - started)
        except UnusableAnswer as error:
            return _Fault(self._scrubbed(error))
        return self._clean_reply(reply)

    def _next(self, pieces: Iterator[object], gathered: Gathered) -> str | _Fault | None:
        """The text of the next piece of a stream; None at its end."""
        import openai

        try:
            piece = next(pieces, None)
        except openai.APITimeoutError:
            return _Fault(_cut(self._clean(gathered.so_far), f"silence for {self._settings.timeout:g} s"))
        except self._lost as error:
            why = str(error) if isinstance(error, TooMuch) else "the connection ended"
            return _Fault(_cut(self._clean(gathered.so_far), why))
        except openai.APIError as error:
            why = told(error.body) or shown(error.message)
            return _Fault(_cut(self._clean(gathered.so_far), f"the server said: {self._clean(why)}"))
        except (ValueError, RecursionError):
            return _Fault(_broken(self._clean(gathered.so_far)))
        if piece is None:
            return None
        text = gathered.chunk(piece) if isinstance(piece, dict) else None
        if text is None:
            return _Fault(_broken(self._clean(gathered.so_far)))
        if gathered.size > LONGEST_TEXT:
            return _Fault(_cut(self._clean(gathered.so_far), f"longer than {LONGEST_TEXT} characters"))
        return text

    def _not_a_stream(self, stream: Any) -> _Fault:
        data = b""
        with suppress(*self._lost):
            for piece in stream.response.iter_bytes():
                data += piece
                if len(data) > LONGEST_PAGE:
                    break
        text = data.decode("utf-8", "replace")
        said = self._clean(told(text) or "nothing")
        return _Fault(
            UnusableAnswer(
                "the server did not stream",
                why=f"it sent {said}",
                instead="check that the url is the base address of an OpenAI-compatible API",
                came=self._clean(shown(text, 2000)),
            )
        )

    def _fault(self, error: Any) -> _Fault:
        """What an error of the client means. The error itself is let go: it holds the request, and so the key."""
        import openai

        where = self._settings.url
        if isinstance(error, openai.APITimeoutError):
            return _Fault(ChatError(f"{where} was silent for too long", why=f"nothing came for {self._settings.timeout:g} s ({CONNECT:g} s to connect)",
                                    instead="a longer timeout, a smaller model, or fewer tokens"))  # fmt: skip
        if isinstance(error, self._lost):
            cause = error.__cause__ or error
            kind = "" if isinstance(cause, TooMuch) else f"{type(cause).__name__}: "
            said = self._clean(shown(f"{kind}{cause}"))
            return _Fault(ChatError(f"no answer from {where}", why=said,
                                    instead="check that the server runs and that the url is right"))  # fmt: skip
        if not isinstance(error, openai.APIStatusError):
            return _Fault(ChatError(f"{where} answered with an error", why=self._clean(told(error.body) or shown(error.message)),
                                    instead="see the server's log"))  # fmt: skip
        return self._of_status(error)

    def _of_status(self, error: Any) -> _Fault:
        status, where = error.status_code, self._settings.url
        body = error.body if error.body is not None else error.response.text
        said = self._clean(told(body)) or "nothing more"
        if 300 <= status < 400:
            to = self._clean(shown(error.response.headers.get("location", "nowhere"), 200))
            return _Fault(ChatError(f"{where} redirects to {to}", why="prompts and keys go only to the address that you gave",
                                    instead="if that is right, set the url to it"))  # fmt: skip
        if status in (401, 403):
            given = (
                f"the key from {self._settings.source or 'the settings'}" if self._settings.key else "no key"
            )
            return _Fault(ChatError(f"{where} did not let us in ({status}): {said}", why=f"{given} was sent",
                                    instead="check MICROTOME_LLM_KEY, or key in the file; OPENAI_API_KEY is not read"))  # fmt: skip
        if status == 404:
            return _Fault(ChatError(f"{where} does not have the model {self._settings.model!r}, or is no API: {said}",
                                    why=self._listing(), instead=self._elsewhere()))  # fmt: skip
        what = f"{where} answered {status}: {said}"
        quota = status == 429 and getattr(error, "code", None) == "insufficient_quota"
        if status in PASSING and not quota:
            return _Fault(ChatError(what, why=f"asked {self._tries} times", instead="try later"), _pause(error.response.headers))  # fmt: skip
        return _Fault(ChatError(what, why="the server did not take the request", instead="see what it says"))

    def _elsewhere(self) -> str:
        base = (
            ""
            if self._settings.url.endswith("/v1")
            else f"; or the url lacks its end, as a rule /v1: {self._settings.url}/v1"
        )
        return f"name a model that it has{base}"

    def _listing(self) -> str:
        try:
            names = self.models()
        except ChatError as error:
            return f"what it has cannot be listed: {error.what}"
        return f"it lists {', '.join(names[:20])}" if names else "it lists no model"

    def _clean(self, text: str) -> str:
        return self._settings.key.scrub(text) if self._settings.key else text

    def _clean_reply(self, reply: Reply) -> Reply:
        from dataclasses import replace

        # over the whole text: a key may have come in two pieces of a stream
        return replace(reply, text=self._clean(reply.text), model=self._clean(reply.model))

    def _scrubbed(self, error: UnusableAnswer) -> UnusableAnswer:
        what, why, instead, came = map(self._clean, (error.what, error.why, error.instead, error.came))
        return UnusableAnswer(what, why=why, instead=instead, came=came)


class _Speaker:
    """Passes text on without the key, even where the key comes in two pieces: what may be its beginning is held back."""

    def __init__(self, on_text: Callable[[str], None], key: Secret | None) -> None:
        self._on_text, self._key, self._held = on_text, key, ""

    def hear(self, piece: str) -> None:
        if self._key is None:
            self._pass(piece)
            return
        text, key = self._key.scrub(self._held + piece), self._key.reveal()
        n = next((n for n in range(min(len(key) - 1, len(text)), 0, -1) if text.endswith(key[:n])), 0)
        self._held = text[len(text) - n :]
        self._pass(text[: len(text) - n])

    def end(self) -> None:
        self._pass(self._held)

    def _pass(self, text: str) -> None:
        if text:
            self._on_text(text)


def _check(messages: Sequence[Message]) -> None:
    wrong = "" if messages else "there is no message"
    for number, message in enumerate(messages, 1):
        try:
            message.content.encode("utf-8")
        except UnicodeEncodeError:
            wrong = f"message {number} holds half a character (a lone surrogate)"
    if wrong:
        raise ChatError("nothing that can be sent", why=wrong, instead="text that is valid Unicode")


def _client(settings: Settings) -> tuple[Any, _Kinds, _Kinds]:
    """The client, the errors that it raises, and those of them that mean a lost connection.

    Some of them are of the HTTP library under it, which it passes on as they are.

    The client never holds the key: that is put on each request as it leaves.
    """
    try:
        import openai
    except ImportError:
        openai = None  # type: ignore[assignment]
    if openai is None:
        raise ChatError(
            "the package openai is not installed",
            why="it speaks with the endpoint",
            instead="pip install 'microtome[llm]', or copy and paste without an endpoint",
        )

    def leave(request: Any) -> None:
        for name in [name for name in request.headers if name.lower() not in KEPT]:
            del request.headers[name]
        # nothing is left open between questions that are minutes apart
        request.headers["Connection"] = "close"
        request.headers["Accept-Encoding"] = "identity"
        if settings.key:
            request.headers["Authorization"] = f"Bearer {settings.key.reveal()}"

    timeout = openai.Timeout(settings.timeout, connect=min(CONNECT, settings.timeout))
    # httpx or httpx2, by openai's version
    base = next(c for c in openai.DefaultHttpxClient.__mro__ if c.__module__.startswith("httpx"))
    library: Any = import_module(base.__module__.partition(".")[0])
    http = openai.DefaultHttpxClient(
        follow_redirects=False,
        timeout=timeout,
        trust_env=not is_loopback(settings.host),  # a proxy has nothing to do with this machine
        event_hooks={"request": [leave], "response": [bounded(library, settings.timeout)]},
    )
    # given, so that the client takes none of them from the environment
    client = openai.OpenAI(base_url=settings.url, api_key="unused", admin_api_key="", organization="", project="", webhook_secret="",
                         max_retries=0, timeout=timeout, http_client=http)  # fmt: skip
    lost = (openai.APIConnectionError, library.HTTPError, library.StreamError, TooMuch)
    return client, (openai.APIError, *lost), lost


def _pause(headers: Any) -> float:
    """Seconds that the server asks us to wait (0 where it does not say).

    Source: RFC 9110, section 10.2.3: Retry-After is a number of seconds or a date.
    """
    from email.utils import parsedate_to_datetime

    said = headers.get("retry-after", "").strip()
    if said.isdigit() and len(said) < 10:
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _too_long(error: ChatError, wait: float, most: float) -> ChatError:
    return ChatError(
        error.what,
        why=f"the server asks for a pause of {wait:.0f} s, longer than {most:.0f} s",
        instead="ask again after that",
    )


def _broken(came: str) -> UnusableAnswer:
    return UnusableAnswer(
        "the server's answer is broken",
        why="it is no JSON of a chat completion",
        instead="ask again; check that the url is the base address of an OpenAI-compatible API",
        came=came,
    )


def _cut(came: str, why: str) -> UnusableAnswer:
    return UnusableAnswer(
        f"the answer was cut after {len(came)} characters",
        why=why,
        instead="ask again; what came is kept in the error and is no answer",
        came=came,
    )
