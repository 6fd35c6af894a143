"""Contrasts that steer: sentiment, happiness, formality, language. The wordings were written for these datasets.

Here the words do tell the class, as they must. What is held out is the wording: each stands with one entity, so that words
learned of some say nothing of others, but for what is common to the class (Spanish articles, contractions).
"""

from __future__ import annotations

from microtome.tasks.sets.base import Dataset, Row, contrasts

__all__ = ["FORMALITY", "HAPPINESS", "LANGUAGE", "SENTIMENT", "SENTIMENT_NEGATED"]

_WRITTEN = "wordings written for this dataset"


def _pairs(text: str) -> dict[str, tuple[str, str]]:
    """ "first = second" per line; the first wording names the pair."""
    split = [line.partition(" = ") for line in text.strip().splitlines()]
    return {a.strip(): (a.strip(), b.strip()) for a, _, b in split}


_JUDGED = dict(
    pair.split(":")
    for pair in [
        "bad:good",
        "terrible:wonderful",
        "boring:exciting",
        "awful:excellent",
        "dull:brilliant",
        "poor:superb",
        "dreadful:marvellous",
        "clumsy:graceful",
        "horrible:lovely",
        "weak:strong",
        "stupid:clever",
        "ugly:beautiful",
        "tedious:gripping",
        "mediocre:outstanding",
        "disappointing:impressive",
        "annoying:delightful",
        "lifeless:lively",
        "tasteless:charming",
        "pathetic:magnificent",
        "worthless:precious",
        "shallow:profound",
        "messy:elegant",
        "unpleasant:pleasant",
        "forgettable:memorable",
        "irritating:enjoyable",
        "lousy:great",
        "pointless:meaningful",
        "cheap:splendid",
        "sloppy:masterful",
        "ridiculous:admirable",
        "painful:joyful",
        "hopeless:inspiring",
        "confusing:clear",
        "bland:rich",
        "cold:warm",
        "tiresome:refreshing",
        "inferior:superior",
        "nasty:kind",
        "depressing:uplifting",
        "shabby:glorious",
    ]
)
_THINGS = (
    "film",
    "book",
    "song",
    "play",
    "show",
    "story",
    "concert",
    "painting",
    "speech",
    "novel",
    "dance",
    "poem",
)
_REVIEW = (
    "The {z} was {x}.",
    "I thought that the {z} was {x}.",
    "What a {z}: it was {x}!",
    "We saw the {z} last night, and it was {x}.",
    "Everybody said the {z} was {x}.",
    "If you ask me, the {z} was {x}.",
    "My review of the {z}: it was {x}.",
    "From start to end the {z} was {x}.",
    "To sum up, the {z} was {x}.",
    "She told us that the {z} was {x}.",
    "Most people found that the {z} was {x}.",
    "The {z}, to be honest, was {x}.",
)


def _sentiment(n: int, seed: int) -> list[Row]:
    pairs = {f"{a}/{b}": (a, b) for a, b in _JUDGED.items()}
    return contrasts(pairs, _THINGS, _REVIEW, n, seed, name="sentiment")


def _negated(n: int, seed: int) -> list[Row]:
    pairs = {f"{a}/{b}": (a, b, f"not {a}", f"not {b}") for a, b in _JUDGED.items()}
    return contrasts(pairs, _THINGS, _REVIEW, n, seed, name="sentiment_negated", labels=(0, 1, 1, 0))


_MOODS = _pairs("""
sad = happy
miserable = joyful
gloomy = cheerful
depressed = delighted
heartbroken = overjoyed
unhappy = glad
hopeless = hopeful
terrible = wonderful
dejected = elated
sorrowful = merry
discouraged = thrilled
downcast = jubilant
crushed = ecstatic
weary of life = full of life
bitter = blissful
lonely and lost = loved and safe
grim = radiant
close to tears = close to laughing
low = high in spirits
wretched = marvellous
tearful = smiling
disheartened = encouraged
mournful = playful
bleak inside = sunny inside
let down = lifted up
desperate = content
devastated = enchanted
blue = on top of the world
cheated by life = blessed by life
empty = fulfilled
troubled = carefree
in despair = in bliss
""")
_FEEL = (
    "I feel {x} today.",
    "Right now I am {x}.",
    "This morning I woke up feeling {x}.",
    "When I think about my life, I feel {x}.",
    "After the phone call I was {x}.",
    "My friends say that I look {x}.",
    "All day long I have been {x}.",
    "On my way home I felt {x}.",
)

