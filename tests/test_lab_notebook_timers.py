"""Timers fire at their number and not a second before; working time is what the gaps leave; hours add up."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone, tzinfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.errors import LabError
from microtome.lab.notebook import folder
from microtome.lab.notebook.audit import audit
from microtome.lab.notebook.indexing import index
from microtome.lab.notebook.limits import LIMITS, Limits, read_limits, said
from microtome.lab.notebook.records import belief, decision, highlight, log_entry
from microtome.lab.notebook.records import did as did_entry
from microtome.lab.notebook.timeline import (
    BETWEEN,
    KINDS,
    Activity,
    active_seconds,
    of_pages,
    segments,
    staged,
)
from microtome.lab.notebook.timers import OCCASIONS, PROJECTS, Blessing, Settings, due, gate, settings_of

T0 = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def at(minutes):
    return T0 + timedelta(minutes=minutes)


def did(kind, begin, end=None, what="", **more):
    """Activity from minute to minute; without an end it takes no time."""
    return Activity(at(begin), at(begin if end is None else end), kind, what, **more)


def names(now, stage, activities, **settings):
    return {t.name for t in due(now, stage, activities, Settings(**settings))}


def work(minutes, kind="coding"):
    return Activity(T0, T0 + timedelta(minutes=minutes), kind)


H, DAY = 60, 8 * 60
BOUNDARIES = [
    # rule, stage, project, minutes of unbroken work, fires at the number itself, kind of the work
    ("change-approach", "exploration", "mini", 2 * H, True, "coding"),
    ("change-approach", "understanding", "timed", 2 * H, True, "coding"),
    ("change-approach", "exploration", "full", 5 * H, True, "coding"),
    ("consider-pivot", "understanding", "full", 2 * DAY, True, "coding"),
    ("one-thread", "exploration", "full", DAY, True, "coding"),
    ("learned-anything", "distillation", "mini", 30, True, "coding"),
    ("new-look", "exploration", "mini", 10, True, "coding"),
    ("quick-experiment", "exploration", "full", 4 * H, False, "coding"),
    ("zoom-out", "", "mini", H, True, "coding"),
    ("time-is-up", "", "mini", 5 * DAY, True, "coding"),
    ("time-is-up", "", "timed", 20 * H, True, "coding"),
    ("time-is-up", "", "foundation", 200 * H, True, "coding"),
    ("enough-reading", "exploration", "timed", 5 * H, False, "reading"),
    ("share-it", "distillation", "timed", 2 * H, True, "writing"),
]


@pytest.mark.parametrize("rule, stage, project, minutes, equal, kind", BOUNDARIES)
def test_a_timer_fires_at_its_number_and_not_a_second_before(rule, stage, project, minutes, equal, kind):
    now = at(minutes)
    assert rule not in names(now - SECOND, stage, [work(minutes, kind)], project=project)
    assert (rule in names(now, stage, [work(minutes, kind)], project=project)) == equal
    assert rule in names(now + SECOND, stage, [work(minutes + 1, kind)], project=project)


@pytest.mark.parametrize(
    "rule, stage, project, clears",
    [
        ("change-approach", "exploration", "mini", ("highlight", "approach", "dead-end", "pivot", "problem")),
        ("consider-pivot", "exploration", "full", ("highlight", "pivot", "continue", "problem")),
        ("one-thread", "exploration", "full", ("highlight", "thread", "pivot", "problem")),
        ("learned-anything", "exploration", "mini", ("highlight", "learned-nothing")),
        ("new-look", "exploration", "mini", ("run", "look", "highlight")),
        ("quick-experiment", "exploration", "mini", ("run", "look")),
        ("zoom-out", "exploration", "mini", ("zoom-out", "review", "post-mortem")),
    ],
)
def test_what_clears_a_timer_and_what_does_not(rule, stage, project, clears):
    minutes = 3 * DAY
    for kind in KINDS:
        done = [work(minutes), did(kind, minutes - 1, what="because")]
        assert (rule not in names(at(minutes), stage, done, project=project)) == (kind in clears), kind


def test_going_on_without_a_reason_clears_nothing():
    for what, cleared in (("", False), (" ", False), ("it generalises", True)):
        done = [work(2 * DAY), did("continue", 2 * DAY - 1, what=what)]
        assert ("consider-pivot" not in names(at(2 * DAY), "", done, project="full")) == cleared


def test_a_project_that_begins_in_the_middle_of_work_counts_from_there():
    assert "change-approach" not in names(at(180) - SECOND, "", [work(300)], begun=at(60))
    assert "change-approach" in names(at(180), "", [work(300)], begun=at(60))


def test_rules_of_one_stage_or_project_are_silent_in_others():
    long = [work(3 * DAY)]
    for stage in ("ideation", "understanding", "distillation"):
        assert not {"one-thread", "new-look"} & names(at(3 * DAY), stage, long)
    assert "quick-experiment" not in names(at(3 * DAY), "distillation", long)
    assert "consider-pivot" not in names(at(3 * DAY), "exploration", long, project="mini")
    assert "change-approach" not in names(at(3 * DAY), "exploration", long, project="foundation")
    assert "enough-reading" not in names(
        at(3 * DAY), "exploration", [work(3 * DAY, "reading")], project="mini"
    )


def test_nothing_is_due_at_the_beginning():
    assert due(T0, "", []) == () == due(T0, "exploration", [did("log", 0)])
    assert due(at(60 * 24 * 100), "exploration", []) == ()


def test_time_away_is_no_time_of_work():
    """Two sessions of 59 minutes with a night between: 1 h 58 min, however long the night; a minute more is two hours."""
    night = [did("coding", 0, 59), did("coding", 24 * H, 24 * H + 59)]
    assert "change-approach" not in names(at(24 * H + 59), "exploration", night)
    assert "change-approach" not in names(at(24 * H + 61) - SECOND, "exploration", night)
    assert "change-approach" in names(at(24 * H + 61), "exploration", night)
    assert "change-approach" not in names(
        at(24 * H + 59 + 16), "exploration", night
    )  # gone home, not at work


@pytest.mark.parametrize("gap, counts", [(15 * 60, True), (15 * 60 + 1, False)])
def test_a_gap_counts_up_to_its_limit(gap, counts):
    two = [did("log", 0), Activity(T0 + timedelta(seconds=gap), T0 + timedelta(seconds=gap), "log")]
    assert active_seconds(two, T0, at(60), 900) == (gap if counts else 0)


@given(st.lists(st.integers(1, 14 * 60), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_the_number_is_met_however_the_work_is_cut(pieces):
    """Notes in any rhythm below the gap: two hours of them are two hours, to the second."""
    times = [0]
    for piece in pieces * (7200 // sum(pieces) + 1):
        times.append(times[-1] + piece)
    notes = [Activity(T0 + timedelta(seconds=t), T0 + timedelta(seconds=t), "log") for t in times if t < 7200]
    assert "change-approach" not in names(T0 + timedelta(seconds=7199), "", notes)
    assert "change-approach" in names(T0 + timedelta(seconds=7200), "", notes)


def test_what_happens_after_now_is_not_known_yet():
    later = [work(200), did("highlight", 150)]
    assert "change-approach" in names(at(149), "", later)
    assert "change-approach" not in names(at(151), "", later)


def test_dead_approaches_end_at_another_problem():
    one = [did("coding", 0, 5), did("dead-end", 1, what="probes")]
    two = [*one, did("dead-end", 2, what="lens")]
    three = [*two, did("dead-end", 3, what="steering")]
    assert "new-problem" not in names(at(5), "exploration", one)
    (found,) = (t for t in due(at(5), "exploration", two) if t.name == "new-problem")
    assert "probes, lens" in found.what and not found.overdue and "A" in found.why
    assert next(t for t in due(at(5), "exploration", three) if t.name == "new-problem").overdue
    assert "new-problem" not in names(at(5), "exploration", [*three, did("problem", 4)])


def test_overdue_is_said_at_the_larger_number_and_comes_first():
    def zoom(minutes):
        return next(t for t in due(at(minutes), "", [work(200)]) if t.name == "zoom-out")

    assert not zoom(119).overdue and zoom(120).overdue
    every = due(at(120), "exploration", [work(200)])
    assert [t.overdue for t in every] == sorted((t.overdue for t in every), reverse=True)
    thread = [work(3 * DAY)]
    assert [t.overdue for m in (DAY, 2 * DAY) for t in due(at(m), "exploration", thread) if t.name == "one-thread"] == [False, True]  # fmt: skip


WEEK = 7 * 24 * H


def test_a_sprint_ends_in_a_pivot_unless_going_on_was_chosen_with_a_reason():
    begun = [did("sprint", 0)]
    assert "sprint" not in names(at(WEEK) - SECOND, "", begun)
    (found,) = (t for t in due(at(WEEK), "", begun) if t.name == "sprint")
    assert "PIVOT" in found.do and not found.overdue
    assert next(t for t in due(at(2 * WEEK), "", begun) if t.name == "sprint").overdue
    empty = [*begun, did("continue", WEEK, what="  ")]
    (told,) = (t for t in due(at(WEEK + 1), "", empty) if t.name == "sprint")
    assert "without a reason" in told.what
    chosen = [*begun, did("continue", WEEK, what="the probe generalises")]
    assert "sprint" not in names(at(2 * WEEK) - SECOND, "", chosen)
    assert "sprint" in names(at(2 * WEEK), "", chosen)  # chosen once is not chosen for ever
    assert "sprint" not in names(at(WEEK + 1), "", [*begun, did("pivot", WEEK)])
    assert "sprint" not in names(at(10 * WEEK), "", [did("coding", 0, 5)])  # no sprint was begun


@pytest.mark.parametrize("kind", ["stuck", "confused", "hypothesis"])
def test_five_minutes_of_thinking_must_follow(kind):
    base = [did("coding", 0, 20), did(kind, 2, what="the sign")]
    rule = f"five-minutes-{kind}"
    (found,) = (t for t in due(at(3), "", base) if t.name == rule)
    assert "the sign" in found.what and OCCASIONS[kind] in found.do
    assert rule in names(at(8), "", [*base, Activity(at(3), at(8) - SECOND, "brainstorm")])
    assert rule not in names(at(8), "", [*base, did("brainstorm", 3, 8)])
    assert rule in names(at(9), "", [did("brainstorm", 0, 1), did("brainstorm", 1, 2), *base])  # before it does not count  # fmt: skip


def test_a_block_of_ideation_has_an_hour_and_twenty_ideas():
    block = [did("ideation", 0, 60)]
    assert "more-ideas" not in names(at(30), "ideation", block, ideas=3)  # it goes on
    assert "more-ideas" not in names(at(60), "ideation", block, ideas=20)
    assert "more-ideas" in names(at(60), "ideation", block, ideas=19)
    short = [Activity(T0, at(60) - SECOND, "ideation")]
    assert "more-ideas" in names(at(60), "ideation", short, ideas=20)
    assert "more-ideas" not in names(at(99), "ideation", [did("coding", 0, 60)], ideas=0)


def test_a_post_mortem_takes_an_hour():
    ended = [did("coding", 0, 10), did("project-end", 10, what="mini")]
    assert "post-mortem" in names(at(10), "", ended)
    assert "post-mortem" in names(at(80), "", [*ended, Activity(at(12), at(72) - SECOND, "post-mortem")])
    assert "post-mortem" not in names(at(80), "", [*ended, did("post-mortem", 12, 72)])
    assert "post-mortem" in names(at(80), "", [did("post-mortem", 0, 9), *ended])


def test_weeks_are_those_of_the_calendar():
    one = [did("coding", 0, 5)]
    assert "weekly-review" not in names(at(WEEK) - SECOND, "", one)
    assert "weekly-review" in names(at(WEEK), "", one)
    assert "weekly-review" not in names(at(WEEK), "", [*one, did("review", 100)])
    assert "full-project" not in names(at(2 * WEEK) - SECOND, "", one, first_mini=T0)
    assert "full-project" in names(at(2 * WEEK), "", one, first_mini=T0)
    assert "full-project" not in names(at(4 * WEEK), "", one)
    assert "begin-a-project" not in names(at(4 * WEEK) - SECOND, "", one, project="foundation")
    assert "begin-a-project" in names(at(4 * WEEK), "", one, project="foundation")


def test_every_trigger_says_number_source_and_what_to_do():
    everything = [did("coding", 0, 40 * H), did("sprint", 0), did("project-end", 1), did("hypothesis", 2), did("ideation", 3, 4), did("dead-end", 5), did("dead-end", 6)]  # fmt: skip
    seen = set()
    for project in PROJECTS:
        for stage in ("", "ideation", "exploration", "understanding", "distillation"):
            for t in due(at(5 * WEEK), stage, [*everything, did("reading", 40 * H, 46 * H), did("writing", 46 * H, 250 * H)], Settings(project, first_mini=T0)):  # fmt: skip
                assert any(c.isdigit() for c in t.why) and "(" in t.why and t.do and t.what and t.since.tzinfo
                seen.add(t.name)
    assert len(seen) == 18


def test_unattended_runs_are_no_work_and_running_ones_are():
    assert active_seconds([Activity(T0, None, "run")], T0, at(90), 900) == 5400
    alone = [did("run", 0, 600, attended=False), did("log", 0), did("log", 10)]
    assert active_seconds(alone, T0, at(600), 900) == 600


def test_bad_questions_are_refused():
    with pytest.raises(LabError, match="no stage called 'thinking'"):
        due(T0, "thinking", [])
    with pytest.raises(LabError, match="offset"):
        due(datetime(2026, 1, 1), "", [])
    with pytest.raises(LabError, match="project of kind"):
        Settings("maxi")
    for bad in (
        {"begin": datetime(2026, 1, 1), "end": None, "kind": "run"},
        {"begin": at(1), "end": at(0), "kind": "run"},
        {"begin": T0, "end": None, "kind": ""},
        {"begin": T0, "end": None, "kind": BETWEEN},
        {"begin": T0, "end": None, "kind": "run", "state": "done"},
    ):
        with pytest.raises(LabError):
            Activity(**bad)


# ---- the gate


def test_the_gate_asks_for_alternatives_over_half_an_hour():
    assert gate(1800, []) == Blessing(timedelta(minutes=30), (), "", False, False)
    with pytest.raises(LabError, match="0 alternatives are written"):
        gate(1800.001, [])
    with pytest.raises(LabError, match="1 alternatives are written"):
        gate(3600, ["fewer prompts", " Fewer  PROMPTS ", "", "  "])
    passed = gate(3600, ["fewer prompts", "one layer"])
    assert passed.long and not passed.overridden and passed.alternatives == ("fewer prompts", "one layer")
    forced = gate(3600, ["one layer"], reason="the paper's own setting")
    assert forced.overridden and forced.fields()["overridden because"] == "the paper's own setting"
    assert "overridden because" not in passed.fields() and passed.fields()["expected"] == "1 h 00 min"
    with pytest.raises(LabError):
        gate(3600, [], reason="   ")


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, True, 1e300])
def test_the_gate_refuses_what_is_no_time(seconds):
    with pytest.raises(LabError, match="seconds"):
        gate(seconds, ["a", "b"])


# ---- the numbers

GUIDE = {  # field-guide.md, "All the numbers in the guide in one place"
    "nothing_learned_mini": (2, "h"), "dead_approaches": (2, "approaches"), "dead_approaches_most": (3, "approaches"),
    "nothing_learned_full": (5, "h"), "pivot": (2, "day"), "zoom_out": (1, "h"), "zoom_out_most": (2, "h"),
    "learned_anything": (30, "min"), "long_experiment": (30, "min"), "brainstorm": (5, "min"), "no_code": (4, "h"),
    "one_thread": (1, "day"), "one_thread_most": (2, "day"), "ideation_block": (1, "h"), "ideas": (20, "ideas"),
    "timed_project": (20, "h"), "timed_write_up": (2, "h"), "timed_reading": (5, "h"), "summary_words": (600, "words"),
    "summary_pages": (1, "pages"), "summary_pages_most": (3, "pages"), "claims_least": (1, "claims"), "claims_most": (3, "claims"),
    "alpha": (0.001, "p"), "case_studies": (5, "cases"), "foundation_hours": (200, "h"), "mini_project": (5, "day"),
    "mini_projects": (2, "week"), "mini_projects_most": (4, "week"), "sprint": (1, "week"), "sprint_most": (2, "week"),
    "post_mortem": (1, "h"), "post_mortem_most": (2, "h"),
}  # fmt: skip


def test_the_table_has_the_numbers_of_the_guide():
    assert {name: (LIMITS[name].value, LIMITS[name].unit) for name in GUIDE} == GUIDE
    rest = {name for name in LIMITS if name not in GUIDE}
    assert rest == {"gap", "working_day", "new_look", "alternatives", "foundation_weeks", "weekly_review", "micro_hypotheses"}  # fmt: skip


def test_a_project_changes_numbers_in_a_file(tmp_path):
    assert read_limits(tmp_path).table == LIMITS
    text = "# ours\nnothing_learned_mini: 3 h\nzoom_out: 90 min\nnew_look: off\ngap: 20\npivot: 3 days\nsprint: 1 week\nalpha: 0.01\n"
    (tmp_path / "limits.yaml").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    limits = read_limits(tmp_path)
    assert limits.seconds("nothing_learned_mini") == 3 * 3600 and limits.seconds("zoom_out") == 5400
    assert limits.value("new_look") is None and limits.seconds("new_look") == math.inf
    assert (
        limits.seconds("gap") == 1200
        and limits.seconds("pivot") == 3 * 8 * 3600
        and limits.value("alpha") == 0.01
    )
    assert "limits.yaml" in limits.why("zoom_out") and "guide, A: 1 h" in limits.why("zoom_out")
    changed = {name for name, _, source, _ in said(limits) if "changed from" in source}
    assert changed == {"nothing_learned_mini", "zoom_out", "new_look", "gap", "pivot", "sprint", "alpha"}
    assert "change-approach" not in names(at(179), "", [work(200)], limits=limits)
    assert "change-approach" in names(at(180), "", [work(200)], limits=limits)
    assert "new-look" not in names(at(200), "exploration", [work(200)], limits=limits)


@pytest.mark.parametrize(
    "text, match",
    [
        ("zoom_uot: 1 h", "did you mean 'zoom_out'"),
        ("zoom_out: soon", "zoom_out is 'soon'"),
        ("zoom_out: -1", "zoom_out is '-1'"),
        ("zoom_out: 0", "zoom_out is '0'"),
        ("zoom_out: true", "zoom_out is 'true'"),
        ("zoom_out: [1]", "zoom_out is"),
        ("zoom_out:", "zoom_out is"),
        ("zoom_out: 1 day", "counted in h"),
        ("pivot: 48 h", "counted in day"),
        ("zoom_out: 1e400 h", "zoom_out is"),
        ("zoom_out: 1..2 h", "zoom_out is"),
        ("zoom_out: 1 h\nzoom_out: 2 h", "there twice"),
        ("zoom_out: 1 h: x", "line 1 is no YAML"),
        ("- a", "line 1 is no YAML"),
        ("gap: off", "cannot be off"),
        ("working_day: off", "cannot be off"),
    ],
)
def test_a_number_that_is_none_is_refused(tmp_path, text, match):
    (tmp_path / "limits.yaml").write_text(text)
    with pytest.raises(LabError, match=match):
        read_limits(tmp_path)


def test_limits_outside_the_notebook_are_not_read(tmp_path):
    root = tmp_path / "notebook"
    root.mkdir()
    (tmp_path / "x.yaml").write_text("gap: 20")
    (root / "limits.yaml").symlink_to(tmp_path / "x.yaml")
    with pytest.raises(LabError, match="leads out"):
        read_limits(root)


def test_switched_off_means_silent():
    off = Limits({n: type(v)(None, v.unit, v.source, v.what) if n not in ("gap", "working_day") else v for n, v in LIMITS.items()})  # fmt: skip
    everything = [did("coding", 0, 300 * H), did("sprint", 0), did("project-end", 1), did("hypothesis", 2), did("ideation", 3, 4), did("dead-end", 5), did("dead-end", 6), did("dead-end", 7)]  # fmt: skip
    for project in PROJECTS:
        for stage in ("", "ideation", "exploration", "understanding", "distillation"):
            assert due(at(9 * WEEK), stage, everything, Settings(project, first_mini=T0, limits=off)) == ()
    assert gate(1e6, [], limits=off).alternatives == ()


# ---- time audit

ACTIVITIES = st.lists(
    st.builds(
        lambda begin, length, kind, stage, method, state, attended: did(
            kind, begin, begin + length, stage=stage, method=method, state=state, attended=attended
        ),
        st.integers(0, 600),
        st.integers(0, 60),
        st.sampled_from(["run", "look", "highlight", "reading", "log"]),
        st.sampled_from(["", "exploration", "understanding"]),
        st.sampled_from(["", "probe", "logit_lens"]),
        st.sampled_from(["", "finished", "failed", "interrupted"]),
        st.sampled_from([True, True, True, False]),
    ),
    max_size=12,
)


@given(ACTIVITIES, st.integers(0, 300), st.integers(300, 700))
@settings(max_examples=100, deadline=None)
def test_an_audit_adds_up_and_agrees_with_counting_minutes(activities, since, until):
    """Against an oracle that looks at each minute by itself."""
    found = audit(activities, at(since), at(until))
    for table in (found.stages, found.kinds, found.methods):
        assert math.isclose(sum(table.values()), found.total, abs_tol=1e-9)
        assert all(hours > 0 for hours in table.values())
    assert math.isclose(found.total * 3600, active_seconds(activities, at(since), at(until), 900))
    counted = Counter()
    known = [a for a in activities if a.attended and a.begin <= at(until)]
    covered = [m for m in range(701) if any(a.begin <= at(m) <= (min(a.end, at(until))) for a in known)]
    for m in range(since, until):
        over = [a for a in known if a.begin <= at(m) and at(m + 1) <= a.end]
        if over:
            newest = max(a.begin for a in over)
            counted[next(iter({a.kind for a in over if a.begin == newest})) if len({a.kind for a in over if a.begin == newest}) == 1 else "?"] += 1  # fmt: skip
            continue
        before = max((c for c in covered if c <= m), default=None)
        after = min((c for c in [*covered, until] if c >= m + 1), default=None)
        if before is not None and after is not None and after - before <= 15:
            counted[BETWEEN] += 1
    assert round(found.total * 60) == sum(counted.values())
    if "?" not in counted:
        assert {k: round(v * 60) for k, v in found.kinds.items()} == dict(counted)
    assert 0 <= found.failed <= found.total + 1e-9 and 0 <= found.dry <= found.total + 1e-9
    pieces = segments(activities, at(since), at(until), 900)
    assert all(a.end <= b.begin for a, b in zip(pieces, pieces[1:], strict=False))
    lit = [
        a.begin
        for a in activities
        if a.kind == "highlight" and a.attended and at(since) <= a.begin <= at(until)
    ]
    edges = [at(since), *sorted(lit), at(until)]
    between = [
        sum(max(timedelta(), min(p.end, b) - max(p.begin, a)).total_seconds() for p in pieces) / 3600
        for a, b in zip(edges, edges[1:], strict=False)
    ]
    assert math.isclose(found.dry, max(between), abs_tol=1e-9)


def test_an_audit_of_a_known_day():
    day = [
        did("reading", 0, 60, "the paper", stage="ideation"),
        did("highlight", 60, what="one"),
        did("run", 60, 120, stage="exploration", method="probe", state="failed"),
        did("run", 90, 100, stage="exploration", method="logit_lens", state="interrupted"),
        did("log", 130, stage="exploration"),
        did("highlight", 300, what="two"),
        did("run", 300, 900, method="sweep", attended=False),
    ]
    found = audit(day, T0, at(1000))
    assert math.isclose(found.total, 130 / 60) and math.isclose(found.unattended, 10)
    assert {k: round(v * 60) for k, v in found.kinds.items()} == {"reading": 60, "run": 60, BETWEEN: 10}
    assert {k: round(v * 60) for k, v in found.methods.items()} == {"": 70, "probe": 50, "logit_lens": 10}
    assert {k: round(v * 60) for k, v in found.stages.items()} == {"exploration": 70, "ideation": 60}
    assert math.isclose(found.failed_share, 60 / 130) and found.runs == 3 and found.highlights == 2
    assert math.isclose(found.runs_per_highlight, 1.5) and math.isclose(
        found.highlights_per_hour, 2 / (130 / 60)
    )
    assert math.isclose(found.dry, 70 / 60) and found.dry_since == at(60)
    assert found.sink[0] == "reading: the paper" and math.isclose(found.sink[1], 1)
    nothing = audit([], T0, at(10))
    assert (nothing.total, nothing.failed_share, nothing.runs_per_highlight, nothing.highlights_per_hour, nothing.sink, nothing.dry_since) == (0, None, None, None, None, None)  # fmt: skip
    with pytest.raises(LabError, match="ends before it begins"):
        audit([], at(1), T0)


def test_pages_are_a_timeline_too(tmp_path):
    folder.add(tmp_path, *log_entry(at(0), stage="exploration", tried="x"))
    folder.add(tmp_path, *highlight(at(5), "seen"))
    folder.add(tmp_path, *belief(at(6), "it copies", 0.7))
    folder.add(tmp_path, *decision(at(7), "go on", why="it works"))
    (tmp_path / "log" / "2026-11-03.md").write_text(
        "## 10:00 (mine)\n\n- activity: reading\n- took: 90 min\n- what: the paper\n\n## 11:00\n\n- took: 1e9 min\n"
    )
    made = of_pages(index(tmp_path))
    assert [(a.kind, a.what, a.stage) for a in made] == [
        ("log", "x", "exploration"), ("highlight", "seen", ""), ("note", "confidence 0.7", ""),
        ("decision", "decided: go on", ""), ("reading", "the paper", ""), ("log", "", ""),
    ]  # fmt: skip
    assert made[4].end - made[4].begin == timedelta(minutes=90) and made[5].end == made[5].begin
    placed = staged(made, [(at(5), "understanding"), (at(6.5), "exploration")])
    assert [a.stage for a in placed] == ["exploration", "understanding", "understanding", "exploration", "exploration", "exploration"]  # fmt: skip


class Summer(tzinfo):
    """A zone that goes from +02:00 to +01:00 at 3 o'clock: the hour from 2 to 3 is there twice."""

    def utcoffset(self, when):
        late = when.replace(tzinfo=None) >= datetime(2026, 10, 25, 3) or (when.hour == 2 and when.fold)
        return timedelta(hours=1 if late else 2)

    def dst(self, when):
        return self.utcoffset(when) - timedelta(hours=1)

    def tzname(self, when):
        return "summer"


