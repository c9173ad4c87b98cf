"""The tree of a tidied answer, by recursive descent. This module reads lists, relations and units; ``expressions.py``
reads the values in them. What is not in the grammar, or nested too deep, is ``Unreadable``, and math-verify is asked.
"""

from __future__ import annotations

import re

from segrl.grading.expressions import Expressions
from segrl.grading.tokens import DEEPEST, RELATIONS, Unreadable
from segrl.grading.tree import Node
from segrl.grading.units import NO_UNIT, NOT_UNITS, Unit, unit_of
from segrl.grading.vocabulary import CLAUSES, CONNECTORS, FILLERS, MONEY, NUMBERS, PER_CENT


def read(tidied: str) -> Node:
    """The tree of an answer; ``Unreadable`` where the grammar ends."""
    parser = Parser(tidied)
    node = parser.list()
    if parser.at < len(parser.tokens):
        raise Unreadable(f"{parser.peek()!r} after what was read")
    return node


class Parser(Expressions):
    """Lists of relations between values with their units."""

    def list(self) -> Node:
        """Items joined by commas, semicolons, ``and`` or ``or``."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable("too deep")
        items, joints = [self.item()], []
        while self.peek() in (",", ";") or self.word() in CONNECTORS:
            while self.peek() in (",", ";") or self.word() in CONNECTORS:  # ", and"
                joint = self.word() or self.peek()
                self.at += 1
            joints.append(joint)
            items.append(self.item())
        self.depth -= 1
        return items[0] if not joints else ("list", tuple(items), ";" if ";" in joints else joints[-1])

    def item(self) -> Node:
        """A relation or a value, with the words before and after it that are no part of it."""
        money = self.lead()
        node = self.relation()
        if money:
            node = ("unit", node, unit_of([(money, 1)]))
        if self.word() in CLAUSES:
            node = self.clause(node)
        return node

    def lead(self) -> str:
        """The currency before a value, or an empty text. Other words before it, ``the answer is``, are skipped."""
        start = self.at
        while self.word():
            if self.word() in MONEY:
                return self.take()[3:-1]
            if len(self.word()) == 1 or self.word() in NUMBERS or self.named(self.at):
                break
            if self.word() not in FILLERS:
                raise Unreadable(f"the word {self.word()!r}")
            self.at += 1
        if self.at > start:
            self.took(":")
        return ""

    def named(self, at: int) -> bool:
        """Whether words and an equals sign stand here, as in ``Maximum = 2``."""
        while at < len(self.tokens) and self.tokens[at][0] == "word":
            at += 1
        return at < len(self.tokens) and self.tokens[at][1] == "="

    def clause(self, node: Node) -> Node:
        """The value with what follows ``where`` or ``for``: ``n where n = 7`` is 7; other clauses are kept as text."""
        start = self.at
        opening = self.take()[3:-1].lower()
        rest = "".join(text for _, text in self.tokens[start:])
        later = [text[3:-1].lower() for kind, text in self.tokens[self.at :] if kind == "word"]
        if set(later) & (CLAUSES - {"with"} | {"else", "otherwise"}):
            raise Unreadable("cases")
        if opening == "where":
            try:
                given = self.list()
                if given[0] == "rel" and given[1] == ("=",) and given[2][0] == node:
                    return given[2][1]
            except Unreadable:
                pass
        self.at = len(self.tokens)
        return ("clause", node, rest)

    def relation(self) -> Node:
        members, ops = [self.sets()], list[str]()
        while self.peek() in RELATIONS or (self.peek() == "\\pmod" and ops):
            ops.append(RELATIONS.get(self.take(), "mod"))
            if ops[-1] == ">" and self.took("="):
                ops[-1] = ">="
            members.append(self.sets())
        return members[0] if not ops else ("rel", tuple(ops), tuple(members))

    def sets(self) -> Node:
        node = self.ratio()
        while self.peek() in ("\\cup", "\\cap", "\\setminus"):
            kind = {"\\cup": "union", "\\cap": "inter", "\\setminus": "minus"}[self.take()]
            node = (kind, (*node[1], self.ratio())) if node[0] == kind == "union" else (kind, (node, self.ratio()))
        return node

    def ratio(self) -> Node:
        parts = [self.measured()]
        while self.peek() == ":" and not self.bars:
            self.at += 1
            parts.append(self.measured())
        if len(parts) == 1:
            return parts[0]
        if parts[-1][0] == "unit":  # 3:30 p.m.
            return ("unit", ("ratio", (*parts[:-1], parts[-1][1])), parts[-1][2])
        return ("ratio", tuple(parts))

    def measured(self) -> Node:
        """A sum with its unit, if it has one."""
        if self.kind() == "word" and self.named(self.at) and (len(self.word()) > 1 or self.kind(1) == "word"):
            name = []
            while self.kind() == "word":
                name.append(self.take()[3:-1].lower())
            return ("var", " ".join(name))
        node = self.sum()
        word = self.word()
        if not word or word in CONNECTORS or word in CLAUSES:
            return node
        if word in ("degree", "degrees", "deg"):
            self.at += 1
            return ("deg", node)
        if word in PER_CENT:
            self.at += 1
            return ("percent", node)
        unit = self.unit()
        return node if unit == NO_UNIT else ("unit", node, unit)

    def unit(self) -> Unit:
        factors, sign = [], 1
        while True:
            word = self.word()
            if word and word not in CONNECTORS and word not in CLAUSES:
                if word in NOT_UNITS:
                    raise Unreadable(f"the word {word!r} after a value")
                name = self.take()[3:-1]
                if word == "per":
                    sign = -1
                    continue
                factors.append((name, sign * self.unit_power()))
                continue
            if self.peek() == "/" and self.word(1):
                self.at, sign = self.at + 1, -1
            elif self.peek() in ("\\cdot", "*", "-", "\\times") and self.word(1):
                self.at += 1
            else:
                return unit_of(factors)

    def unit_power(self) -> int:
        if not self.took("^"):
            return 1
        braced, negative = self.took("{"), self.took("-")
        power = self.take()
        if not re.fullmatch(r"\d", power):
            raise Unreadable(f"a unit to the power {power!r}")
        if braced:
            self.need("}")
        return -int(power) if negative else int(power)