_FORMAL = _pairs("""
Can you give me a hand with this? = Could you kindly assist me with this matter?
Sorry, I can't make it tonight. = I regret that I am unable to attend this evening.
Thanks a lot for your help! = I am most grateful for your assistance.
Hey, what's up with the order? = I am writing to enquire about the status of the order.
Let me know what you think. = Please advise us of your opinion.
The boss wants to talk to you. = The director wishes to speak with you.
We've got a big problem here. = We are faced with a considerable difficulty.
Don't worry about the money. = Please do not be concerned about the payment.
I'll get back to you soon. = I shall reply to you in due course.
Tell me if you need more stuff. = Please inform me should you require further materials.
They're gonna close the shop. = The premises are to be closed.
He got fired last week. = His employment was terminated last week.
This thing doesn't work. = The device does not function.
You should check out the new place. = You may wish to visit the new establishment.
She's really smart. = She is highly intelligent.
We had loads of fun. = The occasion was most enjoyable.
Gimme a minute. = Please allow me a moment.
That's a dumb idea. = That proposal is ill advised.
I wanna buy a car. = I intend to purchase a vehicle.
The kids are hungry. = The children require a meal.
Just ask him about it. = It is advisable to consult him on the subject.
I think you're wrong. = I respectfully disagree with you.
We're out of time, folks. = Ladies and gentlemen, our time has expired.
Nobody told me anything. = I was not informed of the matter.
What's your name again? = May I ask you to repeat your name?
The food was pretty bad. = The meal was of an inferior quality.
My place is kind of small. = My residence is rather modest in size.
Hang on, I'm almost done. = Please wait, as I have nearly concluded.
He's got tons of money. = He possesses considerable wealth.
It's no big deal. = The matter is of little consequence.
Stop by whenever you like. = You are welcome to visit at your convenience.
I messed up the report. = I made an error in the report.
Guess who showed up late! = It should be noted who arrived late.
We gotta fix this now. = It is necessary to resolve this immediately.
Pick up the phone, will you? = Kindly answer the telephone.
The trip was a blast. = The journey was a great pleasure.
I'm so fed up with this. = I am thoroughly dissatisfied with this.
Check the stuff I sent you. = Please examine the documents that I have sent to you.
Yeah, sounds good to me. = Yes, that arrangement is acceptable to me.
See you around! = I look forward to our next meeting.
""")
_FROM = ("Anna", "Peter", "Maria", "Thomas", "Julia", "Martin", "Laura", "David")
_NOTE = (
    "{z} wrote: {x}",
    "A message from {z}: {x}",
    "{z}: {x}",
    "The note from {z} read: {x}",
    "From {z} came these words: {x}",
    "On the card {z} had put: {x}",
    "Then {z} said: {x}",
    "The last line by {z} was this: {x}",
)

