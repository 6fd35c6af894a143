"""True and false statements from short lists written for this purpose: Spanish words, symbols of elements; and what is only likely."""

from __future__ import annotations

from collections.abc import Sequence

from microtome.tasks.sets.base import Dataset, statements

__all__ = ["ELEMENTS", "LIKELY", "SPANISH", "SP_EN_TRANS"]

_PAPER = "in the style of Marks & Tegmark 2023, arXiv 2310.06824; "


def _listed(text: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (a.replace("_", " "), b.replace("_", " "))
        for a, _, b in (pair.partition(":") for pair in text.split())
    )


SPANISH = _listed("""casa:house perro:dog gato:cat libro:book mesa:table silla:chair ventana:window puerta:door calle:street ciudad:city
árbol:tree flor:flower agua:water fuego:fire pan:bread leche:milk queso:cheese huevo:egg carne:meat manzana:apple naranja:orange sal:salt
azúcar:sugar vino:wine mano:hand pie:foot cabeza:head ojo:eye oreja:ear boca:mouth nariz:nose diente:tooth corazón:heart sangre:blood
padre:father madre:mother hermano:brother hermana:sister hijo:son hija:daughter niño:boy niña:girl amigo:friend rey:king reina:queen
día:day noche:night semana:week mes:month año:year mañana:morning sol:sun luna:moon estrella:star cielo:sky mar:sea río:river montaña:mountain
playa:beach isla:island lluvia:rain nieve:snow viento:wind caballo:horse vaca:cow cerdo:pig oveja:sheep pájaro:bird pez:fish ratón:mouse
blanco:white negro:black rojo:red verde:green amarillo:yellow azul:blue grande:large pequeño:small nuevo:new viejo:old bueno:good malo:bad
rico:rich pobre:poor alto:tall corto:short largo:long dulce:sweet frío:cold caliente:hot limpio:clean sucio:dirty feliz:happy triste:sad
comer:eat beber:drink dormir:sleep correr:run caminar:walk nadar:swim leer:read escribir:write hablar:speak escuchar:listen comprar:buy
vender:sell abrir:open cerrar:close cantar:sing bailar:dance jugar:play trabajar:work zapato:shoe camisa:shirt sombrero:hat vestido:dress
reloj:clock llave:key cuchillo:knife cuchara:spoon tenedor:fork plato:plate cama:bed espejo:mirror papel:paper escuela:school iglesia:church
puente:bridge barco:ship avión:plane tren:train coche:car guerra:war paz:peace muerte:death vida:life amor:love odio:hate miedo:fear
dinero:money tiempo:time mundo:world lengua:tongue pueblo:village granja:farm bosque:forest hoja:leaf piedra:stone hierro:iron oro:gold plata:silver""")
_WORD = (
    "The Spanish word '{x}' means '{y}'.",
    "In Spanish, '{x}' is the word for '{y}'.",
    "'{x}' is Spanish for '{y}'.",
    "Translated from Spanish, '{x}' is '{y}'.",
    "A Spanish dictionary gives '{y}' for '{x}'.",
    "The English for the Spanish word '{x}' is '{y}'.",
    "Spanish speakers who say '{x}' mean '{y}'.",
    "The word '{x}', in Spanish, stands for '{y}'.",
    "From Spanish into English, '{x}' becomes '{y}'.",
    "What Spanish calls '{x}', English calls '{y}'.",
    "In a Spanish text, '{x}' has to be read as '{y}'.",
    "Whoever learns Spanish learns that '{x}' means '{y}'.",
)
_SYMBOLS = _listed("""hydrogen:H helium:He lithium:Li beryllium:Be boron:B carbon:C nitrogen:N oxygen:O fluorine:F neon:Ne sodium:Na magnesium:Mg
aluminium:Al silicon:Si phosphorus:P sulfur:S chlorine:Cl argon:Ar potassium:K calcium:Ca scandium:Sc titanium:Ti vanadium:V chromium:Cr
manganese:Mn iron:Fe cobalt:Co nickel:Ni copper:Cu zinc:Zn gallium:Ga germanium:Ge arsenic:As selenium:Se bromine:Br krypton:Kr rubidium:Rb
strontium:Sr yttrium:Y zirconium:Zr niobium:Nb molybdenum:Mo ruthenium:Ru rhodium:Rh palladium:Pd silver:Ag cadmium:Cd indium:In tin:Sn
antimony:Sb tellurium:Te iodine:I xenon:Xe caesium:Cs barium:Ba lanthanum:La cerium:Ce neodymium:Nd samarium:Sm europium:Eu tungsten:W
rhenium:Re osmium:Os iridium:Ir platinum:Pt gold:Au mercury:Hg thallium:Tl lead:Pb bismuth:Bi polonium:Po radon:Rn radium:Ra thorium:Th
uranium:U plutonium:Pu""")
_SYMBOL = (
    "The chemical symbol of {x} is {y}.",
    "In chemistry, {y} stands for {x}.",
    "Chemists write {x} as {y}.",
    "The symbol for {x} is {y}.",
    "{x} has the symbol {y}.",
    "In the periodic table, {x} is marked {y}.",
    "In a formula, {x} is written {y}.",
    "The letters for the element {x} are {y}.",
    "The element {x} is abbreviated {y}.",
    "A chemist who writes {y} means {x}.",
    "As an element, {x} goes by {y}.",
    "On the label of a bottle of {x} one reads {y}.",
)
_DEEDS = _listed("""cut_the_bread_with_a:knife opened_the_lock_with_a:key drove_the_nail_with_a:hammer dug_the_hole_with_a:shovel wrote_the_letter_with_a:pen
swept_the_floor_with_a:broom caught_the_fish_with_a:net cut_the_paper_with_a:pair_of_scissors lit_the_fire_with_a:match dried_the_dishes_with_a:towel
brushed_the_hair_with_a:comb measured_the_table_with_a:ruler painted_the_wall_with_a:brush felled_the_tree_with_a:saw ate_the_soup_with_a:spoon
sewed_the_shirt_with_a:needle covered_the_child_with_a:blanket crossed_the_river_in_a:boat carried_the_water_in_a:bucket flew_across_the_sea_in_a:plane
rode_through_the_field_on_a:horse slept_all_night_in_a:bed read_the_story_in_a:book baked_the_cake_in_a:stove boiled_the_eggs_in_a:pot
kept_the_milk_in_a:fridge sat_down_on_a:chair climbed_to_the_roof_on_a:ladder called_the_doctor_by:phone paid_the_waiter_with_a:banknote
saw_the_stars_through_a:telescope kept_dry_in_the_rain_under_a:roof took_the_photograph_with_a:camera tied_the_parcel_with_a:string
played_the_tune_on_a:piano went_to_work_by:train woke_up_early_by_a:clock washed_the_hands_with_a:bar_of_soap drank_the_coffee_from_a:cup
wore_around_the_neck_a:scarf stuck_on_the_letter_a:stamp bought_the_cheese_in_a:shop milked_in_the_barn_a:cow planted_in_the_garden_a:tree
heard_the_news_on_the:radio found_the_way_with_a:map hid_the_money_in_a:safe chased_the_ball_with_a:dog walked_home_with_a:friend
cleared_the_snow_with_a:plough drew_the_circle_with_a:pair_of_compasses knocked_on_the_window_with_a:finger""")
_WHO = ("The woman {x} {y}.", "My uncle {x} {y}.", "Yesterday our neighbour {x} {y}.", "Somebody {x} {y}.", "The old man {x} {y}.", "A friend of mine {x} {y}.",
        "Last week the teacher {x} {y}.", "They say that she {x} {y}.", "In the film he {x} {y}.", "I remember that Peter {x} {y}.", "Everybody saw that Anna {x} {y}.", "On that day the boy {x} {y}.")  # fmt: skip


