"""Writes the demo's entailment set: train.tsv, dev.tsv and test.tsv beside this file.

Every hypothesis stands in as many entailed as not entailed pairs, so it alone tells nothing of
the label. The easier half turns on a word of the premise (never, refused, perhaps, none, few).
In the harder half two premises and two hypotheses go crosswise, so that neither text alone tells
anything. The words are those of everyday and of the novels that the shipped base has read.
"""

import argparse
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SEED = 1918
SPLITS = {"train": 42, "dev": 6, "test": 4}
"""Rounds, each over all phenomena."""
ROWS = {1: 6, 2: 4}
"""Rows of a phenomenon in a round, by the number of hypotheses of its cases."""
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
DEEDS = (
    "sell|sold|the house, open|opened|the gate, read|read|the letter, find|found|the ring, "
    "burn|burned|the will, keep|kept|the secret, lose|lost|the key, drink|drank|the wine, "
    "break|broke|the mirror, forgive|forgave|the thief, paint|painted|the boat, "
    "ring|rang|the bell, write|wrote|the story, shut|shut|the window, leave|left|the town, "
    "hide|hid|the money, buy|bought|the farm, mend|mended|the clock, steal|stole|the horse, "
    "mount|mounted|the stairs, climb|climbed|the hill, cross|crossed|the river, "
    "light|lit|the candle, answer|answered|the question, cut|cut|the rope"
).split(", ")
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
GROUPS = (
    "servants sailors children guests soldiers prisoners villagers ladies horses ships boys girls "
    "strangers travellers women letters"
).split()
STATES = (
    "asleep, hungry, in the yard, ready, lost, afraid, silent, near the shore, safe, in the hall, "
    "wet, at home"
).split(", ")
OPPOSITES = "open shut, warm cold, full empty, clean dirty, light dark, wet dry, dead alive".split(
    ", "
)
ROOMS = "box jug cellar room cottage cup barrel cart hall kitchen tent nest basket".split()
DEGREES = (
    "richer poorer, older younger, taller shorter, stronger weaker, happier sadder, wiser duller"
).split(", ")
EVENTS = (
    "wedding storm harvest trial funeral ball battle sermon feast journey fire fair supper duel"
).split()
THINGS = (
    "key ring letter knife candle purse book watch coin glove pipe map pen hat lamp ribbon spoon"
).split()
SPOTS = (
    "on the table, in the drawer, under the bed, by the fire, on the shelf, in the coat, near the "
    "door, behind the clock, on the floor"
).split(", ")


class Case(NamedTuple):
    """Premise k entails hypothesis k and no other; the last premise may entail none.

    Words in braces are drawn once for a case, one of several in [brackets|like these] each time.
    """

    premises: tuple[str, str]
    hypotheses: tuple[str, ...]


# Half of the work: a word of the premise decides. One hypothesis, which only the first entails.
PHENOMENA = {
    "negation": (
        Case(
            (
                "{when}, the {who} {past} {what}",
                "{when}, the {who} [never {past}|did not {do}] {what}",
            ),
            ("the {who} {past} {what}",),
        ),
        Case(
            (
                "the {other} did not know it, but the {who} {past} {what}",
                "the {other} did not know it, but the {who} never {past} {what}",
            ),
            ("the {who} {past} {what}",),
        ),
    ),
    "attempt": (
        Case(
            (
                "the {how} {who} [managed|remembered|dared|hastened] to {do} {what}",
                "the {how} {who} [failed|forgot|refused|declined|hoped|promised] to {do} {what}",
            ),
            ("the {who} {past} {what}",),
        ),
    ),
    "doubt": (
        Case(
            (
                "the {other} [knew|saw|was glad|found out] that the {who} {past} {what}",
                "the {other} [dreamt|denied|doubted|hoped] that the {who} {past} {what}",
            ),
            ("the {who} {past} {what}",),
        ),
    ),
    "quantity": (
        Case(
            (
                "{when}, [all|most|many] of the {group} were {state}",
                "{when}, [none|not one|hardly one] of the {group} was {state}",
            ),
            ("several of the {group} were {state}",),
        ),
    ),
    "number": (
        Case(
            (
                "{when}, [seven|eight|nine|ten|twelve] {group} were {state}",
                "{when}, only [two|three|four] {group} were {state}",
            ),
            ("more than [five|six] {group} were {state}",),
        ),
    ),
    # The other half: each sentence stands with both labels.
    "topic": (
        Case(
            (
                "{when}, the {how} {who} {past} {what} near {here}",
                "{when}, the {how} {other} {past2} {what2} near {there}",
            ),
            ("the {who} {past} {what} near {here}", "the {other} {past2} {what2} near {there}"),
        ),
    ),
    "detail": (
        Case(
            ("{when}, the {how} {who} went to {here}", "{when}, the {how} {who} went to {there}"),
            ("the {who} went to {here}", "the {who} went to {there}"),
        ),
    ),
    "kind": (
        Case(
            ("the {who} bought {one} near {here}", "the {who} bought {one2} near {here}"),
            ("the {who} bought {kind}", "the {who} bought {kind2}"),
        ),
    ),
    "roles": (
        Case(
            ("{when}, the {who} {met} the {other}", "{when}, the {other} {met} the {who}"),
            ("the {who} {met} the {other}", "the {other} {met} the {who}"),
        ),
        Case(
            ("{when}, the {who} {met} the {other}", "{when}, the {other} {met} the {who}"),
            ("the {other} was {met} by the {who}", "the {who} was {met} by the {other}"),
        ),
    ),
    "comparison": (
        Case(
            (
                "{when}, the {who} was {more} than the {other}",
                "{when}, the {who} was {less} than the {other}",
            ),
            ("the {other} was {less} than the {who}", "the {other} was {more} than the {who}"),
        ),
    ),
    "order": (
        Case(
            (
                "the {event} near {here} was before the {event2}",
                "the {event} near {here} was after the {event2}",
            ),
            ("the {event2} was after the {event}", "the {event2} was before the {event}"),
        ),
    ),
    "places": (
        Case(
            (
                "the {thing} lay {spot} and the {thing2} lay {spot2}",
                "the {thing2} lay {spot} and the {thing} lay {spot2}",
            ),
            ("the {thing} was {spot}", "the {thing2} was {spot}"),
        ),
    ),
    "opposites": (
        Case(
            (
                "{when}, the {room} of the {how} {who} was {open}",
                "{when}, the {room} of the {how} {who} was {shut}",
            ),
            ("the {room} of the {who} was not {shut}", "the {room} of the {who} was not {open}"),
        ),
    ),
}


