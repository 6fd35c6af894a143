"""A record that is damaged, littered or edited: it is said what, and what can be kept is."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time

import pytest

from lab_faults import Moments, forked
from lab_tools import Known, Model, leaf, opened, predict, project, runs, sound, sqlite, tree
from microtome.errors import LabError
from microtome.lab import rebuilding, salvage, seals
from microtome.lab.doctor import collect, examine, repair
from microtome.lab.files import Files
from microtome.lab.reading import Record


@pytest.fixture
def place(fast_path):
    """A record with four runs, in a fork of its own so that this process never had it open."""
    place = project(fast_path / "a project, 100% ?#")

    def work(_say):
        with opened(place) as one:
            leaf(Model(), 1)
            tree(Known(), 2)
            predict(one)

    assert forked(work)[0] == 0
    return place


def grave(place, deep=False):
    return [f.what for f in examine(place, deep).findings if f.grave]


def test_a_sound_record_has_no_findings(place):
    report = examine(place, deep=True)
    assert report.ok and report.findings == ()
    assert (report.studies, report.runs, report.predictions, report.claims, report.files) == (1, 3, 1, 0, 8)
    assert examine(project(place.folder / "empty")).findings[0].what == "nothing was recorded yet"


def test_files_that_are_missing_or_damaged_are_named(place):
    files = Files(place.files)
    head = Record(place).run(1).result
    files.path(head).unlink()
    assert any("run 1: a file is missing" in what for what in grave(place))
    head = Record(place).run(3).result
    content = bytearray(files.path(head).read_bytes())
    content[10] ^= 1
    files.path(head).write_bytes(content)
    assert not any("damaged" in what for what in grave(place))  # of the same size: only a deep look shows it
    assert any("runs 2, 3: a file is damaged" in what for what in grave(place, deep=True))
    with pytest.raises(LabError, match="is damaged"):
        Record(place).result(3)
    with opened(place):
        tree(Known(), 2)  # the same bytes again: what is damaged is written anew
    assert not any("damaged" in what for what in grave(place, deep=True))


def test_a_dead_run_is_settled_and_said(place):
    def work(say):
        one = opened(place).open()
        assert one.number

        def stop(event):
            os._exit(9)

        from microtome.results import add_observer

        add_observer(stop)
        leaf(Model(), 7)

    assert forked(work)[0] == 9
    assert [f.what[:5] for f in examine(place).findings] == ["run 4"] and examine(place).ok
    assert runs(place)[-1].state == "interrupted"
    assert repair(place) == (4,) and repair(place) == ()
    assert examine(place).findings == ()


def test_garbage_goes_and_nothing_else(place):
    files = Files(place.files)
    young, old = files.put(b"young", ".json"), files.put(b"old", ".json")
    torn = place.files / "ab" / f".{'ab' * 16}.0000.new"
    torn.parent.mkdir(exist_ok=True)
    torn.write_bytes(b"half")
    used = sound(place)
    for key in [*used, old]:
        os.utime(files.path(key), (0, 0))
    assert len(examine(place).findings) == 2
    assert collect(place, remove=False) == (swept := collect(place)) and (swept.files, swept.bytes, swept.leftovers) == (1, 3, 0)  # fmt: skip
    assert files.has(young) and torn.exists() and not files.has(old)
    swept = collect(place, now=True)
    assert (swept.files, swept.leftovers) == (1, 1) and sound(place) == used
    assert {key for key, _ in files.stored()} == used


def test_a_file_that_is_put_while_a_collection_runs_stays(fast_path):
    """Old and unused, it is about to go; whoever puts it again must find it afterwards, whichever came first."""
    files = Files(fast_path)
    kept = files.put(b"x" * 100)
    both = threading.Barrier(2, timeout=30)
    swept = []

    def sweep():
        for i in range(300):
            both.wait()
            time.sleep(0.002 * (i % 3 == 1))
            swept.append(files.sweep(set(), grace=60.0).files)
            both.wait()

    thread = threading.Thread(target=sweep)
    thread.start()
    for i in range(300):
        files.put(b"x" * 100)
        os.utime(files.path(kept), (0, 0))
        both.wait()
        time.sleep(0.002 * (i % 3 == 2) + 0.00002 * (i % 15))
        files.put(b"x" * 100)
        both.wait()
        assert files.get(kept) == b"x" * 100
    thread.join()
    assert 0 < sum(swept) < 300  # both orders happened


def test_everything_is_collected_only_where_nobody_records(place):
    with opened(place), pytest.raises(LabError, match="this process records here"):
        collect(place, now=True)

    def stays(say):
        opened(place).open()
        say("open")
        time.sleep(30)

    def look(child):
        until = time.monotonic() + 20
        while len(sqlite(place).execute("SELECT * FROM process").fetchall()) < 3 and time.monotonic() < until:
            time.sleep(0.02)
        with pytest.raises(LabError, match=f"process {child} on"):
            collect(place, now=True)
        collect(place)
        os.kill(child, 9)

    assert forked(stays, look)[0] == -9
    collect(place, now=True)


def test_a_folder_of_files_that_another_record_uses_is_left_alone(place):
    other = project(place.folder / "other")
    (other.home / "lab.toml").write_text(f'files = "{place.files}"\n'.replace("\\", "/"), encoding="utf-8")
    other = project(place.folder / "other")
    with opened(other):
        leaf(Model(), 5)
    for one in (place, other):
        with pytest.raises(LabError, match="used by other records"):
            collect(one)


def test_an_edited_prediction_shows(place):
    rows = [{"number": i, "key": f"{i}", "study": 1, "person": "ada", "statement": "é\x1b", "probability": 0.1 * i,
             "about": "{}", "holds": None, "made_at": 0.5, "after_run": 0, "post_hoc": False, "claim": None} for i in (1, 2, 3)]  # fmt: skip
    before = ""
    for row in rows:
        row["seal"] = before = seals.seal(before, row)
    assert seals.broken(rows) == () and len(before) == 32
    assert seals.broken([{**r, "post_hoc": int(r["post_hoc"])} for r in rows]) == ()
    for name in seals.FIELDS:
        assert seals.broken([rows[0], {**rows[1], name: "other"}, rows[2]]) == (2,)
    assert seals.broken([rows[0], rows[2]]) == (3,) and seals.broken(rows[1:]) == (2,)
    with sqlite(place) as connection:
        connection.execute("UPDATE prediction SET seal = 'x'")
    connection.close()
    assert any("prediction 1 was changed" in what for what in grave(place))


# ------------------------------------------------------------------------------------------ recovery


def many(place, n=300):
    """More rows, so that tables have several pages."""
    with sqlite(place) as c:
        names = [row[1] for row in c.execute("PRAGMA table_info(run)") if row[1] not in ("number", "id")]
        listed = ", ".join(f'"{name}"' for name in names)
        for i in range(n):
            c.execute(f"INSERT INTO run (id, {listed}) SELECT 'x{i:05d}', {listed} FROM run WHERE number = 1")
    c.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    c.close()


def page(place, number, size=4096):
    """Overwrite one page of the database with noise."""
    with place.database.open("r+b") as file:
        file.seek((number - 1) * size)
        file.write(random.Random(0).randbytes(size))


def test_a_whole_record_is_not_recovered(place):
    with pytest.raises(LabError, match="is not damaged"):
        salvage.recover(place)
    with pytest.raises(LabError, match="nothing was recorded"):
        salvage.recover(project(place.folder / "none"))
    with opened(place), pytest.raises(LabError, match="this process records"):
        salvage.recover(place)


def leaves(place, table):
    """Pages of a table's rows."""
    with sqlite(place) as c:
        try:
            found = c.execute(
                "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf'", (table,)
            ).fetchall()
        except sqlite3.OperationalError:  # SQLite was built without dbstat
            found = []
    c.close()
    return [row[0] for row in found]


