"""Writes the demo's entailment set: train.tsv, dev.tsv and test.tsv beside this file.

Sentences come in squares: two premises, two hypotheses, each premise entailing one of them. So
every sentence stands in as many entailed as not entailed pairs, and neither the hypothesis nor
the premise alone tells anything of the label. The words are those of everyday and of the novels
that the shipped base has read.
"""

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

SEED = 1918
SPLITS = {"train": 500, "dev": 75, "test": 50}
"""Squares; each gives four rows."""
COLUMNS = ("premise", "hypothesis", "label", "phenomenon")

PEOPLE = (
    "captain widow doctor maid judge sailor teacher farmer lawyer baker soldier nurse uncle aunt "
    "painter priest gardener duchess stranger shepherd miller poet merchant governess fisherman"
).split()
PLACES = (
    "the church, the mill, the harbour, the station, the market, the castle, the forest, the inn, "
    "the village, the river, the garden, the school, the bridge, the farm"
).split(", ")
TIMES = (
    "in the morning, at midnight, after the storm, on Sunday, in the spring, that evening, before "
    "the war, at dawn, last winter, on the first day, as everybody knew, to our surprise"
).split(", ")
ADJECTIVES = "old young poor proud tall quiet honest clever weary handsome".split()
DEEDS = [
    tuple(deed.split("|"))
    for deed in (
        "sell|sold|the house, open|opened|the gate, read|read|the letter, find|found|the ring, "
        "burn|burned|the will, keep|kept|the secret, lose|lost|the key, drink|drank|the wine, "
        "break|broke|the mirror, forgive|forgave|the thief, paint|painted|the boat, "
        "ring|rang|the bell, write|wrote|the story, shut|shut|the window, leave|left|the town"
    ).split(", ")
]
VERBS = "thanked followed trusted deceived admired visited scolded saved blamed loved".split()
KINDS = {
    "a flower": "a rose, a lily, a violet, a daisy, a tulip",
    "a bird": "a raven, a swallow, a sparrow, an owl, a thrush",
    "a fish": "a trout, a salmon, a herring, a pike",
    "a tool": "a hammer, a saw, a spade, a chisel",
    "a weapon": "a sword, a pistol, a dagger, a musket",
    "a garment": "a cloak, a bonnet, a shawl, a waistcoat",
    "a jewel": "a ruby, a pearl, a diamond, an emerald",
    "a fruit": "an apple, a pear, a plum, a cherry",
    "an instrument": "a violin, a flute, a harp, a fiddle",
}
GROUPS = "servants sailors children guests soldiers prisoners villagers ladies horses ships".split()
STATES = "asleep, hungry, in the yard, ready, lost, afraid, silent, near the shore, safe".split(
    ", "
)
OPPOSITES = "open shut, warm cold, full empty, clean dirty, light dark, wet dry, dead alive".split(
    ", "
)
THINGS = "box jug cellar room cottage cup barrel cart hall kitchen tent nest basket".split()
DEGREES = (
    "richer poorer, older younger, taller shorter, stronger weaker, happier sadder, wiser duller"
).split(", ")
EVENTS = "wedding storm harvest trial funeral ball battle sermon feast journey fire fair".split()
SMALL_THINGS = (
    "key ring letter knife candle purse book watch coin glove pipe map pen hat lamp ribbon spoon"
).split()
SPOTS = (
    "on the table, in the drawer, under the bed, by the fire, on the shelf, in the coat, near the "
    "door, behind the clock, on the floor"
).split(", ")
NUMBERS = "two three four, five six, seven eight nine ten eleven twelve".split(", ")


class Square(NamedTuple):
    """Premise k entails hypothesis k, and does not entail the other one."""

    premises: tuple[str, str]
    hypotheses: tuple[str, str]


class Dice(random.Random):
    """Draws that need `random()` alone: its sequence is the same in every Python version."""

    def pick(self, items: Sequence[str]) -> str:
        """One of the items."""
        return self.draw(items, 1)[0]

    def draw(self, items: Sequence, count: int) -> list:
        """Several different items, in random order."""
        return sorted(items, key=lambda _: self.random())[:count]


def drop_details(dice: Dice) -> Square:
    """Leaving out an adjective and a time keeps a sentence true; another place does not."""
    who, how, when = dice.pick(PEOPLE), dice.pick(ADJECTIVES), dice.pick(TIMES)
    here, there = dice.draw(PLACES, 2)
    return Square(
        (f"{when}, the {how} {who} went to {here}", f"{when}, the {how} {who} went to {there}"),
        (f"the {who} went to {here}", f"the {who} went to {there}"),
    )


def name_kinds(dice: Dice) -> Square:
    """A rose is a flower."""
    who, place = dice.pick(PEOPLE), dice.pick(PLACES)
    kinds = dice.draw(tuple(KINDS), 2)
    verb = dice.pick(("saw", "found", "bought", "left", "wanted"))
    ones = [dice.pick(KINDS[kind].split(", ")) for kind in kinds]
    premises = [f"the {who} {verb} {one} near {place}" for one in ones]
    return Square(tuple(premises), tuple(f"the {who} {verb} {kind}" for kind in kinds))


def negate(dice: Dice) -> Square:
    """What was done, and what was not."""
    who, when = dice.pick(PEOPLE), dice.pick(TIMES)
    base, past, what = dice.pick(DEEDS)
    no = dice.pick((f"never {past}", f"did not {base}"))
    return Square(
        (f"{when}, the {who} {past} {what}", f"{when}, the {who} {no} {what}"),
        (f"the {who} {past} {what}", f"the {who} did not {base} {what}"),
    )


