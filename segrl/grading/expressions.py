"""The grammar of one value: sums, products, powers, fractions, roots, functions, brackets and matrices."""

from __future__ import annotations

from segrl.grading.tokens import DEEPEST, RELATIONS, Tokens, Unreadable, literal
from segrl.grading.tree import EMPTY, INFINITY, Node, number, signs
from segrl.grading.vocabulary import ACCENTS, FUNCTIONS, NUMBERS, UNREADABLE, names

CLOSERS = {"(": ")]", "[": ")]", "\\{": "\\}", "{": "}", "\\langle": "\\rangle"}
_NOT_FACTORS = frozenset(
    f"\\{name}"
    for name in names("cup cap setminus pm mp cdot times rfloor rceil rangle circ w pmod end quad langle middle")
)


class Expressions(Tokens):
    """The rules of one value. Brackets may hold more than that: ``parser.py`` defines ``list``."""

    def list(self) -> Node:
        raise NotImplementedError

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable("too deep")
        sign = "+"
        if self.peek() in ("+", "-", "\\pm", "\\mp"):
            sign = self.take()
        terms: list[Node] = []
        while True:
            term = self.term()
            if sign in ("\\pm", "\\mp"):
                terms = [("pm", sign[1:], _added(terms) if terms else None, term)]
            else:
                terms.append(("neg", term) if sign == "-" else term)
            if self.peek() not in ("+", "-", "\\pm", "\\mp"):
                self.depth -= 1
                return _added(terms)
            sign = self.take()

    def term(self) -> Node:
        node = self.factor()
        while True:
            if self.took("\\cdot", "\\times", "*"):
                node = ("mul", (node, self.signed()))
            elif self.took("/"):
                node = ("div", node, self.signed())
            elif self.begins():
                node = ("mul", (node, self.factor()))
            else:
                return node

    def signed(self) -> Node:
        return ("neg", self.factor()) if self.took("-") else self.factor()

    def begins(self) -> bool:
        """Whether another factor follows without a sign of multiplication."""
        token, kind = self.peek(), self.kind()
        if kind in ("num", "sci", "based"):
            if self.kind(-1) in ("num", "sci"):
                raise Unreadable("two numbers side by side")
            return True
        if token == "|":
            return not self.bars
        if kind == "cmd":
            return token[1:].isalpha() and token not in RELATIONS and token not in _NOT_FACTORS
        return kind == "op" and (token in ("(", "{", "[") or token.isalpha())

    def factor(self) -> Node:
        node = self.primary()
        while True:
            if self.took("!"):
                node = ("fact", node)
            elif self.took("\\%", "%"):
                node = ("percent", node)
            elif self.peek() in ("^", "**"):
                self.at += 1
                if self.circle():
                    node = ("deg", node)
                    continue
                node = ("pow", node, self.argument(whole=True))
            else:
                return node

    def circle(self) -> bool:
        r"""The ``\circ`` of ``90^\circ``, taken with its braces."""
        if self.took("\\circ"):
            return True
        if self.peek() == "{" and self.peek(1) == "\\circ" and self.peek(2) == "}":
            self.at += 3
            return True
        return False

    def argument(self, whole: bool = False) -> Node:
        r"""What a command takes: a group or a token; of a number, the first digit alone (``\frac12``)."""
        if self.peek() == "{":
            return self.primary()
        digits = self.peek()
        if self.kind() == "num" and not whole and len(digits) > 1 and digits.isdecimal():
            self.tokens[self.at] = ("num", digits[1:])
            return number(int(digits[0]))
        if whole and self.took("-"):
            return ("neg", self.primary())
        return self.primary()

    def fail(self, token: str) -> Node:
        raise Unreadable(f"{token!r} where a value was due")

    def primary(self) -> Node:
        kind, token = self.kind(), self.take()
        if kind in ("num", "sci"):
            return self.mixed(literal(token))
        if kind == "based":
            digits, base = token.split("_")
            return ("based", digits, int(base.strip("{}")))
        if token in CLOSERS:
            return self.group(token)
        if token == "|":
            return self.bar()
        if kind == "begin" and token.startswith("\\begin"):
            return self.matrix(token)
        if kind == "word":
            return self.word_value(token[3:-1])
        if kind == "cmd":
            return self.command(token)
        if kind == "op" and token.isalpha() and token.isascii():
            return self.variable(token)
        return self.fail(token)

    def word_value(self, word: str) -> Node:
        if word.lower() in NUMBERS:
            return number(NUMBERS[word.lower()])
        return self.variable(word) if len(word) == 1 else self.fail(word)

    def mixed(self, node: Node) -> Node:
        r"""The sum that a mixed number is, as ``2\frac{1}{3}`` and ``2 1/3``."""
        value = node[1]
        if node[2] is not None or value.denominator != 1:
            return node
        if self.peek() == "\\frac":
            start, kept = self.at, list(self.tokens)
            part = self.primary()
            if part[0] == "div" and all(p[0] == "num" and p[2] is None for p in part[1:]) and part[1][1] < part[2][1]:
                return ("add", (node, part))
            self.at, self.tokens = start, kept
        elif self.kind() == "num" and self.peek(1) == "/" and self.kind(2) == "num":
            top, _, bottom = self.take(), self.take(), self.take()
            if top.isdigit() and bottom.isdigit() and int(top) < int(bottom):
                return ("add", (node, ("div", number(int(top)), number(int(bottom)))))
            raise Unreadable("two numbers side by side")
        return node

    def group(self, opening: str) -> Node:
        bars, self.bars = self.bars, 0
        node = self.braces() if opening == "\\{" else self.list()
        closing = self.take()
        self.bars = bars
        if closing not in CLOSERS[opening] or not closing:
            raise Unreadable(f"{opening!r} closed by {closing!r}")
        if opening == "\\{":
            return node
        if opening == "\\langle":
            opening, closing = "(", ")"
        if node[0] != "list" or opening == "{":
            return node
        return ("seq", opening, _listed(node), closing)

    def braces(self) -> Node:
        if self.peek() == "\\}":
            return EMPTY
        self.bars = 1
        node = self.list()
        if self.took("|", ":"):
            self.bars = 0
            return ("builder", node, self.list())
        return ("seq", "{", _listed(node), "}")

    def bar(self) -> Node:
        bars, self.bars = self.bars, 1
        node = self.sum()
        self.need("|")
        self.bars = bars
        return ("abs", node)

    def matrix(self, begin: str) -> Node:
        if "vmatrix" in begin or "Vmatrix" in begin:
            raise Unreadable("a determinant")
        rows: list[list[Node]] = [[]]
        while not self.peek().startswith("\\end"):
            rows[-1].append(self.sum())
            if self.took("\\\\"):
                rows.append([])
            elif not self.took("&") and not self.peek().startswith("\\end"):
                raise Unreadable(f"{self.peek()!r} in a matrix")
        self.at += 1
        return ("matrix", tuple(tuple(row) for row in rows if row))

    def command(self, token: str) -> Node:
        name = token[1:]
        if name in FUNCTIONS and name != "sqrt":
            return self.function(name)
        if name == "frac":
            return ("div", self.argument(), self.argument())
        if name == "binom":
            return ("binom", self.argument(), self.argument())
        if name == "sqrt":
            return self.root()
        if name == "infty":
            return INFINITY
        if name == "emptyset":
            return EMPTY
        if name in ("lfloor", "lceil"):
            inside = self.sum()
            self.need("\\rfloor" if name == "lfloor" else "\\rceil")
            return ("call", "floor" if name == "lfloor" else "ceil", (inside,))
        if name in ACCENTS:
            inside = self.argument()
            return self.variable(f"{name}({inside!r})")
        if name in UNREADABLE or not name.isalpha() or name in _NOT_FACTORS:
            raise Unreadable(f"the command {token!r}")
        return ("const", "pi") if name == "pi" and self.peek() != "_" else self.variable(name)

    def root(self) -> Node:
        order = number(2)
        if self.took("["):
            order = self.sum()
            self.need("]")
        return ("root", order, self.argument(whole=True))

    def variable(self, name: str) -> Node:
        r"""A letter with its subscript and primes; ``f(x)`` is a call."""
        if self.took("_"):
            name += "_" + self.subscript()
        while self.took("'") or (self.peek() == "^" and "'" in self.peek(1) + self.peek(2)):
            if self.tokens[self.at - 1][1] != "'":
                self.at += 2
                while self.took("'"):
                    pass
                self.took("}")
            name += "'"
        if name in ("e", "i") and self.peek() != "(":
            return ("const", name)
        called = name.rstrip("'")[:1] in ("f", "g", "h", "F", "G", "H") and "(" not in name
        if (called or self.defines(name)) and self.took("("):
            inside = self.group("(")
            return ("call", name, inside[2] if inside[0] == "seq" else (inside,))
        return ("const", name) if name in ("e", "i") else ("var", name)

    def subscript(self) -> str:
        """The subscript of a letter, as text."""
        if self.peek() != "{":
            return self.take()
        start, depth = self.at, 0
        while self.at < len(self.tokens):
            token = self.take()
            depth += (token == "{") - (token == "}")
            if not depth:
                break
        return "".join(text for _, text in self.tokens[start : self.at] if text not in "{}")

    def defines(self, name: str) -> bool:
        """Whether ``(t) =`` stands here, or ``(0)`` after a capital: the letter before it is a function's."""
        if self.peek() != "(" or self.peek(2) != ")":
            return False
        return self.peek(3) == "=" or (name[:1].isupper() and self.kind(1) == "num")

    def function(self, name: str) -> Node:
        base, power = None, None
        while self.peek() in ("_", "^"):
            if self.take() == "_":
                base = self.argument(whole=True)
            else:
                power = self.argument(whole=True)
        if self.peek() in ("(", "{"):
            inside = self.primary()
            args = inside[2] if inside[0] == "seq" else inside[1] if inside[0] == "list" else (inside,)
        else:
            args = (self.operand(),)
        if power in (number(-1), ("neg", number(1))) and f"arc{name}" in FUNCTIONS:
            name, power = f"arc{name}", None
        node = ("call", name, args if base is None else (*args, base))
        return node if power is None else ("pow", node, power)

    def operand(self) -> Node:
        r"""What follows a function without brackets: factors up to the next function (``\sin b \cos a``)."""
        node = self.signed()
        while self.begins() and self.peek()[1:] not in FUNCTIONS and self.peek() != "(":
            node = ("mul", (node, self.factor()))
        return node


def _listed(node: Node) -> tuple[Node, ...]:
    """The members of a list; a value with a plus-minus is two of them."""
    items = node[1] if node[0] == "list" else (node,)
    return tuple(value for item in items for value in signs(item))


def _added(terms: list[Node]) -> Node:
    return terms[0] if len(terms) == 1 else ("add", tuple(terms))