class Dice(random.Random):
    """Draws that need `random()` alone: its sequence is the same in every Python version."""

    def draw(self, items: Iterable[Any], count: int) -> list[Any]:
        """Several different items, in random order."""
        return sorted(items, key=lambda _: self.random())[:count]

    def draw_words(self) -> dict[str, str]:
        """A word for every name in braces."""
        (do, past, what), (_, past2, what2) = (deed.split("|") for deed in self.draw(DEEDS, 2))
        drawn = {
            "who other": self.draw(PEOPLE, 2),
            "here there": self.draw(PLACES, 2),
            "when how met": [*self.draw(TIMES, 1), *self.draw(ADJECTIVES, 1), *self.draw(VERBS, 1)],
            "do past what past2 what2": [do, past, what, past2, what2],
            "kind kind2": (kinds := self.draw(KINDS, 2)),
            "one one2": [self.draw(KINDS[kind].split(", "), 1)[0] for kind in kinds],
            "group state": [*self.draw(GROUPS, 1), *self.draw(STATES, 1)],
            "more less": self.draw(DEGREES, 1)[0].split(),
            "event event2": self.draw(EVENTS, 2),
            "thing thing2": self.draw(THINGS, 2),
            "spot spot2": self.draw(SPOTS, 2),
            "room": self.draw(ROOMS, 1),
            "open shut": self.draw(OPPOSITES, 1)[0].split(),
        }
        return {
            name: word
            for names, words in drawn.items()
            for name, word in zip(names.split(), words, strict=True)
        }

    def say(self, template: str, words: Mapping[str, str]) -> str:
        """A sentence with its words filled in."""
        chosen = re.sub(
            r"\[(.*?)\]", lambda found: self.draw(found.group(1).split("|"), 1)[0], template
        )
        sentence = chosen.format_map(words)
        return f"{sentence[0].upper()}{sentence[1:]}."


def make_splits(seed: int = SEED) -> dict[str, list[tuple[str, ...]]]:
    """The rows of every split; no sentence stands in two cases."""
    dice, seen = Dice(seed), set[str]()
    splits = {}
    for split, rounds in SPLITS.items():
        rows = [
            row for _ in range(rounds) for name in PHENOMENA for row in _draw_rows(dice, name, seen)
        ]
        splits[split] = dice.draw(rows, len(rows))
    return splits


def _draw_rows(dice: Dice, phenomenon: str, seen: set[str]) -> list[tuple[str, ...]]:
    """A round's rows of one phenomenon, of sentences not seen before."""
    rows: list[tuple[str, ...]] = []
    cases = PHENOMENA[phenomenon]
    while len(rows) < ROWS[len(cases[0].hypotheses)]:
        words, (case,) = dice.draw_words(), dice.draw(cases, 1)
        premises, hypotheses = ([dice.say(text, words) for text in texts] for texts in case)
        if seen.isdisjoint(premises + hypotheses):
            seen.update(premises + hypotheses)
            rows += [
                (premise, hypothesis, "entailment" if p == h else "not_entailment", phenomenon)
                for p, premise in enumerate(premises)
                for h, hypothesis in enumerate(hypotheses)
            ]
    return rows


def write_splits(folder: Path) -> None:
    """One TSV per split: a header, and no quotes or escapes."""
    for split, rows in make_splits().items():
        lines = ["\t".join(row) + "\n" for row in (COLUMNS, *rows)]
        (folder / f"{split}.tsv").write_text("".join(lines), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    write_splits(parser.parse_args().folder)