_TONGUES = _pairs("""
The house is on the hill. = La casa está en la colina.
My brother works in a bank. = Mi hermano trabaja en un banco.
We are going to the beach tomorrow. = Mañana vamos a la playa.
I do not know where the keys are. = No sé dónde están las llaves.
She reads a book every night. = Ella lee un libro cada noche.
The children are playing in the garden. = Los niños juegan en el jardín.
How much does this shirt cost? = ¿Cuánto cuesta esta camisa?
It rained the whole week. = Llovió toda la semana.
I want a glass of water. = Quiero un vaso de agua.
The train leaves at eight. = El tren sale a las ocho.
He bought flowers for his mother. = Compró flores para su madre.
They live near the river. = Viven cerca del río.
Today is the first day of school. = Hoy es el primer día de clase.
The soup is too hot. = La sopa está demasiado caliente.
Where did you learn to swim? = ¿Dónde aprendiste a nadar?
Our dog is afraid of cats. = Nuestro perro tiene miedo de los gatos.
Nobody answered the letter. = Nadie contestó la carta.
I have lost my umbrella. = He perdido mi paraguas.
The museum is closed on Mondays. = El museo cierra los lunes.
You can see the stars from here. = Desde aquí se ven las estrellas.
The old man tells good stories. = El viejo cuenta buenas historias.
I would like to buy two tickets. = Me gustaría comprar dos entradas.
The window was open all night. = La ventana estuvo abierta toda la noche.
Winter is very cold in the mountains. = El invierno es muy frío en las montañas.
She speaks three languages. = Ella habla tres idiomas.
We ate bread with cheese. = Comimos pan con queso.
The boat crossed the lake slowly. = El barco cruzó el lago despacio.
Do not forget to close the door. = No olvides cerrar la puerta.
My grandmother was born in a small village. = Mi abuela nació en un pueblo pequeño.
The doctor will come in the afternoon. = El médico vendrá por la tarde.
There is a tree in front of the church. = Hay un árbol delante de la iglesia.
He never drinks coffee. = Nunca bebe café.
The shop sells fruit and vegetables. = La tienda vende frutas y verduras.
We need more time for this work. = Necesitamos más tiempo para este trabajo.
The birds sing in the morning. = Los pájaros cantan por la mañana.
I saw your sister in the market. = Vi a tu hermana en el mercado.
The road to the farm is long. = El camino a la granja es largo.
Put the plates on the table. = Pon los platos en la mesa.
Everybody wants to be happy. = Todos quieren ser felices.
The film was better than the book. = La película fue mejor que el libro.
""")
_SIGNS = ("{x}", '"{x}"', "- {x}", "1. {x}", "> {x}", "* {x}", "({x})", "# {x}")

_ONCE = ("",)
SENTIMENT = Dataset(
    "sentiment",
    "The film was wonderful. / The film was terrible.",
    "whether the judgement is good",
    _WRITTEN,
    _sentiment,
    lambda: len(_JUDGED) * len(_THINGS),
    classes=("negative", "positive"),
    readable="the adjective; each stands in one class only, so that adjectives learned of some pairs say nothing of others",
)
SENTIMENT_NEGATED = Dataset(
    "sentiment_negated",
    "The film was good. / ... bad. / ... not bad. / ... not good.",
    "whether the judgement is good; half of them say so by a denial",
    _WRITTEN,
    _negated,
    lambda: len(_JUDGED) * len(_THINGS),
    classes=("negative", "positive"),
    per=4,
)
HAPPINESS = Dataset(
    "happiness",
    "I feel happy today. / I feel sad today.",
    "whether the speaker is happy; 32 and 32 prompts",
    _WRITTEN,
    lambda n, seed: contrasts(_MOODS, _ONCE, _FEEL, n, seed, name="happiness"),
    lambda: len(_MOODS),
    classes=("sad", "happy"),
    readable="the word of mood; each stands in one class only",
)
FORMALITY = Dataset(
    "formality",
    "Anna wrote: Gimme a minute. / Anna wrote: Please allow me a moment.",
    "whether the wording is formal",
    _WRITTEN,
    lambda n, seed: contrasts(_FORMAL, _FROM, _NOTE, n, seed, name="formality"),
    lambda: len(_FORMAL) * len(_FROM),
    classes=("informal", "formal"),
    readable='contractions, "please", length: formal wordings are longer',
)
LANGUAGE = Dataset(
    "language",
    "The house is on the hill. / La casa está en la colina.",
    "whether the sentence is Spanish",
    _WRITTEN,
    lambda n, seed: contrasts(_TONGUES, _ONCE, _SIGNS, n, seed, name="language"),
    lambda: len(_TONGUES),
    classes=("English", "Spanish"),
    readable="nearly every word: articles, prepositions, accents",
)
