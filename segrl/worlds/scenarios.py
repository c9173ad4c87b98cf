"""The eight scenarios of the worded world: each a start, turns in any order, and perhaps a trade for dollars.

``fact`` is a clause of the problem, ``says`` a clause of the solution in which ``{eq}`` becomes ``6 * 12 = 72``;
``when`` begins a clause that ends with the new total. ``{A}``, ``{B}`` and ``{C}`` are names, ``{n}`` is a number,
``{x}`` and ``{y}`` are factors.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Product:
    """x times y, such as the pens in some boxes; ``when`` begins the clause that adds them to the total so far."""

    fact: str
    says: str
    when: str = ""


@dataclass(frozen=True)
class Turn:
    """A number that changes the total so far, drawn from ``numbers``; None: from the numbers of its operator."""

    op: str
    fact: str
    when: str
    numbers: tuple[int, int] | None = None


@dataclass(frozen=True)
class Scenario:
    unit: str
    start: Product
    turns: tuple[Turn, ...]
    branch: Product
    ask: str
    trade: Turn  # from units to dollars
    money: tuple[Turn, ...]
    ask_money: str
    extras: tuple[Product, ...]  # distractors that can be computed
    asides: tuple[str, ...]  # distractors of a single number


SCENARIOS = (
    Scenario(
        unit="pens",
        start=Product("{A} packs {x} boxes with {y} pens in each", "the boxes of {A} hold {eq} pens"),
        turns=(
            Turn("+", "{B} brings {n} more pens", "with those that {B} brings"),
            Turn("-", "{n} pens turn out to be dry", "without the dry ones"),
            Turn("+", "the teacher adds {n} pens from a drawer", "with those of the teacher"),
            Turn("*", "a factory then makes the supply {n} times as large", "after the factory", (2, 3)),
        ),
        branch=Product("{C} fills {x} cups with {y} pens in each", "the cups of {C} hold {eq} pens", "cups included"),
        ask="How many pens are there in the end?",
        trade=Turn("*", "each of these pens is sold for {n} dollars", "for the pens", (2, 9)),
        money=(
            Turn("-", "the table at the fair costs {n} dollars", "after the table"),
            Turn("+", "a neighbor adds {n} dollars", "with what the neighbor adds"),
        ),
        ask_money="How many dollars are there in the end?",
        extras=(
            Product(
                "another class has {x} shelves with {y} books on each", "the other class has {eq} books on shelves"
            ),
            Product("the hall has {x} rows of {y} chairs", "the rows in the hall come to {eq} chairs"),
        ),
        asides=("the hall is {n} meters long", "{C} is {n} years old", "the fair is open for {n} days"),
    ),
    Scenario(
        unit="apples",
        start=Product("{A} picks {y} apples from each of {x} trees", "from the trees {A} gets {eq} apples"),
        turns=(
            Turn("-", "{n} apples are eaten by birds", "after the birds"),
            Turn("+", "{B} has {n} apples left from last week", "with the apples of {B}"),
            Turn("-", "{A} gives {n} apples to {C}", "after the gift to {C}"),
            Turn("+", "a farmer leaves {n} apples at the gate", "with those at the gate"),
        ),
        branch=Product("{B} carries {x} sacks of {y} apples", "the sacks of {B} hold {eq} apples", "with the sacks"),
        ask="How many apples are left for the market?",
        trade=Turn("*", "every apple is sold for {n} dollars at a charity market", "for the apples", (2, 6)),
        money=(
            Turn("+", "a guest gives {n} dollars more", "with what the guest gives"),
            Turn("-", "the ride to the market costs {n} dollars", "after the ride"),
        ),
        ask_money="How many dollars does the charity get?",
        extras=(
            Product("the next field has {x} rows of {y} pear trees", "the next field comes to {eq} pear trees"),
            Product("{C} sews {x} bags a day for {y} days", "the sewing of {C} comes to {eq} bags"),
        ),
        asides=("the oldest tree is {n} feet tall", "the walk to the field takes {n} minutes", "{B} is {n} years old"),
    ),
    Scenario(
        unit="kilometers",
        start=Product("{A} rides for {x} hours at {y} kilometers an hour", "in those hours {A} rides {eq} kilometers"),
        turns=(
            Turn("+", "then {A} goes on for {n} kilometers along a river", "with the river"),
            Turn("-", "{n} kilometers of this lie on a ferry and do not count", "without the ferry"),
            Turn("+", "a detour adds {n} kilometers", "with the detour"),
            Turn("+", "on Sunday {B} rides {n} kilometers for the same team", "with Sunday"),
        ),
        branch=Product(
            "{B} rides {x} laps of {y} kilometers for the same team",
            "the laps of {B} come to {eq} kilometers",
            "with the laps",
        ),
        ask="How many kilometers count for the team?",
        trade=Turn("*", "a sponsor pays {n} dollars for each kilometer", "from the sponsor", (2, 9)),
        money=(
            Turn("-", "a new tire costs the team {n} dollars", "after the tire"),
            Turn("+", "the town adds {n} dollars", "with what the town adds"),
        ),
        ask_money="How many dollars does the team have in the end?",
        extras=(
            Product("a bus drives {x} times a day for {y} kilometers", "the bus comes to {eq} kilometers a day"),
            Product("the club owns {x} racks with {y} bikes in each", "the racks of the club hold {eq} bikes"),
        ),
        asides=("the bike weighs {n} kilograms", "{C} waits for {n} minutes", "the team was founded {n} years ago"),
    ),
    Scenario(
        unit="liters",
        start=Product("a pump fills {x} tanks with {y} liters of water each", "the tanks take {eq} liters"),
        turns=(
            Turn("-", "{n} liters leak out at night", "after the leak"),
            Turn("+", "rain brings {n} liters", "with the rain"),
            Turn("-", "{A} waters the garden with {n} liters", "after the garden"),
            Turn("+", "{B} pours in {n} liters from a well", "with the well"),
        ),
        branch=Product("{B} brings {x} barrels of {y} liters", "the barrels hold {eq} liters", "with the barrels"),
        ask="How many liters of water are there in the end?",
        trade=Turn("*", "the village buys all of it for {n} dollars a liter", "from the village", (2, 5)),
        money=(
            Turn("-", "{A} spends {n} dollars on a new pump", "after the new pump"),
            Turn("+", "{C} pays back {n} dollars", "with what {C} pays"),
        ),
        ask_money="How many dollars does {A} have now?",
        extras=(
            Product("a herd of {x} cows gives {y} liters of milk a week each", "the cows give {eq} liters of milk"),
            Product("the fence has {x} parts with {y} boards each", "the parts of the fence have {eq} boards"),
        ),
        asides=("the well is {n} meters deep", "the pump is {n} years old", "the garden has {n} flower beds"),
    ),
    Scenario(
        unit="pages",
        start=Product("{A} reads {y} pages on each of {x} days", "in those days {A} reads {eq} pages"),
        turns=(
            Turn("+", "on the train {A} reads another {n} pages", "with the train"),
            Turn("-", "{n} of these pages hold only pictures and do not count", "without pictures"),
            Turn("+", "{B} reads {n} pages aloud to {A}, which count too", "with those of {B}"),
            Turn("*", "in summer pages count {n} times", "counted for summer", (2, 3)),
        ),
        branch=Product(
            "{A} also reads {x} magazines of {y} pages", "the magazines come to {eq} pages", "magazines included"
        ),
        ask="How many pages count for {A}?",
        trade=Turn("*", "the library gives {n} dollars for each page", "for the pages", (2, 5)),
        money=(
            Turn("-", "{A} pays a fee of {n} dollars", "after the fee"),
            Turn("+", "an aunt adds {n} dollars", "with what the aunt adds"),
        ),
        ask_money="How many dollars does {A} have in the end?",
        extras=(
            Product("the library has {x} rooms with {y} lamps in each", "the rooms of the library have {eq} lamps"),
            Product("{C} writes {x} letters of {y} lines", "the letters of {C} come to {eq} lines"),
        ),
        asides=("the library is {n} years old", "{B} owns {n} books", "the train ride takes {n} minutes"),
    ),
    Scenario(
        unit="rolls",
        start=Product("a bakery bakes {x} trays with {y} rolls on each", "on the trays there are {eq} rolls"),
        turns=(
            Turn("-", "{n} rolls are burnt", "without the burnt ones"),
            Turn("+", "{A} bakes {n} rolls at home and brings them", "with those of {A}"),
            Turn("-", "the school takes {n} rolls as a gift", "after the gift"),
            Turn("+", "a second oven gives {n} rolls", "with the second oven"),
        ),
        branch=Product("{B} brings {x} baskets of {y} rolls", "the baskets of {B} hold {eq} rolls", "baskets included"),
        ask="How many rolls can be sold?",
        trade=Turn("*", "each of these rolls is sold for {n} dollars", "for the rolls", (2, 4)),
        money=(
            Turn("-", "flour costs {n} dollars", "after the flour"),
            Turn("+", "coffee brings in {n} dollars", "with the coffee"),
        ),
        ask_money="How many dollars does the bakery keep?",
        extras=(
            Product("the street has {x} cafes with {y} seats each", "the cafes of the street have {eq} seats"),
            Product("{C} carries {x} crates of {y} bottles", "the crates of {C} hold {eq} bottles"),
        ),
        asides=(
            "the oven is {n} years old",
            "{C} gets up {n} minutes before dawn",
            "the shop window is {n} inches wide",
        ),
    ),
    Scenario(
        unit="bricks",
        start=Product("a truck makes {x} trips with {y} bricks each", "the trips of the truck bring {eq} bricks"),
        turns=(
            Turn("-", "{n} bricks break on the way", "without the broken ones"),
            Turn("+", "{A} finds {n} good bricks behind the house", "with those found"),
            Turn("-", "{n} bricks go into a small oven", "without the oven"),
            Turn("*", "then the order is made {n} times as large", "in the larger order", (2, 3)),
        ),
        branch=Product(
            "{B} delivers {x} pallets of {y} bricks", "the pallets of {B} hold {eq} bricks", "with the pallets"
        ),
        ask="How many bricks are there for the wall?",
        trade=Turn("*", "laying a brick costs {n} dollars", "for laying the bricks", (2, 4)),
        money=(
            Turn("+", "sand costs {n} dollars more", "with the sand"),
            Turn("-", "the mason takes {n} dollars off the bill", "after the discount"),
        ),
        ask_money="How many dollars does the wall cost?",
        extras=(
            Product("the roof has {x} rows of {y} tiles", "the rows on the roof come to {eq} tiles"),
            Product("the fence has {x} parts with {y} boards each", "the parts of the fence have {eq} boards"),
        ),
        asides=("the house has {n} windows", "the truck is {n} feet long", "{C} has worked there for {n} months"),
    ),
    Scenario(
        unit="seats",
        start=Product("a theater sells {x} rows of {y} seats", "the rows come to {eq} seats"),
        turns=(
            Turn("+", "{n} seats on the balcony are sold too", "with the balcony"),
            Turn("-", "{n} of the sold seats are given back", "after the returns"),
            Turn("+", "{A} sells {n} more seats at the door", "with those at the door"),
            Turn("-", "{n} guests stay at home and get their money back", "without them"),
        ),
        branch=Product(
            "{B} sells {x} school classes {y} seats each", "the classes take {eq} seats", "with the classes"
        ),
        ask="How many seats are sold in the end?",
        trade=Turn("*", "a seat costs {n} dollars", "for the seats", (3, 9)),
        money=(
            Turn("-", "the costumes cost {n} dollars", "after the costumes"),
            Turn("+", "programs bring {n} dollars", "with the programs"),
        ),
        ask_money="How many dollars does the theater have in the end?",
        extras=(
            Product("the choir practices {x} songs for {y} minutes each", "the choir practices for {eq} minutes"),
            Product("the garage has {x} floors with {y} places each", "the floors of the garage have {eq} places"),
        ),
        asides=("the play lasts {n} minutes", "{C} has acted for {n} years", "the stage is {n} feet wide"),
    ),
)

NAMES = (
    *("Ada", "Amir", "Anna", "Ben", "Carla", "Chen", "Dana", "Diego", "Elif", "Emma", "Farah", "Finn", "Grace", "Hugo"),
    *("Ines", "Ivan", "Jonas", "Kemal", "Lena", "Leo", "Maya", "Nadia", "Noah", "Omar", "Priya", "Rosa", "Sam", "Tara"),
    *("Umar", "Vera", "Wei", "Yusuf", "Zoe"),
)
