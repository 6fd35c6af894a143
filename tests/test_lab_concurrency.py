"""Threads, forks and processes that record at once, and a disk or a database that will not have it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
import warnings

import pytest
from sqlalchemy import event

from lab_faults import forked
from lab_tools import Known, Model, leaf, opened, project, runs, sound, sqlite, tree
from microtome.errors import LabError, ResourceError
from microtome.lab import database, forks
from microtome.lab.doctor import examine
from microtome.lab.files import Files
from microtome.lab.reading import Record, Wanted
from microtome.lab.study import Study
from microtome.results import ObserverWarning, observe, open_result


@pytest.fixture(autouse=True)
def person(monkeypatch):
    monkeypatch.setenv("MICROTOME_PERSON", "ada")


def values(place):
    return sorted(r.question["parameters"]["value"] for r in runs(place) if r.method == "toy_leaf")


def test_eight_processes_write_a_thousand_runs(fast_path):
    place = project(fast_path)
    with opened(place):
        leaf(Model(), -1)
    children = []
    for i in range(8):
        child = os.fork()
        if not child:
            code = 1
            try:
                with opened(place):
                    for n in range(125):
                        leaf(Model(), 1000 * i + n)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children] == [0] * 8
    kept = runs(place)
    assert len(kept) == 1001 and [r.number for r in kept] == list(range(1, 1002))
    assert {r.state for r in kept} == {"finished"} and len({r.process for r in kept}) == 9
    assert values(place) == [-1, *(1000 * i + n for i in range(8) for n in range(125))]
    assert len(sound(place)) > 1000


def test_ten_thousand_runs_are_counted_and_paged(fast_path):
    place = project(fast_path)
    with opened(place):
        leaf(Model()), tree(Known())
    with sqlite(place) as c:
        names = [row[1] for row in c.execute("PRAGMA table_info(run)") if row[1] not in ("number", "id")]
        listed = ", ".join(f'"{name}"' for name in names)
        c.execute(f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9997) INSERT INTO run (id, {listed}) "
                  f"SELECT printf('x%d', i), {listed} FROM n, run WHERE number = 1")  # fmt: skip
        c.execute(
            "INSERT INTO run_file SELECT number, role, name, key, bytes FROM run_file, run WHERE run_file.run = 1 AND number > 3"
        )
    c.close()
    record = Record(place)
    (study,) = record.studies()
    assert study.runs == 9999
    seen, before = [], None
    while page := record.runs(Wanted(before=before), 3000):
        seen += [r.number for r in page]
        before = page[-1].number
    assert seen == [n for n in range(10000, 0, -1) if n != 3]
    assert record.runs(Wanted(method="toy_tree"))[0].children == 1 and record.run(9999).method == "toy_leaf"
    record.close()
    assert examine(place).ok and examine(place).runs == 10000


# ------------------------------------------------------------------------------------------- threads


def test_a_thread_is_in_the_only_open_study(fast_path):
    place = project(fast_path)
    with opened(place), concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: leaf(Model(), n), range(40)))
    assert values(place) == list(range(40)) and {r.parent for r in runs(place)} == {None}
    assert {r.state for r in runs(place)} == {"finished"}


def test_with_two_open_studies_a_call_must_say_which(fast_path):
    place = project(fast_path)
    with opened(place, "one") as one, opened(place, "two"):
        leaf(Model(), 2)  # the inner block's

        def elsewhere():
            with pytest.warns(ObserverWarning, match="2 studies are open .*say `with study:`") as caught:
                tree(Model(), 0)
            assert len(caught) == 1
            with one:
                leaf(Model(), 1)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        with one:
            leaf(Model(), 11)
    kept = {r.question["parameters"]["value"]: r.title for r in runs(place)}
    assert kept == {2: "two", 1: "one", 11: "one"}


def test_a_study_that_is_opened_twice_records_once_and_until_the_last_is_closed(fast_path):
    place = project(fast_path)
    one, two = opened(place).open(), opened(place).open()
    leaf(Model(), 1)
    one.close()
    leaf(Model(), 2)
    two.close()
    leaf(Model(), 3)
    assert values(place) == [1, 2]
    assert Record(place).studies()[0].closed_at is not None


# --------------------------------------------------------------------------------------------- forks


def test_a_fork_records_nothing_until_it_is_handed_a_study(fast_path):
    place = project(fast_path)
    with opened(place) as one:
        twin = opened(place).open()
        leaf(Model(), 1)

        def work(say):
            leaf(Model(), 2)  # not its parent's
            with twin:
                leaf(Model(), 3)
            with one:
                leaf(Model(), 4)
            say("done")

        assert forked(work) == (0, ["done"])
        leaf(Model(), 5)
        twin.close()
    assert values(place) == [1, 3, 4, 5] and len({r.process for r in runs(place)}) == 2
    sound(place)


def test_forks_while_threads_record(fast_path):
    """No connection is open across a fork: children and parent write on, the database stays whole."""
    place = project(fast_path)
    stop = threading.Event()

    def busy(i):
        n = 0
        while not stop.is_set():
            leaf(Model(), 1000 * i + n)
            n += 1
        return n

    with opened(place) as one, concurrent.futures.ThreadPoolExecutor(3) as pool:
        counts = [pool.submit(busy, i) for i in range(3)]
        for i in range(12):

            def work(say, i=i):
                with one:
                    leaf(Model(), 10_000 + i)
                say("done")

            assert forked(work) == (0, ["done"])
        stop.set()
        done = [c.result() for c in counts]
    want = [1000 * i + n for i, count in enumerate(done) for n in range(count)] + [10_000 + i for i in range(12)]  # fmt: skip
    assert values(place) == sorted(want) and {r.state for r in runs(place)} == {"finished"}
    sound(place)


def test_a_fork_closes_connections_before_it_and_waits_for_transactions(fast_path):
    place = project(fast_path)
    with opened(place) as one:
        one.database.close()
        begun, finish = threading.Event(), threading.Event()
        order = []

        def slow():
            with one.database.writing() as connection:
                begun.set()
                finish.wait(10)
                connection.exec_driver_sql("UPDATE study SET title = title")
                order.append("transaction")

        thread = threading.Thread(target=slow)
        thread.start()
        begun.wait(10)
        threading.Timer(0.2, finish.set).start()

        def work(say):
            say(str(len(one.database._engines)))

        code, said = forked(work)
        order.append("fork")
        thread.join()
    assert (code, said, order) == (0, ["0"], ["transaction", "fork"])
    assert not forks._inside


def in_a_worker(study: Study) -> int:
    with study:
        leaf(Model(), 7)
    return study.number


def test_a_study_is_handed_to_a_process_of_its_own(fast_path):
    place = project(fast_path)
    study = opened(place)
    again = pickle.loads(pickle.dumps(study))  # before it was ever opened
    assert (again.title, again.person, again.place, again.key) == (study.title, "ada", place, study.key)
    with study:
        leaf(Model(), 1)
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
            assert pool.submit(in_a_worker, study).result(60) == study.number
    assert values(place) == [1, 7] and len(Record(place).studies()) == 1
    assert len({r.process for r in runs(place)}) == 2


# ---------------------------------------------------------------------------- no room, and no way in


@contextlib.contextmanager
def told(match):
    """One fault of the observer's, which does not touch the measurement."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert caught and all(issubclass(w.category, ObserverWarning) for w in caught), [
        str(w.message) for w in caught
    ]
    assert any(match in str(w.message) for w in caught), [str(w.message) for w in caught]


