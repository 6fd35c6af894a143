"""Beginnings of sentences that any mood can follow: the prompts on which steering is tried when the user gives none.

Written for Microtome; none holds a word of feeling, and each leaves the next word open.
"""

from __future__ import annotations

__all__ = ["OPENINGS"]

OPENINGS = (
    "When I think about my week, I feel",
    "She opened the letter and was",
    "He looked out of the window and felt",
    "Today was a day that made me",
    "My neighbour told me that he is",
    "After the meeting everybody was",
    "The children came home and were",
    "I spoke with my brother, who sounded",
    "The news from the office left her",
    "Looking back at the trip, we were",
    "The teacher read the essay and felt",
    "On the train this morning I was",
    "The guests arrived and seemed",
    "Waiting at the station, he felt",
    "She called her mother and sounded",
    "At the end of the game they were",
    "The old man sat on the bench and was",
    "Writing this page, I am",
    "The driver stopped the car and was",
    "When the phone rang, she felt",
    "Walking through the town made him",
    "My friend wrote to say that she is",
    "The doctor closed the book and seemed",
    "After dinner the family was",
)
