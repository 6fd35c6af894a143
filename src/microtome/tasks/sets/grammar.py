"""Tense of a verb and number of a subject: the words around are the same, forms from lemminflect."""

from __future__ import annotations

from functools import lru_cache

from microtome.tasks.sets.base import Dataset, contrasts

__all__ = ["NUMBER", "TENSE"]

_DEEDS = """walk to the station;open the window;cook the dinner;visit the museum;play the piano;paint the fence;climb the hill;watch the match;clean the kitchen;
answer the phone;carry the boxes;finish the book;follow the path;help the children;join the club;kick the ball;learn the song;miss the bus;
move the table;need a holiday;order the soup;pack the bags;plant the roses;repair the bicycle;return the keys;save the money;serve the guests;
start the engine;study the map;talk to the neighbours;taste the cake;touch the wall;travel by train;try the door;use the new tools;
wait for the doctor;wash the car;wear a red coat;win the game;write a long letter;bring the flowers;build a small boat;buy the tickets;
choose the blue one;draw a picture;drive to the coast;eat the apples;find the way;fly to the island;forget the name;give a short speech;
grow tomatoes;hold the rope;keep the secret;know the answer;leave the office early;lose the gloves;make the beds;meet an old friend;
ride a grey horse;ring the bell;run along the river;see the mountains;sell the house;send a parcel;sing in the choir;sleep on the sofa;
speak with the farmer;swim in the lake;take the early train;teach the class;tell the story;think about the plan;throw the stones;wake the baby""".replace(
    "\n", ""
).split(";")
_WHO = (
    "the girl",
    "the teacher",
    "my brother",
    "her aunt",
    "the nurse",
    "our neighbour",
    "the student",
    "the old man",
    "their cousin",
    "the singer",
)
_SAID = (
    "{z} {x}.",
    "I know that {z} {x}.",
    "It seems that {z} {x}.",
    "As far as I can tell, {z} {x}.",
    "They say that {z} {x}.",
    "Of course {z} {x}.",
    "Perhaps {z} {x}.",
    "In the story, {z} {x}.",
    "Everybody knows that {z} {x}.",
    "Here is what happens: {z} {x}.",
    "Without any doubt, {z} {x}.",
    "So it is: {z} {x}.",
)


@lru_cache(maxsize=1)
def _verbs() -> dict[str, tuple[str, str]]:
    from lemminflect import getInflection

    out = {}
    for deed in _DEEDS:
        verb, _, rest = deed.partition(" ")
        out[verb] = tuple(f"{getInflection(verb, tag=tag)[0]} {rest}" for tag in ("VBZ", "VBD"))
    return {k: (a, b) for k, (a, b) in out.items()}


_THINGS = [
    "key",
    "book",
    "dog",
    "teacher",
    "cat",
    "boy",
    "girl",
    "letter",
    "doctor",
    "farmer",
    "friend",
    "student",
    "picture",
    "chair",
    "bottle",
    "horse",
    "bird",
    "car",
    "lawyer",
    "driver",
    "singer",
    "guard",
    "artist",
    "parent",
    "brother",
    "sister",
    "child",
    "woman",
    "man",
    "officer",
    "worker",
    "leader",
    "lamp",
    "window",
    "tree",
    "flower",
    "house",
    "shop",
    "road",
    "bridge",
    "boat",
    "ticket",
    "bag",
    "box",
    "cup",
    "plate",
    "table",
    "spoon",
    "stone",
    "hill",
    "tower",
    "garden",
]
_NEAR = ("key", "cabinet", "wall", "river", "church", "field", "road", "gate", "bench", "station")
_PHRASES = (
    "The {x} near the {z}",
    "We know that the {x} near the {z}",
    "Today the {x} close to the {z}",
    "In our town the {x} by the {z}",
    "Last of all, the {x} behind the {z}",
    "It is said that the {x} beside the {z}",
    "From here the {x} in front of the {z}",
    "For a long time the {x} next to the {z}",
    "As everybody sees, the {x} not far from the {z}",
    "In the photograph the {x} between us and the {z}",
    "She told me that the {x} opposite the {z}",
    "At night the {x} across from the {z}",
)


@lru_cache(maxsize=1)
def _nouns() -> dict[str, tuple[str, str]]:
    return {noun: (noun, _plural(noun)) for noun in _THINGS}


@lru_cache(maxsize=1)
def _distractors() -> tuple[str, ...]:
    """In either number: each stands behind either number of each subject."""
    return tuple(form for noun in _NEAR for form in (noun, _plural(noun)))


def _plural(noun: str) -> str:
    from lemminflect import getInflection

    return str(getInflection(noun, tag="NNS")[0])


TENSE = Dataset(
    "tense",
    "The girl walks to the station. / The girl walked to the station.",
    "whether the verb is in the past tense",
    "phrases written for this dataset, inflected by lemminflect",
    lambda n, seed: contrasts(_verbs(), _WHO, _SAID, n, seed, name="tense"),
    lambda: len(_verbs()) * len(_WHO),
    classes=("present", "past"),
    readable="the verb's ending; each verb form stands in one class only, so that words learned of some verbs say nothing of others",
)
NUMBER = Dataset(
    "number",
    "The key near the cabinets / The keys near the cabinets",
    "whether the subject is plural; the noun that follows it is as often the other number",
    "nouns written for this dataset, inflected by lemminflect",
    lambda n, seed: contrasts(_nouns(), _distractors(), _PHRASES, n, seed, name="number"),
    lambda: len(_nouns()) * len(_distractors()),
    classes=("singular", "plural"),
    readable="the subject's own form; words learned of some nouns say nothing of others",
)
