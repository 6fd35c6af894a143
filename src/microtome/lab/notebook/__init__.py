"""The notebook of a project: Markdown files that a person reads and edits without the tool.

    notebook/
      log/2026-11-28.md        one file a day: goal, tried, observed, runs, next
      highlights.md            what was learned, an entry each
      beliefs/NAME.md          a statement, its experiments, and how the confidence in it moved
      decisions/DATE-NAME.md   what, why, alternatives, what would change it; later how it came out
      ideas/NAME.md            ratings/PERSON.md holds the ratings, one file a person
      questions.md goals.md plan.md
      stages/DATE-STAGE.md     a move between stages, with the answers to its questions
      reviews/…  postmortems/…
      limits.yaml              the numbers of `limits.LIMITS` that this project changes

A page is front matter (YAML between two lines ``---``) and text. Entries are appended; what stands in a file is never
rewritten, except between the marks of a computed block. Times are given by the caller: nothing here reads a clock, and
nothing here knows a database: what was run comes in as `timeline.Activity` values.

Stages, numbers and habits are those of N. Nanda's guides to mechanistic-interpretability research
(alignmentforum.org/posts/jP9KDyMkchuv6tHwm and its companions), in our own words.
"""
