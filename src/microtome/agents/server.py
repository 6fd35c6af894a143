"""The server: tools, resources and prompts of one project, over any transport of the official SDK."""

from __future__ import annotations

import base64
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from microtome.agents.bounds import check_size, dump, fit
from microtome.agents.desk import Call, Desk
from microtome.agents.jobs import Job, Stopped
from microtome.agents.settings import Settings, agent_name
from microtome.agents.tools import Answer, Book
from microtome.errors import LabError, MicrotomeError
from microtome.escapes import visible

if TYPE_CHECKING:
    import mcp_types as types
    from mcp.server import Server

__all__ = ["Service", "need_sdk", "serve_stdio"]

T = TypeVar("T")
_AT_ONCE = 8  # calls that are worked on; more wait
_POLL, _EVERY, _BEAT = 0.02, 0.25, 5.0  # seconds: looking, telling progress, saying that it still runs
_DEFECT = "this is a defect of Microtome; the server goes on, and its log has the traceback"


def need_sdk() -> None:
    """Raises LabError where the SDK is not installed."""
    from importlib.util import find_spec

    if find_spec("mcp") is None:
        raise LabError(
            "the package mcp is not installed",
            why="the server speaks the Model Context Protocol through its official SDK",
            instead='pip install "microtome[mcp]"',
        )


def serve_stdio(settings: Settings) -> None:
    """Serve one client over standard input and output until it goes away. Nothing else may write to standard output.

    Raises LabError where the SDK is not installed.
    """
    need_sdk()
    import anyio
    from mcp.server.stdio import stdio_server

    service = Service(settings)

    async def run() -> None:
        async with stdio_server() as (read, write):
            server = service.server()
            await server.run(read, write, server.create_initialization_options())

    try:
        anyio.run(run)
    finally:
        service.close()