def test_a_locked_database_is_said_and_what_waits_is_written_later(fast_path, monkeypatch):
    monkeypatch.setattr(database, "WAIT", 0.1)
    place = project(fast_path)
    ends = []
    with opened(place), observe(lambda e: ends.append(e.kind)):
        leaf(Model(), 1)
        other = sqlite3.connect(place.database, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with told("1 entries wait in memory and are tried again"):
            assert leaf(Model(), 2).tensors["values"].tolist() == [2.0, 3.0, 4.0, 5.0]
            tree(Known(), 3)
        assert len(runs(place)) == 1  # a reader does not wait
        other.execute("ROLLBACK")
        other.close()
        leaf(Model(), 4)
    assert values(place) == [1, 2, 3, 4] and ends.count("end") == 5
    kept = runs(place)
    assert [r.state for r in kept] == ["finished"] * 5 and kept[3].parent == kept[2].number
    sound(place)


def test_a_locked_database_does_not_hold_up_every_step(fast_path, monkeypatch):
    monkeypatch.setattr(database, "WAIT", 0.5)
    place = project(fast_path)
    tries = []
    with opened(place) as study:
        flush = study._recorder.flush
        monkeypatch.setattr(study._recorder, "flush", lambda: tries.append(1) or flush())
        other = sqlite3.connect(place.database, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with told("is locked"):
            for n in range(100):
                leaf(Model(), n)
        other.execute("ROLLBACK")
        other.close()
        assert len(tries) < 50 and study._recorder.waiting == 200
    assert values(place) == list(range(100))


def test_what_still_waits_is_written_on_closing_or_named(fast_path, monkeypatch):
    monkeypatch.setattr(database, "WAIT", 0.1)
    place = project(fast_path)
    study = opened(place).open()
    other = sqlite3.connect(place.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with told("is locked"):
        leaf(Model(), 1)
    with pytest.raises(LabError, match="is locked"):
        study.close()
    (saved,) = study.rescue(fast_path / "elsewhere")
    assert open_result(saved).tensors["values"].tolist() == [1.0, 2.0, 3.0, 4.0]
    other.execute("ROLLBACK")
    other.close()
    study.close()
    assert [r.state for r in runs(place)] == ["finished"] and study.rescue(fast_path / "none") == ()


def test_a_full_database_is_said_and_what_waits_is_written_later(fast_path):
    """SQLite's own limit of pages gives the error that a full disk gives."""
    place = project(fast_path)
    full = [False]
    with opened(place) as study:
        leaf(Model(), 1)
        study.database.close()
        for kind in ("quick", "durable"):
            engine = study.database._engine(kind)

            @event.listens_for(engine, "begin")
            def limit(connection):
                connection.exec_driver_sql(f"PRAGMA max_page_count={1 if full[0] else 100_000}")

        full[0] = True
        with told("no room to record"):
            for n in range(2, 80):  # pages that are half empty still take some
                leaf(Model(), n)
        full[0] = False
        leaf(Model(), 80)
    assert values(place) == list(range(1, 81)) and {r.state for r in runs(place)} == {"finished"}
    sound(place)


def test_a_limit_on_the_size_of_files_is_said_and_what_waits_is_written_later(fast_path):
    place = project(fast_path)

    def work(say):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with opened(place):
            leaf(Model(), 1)
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
            with told("observer"):
                leaf(Model(), 2)
                with pytest.raises(ResourceError, match="no room"):
                    Files(place.files).put(b"x" * 100)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            leaf(Model(), 3)
        say("done")

    assert forked(work) == (0, ["done"])
    assert values(place) == [1, 2, 3] and {r.state for r in runs(place)} == {"finished"}
    assert not list(place.files.glob("??/.*.new"))
    sound(place)


def small_disk(folder) -> bool:
    """A file system of four megabytes, where this process may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0  # fmt: skip


def test_a_full_disk_is_said_and_what_waits_is_written_later(tmp_path):
    """A real one where one can be mounted; elsewhere the limits above stand for it."""
    if not small_disk(tmp_path):
        return
    try:
        place = project(tmp_path)
        with opened(place):
            leaf(Model(), 1)
            ballast = tmp_path / "ballast"
            handle = os.open(ballast, os.O_WRONLY | os.O_CREAT)
            with contextlib.suppress(OSError):
                while True:
                    os.write(handle, b"\0" * 4096)
            os.close(handle)
            with told("no room to record"):
                leaf(Model(), 2), leaf(Model(), 3)
            assert [r.question["parameters"]["value"] for r in runs(place)][:1] == [1]
            ballast.unlink()
            leaf(Model(), 4)
        assert values(place) == [1, 2, 3, 4] and {r.state for r in runs(place)} == {"finished"}
        sound(place)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_folder_that_cannot_be_written_to_is_said(fast_path):
    place = project(fast_path)
    with opened(place):
        leaf(Model(), 1)
        hidden = place.files.rename(place.files.with_name("away"))
        place.files.write_bytes(b"a file where a folder should be")
        with told("cannot be written to"):
            leaf(Model(), 2)
        place.files.unlink()
        hidden.rename(place.files)
        leaf(Model(), 3)
    assert values(place) == [1, 2, 3] and {r.state for r in runs(place)} == {"finished"}
    sound(place)


def test_a_writer_that_is_paused_is_not_taken_for_dead(fast_path):
    place = project(fast_path)
    with opened(place, "warm"):
        leaf(Model())

    def work(say):
        with opened(place):
            leaf(Model(), 1)
            say("paused")
            os.kill(os.getpid(), signal.SIGSTOP)
            leaf(Model(), 2)

    def look(child):
        os.waitpid(child, os.WUNTRACED)
        until = time.monotonic() + 0.2
        with opened(place, "other"):
            assert {r.state for r in runs(place)} == {"finished"}
        assert time.monotonic() < until + 60
        os.kill(child, signal.SIGCONT)

    assert forked(work, look) == (0, ["paused"])
    assert values(place) == [1, 1, 2]