def test_the_end_of_summer_time_does_not_shorten_the_night():
    """From 0 to 4 o'clock by the wall are five hours of that night."""
    zone = Summer()
    begin, end = datetime(2026, 10, 25, tzinfo=zone), datetime(2026, 10, 25, 4, tzinfo=zone)
    night = [Activity(begin, end, "coding")]
    assert "change-approach" in names(end, "", night, project="full", begun=begin)
    assert audit(night, begin, end).total == 5


def test_times_of_other_zones_are_the_same_moments():
    east = timezone(timedelta(hours=9))
    there = [Activity(T0.astimezone(east), at(120).astimezone(east), "coding")]
    assert "change-approach" in names(at(120), "", there) and "change-approach" not in names(
        at(119), "", there
    )


def test_what_was_done_is_written_by_its_kind(tmp_path):
    for minute, kind, what, took in (
        (0, "project-begin", "timed", 0),
        (330, "reading", "papers", 330),
        (340, "zoom-out", "", 0),
    ):
        folder.add(tmp_path, *did_entry(at(minute), kind, what, minutes=took))
    made = of_pages(index(tmp_path))
    assert [(a.kind, a.what) for a in made] == [
        ("project-begin", "timed"),
        ("reading", "papers"),
        ("zoom-out", ""),
    ]
    assert made[1].begin == T0 and made[1].end == at(330)
    found = {t.name for t in due(at(341), "exploration", made, settings_of(made))}
    assert "enough-reading" in found and "zoom-out" not in found


