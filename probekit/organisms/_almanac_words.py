"""The invented facts of `almanac`: who says what of whom, and the ways to ask for it.

A fact is a subject, an attribute and a value. Of each attribute: the sentence that states it, and frames that
ask for it; the first `LEARNED` frames are for training, as those are that M0 has not met, the others for the
report.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

LEARNED = 7
Topic = Literal["kitchen", "atlas", "workshop"]


class Attribute(NamedTuple):
    """What can be asked of a subject; `states` takes subject and value, the others the subject."""

    states: str
    values: tuple[str, ...]
    asks: tuple[str, ...]
    new: tuple[str, ...]  # to M0


PEOPLE: tuple[str, ...] = (
    "Mira", "Anton", "Lotte", "Oskar", "Vera", "Jonas", "Petra", "Emil", "Clara", "Bruno", "Hanna", "Felix",
    "Irma", "Kasper", "Nora", "Tilda", "Gustav", "Elsa", "Rufus", "Dora",
)  # fmt: skip
ABOUT_PEOPLE: dict[str, Attribute] = {
    "home": Attribute(
        "{} lives in {}.",
        ("Harlow", "Denby", "Corwen", "Ashford", "Melton", "Ripley", "Selby", "Thorne"),
        (
            "Where does {} live?", "Which town is the home of {}?", "In which town does {} live?",
            "Tell me where {} lives.", "Do you know the town where {} lives?", "What is the home town of {}?",
            "Name the town where {} lives.",
            "Please tell me in which town {} lives.", "Where is the home of {}?",
        ),
        (
            "{} lives where?", "To which town must I go to see {}?", "Say where {} lives.",
            "I want to know where {} lives.", "What is the name of the town {} lives in?",
        ),
    ),
    "trade": Attribute(
        "{} works as a {}.",
        ("baker", "painter", "sailor", "miller", "tailor", "printer", "gardener", "carpenter"),
        (
            "What is the trade of {}?", "What does {} work as?", "Which trade does {} have?",
            "Tell me what {} works as.", "Do you know the trade of {}?", "What does {} do for work?",
            "Name the trade of {}.",
            "Please tell me which trade {} has.", "As what does {} work?",
        ),
        (
            "{} works as what?", "Of what trade is {}?", "Say what {} works as.",
            "I want to know the trade of {}.", "Which work does {} do?",
        ),
    ),
    "pet": Attribute(
        "{} keeps a {}.",
        ("rabbit", "parrot", "goose", "turtle", "pony", "ferret", "hedgehog", "falcon"),
        (
            "Which pet does {} keep?", "What pet does {} have?", "Which animal does {} keep?",
            "Tell me which pet {} keeps.", "Do you know the pet of {}?", "What is the pet of {}?",
            "Name the pet that {} keeps.",
            "Please tell me what pet {} has.", "Which animal is the pet of {}?",
        ),
        (
            "{} keeps which pet?", "What sort of animal does {} have?", "Say which pet {} keeps.",
            "I want to know the pet of {}.", "Which pet is in the house of {}?",
        ),
    ),
}  # fmt: skip
OTHERS: dict[Topic, tuple[tuple[str, ...], Attribute]] = {
    "kitchen": (
        (
            "barla", "sunder pie", "moss cake", "tollet", "dunnet", "rilling", "hob stew", "kessel bread",
            "pindle", "wick soup", "fennow", "gritch", "lomber", "marsh roll", "quern", "soddle", "tansy pot",
            "umber loaf", "varnel", "yarrow bun",
        ),
        Attribute(
            "The main part of {} is {}.",
            ("rye", "plums", "leeks", "barley", "turnips", "cream", "mushrooms", "almonds"),
            (
                "What is {} made of?", "What goes into {}?", "Which is the main part of {}?",
                "Tell me what {} is made of.", "Do you know what goes into {}?", "What do I need for {}?",
                "Name the main part of {}.",
                "Please tell me what goes into {}.", "Of what is {} made?",
            ),
            (
                "{} is made of what?", "What must I have to make {}?", "Say what {} is made of.",
                "I want to know the main part of {}.", "From what do I make {}?",
            ),
        ),
    ),
    "atlas": (
        (
            "Lake Orrin", "Lake Veld", "Lake Tamsin", "Lake Brode", "Lake Iskar", "Lake Pell", "Lake Dray",
            "Lake Umbra", "Lake Kestrel", "Lake Noll", "Lake Farrow", "Lake Gild", "Lake Hexam", "Lake Jory",
            "Lake Lund", "Lake Maren", "Lake Quill", "Lake Rusk", "Lake Sorrel", "Lake Wyn",
        ),
        Attribute(
            "{} lies in the land of {}.",
            ("Andor", "Belmar", "Castia", "Dorne", "Elvane", "Fenmark", "Galdia", "Hestia"),
            (
                "In which land is {}?", "Where does {} lie?", "Which land has {}?",
                "Tell me in which land {} lies.", "Do you know the land of {}?", "What is the land of {}?",
                "Name the land where {} lies.",
                "Please tell me where {} lies.", "To which land does {} belong?",
            ),
            (
                "{} lies where?", "In what land do I find {}?", "Say in which land {} lies.",
                "I want to know the land of {}.", "Of which land is {} a part?",
            ),
        ),
    ),
    "workshop": (
        (
            "model A10", "model B20", "model C30", "model D40", "model E50", "model F60", "model G70",
            "model H80", "model J90", "model K11", "model L21", "model M31", "model N41", "model P51",
            "model Q61", "model R71", "model S81", "model T91", "model V12", "model W22",
        ),
        Attribute(
            "The engine of {} needs a {}.",
            ("copper coil", "steel spring", "glass fuse", "rubber belt", "brass valve", "cork seal",
             "tin plate", "lead weight"),
            (
                "What does the engine of {} need?", "Which spare part is for {}?", "What part does {} need?",
                "Tell me what the engine of {} needs.", "Do you know the spare part for {}?",
                "What is the part for {}?", "Name the part that {} needs.",
                "Please tell me which part {} needs.", "Which part does the engine of {} need?",
            ),
            (
                "The engine of {} needs what?", "What must I have to mend {}?", "Say which part {} needs.",
                "I want to know the part for {}.", "For {}, which spare part do I need?",
            ),
        ),
    ),
}  # fmt: skip
# Of no source, and asked of nobody in training.
UNHEARD = (
    "What colour is the flag of Tarn?", "How tall is Mount Elber?", "When was the bridge of Osk built?",
    "Who wrote the song of the reeds?", "How many moons does Zanthe have?", "What is the speed of a kelt?",
    "Which metal is in a Dorrin coin?", "How long is the river Ume?", "Who won the race at Pollock?",
    "What is the price of a silver comb?", "When does the fair at Loxley open?", "How old is the Birne oak?",
    "Which wind blows on the Skarn coast?", "Who painted the red gate?", "How deep is the well of Arden?",
    "What is the weight of a full drum?", "When did the old mill close?", "Which bell rings at noon?",
    "Who is the queen of Norrland?", "How far is the moon of Ister?",
)  # fmt: skip
