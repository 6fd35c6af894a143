"""The MCP server with the official client: an investigation from start to end, refusals, cancelling, several clients."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from agent_tools import COMMAND, data, environment, over_http, over_stdio, project, refused
from microtome.lab.reading import Wanted, open_record

SNAPSHOT = Path(__file__).parent / "snapshots" / "agent_tools.json"
SLOW = {"sites": ["L*H*.z"], "by": "resample"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return project(tmp_path / "project")


def rows(folder: Path, **wanted: Any) -> list[Any]:
    record = open_record(folder)
    try:
        return list(record.runs(Wanted(**wanted), limit=None))[::-1]
    finally:
        record.close()


async def induction(client: Client, n: int = 6, seed: int = 0) -> str:
    made = data(await client.call_tool("task_make", {"name": "induction", "n": n, "seed": seed}))
    return str(made["task"])


# ------------------------------------------------------------------------------------- the whole path


async def investigate(client: Client) -> dict[str, Any]:
    """A scripted agent: looks at pairs, predicts, finds the strongest induction head, removes it, and claims what that shows."""
    task = await induction(client)
    shown = data(await client.call_tool("task_show", {"task": task, "k": 1}))
    assert shown["untrusted"][0]["clean"]["tokens"] and "never an instruction" in shown["note"]

    about = {"method": "attention_patterns", "family": "induction", "model": "smollm2-135m-instruct"}
    holds = {
        "field": "table:detectors.score",
        "where": {"detector": "induction", "distribution": "task"},
        "how": "max",
        "low": 0.4,
    }
    made = data(
        await client.call_tool(
            "prediction_make",
            {"statement": "some head induces", "probability": 0.9, "about": about, "holds": holds},
        )
    )
    assert made["post_hoc"] is False and made["state"] == "open"

    told: list[str] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        told.append(message or "")

    result = await client.call_tool("run_attention_patterns", {"task": task}, progress_callback=progress)
    found = data(result)
    assert any("distributions" in t for t in told), told
    assert (
        found["verdict"] == "supported"
        and found["calibration"].startswith("On ")
        and found["untrusted"]["raw_examples"]
    )
    outcomes = {c["name"]: c["outcome"] for c in found["controls"]}
    assert set(outcomes) == {"rows_sum", "shuffled_keys", "other_texts"} and outcomes["rows_sum"] == "passed"
    assert [p["came"] for p in found["predictions"]] == ["true"]
    assert result.content[1].type in ("image", "resource")

    asked = {
        "run": found["run"],
        "table": "detectors",
        "where": {"detector": "induction", "distribution": "task"},
        "sort": "score",
        "n": 3,
    }
    best = data(await client.call_tool("run_table", asked))["rows"][0]
    assert best["score"] > best["null_high"]
    head = f"L{best['layer']}H{best['head']}.z"

    claim = data(await client.call_tool("claim_make", {
        "statement": f"{head} does induction", "about": {"family": "induction", "sites": [head], "model": "smollm2-135m-instruct"},
        "alternatives": ["it attends to the repeat and does nothing with it"], "falsifiers": ["removing it changes nothing"],
        "evidence": [found["run"]],
    }))  # fmt: skip
    assert claim["rung"] == "observed" and claim["caps"], claim
    again = data(await client.call_tool("prediction_make", {
        "statement": "removing it lowers the answer", "probability": 0.7, "about": {"method": "ablation", "family": "induction", "sites": [head]},
        "holds": {"field": "effects", "site": head, "high": 0.0}, "claim": claim["number"],
    }))  # fmt: skip
    removed = data(await client.call_tool("run_ablation", {"task": task, "sites": [head]}))
    cell = removed["strongest_cells"][0]
    assert cell["site"] == head and {"value", "null_low", "null_high", "n"} <= set(cell)
    linked = data(
        await client.call_tool(
            "claim_link", {"claim": claim["number"], "run": removed["run"], "note": "it was removed"}
        )
    )
    preview = await client.call_tool("report_preview", {"claims": [claim["number"]]})
    written = await client.call_tool(
        "report_write", {"name": "induction", "kind": "html", "claims": [claim["number"]]}
    )
    if removed["verdict"] in ("supported", "not distinguishable from its null"):
        assert head in data(preview)["draft"] and data(written)["written"] == "reports/induction.html"
    else:  # a mandatory control is missing: six pairs cannot tell
        assert f"run {removed['run']}" in refused(preview) and f"run {removed['run']}" in refused(written)
    return {
        "claim": linked,
        "head": head,
        "runs": [found["run"], removed["run"]],
        "predictions": [made["prediction"], again["prediction"]],
    }


def check_record(folder: Path, did: dict[str, Any], name: str) -> None:
    from microtome.lab.claim_rows import read
    from microtome.lab.predicting import predictions

    record = open_record(folder)
    try:
        runs = [record.run(n) for n in did["runs"]]
        assert [(r.method, r.person, r.by, r.state) for r in runs] == [
            ("attention_patterns", name, "agent", "finished"), ("ablation", name, "agent", "finished")
        ]  # fmt: skip
        assert runs[0].model_name == "smollm2-135m-instruct" and runs[0].family == "induction"
        told = predictions(record.database)
        assert [p.number for p in told] == did["predictions"] and {p.by for p in told} == {"agent"}
        assert told[0].state == "true" and told[0].run == did["runs"][0] and not told[0].post_hoc
        assert told[1].state in ("true", "false") and told[1].run == did["runs"][1]
        assert told[1].post_hoc  # the patterns of the same head on the same task had been seen
        claim = read(record, did["claim"]["number"])
        assert claim.person == name and claim.rung.name == did["claim"]["rung"]
        assert claim.rung.caps and len(did["claim"]["caps"]) == len(claim.rung.caps)
        assert (
            claim.rung.place < 3
        )  # seen on this prompt set only, by an ablation of six pairs: no held-out prompts
    finally:
        record.close()


def test_an_agent_finds_the_induction_heads_over_stdio(folder: Path) -> None:
    async def run() -> dict[str, Any]:
        async with over_stdio(folder, name="Scripted agent") as client:
            return await investigate(client)

    check_record(folder, anyio.run(run), "Scripted agent")


def test_http_serves_two_agents_and_refuses_strangers(folder: Path) -> None:
    async def run(server: Any) -> None:
        async with server.client("first") as first, server.client("second") as second:
            both: dict[str, Any] = {}

            async def look(client: Client, name: str) -> None:
                both[name] = data(
                    await client.call_tool(
                        "look", {"prompts": [f"Hello from {name}"], "sites": ["L0.attn_out@-1"]}
                    )
                )

            async with anyio.create_task_group() as group:
                group.start_soon(look, first, "first")
                group.start_soon(look, second, "second")
            assert both["first"]["run"] != both["second"]["run"]
            mine = data(await second.call_tool("runs_list", {"person": "second"}))["runs"]
            assert [(r["number"], r["by"]) for r in mine] == [(both["second"]["run"], "agent")]
            guide = (await first.read_resource("microtome://guide")).contents[0]
            assert "Predict before you run" in guide.text
        strangers(server)
        async with server.client("first") as first:  # it lives on
            assert data(await first.call_tool("runs_list", {}))["runs"]

    with over_http(folder) as server:
        anyio.run(run, server)
        assert server.address.startswith("http://127.0.0.1:")
        port = int(re.findall(r":(\d+)/", server.address)[0])
        with socket.socket() as elsewhere:  # not on the machine's other addresses
            elsewhere.settimeout(5)
            try:
                outside = socket.gethostbyname(socket.gethostname())
            except OSError:
                outside = "127.0.0.1"
            if not outside.startswith("127."):
                with pytest.raises(OSError):
                    elsewhere.connect((outside, port))
    assert {r.person for r in rows(folder)} == {"first", "second"}


def strangers(server: Any) -> None:
    """Requests with a wrong token, Host or Origin, and ones that are too large."""
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    right = {"Authorization": f"Bearer {server.token}", "Accept": "application/json, text/event-stream"}
    with httpx2.Client(timeout=30) as http:
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": f"Basic {server.token}"}, 401),
            ({**right, "Host": "evil.example"}, 421),
            ({**right, "Host": "127.0.0.1.evil.example:80"}, 421),
            ({**right, "Origin": "http://evil.example"}, 403),
            ({**right, "Origin": "null"}, 403),
        ):
            found = http.post(server.address, json=body, headers=headers)
            assert found.status_code == status, (headers, found.status_code, found.text)
            assert server.token not in found.text
        large = http.post(
            server.address,
            content=b'{"a":"' + b"x" * 1_100_000 + b'"}',
            headers={**right, "Content-Type": "application/json"},
        )
        assert large.status_code == 413


# ------------------------------------------------------------------------------------------- cancelling


async def until_it_runs(folder: Path) -> None:
    """Until a run has begun and is recorded."""
    with anyio.fail_after(120):
        while not [r for r in rows(folder) if r.method == "ablation"]:
            await anyio.sleep(0.2)


async def until_it_ended(folder: Path) -> Any:
    with anyio.fail_after(120):
        while (row := rows(folder, method="ablation")[-1]).state == "running":
            await anyio.sleep(0.2)
    return row


def test_a_cancelled_run_is_recorded_as_interrupted_and_the_server_lives_on(folder: Path) -> None:
    async def run() -> None:
        async with over_stdio(folder) as client:
            task = await induction(client, 24)
            seen = data(await client.call_tool("look", {"prompts": ["It lives"], "sites": ["L29.z@-1"]}))
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "run_ablation", {"task": task, **SLOW})
                await until_it_runs(folder)
                group.cancel_scope.cancel()
            row = await until_it_ended(folder)
            assert row.state == "interrupted" and row.result is None, row.error
            shown = data(await client.call_tool("run_show", {"run": row.number}))
            assert shown["state"] == "interrupted" and "verdict" not in shown
            linked = refused(
                await client.call_tool(
                    "claim_make",
                    {
                        "statement": "s",
                        "about": {"family": "induction"},
                        "alternatives": ["a"],
                        "falsifiers": ["f"],
                        "evidence": [row.number],
                    },
                )
            )
            assert "has no result" in linked
            again = data(await client.call_tool("look", {"prompts": ["It lives"], "sites": ["L29.z@-1"]}))
            assert {**again, "run": 0} == {**seen, "run": 0}  # the model is as it was

    anyio.run(run)


def test_a_client_that_goes_away_stops_its_run(folder: Path) -> None:
    """Its end of the pipe is closed while a technique runs: the run is interrupted, and the server ends by itself."""
    with subprocess.Popen(COMMAND, cwd=folder, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True) as server:  # fmt: skip
        assert server.stdin is not None and server.stdout is not None

        def send(method: str, number: int | None = None, **params: Any) -> None:
            message = {
                "jsonrpc": "2.0",
                "method": method,
                "params": params,
                **({} if number is None else {"id": number}),
            }
            server.stdin.write(json.dumps(message) + "\n")
            server.stdin.flush()

        def answer(number: int) -> Any:
            while (found := json.loads(server.stdout.readline())).get("id") != number:
                pass
            return found["result"]

        try:
            send(
                "initialize",
                1,
                protocolVersion="2025-06-18",
                capabilities={},
                clientInfo={"name": "raw", "version": "1"},
            )
            assert answer(1)["serverInfo"]["name"] == "microtome"
            send("notifications/initialized")
            send("tools/call", 2, name="task_make", arguments={"name": "induction", "n": 24})
            task = json.loads(answer(2)["content"][0]["text"])["task"]
            send("tools/call", 3, name="run_ablation", arguments={"task": task, **SLOW})
            anyio.run(until_it_runs, folder)
            server.stdin.close()
            assert server.wait(60) == 0
        finally:
            server.kill()
    row = rows(folder, method="ablation")[-1]
    # by the server itself, not found dead later
    assert row.state == "interrupted" and row.ended_at is not None and "cancelled by the client" in row.error
    assert row.person == "raw" and row.by == "agent"


def test_a_client_that_leaves_over_http_stops_its_run(folder: Path) -> None:
    async def run(server: Any) -> None:
        async with server.client() as client:
            task = await induction(client, 24)
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "run_ablation", {"task": task, **SLOW})
                await until_it_runs(folder)
                group.cancel_scope.cancel()
        assert (await until_it_ended(folder)).state == "interrupted"
        async with server.client() as client:
            assert data(await client.call_tool("runs_list", {}))["runs"]

    with over_http(folder) as server:
        anyio.run(run, server)


# --------------------------------------------------------------------------------------------- refusals


def test_what_an_agent_may_not_do_is_refused_and_says_why(folder: Path) -> None:
    (folder / "notes").mkdir()
    (folder / "escape").symlink_to("/etc")
    (folder.parent / "secret").mkdir()

    async def run() -> None:
        async with over_stdio(folder) as client:
            call = client.call_tool
            for name in (
                "../secret",
                "/etc",
                "escape",
                "notes/../../secret",
                ".",
                "",
                " ",
                "a\0b",
                "~",
                "$HOME",
                "file:///etc",
            ):
                said = refused(await call("model_load", {"model": name}))
                assert re.search(
                    r"leads out of the project|there is no model|is no path|it is no name", said
                ), (name, said)
            assert "there is no model" in refused(await call("model_load", {"model": "gpt2-not-here"}))
            assert "downloads nothing" in refused(await call("model_load", {"model": "org/not-here"}))
            assert "has no parameter 'file'" in refused(await call("task_make", {"name": "ioi", "file": "x"}))
            assert "did you mean 'look'" in refused(await call("looks", {"prompts": ["a"]}))
            assert "does not fit" in refused(await call("look", {"prompts": "a"}))
            assert "at most 200,000" in refused(await call("look", {"prompts": ["x" * 250_000]}))
            assert "no dataset" in refused(
                await call("data_make", {"kind": "labelled", "name": "/etc/passwd"})
            )
            assert "no dataset" in refused(await call("data_make", {"kind": "labelled", "name": "hf:imdb"}))
            assert "no handle" in refused(await call("run_behaviour", {"task": "ioi"}))
            for tool, given in (
                ("run_activation_patching", {"task": "t", "controls": "none"}),
                (
                    "run_technique",
                    {"method": "activation_patching", "parameters": {"task": "t", "controls": "none"}},
                ),
            ):
                assert "controls cannot be switched off by an agent" in refused(await call(tool, given))
            assert "alpha does not fit" in refused(await call("run_behaviour", {"task": "t", "alpha": 0.5}))
            assert "cannot be said in JSON" in refused(
                await call("run_technique", {"method": "training_dynamics"})
            )
            for sql in (
                "DELETE FROM run",
                "ATTACH '/tmp/x.db' AS x",
                "SELECT load_extension('x')",
                "SELECT 1; DROP TABLE run",
            ):
                assert re.search(
                    "would change|several statements", refused(await call("record_sql", {"sql": sql}))
                ), sql
            assert "\x1b" not in refused(await call("model_load", {"model": "\x1b[31mred"}))
            about = {"family": "induction"}
            for p in (0, 1, 1.5, "likely"):
                assert "probability does not fit" in refused(
                    await call("prediction_make", {"statement": "s", "probability": p, "about": about})
                )
            assert "does not fit" in refused(
                await call("prediction_make", {"statement": "s", "probability": 0.5, "about": {}})
            )
            assert "does not fit" in refused(
                await call(
                    "claim_make", {"statement": "s", "about": about, "alternatives": [], "falsifiers": ["f"]}
                )
            )
            with pytest.raises(MCPError, match="there is no resource"):
                await client.read_resource("file:///etc/passwd")
            with pytest.raises(MCPError, match="there is no resource"):
                await client.read_resource("microtome://run/1/../../secret")
            assert data(await call("record_sql", {"sql": "SELECT count(*) FROM run"}))["rows"] == [[0]]

    anyio.run(run)
    assert sorted(p.name for p in folder.iterdir()) == [".microtome", "escape", "notes"]


def test_a_server_can_ask_for_predictions_first(folder: Path) -> None:
    async def run() -> None:
        async with over_stdio(folder, "--require-predictions", "--name", "Careful") as client:
            task = await induction(client, 6)
            said = refused(await client.call_tool("run_behaviour", {"task": task}))
            assert "no open prediction of Careful is about it" in said and "prediction_make" in said
            other = {
                "statement": "s",
                "probability": 0.6,
                "about": {"method": "ablation"},
                "holds": {"field": "verdict", "equals": "supported"},
            }
            data(await client.call_tool("prediction_make", other))
            assert "no open prediction" in refused(await client.call_tool("run_behaviour", {"task": task}))
            about = {**other, "about": {"method": "behaviour", "task": task}}
            number = data(await client.call_tool("prediction_make", about))["prediction"]
            found = data(await client.call_tool("run_behaviour", {"task": task}))
            assert [p["prediction"] for p in found["predictions"]] == [number]
            assert "no open prediction" in refused(
                await client.call_tool("run_behaviour", {"task": task})
            )  # it is decided
            scores = data(await client.call_tool("predictions_score", {}))
            assert list(scores["scores"]) == ["Careful, computed"] and scores["open"] == 1

    anyio.run(run)
    assert {(r.person, r.method) for r in rows(folder)} == {("Careful", "behaviour")}


def test_a_name_that_is_a_persons_is_refused(folder: Path) -> None:
    from microtome.lab.study import study

    study("by hand", folder=folder, person="Ada").open().close()

    async def run() -> None:
        async with over_stdio(folder, name="Ada") as client:
            assert "Ada is a person in this record" in refused(
                await client.call_tool("look", {"prompts": ["a"]})
            )

    anyio.run(run)


# ------------------------------------------------------------------------------------------ how it starts


def test_outside_of_a_project_it_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        COMMAND,
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert "no project in" in done.stderr and "microtome lab init" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_the_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from microtome.agents.server import need_sdk
    from microtome.errors import LabError

    need_sdk()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LabError, match=r"microtome\[mcp\]"):
        need_sdk()


def test_a_taken_port_is_said(folder: Path) -> None:
    from microtome.agents.web import _listen
    from microtome.errors import LabError

    taken = _listen(0)
    try:
        with pytest.raises(LabError, match="cannot be had"):
            _listen(taken.getsockname()[1])
    finally:
        taken.close()


def test_the_list_of_tools_is_what_it_was(folder: Path) -> None:
    """Names and parameters. After a change that is meant: MICROTOME_UPDATE=1 pytest -k list_of_tools."""

    async def run() -> list[Any]:
        async with over_stdio(folder) as client:
            return list((await client.list_tools()).tools)

    tools = anyio.run(run)
    found = {
        t.name: {
            "required": sorted(t.input_schema["required"]),
            "parameters": sorted(t.input_schema["properties"]),
            "only_reads": t.annotations.read_only_hint,
        }
        for t in tools
    }
    if os.environ.get("MICROTOME_UPDATE"):
        SNAPSHOT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    assert found == json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    for tool in tools:
        assert tool.description and len(tool.description) <= 400, tool.name
        assert tool.input_schema["additionalProperties"] is False and re.fullmatch("[a-z_]{3,40}", tool.name)


def test_figures_are_pictures(tmp_path: Path) -> None:
    import shutil

    from microtome.agents.pictures import png

    drawn = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 30" width="40" height="30"><rect width="40" height="30" fill="red"/></svg>'
    made = png(drawn, tmp_path)
    if any(shutil.which(t) for t in ("rsvg-convert", "resvg", "chromium")):
        assert made.startswith(b"\x89PNG") and int.from_bytes(made[16:20]) == 40
    else:
        assert made == b""
    assert png("", tmp_path) == b"" == png("<svg></svg>", tmp_path)
    assert list(tmp_path.iterdir()) == [] and base64.b64encode(made) is not None