def _set(name: str, facts: Sequence[tuple[str, str]], templates: Sequence[str], summary: str, about: str, source: str, classes: tuple[str, str]) -> Dataset:  # fmt: skip
    return Dataset(
        name,
        summary,
        about,
        source,
        lambda n, seed: statements(facts, templates, n, seed, name=name),
        lambda: len(facts),
        classes,
    )


_WRITTEN = "a list written for this dataset"
SP_EN_TRANS = _set(
    "sp_en_trans", SPANISH, _WORD, "The Spanish word 'casa' means 'house'. / ... means 'river'.",
    "whether the translation is right", _PAPER + _WRITTEN, ("false", "true"),
)  # fmt: skip
ELEMENTS = _set(
    "elements", _SYMBOLS, _SYMBOL, "The chemical symbol of gold is Au. / ... is Ne.",
    "whether the statement is true", "names and symbols of the IUPAC; " + _WRITTEN, ("false", "true"),
)  # fmt: skip
LIKELY = _set(
    "likely", _DEEDS, _WHO, "The woman cut the bread with a knife. / ... with a telescope.",
    "whether the last words are likely; nothing is true or false here, so a probe for truth should not tell them apart",
    "a placebo for probes of truth, after `likely` of Marks & Tegmark 2023; " + _WRITTEN, ("unlikely", "likely"),
)  # fmt: skip