def imply(dice: Dice) -> Square:
    """Who managed to do a thing did it; who forgot to did not."""
    who, how = dice.pick(PEOPLE), dice.pick(ADJECTIVES)
    base, past, what = dice.pick(DEEDS)
    yes = dice.pick(("managed", "remembered", "dared", "hastened"))
    no = dice.pick(("failed", "forgot", "refused", "declined"))
    return Square(
        (f"the {how} {who} {yes} to {base} {what}", f"the {how} {who} {no} to {base} {what}"),
        (f"the {who} {past} {what}", f"the {who} did not {base} {what}"),
    )


def quantify(dice: Dice) -> Square:
    """All are some, and none are not."""
    group, state, when = dice.pick(GROUPS), dice.pick(STATES), dice.pick(TIMES)
    every = dice.pick(("all", "most", "many"))
    none = dice.pick(("none", "not one"))
    return Square(
        (
            f"{when}, {every} of the {group} were {state}",
            f"{when}, {none} of the {group} was {state}",
        ),
        (f"some of the {group} were {state}", f"no {group} were {state}"),
    )


def count(dice: Dice) -> Square:
    """Three are fewer than five, and nine are more."""
    group, state, when = dice.pick(GROUPS), dice.pick(STATES), dice.pick(TIMES)
    few, bound, many = (dice.pick(numbers.split()) for numbers in NUMBERS)
    return Square(
        (f"{when}, {few} {group} were {state}", f"{when}, {many} {group} were {state}"),
        (f"fewer than {bound} {group} were {state}", f"more than {bound} {group} were {state}"),
    )


def swap_roles(dice: Dice) -> Square:
    """Who did it to whom."""
    one, other = dice.draw(PEOPLE, 2)
    verb, when = dice.pick(VERBS), dice.pick(TIMES)
    hypotheses = (f"the {one} {verb} the {other}", f"the {other} {verb} the {one}")
    if dice.random() < 0.3:
        hypotheses = (
            f"the {other} was {verb} by the {one}", f"the {one} was {verb} by the {other}"
        )  # fmt: skip
    premises = (f"{when}, the {one} {verb} the {other}", f"{when}, the {other} {verb} the {one}")
    return Square(premises, hypotheses)


def compare(dice: Dice) -> Square:
    """Richer is not poorer."""
    one, other = dice.draw(PEOPLE, 2)
    (more, less), when = dice.pick(DEGREES).split(), dice.pick(TIMES)
    return Square(
        (
            f"{when}, the {one} was {more} than the {other}",
            f"{when}, the {one} was {less} than the {other}",
        ),
        (f"the {other} was {less} than the {one}", f"the {other} was {more} than the {one}"),
    )


def order_events(dice: Dice) -> Square:
    """What comes before a thing is followed by it."""
    one, other = dice.draw(EVENTS, 2)
    place = dice.pick(PLACES)
    return Square(
        (
            f"the {one} near {place} was before the {other}",
            f"the {one} near {place} was after the {other}",
        ),
        (f"the {other} was after the {one}", f"the {other} was before the {one}"),
    )


def bind_places(dice: Dice) -> Square:
    """Two things and two places: which is where?"""
    one, other = dice.draw(SMALL_THINGS, 2)
    here, there = dice.draw(SPOTS, 2)
    return Square(
        (
            f"the {one} lay {here} and the {other} lay {there}",
            f"the {other} lay {here} and the {one} lay {there}",
        ),
        (f"the {one} was {here}", f"the {other} was {here}"),
    )


def oppose(dice: Dice) -> Square:
    """What is open is not shut."""
    (one, other), how = dice.pick(OPPOSITES).split(), dice.pick(ADJECTIVES)
    thing, when, who = dice.pick(THINGS), dice.pick(TIMES), dice.pick(PEOPLE)
    return Square(
        (
            f"{when}, the {thing} of the {how} {who} was {one}",
            f"{when}, the {thing} of the {how} {who} was {other}",
        ),
        (f"the {thing} of the {who} was not {other}", f"the {thing} of the {who} was not {one}"),
    )


PHENOMENA: dict[str, Callable[[Dice], Square]] = {
    "details": drop_details,
    "kinds": name_kinds,
    "negation": negate,
    "implication": imply,
    "quantity": quantify,
    "number": count,
    "roles": swap_roles,
    "comparison": compare,
    "order": order_events,
    "places": bind_places,
    "opposites": oppose,
}


def make_splits(seed: int = SEED) -> dict[str, list[tuple[str, ...]]]:
    """The rows of every split; no sentence stands in two squares."""
    dice = Dice(seed)
    squares = _draw_squares(dice)
    splits = {}
    for split, size in SPLITS.items():
        rows = [row for _ in range(size) for row in _lay_out(*next(squares))]
        splits[split] = dice.draw(rows, len(rows))
    return splits


def _draw_squares(dice: Dice) -> Iterator[tuple[str, Square]]:
    """Squares of all phenomena in turn, without end."""
    seen: set[str] = set()
    while True:
        for name, make in PHENOMENA.items():
            square = make(dice)
            while seen & {*square.premises, *square.hypotheses}:
                square = make(dice)
            seen |= {*square.premises, *square.hypotheses}
            yield name, square


def _lay_out(phenomenon: str, square: Square) -> Iterator[tuple[str, ...]]:
    for p, premise in enumerate(square.premises):
        for h, hypothesis in enumerate(square.hypotheses):
            label = "entailment" if p == h else "not_entailment"
            yield _say(premise), _say(hypothesis), label, phenomenon


def _say(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def write_splits(folder: Path) -> None:
    """One TSV per split: a header, and no quotes or escapes."""
    for split, rows in make_splits().items():
        lines = ["\t".join(row) + "\n" for row in (COLUMNS, *rows)]
        (folder / f"{split}.tsv").write_text("".join(lines), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    write_splits(parser.parse_args().folder)