class Service:
    """What every transport serves: the desk, the tools, and threads to work in."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.desk = Desk(settings)
        self.threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="microtome-agent")
        self._book: Book | None = None
        logging.getLogger("mcp").setLevel(logging.WARNING)

    def close(self) -> None:
        """Stop what runs. A run that does not stop in time is cut off with the process, which the record tells."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        if not self.desk.close():
            sys.stderr.write("a run did not stop in time and is cut off; the record calls it interrupted\n")
            sys.stderr.flush()
            os._exit(1)

    def book(self) -> Book:
        """Every tool. Making them imports every technique, so it is done when a client first asks."""
        if self._book is None:
            from microtome.agents import (
                tools_claims,
                tools_look,
                tools_models,
                tools_record,
                tools_report,
                tools_run,
                tools_tasks,
            )

            book = Book()
            for part in (
                tools_models,
                tools_tasks,
                tools_look,
                tools_run,
                tools_record,
                tools_claims,
                tools_report,
            ):
                book.add(*part.TOOLS)
            book.add(*tools_run.of_techniques())
            self._book = book
        return self._book

    # ------------------------------------------------------------------------------------------ calls

    def server(self) -> Server[Any]:
        """The SDK's server with the handlers of this service."""
        from mcp.server import Server

        import microtome
        from microtome.agents.guide import INSTRUCTIONS

        return Server(
            "microtome", version=microtome.__version__, instructions=INSTRUCTIONS, on_list_tools=self._list_tools, on_call_tool=self._call_tool,
            on_list_resources=self._list_resources, on_read_resource=self._read_resource,
            on_list_resource_templates=self._list_templates, on_list_prompts=self._list_prompts, on_get_prompt=self._get_prompt,
        )  # fmt: skip

    async def _list_tools(self, ctx: Any, params: Any) -> types.ListToolsResult:
        import mcp_types as types

        book = await self._work(ctx, lambda _: self.book())
        return types.ListToolsResult(tools=[
            types.Tool(name=t.name, description=t.description, input_schema=t.schema,
                       annotations=types.ToolAnnotations(read_only_hint=t.reads, destructive_hint=False, open_world_hint=False))
            for t in book.tools.values()
        ])  # fmt: skip

    async def _call_tool(self, ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        arguments = params.arguments or {}

        def work(call: Call) -> Answer:
            check_size(arguments)
            return self.book().get(params.name)(call, arguments)

        try:
            answer = await self._work(ctx, work)
        except MicrotomeError as error:
            return _failed(str(error))
        except Stopped:
            return _failed("cancelled")
        return _result(answer, self.settings)

    async def _work(self, ctx: Any, work: Callable[[Call], T]) -> T:
        """Work in a thread, telling the client how far it is. A client that cancels stops it at its next step."""
        import anyio

        job = Job()
        future = self.threads.submit(self._in_thread, job, _client(ctx), work)
        told, last = 0, time.monotonic()
        try:
            while not future.done():
                await anyio.sleep(_POLL)
                waited = time.monotonic() - last
                if (job.steps > told and waited >= _EVERY) or waited >= _BEAT:
                    last, told = time.monotonic(), job.steps
                    seconds = last - job.began
                    await ctx.session.report_progress(round(seconds, 2), None, f"{job.said or 'running'} ({seconds:.0f} s)")  # fmt: skip
        finally:
            job.stop()
            future.cancel()
        return _outcome(future)

    def _in_thread(self, job: Job, client: str, work: Callable[[Call], T]) -> T:
        with self.desk.job(job):
            return work(Call(self.desk, agent_name(self.settings, client), job))

    # -------------------------------------------------------------------------- resources and prompts

    async def _list_resources(self, ctx: Any, params: Any) -> types.ListResourcesResult:
        import mcp_types as types

        from microtome.agents import guide

        newest = await self._work(ctx, guide.runs)
        fixed = [
            types.Resource(uri=uri, name=n, title=title, mime_type=kind)
            for uri, (n, title, kind) in guide.FIXED.items()
        ]
        runs = [types.Resource(uri=f"microtome://run/{k}", name=f"run {k}", title=title[:200], mime_type="application/json")
                for k, title in newest]  # fmt: skip
        return types.ListResourcesResult(resources=[*fixed, *runs])

    async def _list_templates(self, ctx: Any, params: Any) -> types.ListResourceTemplatesResult:
        import mcp_types as types

        made = [("microtome://run/{number}", "run", "application/json"), ("microtome://run/{number}/figure.svg", "figure of a run", "image/svg+xml")]  # fmt: skip
        return types.ListResourceTemplatesResult(
            resource_templates=[
                types.ResourceTemplate(uri_template=u, name=n, mime_type=k) for u, n, k in made
            ]
        )

    async def _read_resource(
        self, ctx: Any, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        import mcp_types as types
        from mcp.shared.exceptions import MCPError

        from microtome.agents import guide

        address = str(params.uri)
        try:
            kind, text = await self._work(ctx, lambda call: guide.read(call, address))
        except MicrotomeError as error:
            raise MCPError(types.INVALID_PARAMS, str(error)) from error
        return types.ReadResourceResult(
            contents=[types.TextResourceContents(uri=params.uri, text=text, mime_type=kind)]
        )

    async def _list_prompts(self, ctx: Any, params: Any) -> types.ListPromptsResult:
        import mcp_types as types

        argument = types.PromptArgument(name="question", description="what to find out", required=True)
        prompt = types.Prompt(name="investigate", description="Investigate a question under the rules of the lab.", arguments=[argument])  # fmt: skip
        return types.ListPromptsResult(prompts=[prompt])

    async def _get_prompt(self, ctx: Any, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        import mcp_types as types
        from mcp.shared.exceptions import MCPError

        from microtome.agents.guide import investigate

        question = (params.arguments or {}).get("question", "").strip()
        if params.name != "investigate" or not question:
            raise MCPError(types.INVALID_PARAMS, "the prompt is investigate, with a question")
        text = types.TextContent(type="text", text=investigate(question[:2000]))
        return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=text)])


def _client(ctx: Any) -> str:
    """What the client says it is called; "" when it does not say."""
    told = ctx.session.client_params
    return str(told.client_info.name) if told is not None and told.client_info is not None else ""


def _outcome(future: Future[T]) -> T:
    """What the thread gave. A fault that nobody foresaw is told to the client in a line, and in full to the log."""
    error = future.exception()
    if error is None or not isinstance(error, Exception) or isinstance(error, MicrotomeError):
        return future.result()
    sys.stderr.write("".join(traceback.format_exception(error)))
    raise LabError(f"{type(error).__name__}: {error}"[:1000], why=_DEFECT, instead="another way to ask") from error  # fmt: skip


def _failed(text: str) -> types.CallToolResult:
    import mcp_types as types

    return types.CallToolResult(
        content=[types.TextContent(type="text", text=visible(text, keep="\n")[:4000])], is_error=True
    )


def _result(answer: Answer, settings: Settings) -> types.CallToolResult:
    import mcp_types as types

    content: list[Any] = [types.TextContent(type="text", text=dump(fit(dict(answer.data))))]
    if answer.png:
        content.append(types.ImageContent(type="image", data=base64.b64encode(answer.png).decode(), mime_type="image/png"))  # fmt: skip
    elif answer.svg:
        # not as an image: clients hand images to their model, and few models read SVG
        where = types.TextResourceContents(uri=f"microtome://run/{answer.data.get('run')}/figure.svg", text=answer.svg, mime_type="image/svg+xml")  # fmt: skip
        content.append(types.EmbeddedResource(type="resource", resource=where))
    return types.CallToolResult(content=content)