def test_rows_around_a_damaged_page_are_saved(place):
    many(place)
    pages = leaves(place, "run")
    chosen = pages[len(pages) // 2] if pages else 40
    page(place, chosen)
    broken = place.database.read_bytes()
    assert not examine(place).ok
    with pytest.raises(LabError, match="is damaged"):
        runs(place)
    done = salvage.recover(place)
    assert done.damaged is not None and done.damaged.read_bytes() == broken
    left = done.tables["run"]
    assert left.kept + left.lost == 303 and 0 < left.lost < 60 and left.kept > 240
    assert done.tables["prediction"].kept == 1 and done.tables["study"].kept == 1
    kept = runs(place)
    assert len(kept) == left.kept + len(done.rebuilt)
    sound(place)
    assert examine(place, deep=True).ok
    assert any(done.damaged.name in f.what for f in examine(place).findings)
    with opened(place):
        leaf(Model(), 9)
    assert runs(place)[-1].number > 303  # numbers of lost runs are not given again


def test_every_page_may_be_damaged(place):
    """Whichever page it is: either the record is whole after all, or it is recovered, or its results are."""
    size = place.database.stat().st_size // 4096
    original = place.database.read_bytes()
    for number in [1, *range(2, size + 1, 2)]:
        place.database.write_bytes(original)
        page(place, number)
        if examine(place, deep=True).ok:
            continue
        done = salvage.recover(place)
        sound(place)
        assert examine(place, deep=True).ok, number
        results = [r for r in runs(place) if r.result]
        assert {r.method for r in results} >= {"toy_leaf", "toy_tree"}, (number, done)
        for run in results:
            assert Record(place).result(run.number).kind in ("toy", "toys")
        for leftover in place.home.glob("lab.db*"):
            leftover.unlink()


def test_without_a_header_results_are_found_by_their_files(place):
    mark = sqlite(place).execute("SELECT value FROM meta WHERE key = 'id'").fetchone()[0]
    place.database.write_bytes(b"\0" * 5000)
    assert any("damaged" in what for what in grave(place))
    done = salvage.recover(place)
    assert done.rebuilt == (1, 2) and done.unreadable == () and done.tables["run"].lost is None
    kept = runs(place)
    assert sorted(r.method for r in kept) == ["toy_leaf", "toy_tree"]  # the child is within its parent
    assert all(r.title == rebuilding.STUDY and r.not_again and r.state == "finished" for r in kept)
    assert {Record(place).result(r.number).kind for r in kept} == {"toy", "toys"}
    assert len(Record(place).controls(next(r.number for r in kept if r.method == "toy_leaf"))) == 1
    assert sqlite(place).execute("SELECT value FROM meta WHERE key = 'id'").fetchone()[0] == mark
    collect(place, now=True)
    assert examine(place, deep=True).ok and sound(place)


def test_a_result_of_which_a_piece_is_gone_is_not_made_a_run(place):
    place.database.unlink()
    for path in place.files.glob("??/*.safetensors"):
        path.unlink()
    assert any("doctor --recover" in f.instead for f in examine(place).findings)
    done = salvage.recover(place)
    assert done.damaged is None and done.rebuilt == () and len(done.unreadable) >= 1


def test_a_recovery_that_is_killed_anywhere_is_made_again(place):
    many(place, 60)
    pages = leaves(place, "run")
    page(place, pages[-1] if pages else 40)
    original = {p.name: p.read_bytes() for p in place.home.glob("lab.db*")}
    whole = Moments()

    def recover(say, moment=whole):
        with moment.watched():
            salvage.recover(place)
        say(str(moment.count))

    def restore():
        for path in place.home.glob("lab.db*"):
            path.unlink()
        for name, content in original.items():
            (place.home / name).write_bytes(content)

    moments = int(forked(recover)[1][0])
    want = [(r.id, r.number) for r in runs(place)]
    assert moments > 8 and len(want) > 3
    for at in range(moments):
        for after in (False, True):
            restore()
            moment = Moments(at, after=after)
            assert forked(lambda say, moment=moment: recover(say, moment))[0] == -9
            if not examine(place).ok:
                salvage.recover(place)
            got = [(r.id, r.number) for r in runs(place)]
            assert [g for g in got if g[0].startswith("x")] == [w for w in want if w[0].startswith("x")]
            assert len(got) == len(want) and examine(place, deep=True).ok
            assert original["lab.db"] in [p.read_bytes() for p in place.home.glob("lab.db.damaged*")]


def test_a_postgres_record_is_not_for_this_doctor_to_recover(place, monkeypatch):
    monkeypatch.setenv("MICROTOME_LAB_URL", "postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(LabError, match="PostgreSQL database"):
        salvage.recover(project(place.folder))
    assert any("does not answer" in what for what in grave(project(place.folder)))


def test_a_log_of_the_damaged_file_does_not_get_into_the_new_one(place):
    """The -wal of a killed writer holds pages of the old file; beside a new file SQLite would write them into it."""

    def work(_say):
        one = opened(place).open()
        leaf(Model(), 4)
        assert one.number
        os._exit(9)  # nothing is closed: the log stays

    assert forked(work)[0] == 9
    log = place.database.with_name("lab.db-wal")
    assert log.stat().st_size > 0
    place.database.write_bytes(b"\0" * 5000)
    done = salvage.recover(place)
    assert done.damaged.with_name(done.damaged.name + "-wal").exists() and not log.exists()
    sound(place)
    assert examine(place).ok