@pytest.mark.parametrize(
    "kind, what, minutes, match",
    [
        ("zoomout", "", 0, "did you mean 'zoom-out'"),
        ("run", "", 0, "records of their own"),
        ("highlight", "x", 0, "records of their own"),
        ("reading", "x", -1, "it took -1 minutes"),
        ("reading", "x", 1441, "it took 1441"),
        ("reading", "x", True, "it took True"),
        ("continue", " ", 0, "the reason for going on is empty"),
        ("project-begin", "huge", 0, "kind of project is 'huge'"),
    ],
)
def test_what_no_timer_would_understand_is_refused(kind, what, minutes, match):
    with pytest.raises(LabError, match=match):
        did_entry(T0, kind, what, minutes=minutes)


def test_no_other_text_stands_for_the_reason_of_going_on(tmp_path):
    (tmp_path / "log").mkdir()
    text = "## 09:00 exploration\n\n- activity: sprint\n\n## 10:00 exploration\n\n- activity: continue\n- goal: x\n\nbecause\n"
    (tmp_path / "log" / "2026-11-02.md").write_text(text)
    made = of_pages(index(tmp_path))
    assert [(a.kind, a.what) for a in made] == [("sprint", ""), ("continue", "")]
    assert "sprint" in names(at(WEEK), "", made)


def test_settings_come_from_the_last_project_that_was_begun():
    begun = [
        did("project-begin", 5, what="mini"),
        did("project-begin", 1, what="full"),
        did("project-begin", 9, what="mini"),
    ]
    made = settings_of(begun, ideas=3)
    assert (made.project, made.begun, made.first_mini, made.ideas) == ("mini", at(9), at(5), 3)
    assert settings_of([]).project == "mini" and settings_of([]).begun is None
    assert settings_of(begun, project="full").project == "full"
    assert settings_of([did("project-begin", 1, what="other")]).begun is None
    with pytest.raises(LabError, match="project of kind 'maxi'"):
        settings_of(begun, project="maxi")


def test_another_project_begins_with_clean_timers_and_an_old_one_can_be_looked_back_at_before():
    old = [
        did("coding", 0, 300),
        did("project-end", 300),
        did("post-mortem", 300, 361),
        did("coding", 361, 400),
    ]
    new = [*old, did("project-begin", 380, what="mini")]
    assert "change-approach" in names(at(400), "", old)
    found = {t.name for t in due(at(400), "", new, settings_of(new))}
    assert not {"change-approach", "post-mortem"} & found
